from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.errors import ConfigError
from certs.vo.explain import explain
from certs.vo.file import parse_policy, read_policy
from certs.vo.policy import ACTIONS, Action, Policy, StudyFacts

TEXT = """
vo = "Test VO"

[groups]
radiology = ["/O=Grid/OU=People/CN=ann", "ae:VIEWER@lf1"]
aes = ["ae:*@lf1"]
study-team = ["/O=Grid/OU=Research/CN=*"]
operators = ["/O=Grid/CN=op"]

[[grant]]
name = "own site"
to = ["radiology"]
roles = ["viewer"]
studies = { site = ["lf1"], modality = ["CT", "MR"] }

[[grant]]
name = "sending"
to = ["aes"]
roles = ["contributor"]

[[grant]]
name = "trial"
to = ["study-team"]
roles = ["researcher"]
studies = { label = ["trial-7"] }

[[grant]]
name = "what was shared"
to = ["anyone"]
actions = ["find", "retrieve"]
studies = { shared = true }

[[grant]]
name = "operation"
to = ["operators"]
roles = ["operator"]

[break_glass]
to = ["radiology"]
minutes = 30
"""
ANN, VIEWER, JOE = "/O=Grid/OU=People/CN=ann", "ae:VIEWER@lf1", "/O=Grid/OU=Research/CN=joe"
POLICY = parse_policy(TEXT)


def may(actor: str, action: Action, study: StudyFacts | None = None, *, policy: Policy = POLICY) -> bool:
    return policy.rights_of(actor).grant_for(action, study) is not None


def ours(**more: frozenset[str]) -> StudyFacts:
    return StudyFacts(sites=frozenset({"lf1"}), modalities=frozenset({"CT", "SR"}), **more)


def test_a_scope_needs_one_value_of_every_kind() -> None:
    assert may(ANN, "find", ours()) and may(VIEWER, "retrieve", ours())
    assert not may(ANN, "find", StudyFacts(sites=frozenset({"lf2"}), modalities=frozenset({"CT"})))
    assert not may(ANN, "find", StudyFacts(sites=frozenset({"lf1"}), modalities=frozenset({"US"})))
    assert not may(ANN, "delete", ours()) and not may(ANN, "audit")


def test_nobody_may_do_anything_that_no_grant_says() -> None:
    nobody = parse_policy('vo = "x"')
    assert not any(may(ANN, action, ours(), policy=nobody) for action in ACTIONS)
    assert not any(may("/O=Grid/CN=stranger", action, ours()) for action in ACTIONS)


def test_a_share_reaches_its_actor_and_group_alone() -> None:
    study = StudyFacts(grantees=frozenset({JOE, "group:aes"}))
    assert may(JOE, "find", study) and may("ae:CT9@lf1", "retrieve", study)
    assert not may(ANN, "find", study) and not may("ae:CT9@lf2", "find", study)
    assert may(JOE, "find", StudyFacts(labels=frozenset({"trial-7"}))) and not may(JOE, "find", ours())


@pytest.mark.parametrize(
    "actor", ["ae:A@lf1@lf2", "ae:A@lf2", "ae:lf1", "/O=Grid/OU=Research/CN=joe/CN=x", "", "ae:@lf1x"]
)
def test_a_star_crosses_no_border(actor: str) -> None:
    rights = POLICY.rights_of(actor)
    assert "aes" not in rights.groups and "study-team" not in rights.groups


def test_a_broken_glass_opens_one_study_for_who_broke_it() -> None:
    elsewhere = StudyFacts(sites=frozenset({"lf2"}), opened_to=frozenset({ANN}))
    assert may(ANN, "break_glass") and may(ANN, "retrieve", elsewhere)
    assert not may(VIEWER, "retrieve", elsewhere) and not may(JOE, "break_glass")
    opened_but_not_in_the_group = StudyFacts(opened_to=frozenset({JOE}))
    assert not may(JOE, "find", opened_but_not_in_the_group)


