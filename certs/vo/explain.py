"""Why an actor may or may not do something, in one paragraph for whoever asks. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from certs.vo.policy import OF_STUDIES, Action, Grant, Policy, Scope, StudyFacts


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether it is allowed, by which grant, and the paragraph that says why."""

    allowed: bool
    grant: str | None
    text: str


def explain(policy: Policy, actor: str, action: Action, study: StudyFacts | None) -> Answer:
    """Decide one question and say why.

    ``study`` None asks about what is done with the grid, or whether an action with studies is ever allowed.
    """
    rights = policy.rights_of(actor)
    if rights.groups:
        who = f"{actor} is in {_listed('the group', rights.groups)}"
    else:
        who = f"{actor} is in no group of the policy of {policy.vo}"
    found = rights.grant_for(action, study)
    if found is not None:
        reach = f" for {describe(found.scope)}" if action in OF_STUDIES else ""
        by = f" (role {', '.join(found.roles)})" if found.roles else ""
        return Answer(True, found.name, f"Yes. {who}; the grant \"{found.name}\"{by} allows {action}{reach}.")
    missed = [grant for grant in rights.grants if action in grant.actions]
    if missed:
        lack = "; ".join(f"\"{grant.name}\" is for {describe(grant.scope)}" for grant in missed)
        text = f"No. {who}. Its grants of {action} do not cover this study, which {_has(study)}: {lack}."
        return Answer(False, None, text)
    others = [grant for grant in policy.grants if action in grant.actions]
    return Answer(False, None, f"No. {who}, and no grant gives it {action}. {_who_has(action, others)}")


def describe(scope: Scope) -> str:
    """Say which studies a scope is, as the end of a sentence."""
    if scope.everything:
        return "every study"
    parts = [f"{kind} {' or '.join(sorted(values))}" for kind, values in scope.values.items()]
    ends = ["shared with it"] if scope.shared else []
    ends += ["opened by breaking the glass"] if scope.opened else []
    named = f"studies of {', '.join(parts)}" if parts else "studies"
    return " ".join([named, *ends])


def _has(study: StudyFacts | None) -> str:
    if study is None:
        return "is none in particular"
    parts = [
        f"{kind} {', '.join(sorted(values))}"
        for kind, values in (
            ("site", study.sites),
            ("modality", study.modalities),
            ("institution", study.institutions),
            ("label", study.labels),
        )
        if values
    ]
    shared = "is shared with others only" if study.grantees else "is shared with nobody"
    return f"has {'; '.join(parts)} and {shared}" if parts else shared


def _who_has(action: Action, grants: list[Grant]) -> str:
    if not grants:
        return f"Nobody has {action}: add a [[grant]] for it."
    held = _listed("the group", frozenset(name for grant in grants for name in grant.to))
    return f"{held[0].upper()}{held[1:]} {'have' if held.startswith('the groups') else 'has'} it."


def _listed(noun: str, names: frozenset[str]) -> str:
    return f"{noun if len(names) == 1 else noun + 's'} {', '.join(sorted(names))}"
