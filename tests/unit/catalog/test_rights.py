"""What the VO's policy shows of the catalog: against a model of it in Python, on both databases."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest

from catalog.access import Access
from catalog.errors import CatalogForbidden, CatalogRefused, UnknownSubject
from catalog.keys import LEVELS
from catalog.policyservice import PolicyService
from catalog.service import CatalogService
from catalog.store import Store
from catalog.store.search import End
from catalog.trail import Trail
from catalog.wire import (
    BreakGlassRequest,
    LabelRequest,
    Level,
    LocateRequest,
    Match,
    PermitRequest,
    PolicyPut,
    PolicyQuestion,
    Query,
    RegisterBatch,
    RetireRequest,
    Row,
    ShareRequest,
    StorageElement,
)
from certs.peer import GATEWAY, OPERATOR, USER, Peer
from certs.proxyinfo import reading
from certs.vo.policy import StudyFacts
from tests.helpers.catalogrecords import peer_of, record

ANN, BOB, OP = "/O=Test Grid/CN=ann", "/O=Test Grid/CN=bob", "/O=Test Grid/CN=op"
VIEWER, CT9 = "ae:VIEWER@lf1", "ae:CT9@lf1"
POLICY = f"""
vo = "Test VO"
[groups]
readers = ["{ANN}", "{VIEWER}"]
senders = ["ae:*@lf1"]
trial = ["{BOB}"]
operators = ["{OP}"]
[[grant]]
name = "CT and MR of site 1"
to = ["readers"]
roles = ["viewer"]
studies = {{ site = ["lf1"], modality = ["CT", "MR"] }}
[[grant]]
name = "what the clinic sent"
to = ["readers"]
actions = ["find"]
studies = {{ institution = ["Clinic"] }}
[[grant]]
name = "sending"
to = ["senders"]
roles = ["contributor"]
[[grant]]
name = "trial 7"
to = ["trial"]
roles = ["researcher"]
studies = {{ label = ["trial-7"] }}
[[grant]]
name = "shared"
to = ["anyone"]
actions = ["find", "retrieve"]
studies = {{ shared = true }}
[[grant]]
name = "operation"
to = ["operators"]
roles = ["operator"]
[break_glass]
to = ["readers"]
minutes = 5
"""


@dataclass(frozen=True)
class Study:
    uid: str
    patient: str
    site: str
    modalities: tuple[str, ...]
    institution: str | None = None

    def facts(self, **more: frozenset[str]) -> StudyFacts:
        facts = StudyFacts(
            sites=frozenset({self.site}),
            modalities=frozenset(self.modalities),
            institutions=frozenset({self.institution} if self.institution else ()),
        )
        return replace(facts, **more)


STUDIES = tuple(
    Study(f"1.{n}", f"P{n % 5}", site, modalities, institution)
    for n, (site, modalities, institution) in enumerate(
        itertools.product(("lf1", "lf2"), (("CT",), ("US",), ("MR", "US")), (None, "Clinic", "Other"))
    )
)
BY_UID = {study.uid: study for study in STUDIES}


@pytest.fixture
def filled(service: CatalogService) -> CatalogService:
    """Each study has one series, of two instances, per modality."""
    for study in STUDIES:
        records = [
            record(f"{study.uid}.{at}.{n}", study=study.uid, series=f"{study.uid}.{at}", patient_id=study.patient,
                   name=f"NAME^{study.patient}", modality=modality, **_institution(study))
            for at, modality in enumerate(study.modalities) for n in range(2)
        ]  # fmt: skip
        service.register(RegisterBatch(instances=tuple(records), site=study.site))
    return service


def _institution(study: Study) -> dict[str, str]:
    return {"InstitutionName": study.institution} if study.institution else {}


@pytest.fixture
def access(filled: CatalogService) -> Access:
    return filled._access


@pytest.fixture
def rights(store: Store, access: Access) -> PolicyService:
    service = PolicyService(store, access, Trail(None))
    service.put(operator(), PolicyPut(text=POLICY, follows=0))
    return service


def operator() -> Peer:
    return peer_of(OPERATOR, name=OP)


def rows(service: CatalogService, level: Level, actor: str, *matches: Match, keys: Iterable[str]) -> list[Row]:
    caller = peer_of(GATEWAY, acting_for=actor) if actor.startswith("ae:") else peer_of(USER, name=actor)
    found = service.query(Query(level=level, matches=matches, keys=tuple(keys)), caller)
    return [row for row in found if not isinstance(row, End)]


def uids(service: CatalogService, actor: str, *matches: Match) -> set[str]:
    return {str(row["StudyInstanceUID"]) for row in rows(service, "STUDY", actor, *matches, keys=("StudyInstanceUID",))}


def may(access: Access, actor: str, study: Study, **more: frozenset[str]) -> bool:
    return access.answer(actor, "find", study.facts(**more)).allowed


@pytest.mark.parametrize("actor", [ANN, VIEWER])
def test_every_level_shows_exactly_what_the_policy_says(
    filled: CatalogService, access: Access, rights: PolicyService, actor: str
) -> None:
    wanted = [study for study in STUDIES if may(access, actor, study)]
    assert 0 < len(wanted) < len(STUDIES)
    assert uids(filled, actor) == {study.uid for study in wanted}
    series = rows(filled, "SERIES", actor, keys=("StudyInstanceUID",))
    assert len(series) == sum(len(study.modalities) for study in wanted)
    images = rows(filled, "IMAGE", actor, keys=("StudyInstanceUID",))
    assert {str(row["StudyInstanceUID"]) for row in (*series, *images)} == {study.uid for study in wanted}


def test_counts_of_a_patient_are_of_what_may_be_seen(
    filled: CatalogService, access: Access, rights: PolicyService
) -> None:
    counts = ("NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries", "NumberOfPatientRelatedInstances")
    wanted: dict[str, list[int]] = {}
    for study in STUDIES:
        if may(access, ANN, study):
            own = wanted.setdefault(study.patient, [0, 0, 0])
            for n, more in enumerate((1, len(study.modalities), 2 * len(study.modalities))):
                own[n] += more
    for level in LEVELS:
        for row in rows(filled, level, ANN, keys=("PatientID", "InstanceAvailability", *counts)):
            assert [row[name] for name in counts] == wanted[str(row["PatientID"])]
    found = rows(filled, "PATIENT", ANN, keys=("PatientID",))
    assert {str(row["PatientID"]) for row in found} == set(wanted)
    for n in range(8):
        asked = Match(keyword=counts[0], op="eq", values=(str(n),))
        matched = rows(filled, "PATIENT", ANN, asked, keys=("PatientID",))
        assert {str(row["PatientID"]) for row in matched} == {p for p, own in wanted.items() if own[0] == n}


def test_a_patient_is_not_found_by_what_is_hidden(
    filled: CatalogService, access: Access, rights: PolicyService
) -> None:
    for study in STUDIES:
        by_study = Match(keyword="StudyInstanceUID", op="eq", values=(study.uid,))
        by_image = Match(keyword="SOPInstanceUID", op="eq", values=(f"{study.uid}.0.0",))
        for asked in (by_study, by_image):
            assert bool(rows(filled, "PATIENT", ANN, asked, keys=("PatientID",))) == may(access, ANN, study)


def test_locate_gives_what_may_be_retrieved_whatever_is_named(filled: CatalogService, rights: PolicyService) -> None:
    everything = LocateRequest(studies=tuple(BY_UID), purpose="retrieve")
    instances = tuple(f"{uid}.0.0" for uid in BY_UID)
    by_name = [everything, LocateRequest(instances=instances), LocateRequest(series=tuple(f"{u}.0" for u in BY_UID))]
    for request in by_name:
        seen = {one.study_uid for one in filled.locate(request, peer_of(USER, name=ANN))}
        assert seen == {s.uid for s in STUDIES if s.site == "lf1" and {"CT", "MR"} & set(s.modalities)}
        assert {one.study_uid for one in filled.locate(request, peer_of(USER, name=BOB))} == set()
    whole = {one.study_uid for one in filled.locate(everything, peer_of(GATEWAY))}
    assert whole == set(BY_UID), "a gateway's own work is not bounded"
    with pytest.raises(CatalogForbidden, match="only a gateway"):
        filled.locate(everything.model_copy(update={"purpose": "commit"}), peer_of(USER, name=ANN))
    sent = everything.model_copy(update={"purpose": "commit"})
    assert len({one.study_uid for one in filled.locate(sent, peer_of(GATEWAY, acting_for=CT9))}) == len(STUDIES)
    with pytest.raises(CatalogForbidden):
        filled.locate(sent, peer_of(GATEWAY, acting_for="ae:CT9@lf2"))


def test_labels_and_shares_open_and_close(filled: CatalogService, rights: PolicyService) -> None:
    op = operator()
    assert uids(filled, BOB) == uids(filled, CT9) == set()
    assert rights.label(op, LabelRequest(study_uid="1.17", add=("trial-7", "x"))).labels == ("trial-7", "x")
    made = rights.share(op, ShareRequest(study_uid="1.16", grantee=BOB))
    rights.share(op, ShareRequest(study_uid="1.15", grantee="group:senders"))
    assert uids(filled, BOB) == {"1.17", "1.16"} and uids(filled, CT9) == {"1.15"}
    rights.unshare(op, made.id)
    assert rights.label(op, LabelRequest(study_uid="1.17", remove=("trial-7",))).labels == ("x",)
    assert uids(filled, BOB) == set()
    with pytest.raises(CatalogForbidden):
        rights.share(peer_of(USER, name=ANN), ShareRequest(study_uid="1.0", grantee=ANN))
    with pytest.raises(UnknownSubject):
        rights.share(op, ShareRequest(study_uid="9.9", grantee=ANN))
    with pytest.raises(CatalogForbidden):
        rights.share(peer_of(USER, name=ANN), ShareRequest(study_uid="9.9", grantee=ANN))


def test_labels_outlast_a_study_that_is_filed_anew(filled: CatalogService, store: Store, rights: PolicyService) -> None:
    """A conflict settled the other way, and reindexing, take instances out and file them again."""
    rights.label(operator(), LabelRequest(study_uid="1.17", add=("trial-7",)))
    again = record("1.17.0.0", study="1.17", series="1.17.0", patient_id="P2", modality="MR", content=b"other")
    [result] = filled.register(RegisterBatch(instances=(again,), site="lf2")).results
    assert result.conflict_id is not None
    store.resolve(result.conflict_id, "replace", actor="op")
    list(store.reindex())
    assert uids(filled, BOB) == {"1.17"}


def test_a_broken_glass_opens_one_study_for_a_while(
    filled: CatalogService, store: Store, rights: PolicyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = peer_of(USER, name=ANN)
    before = uids(filled, ANN)
    request = BreakGlassRequest(study_uid="1.16", reason="unconscious patient in A&E", also=VIEWER)
    opened = rights.break_glass(ann, request)
    assert uids(filled, ANN) == uids(filled, VIEWER) == before | {"1.16"}
    assert len(opened) == 2 and opened[0].made_by == ANN
    assert [one.reason for one in rights.shares(operator(), None)] == 2 * ["unconscious patient in A&E"]
    for wrong in (peer_of(USER, name=BOB), operator()):
        with pytest.raises(CatalogForbidden):
            rights.break_glass(wrong, request)
    with pytest.raises(CatalogForbidden, match="no group of yours"):
        rights.break_glass(ann, request.model_copy(update={"also": "ae:X@lf9"}))
    monkeypatch.setattr("catalog.store.store._now", lambda: (int(opened[0].until.timestamp()) + 1) * 10**6)
    assert uids(filled, ANN) == before


def test_a_proxy_for_named_studies_sees_those_of_its_owner(filled: CatalogService, rights: PolicyService) -> None:
    ann = replace(peer_of(USER, name=ANN), proxied=True, proxy_policy=reading(frozenset({"1.0", "1.17"})))
    found = filled.query(Query(level="STUDY", keys=("StudyInstanceUID",)), ann)
    assert [row["StudyInstanceUID"] for row in found if not isinstance(row, End)] == ["1.0"]
    assert {one.study_uid for one in filled.locate(LocateRequest(studies=tuple(BY_UID)), ann)} == {"1.0"}


def test_a_proxy_for_named_studies_of_a_gateway_is_bounded_all_the_same(
    filled: CatalogService, store: Store, rights: PolicyService
) -> None:
    store.put_storage_element(StorageElement(name="se1", site="lf1"))
    lent = replace(peer_of(GATEWAY), proxied=True, proxy_policy=reading(frozenset({"1.0"})))
    everything = LocateRequest(studies=tuple(BY_UID))
    assert {one.study_uid for one in filled.locate(everything, lent)} == {"1.0"}
    with pytest.raises(CatalogForbidden):
        filled.locate(everything.model_copy(update={"purpose": "commit"}), lent)
    key = {uid: next(iter(store.locate(LocateRequest(studies=(uid,))))).object.object_key for uid in ("1.0", "1.17")}
    for uid, dn in (("1.17", str(lent.dn)), ("1.0", BOB)):
        with pytest.raises(CatalogForbidden):
            filled.permit(PermitRequest(dn=dn, se="se1", keys=(key[uid],), verbs=("read",)), lent)
    with pytest.raises(CatalogRefused, match="may not have write"):
        filled.permit(PermitRequest(dn=str(lent.dn), se="se1", keys=(key["1.0"],), verbs=("write",)), lent)


def test_the_change_feed_is_for_services_and_for_who_may_audit(filled: CatalogService, rights: PolicyService) -> None:
    assert filled.changes(peer_of(GATEWAY), after=0, limit=1) and filled.changes(operator(), after=0, limit=1)
    with pytest.raises(CatalogForbidden):
        filled.changes(peer_of(OPERATOR, name=BOB), after=0, limit=1)


def test_permits_are_for_what_may_be_retrieved(filled: CatalogService, store: Store, rights: PolicyService) -> None:
    store.put_storage_element(StorageElement(name="se1", site="lf1"))
    key = {uid: next(iter(store.locate(LocateRequest(studies=(uid,))))).object.object_key for uid in ("1.0", "1.17")}
    for uid, caller, dn in (("1.17", ANN, ANN), ("1.0", BOB, BOB), ("1.0", ANN, BOB)):
        wanted = PermitRequest(dn=dn, se="se1", keys=(key[uid],), verbs=("read",))
        with pytest.raises(CatalogForbidden):
            filled.permit(wanted, peer_of(USER, name=caller))
    with pytest.raises(CatalogRefused, match="may not have write"):
        wanted = PermitRequest(dn=ANN, se="se1", keys=(key["1.0"],), verbs=("write",))
        filled.permit(wanted, peer_of(USER, name=ANN))


def test_nothing_is_deleted_unless_all_may_be(filled: CatalogService, store: Store, rights: PolicyService) -> None:
    bounded = POLICY.replace('roles = ["operator"]', 'roles = ["operator"]\nstudies = { site = ["lf1"] }')
    rights.put(operator(), PolicyPut(text=bounded))
    before = store.instance_count()
    with pytest.raises(CatalogForbidden, match="1 of the instances"):
        filled.retire(RetireRequest(instances=("1.0.0.0", "1.17.0.0", "no.such")), operator())
    assert store.instance_count() == before
    assert filled.retire(RetireRequest(instances=("1.0.0.0", "no.such")), operator()).retired == 1


def test_without_a_policy_roles_decide_alone(filled: CatalogService, access: Access, store: Store) -> None:
    assert len(uids(filled, VIEWER)) == len(STUDIES)
    with pytest.raises(CatalogForbidden, match="none is in force"):
        uids(filled, ANN)
    assert "no policy is in force" in access.check()
    closed = Access(store, required=True)
    with pytest.raises(CatalogForbidden):
        closed.view(peer_of(GATEWAY, acting_for=VIEWER), "find")
    assert closed.view(peer_of(GATEWAY), "find") is None
    PolicyService(store, closed, Trail(None)).put(operator(), PolicyPut(text=POLICY, follows=0))
    assert closed.view(peer_of(GATEWAY, acting_for=VIEWER), "find") is not None


def test_versions_follow_each_other(store: Store, access: Access, rights: PolicyService) -> None:
    op = operator()
    assert rights.put(op, PolicyPut(text=POLICY)).version == 1, "the same again is no new version"
    changed = POLICY.replace("Test VO", "Renamed")
    with pytest.raises(CatalogRefused, match="version 1, not 0"):
        rights.put(op, PolicyPut(text=changed, follows=0))
    with pytest.raises(CatalogRefused, match="could not change it again"):
        rights.put(op, PolicyPut(text='vo = "x"'))
    with pytest.raises(CatalogRefused, match="did you mean"):
        rights.put(op, PolicyPut(text="vvo = 1"))
    with pytest.raises(CatalogForbidden):
        rights.put(peer_of(OPERATOR, name=BOB), PolicyPut(text=changed))
    assert rights.put(op, PolicyPut(text=changed, follows=1)).version == 2
    assert [one.version for one in rights.versions(op)] == [2, 1]
    assert rights.read(1).text == POLICY and "Renamed" in access.check()


def test_questions_are_answered_in_a_paragraph(rights: PolicyService) -> None:
    yes = rights.check(operator(), PolicyQuestion(actor=ANN, action="retrieve", study_uid="1.0"))
    no = rights.check(operator(), PolicyQuestion(actor=ANN, action="retrieve", study_uid="1.17"))
    assert (yes.allowed, yes.grant, no.allowed) == (True, "CT and MR of site 1", False)
    assert "has site lf2; modality MR, US; institution Other" in no.text
    ann = peer_of(USER, name=ANN)
    assert rights.check(ann, PolicyQuestion(actor=ANN, action="find")).allowed
    of_others, of_a_study = PolicyQuestion(actor=BOB, action="find"), PolicyQuestion(
        actor=ANN, action="find", study_uid="1.1")
    for question in (of_others, of_a_study):
        with pytest.raises(CatalogForbidden):
            rights.check(ann, question)
    with pytest.raises(UnknownSubject, match="no such action"):
        rights.check(operator(), PolicyQuestion(actor=ANN, action="fly"))