@given(
    st.frozensets(st.sampled_from(["lf1", "lf2"])),
    st.frozensets(st.sampled_from(["CT", "US"])),
    st.sampled_from(sorted(ACTIONS)),
    st.sampled_from([ANN, VIEWER, JOE, "ae:X@lf1", "/O=Grid/CN=op"]),
)
def test_words_scopes_and_decision_agree(
    sites: frozenset[str], modalities: frozenset[str], action: Action, actor: str
) -> None:
    study = StudyFacts(sites=sites, modalities=modalities)
    rights = POLICY.rights_of(actor)
    answer = explain(POLICY, actor, action, study)
    assert answer.allowed == (rights.grant_for(action, study) is not None) == answer.text.startswith("Yes")
    if action in ("find", "retrieve"):
        assert answer.allowed == any(scope.covers(study, actor, rights.names) for scope in rights.scopes(action))


def test_the_paragraph_says_why() -> None:
    assert explain(POLICY, ANN, "find", ours()).text == (
        f'Yes. {ANN} is in the group radiology; the grant "own site" (role viewer) allows find for '
        "studies of site lf1, modality CT or MR."
    )
    no = explain(POLICY, ANN, "find", StudyFacts(sites=frozenset({"lf2"}))).text
    assert no.startswith("No.") and '"own site" is for studies of site lf1' in no and "has site lf2" in no
    assert "the group operators has it" in explain(POLICY, ANN, "audit", None).text.lower()
    assert "in no group" in explain(POLICY, "/CN=x", "store", None).text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('vo = "x"\n[[grant]]\nname = "g"\nto = ["nobody"]\nroles = ["viewer"]', "'nobody' is no group"),
        ('vo = "x"\n[[grant]]\nname = "g"\nto = ["anyone"]', "name `roles`"),
        ('vo = "x"\n[[grant]]\nname = "g"\nto = ["anyone"]\nroles = ["wiever"]', "roles"),
        ('vo = "x"\n[[grant]]\nname = "g"\nto = ["anyone"]\nroles = ["researcher"]', "for named studies only"),
        ('vo = "x"\n[[grant]]\nname = "g"\nto = ["anyone"]\nroles = ["patient"]', "shared = true"),
        ('vo = "x"\n[groups]\nstaff = ["CT1"]', "neither a DN"),
        ('vo = "x"\n[groups]\nstaff = ["ae:CT1"]', "ae:TITLE@SITE"),
        ('vo = "x"\n[grups]\n', "unknown key 'grups'; did you mean 'groups'"),
        ('vo = "x"\n[break_glass]\nto = ["anyone"]', "no glass at all"),
        ('vo = "x"\n[[grant]]\nname = "g"\nto = ["anyone"]\nroles = ["viewer"]\nstudies = {modality = []}', "modality"),
        ("vo = ", "not valid TOML"),
        ("", "'vo' is missing"),
        ('vo = "' + "x" * 300_000 + '"', "at most 256 KiB"),
    ],
)
def test_mistakes_are_told_where_they_are(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_policy(text)
    assert told in str(refused.value)


def test_twice_the_same_name_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    twice = 'vo = "x"\n' + 2 * '[[grant]]\nname = "g"\nto = ["anyone"]\nroles = ["viewer"]\n'
    with pytest.raises(ConfigError, match="two grants have the name 'g'"):
        parse_policy(twice)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_policy(tmp_path / "policy.toml")


def test_the_policy_of_the_documentation_says_what_its_page_says() -> None:
    page = (Path(__file__).resolve().parents[4] / "docs" / "policy.md").read_text()
    policy = parse_policy(page.split("```toml\n")[1].split("```")[0])
    study = StudyFacts(sites=frozenset({"lf1"}), modalities=frozenset({"MR"}))
    answer = explain(policy, "ae:VIEWER1@lf1", "retrieve", study)
    assert answer.text in " ".join(page.split())
    assert may("ae:CT7@fnb", "store", policy=policy)
    assert not may("/O=Grid/OU=Operation/CN=op", "find", study, policy=policy)
