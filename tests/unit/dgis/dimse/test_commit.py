"""Storage commitment as SCP: a real requester on one side, a catalog in memory on the other."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom.sop_class import StorageCommitmentPushModel

from dgis.commit_store import CommitmentStore
from dgis.commitment import transaction_key
from dgis.dimse.serve import serve_dimse
from dgis.dimse.services import Services
from tests.helpers.objects import CT
from tests.helpers.spooling import store
from tests.unit.dgis.dimse.commitnode import MR, WELL_KNOWN, Node, Told, information, request, until
from tests.unit.dgis.dimse.conftest import SETTINGS
from tests.unit.dgis.dimse.doubles import IngestDouble, RetrieveDouble, SearchDouble

# --- what is committed -----------------------------------------------------------------------------------------------


def test_committed_with_k_verified_copies_and_reported_on_a_new_association(node: Node) -> None:
    modality = node.requester()
    references = [node.knows("1.2.3.1"), node.knows("1.2.3.2", sop_class=MR)]
    transaction = modality.ask(*references)
    assert modality.hears() == Told(1, transaction, references, {}, "DGIS", same=False)
    until(lambda: [one.state for one in node.store.closed()] == ["reported"])
    modality.hears_nothing()  # once is enough
    assert node.store.open() == []
    assert node.count("dgis_commitment_instances_total", outcome="committed") == 2
    assert node.count("dgis_commitment_reports_total", outcome="taken") == 1


def test_the_transaction_is_held_until_the_copies_are_there(node: Node) -> None:
    modality = node.requester()
    ready, late = node.knows("1.2.3.1"), node.knows("1.2.3.2", copies=1)
    modality.ask(ready, late)
    modality.hears_nothing()
    until(lambda: node.committer.shown.pending == 1)
    node.knows("1.2.3.2", copies=2)
    assert modality.hears().committed == [ready, late]


def test_each_failure_has_its_reason(node: Node) -> None:
    modality = node.requester()
    good, conflicting = node.knows("1.2.3.1"), node.knows("1.2.3.4")
    node.knows("1.2.3.3", sop_class=MR)
    node.contest("1.2.3.4", "CT1")
    modality.ask(good, (CT, "1.2.3.2"), (CT, "1.2.3.3"), conflicting)
    told = modality.hears()
    assert (told.event, told.committed) == (2, [good])
    assert told.failed == {"1.2.3.2": 0x0112, "1.2.3.3": 0x0119, "1.2.3.4": 0x0110}
    assert node.count("dgis_commitment_instances_total", outcome="0112") == 1


def test_a_conflict_of_another_sender_does_not_harm_and_one_of_syntax_does(node: Node) -> None:
    modality = node.requester()
    others, mine = node.knows("1.2.3.1"), node.knows("1.2.3.2")
    node.contest("1.2.3.1", "OTHER")
    node.contest("1.2.3.2", "CT1", kind="syntax")
    modality.ask(others, mine)
    told = modality.hears()
    assert (told.committed, told.failed) == ([others], {"1.2.3.2": 0x0110})


def test_an_unknown_instance_may_still_come_for_a_moment(make_node: Callable[..., Node]) -> None:
    node = make_node(grace=5.0)
    modality = node.requester()
    modality.ask((CT, "1.2.3.1"))
    modality.hears_nothing()
    reference = node.knows("1.2.3.1")
    assert modality.hears().committed == [reference]


def test_what_lies_unregistered_in_the_inbox_is_pending(node: Node) -> None:
    """Also when the catalog knows k copies under that UID: the inbox may hold another content from this sender."""
    entry = store(node.spool, "1.2.3.1", sender="CT1")
    modality = node.requester()
    reference = node.knows("1.2.3.1")
    modality.ask(reference, (CT, "1.2.3.2"))
    modality.hears_nothing()
    node.contest("1.2.3.1", "CT1")  # the worker registers it: it was another content
    node.spool.discard(entry)
    assert modality.hears().failed == {"1.2.3.1": 0x0110, "1.2.3.2": 0x0112}


def test_time_is_up_at_the_commit_timeout(make_node: Callable[..., Node]) -> None:
    node = make_node(timeout=1.5)
    modality = node.requester()
    good = node.knows("1.2.3.1")
    node.knows("1.2.3.2", copies=1)
    store(node.spool, "1.2.3.3")
    modality.ask(good, (CT, "1.2.3.2"), (CT, "1.2.3.3"))
    told = modality.hears()
    assert (told.event, told.committed) == (2, [good])
    assert told.failed == {"1.2.3.2": 0x0213, "1.2.3.3": 0x0110}


def test_a_catalog_that_is_down_decides_nothing_until_time_is_up(make_node: Callable[..., Node]) -> None:
    node = make_node(timeout=4.0)
    modality = node.requester()
    reference = node.knows("1.2.3.1")
    node.catalog.down = True
    modality.ask(reference)
    modality.hears_nothing()
    node.catalog.down = False
    assert modality.hears().committed == [reference]
    node.catalog.down = True
    modality.ask(reference)
    assert modality.hears().failed == {"1.2.3.1": 0x0110}
    assert any("CatalogUnavailable" in error.text for error in node.errors.all())


def test_a_thousand_instances_in_one_transaction(node: Node) -> None:
    modality = node.requester()
    references = [node.knows(f"1.2.3.{n}", copies=0 if n % 10 == 0 else 2) for n in range(1, 1001)]
    locates = node.catalog.locates
    modality.ask(*references)
    modality.hears_nothing()
    assert node.catalog.locates - locates <= 16, "one question a look, and ever fewer looks"
    for n in range(10, 1001, 10):
        node.knows(f"1.2.3.{n}")
    told = modality.hears()
    assert (told.event, told.committed, told.failed) == (1, references, {})


def test_many_small_transactions_share_questions_and_associations(node: Node) -> None:
    modality = node.requester()
    references = [node.knows(f"1.2.3.{n}") for n in range(1, 41)]
    with modality.association() as association:
        for reference in references:
            assert request(association, information(generate_uid(), [reference])) == 0
    told = [modality.hears() for _ in references]
    assert sorted(one.committed[0][1] for one in told) == sorted(uid for _, uid in references)
    assert node.catalog.locates < 30


# --- the request -----------------------------------------------------------------------------------------------------


def test_the_right_is_needed(make_node: Callable[..., Node]) -> None:
    node = make_node(start=False)
    node.rights = ("echo", "store", "find")
    node.start()
    modality = node.requester()
    with modality.association() as association:
        assert request(association, information("1.2.3", [(CT, "1.2.3.1")])) == 0x0124
    assert node.store.open() == []


def test_out_of_place_requests_are_refused_by_their_own_status(node: Node) -> None:
    modality = node.requester()
    good = information("1.2.3", [(CT, "1.2.3.1")])
    bad_uid = information("1.2.3", [(CT, "1.2.3.1")])
    del bad_uid.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    untitled = information("1.2.3", [(CT, "1.2.3.1")])
    del untitled.TransactionUID
    nested = Dataset()
    nested.TransactionUID, nested.PatientName = "1.2.3", "X"
    with modality.association() as association:
        assert request(association, good, action=2) == 0x0123
        assert request(association, good, instance="1.2.3.4") == 0x0112
        assert request(association, None) == 0x0115
        assert request(association, information("1.2.3", [])) == 0x0115
        assert request(association, bad_uid) == 0x0115
        assert request(association, untitled) == 0x0115
        assert request(association, nested) == 0x0115
        status, _ = association.send_n_get([], StorageCommitmentPushModel, WELL_KNOWN)
        assert status.Status == 0x0211
        assert node.store.open() == []
        assert request(association, good) == 0x0000


def test_the_same_transaction_again(node: Node) -> None:
    modality = node.requester()
    held, other = node.knows("1.2.3.1", copies=1), node.knows("1.2.3.2")
    transaction = modality.ask(held)
    assert modality.ask(held, transaction=transaction) == transaction  # nobody minds a repetition
    with modality.association() as association:
        assert request(association, information(transaction, [other])) == 0x0110
    second = node.requester("CT2")
    second.ask(other, transaction=transaction)  # another AE's transactions are its own
    assert second.hears().committed == [other]
    node.knows("1.2.3.1")
    assert modality.hears().committed == [held]
    modality.hears_nothing()
    modality.ask(held, transaction=transaction)  # after its end it is a new one
    assert modality.hears().committed == [held]


def test_open_transactions_are_bounded(tmp_path: Path, node: Node) -> None:
    node.stop("receiver")
    node.catalog.down = True
    modality = node.requester()
    narrow = CommitmentStore(node.spool.root, limit=4, per_ae=2)
    services = Services(IngestDouble(tmp_path / "s"), SearchDouble(), RetrieveDouble(), node.table, commitment=narrow)
    listener = socket.create_server(("127.0.0.1", node.port))
    stop = threading.Event()
    thread = threading.Thread(target=serve_dimse, args=(listener, SETTINGS, services, stop))
    thread.start()
    with modality.association() as association:
        answers = [request(association, information(f"1.2.{n}", [(CT, "1.2.3.1")])) for n in range(3)]
    with node.requester("CT2").association() as association:
        answers += [request(association, information("1.2.1", [(CT, "1.2.3.1")]))]
    with node.requester("CT3").association() as association:
        answers += [request(association, information(f"1.2.{n}", [(CT, "1.2.3.1")])) for n in range(2)]
    stop.set()
    thread.join(10)
    listener.close()
    assert answers == [0x0000, 0x0000, 0x0213, 0x0000, 0x0000, 0x0213]


# --- the report ------------------------------------------------------------------------------------------------------


def test_on_the_same_association_while_it_is_open(make_node: Callable[..., Node]) -> None:
    node = make_node(report="same_then_new")
    modality = node.requester()
    first, second = node.knows("1.2.3.1"), node.knows("1.2.3.2")
    with modality.association() as association:
        assert request(association, information("1.2.10", [first])) == 0
        told = modality.hears()
        assert (told.same, told.committed) == (True, [first])
        until(lambda: not node.store.open())
        assert request(association, information("1.2.11", [second, (CT, "9.9")])) == 0
        told = modality.hears()
        assert (told.same, told.committed, told.failed) == (True, [second], {"9.9": 0x0112})
    modality.hears_nothing()
    assert [one.state for one in node.store.closed()] == ["reported", "reported"]


def test_on_a_new_association_when_the_same_has_ended(make_node: Callable[..., Node]) -> None:
    node = make_node(report="same_then_new")
    modality = node.requester()
    reference = node.knows("1.2.3.1", copies=1)
    modality.ask(reference)
    node.knows("1.2.3.1")
    assert modality.hears().same is False


def test_a_report_refused_on_the_same_association_is_repeated_on_a_new_one(make_node: Callable[..., Node]) -> None:
    node = make_node(report="same_then_new")
    modality = node.requester()
    reference = node.knows("1.2.3.1")
    modality.answer = 0x0110
    with modality.association() as association:
        assert request(association, information("1.2.10", [reference])) == 0
        assert modality.hears().same is True
        modality.answer = 0x0000
        assert modality.hears().same is False
    until(lambda: not node.store.open())


def test_only_the_same_association_means_given_up_without_it(make_node: Callable[..., Node]) -> None:
    node = make_node(report="same")
    modality = node.requester()
    reference = node.knows("1.2.3.1", copies=1)
    transaction = modality.ask(reference)
    node.knows("1.2.3.1")
    until(lambda: [one.state for one in node.store.closed()] == ["given_up"])
    modality.hears_nothing()
    assert node.store.closed()[0].transaction_uid == transaction
    assert "association ended" in node.store.closed()[0].note


def test_a_requester_that_knows_no_roles(node: Node) -> None:
    """It accepts the context and leaves the role selection unanswered; it is told all the same."""
    modality = node.requester(roles=False)
    modality.ask(node.knows("1.2.3.1"))
    assert modality.hears().event == 1


def test_a_requester_without_address_is_told_on_its_association(node: Node) -> None:
    """Never at the address it called from: that may be a NAT, or somebody else's."""
    modality = node.requester(reachable=False)
    reference = node.knows("1.2.3.1")
    with modality.association() as association:
        assert request(association, information("1.2.10", [reference])) == 0
        assert modality.hears().same is True
    modality.ask(node.knows("1.2.3.2", copies=1))
    node.knows("1.2.3.2")
    until(lambda: any("dgis ae add CT1" in error.text for error in node.errors.all()))
    modality.hears_nothing()
    node.declare(modality)  # the operator does what the text says
    assert modality.hears().committed == [(CT, "1.2.3.2")]


def test_an_unreachable_requester_is_tried_again_and_keeps_nobody_waiting(node: Node) -> None:
    silent, modality = node.requester("CT2", listen=False, reachable=False), node.requester()
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # accepts connections, says nothing
        silent.port = deaf.getsockname()[1]
        node.declare(silent)
        reference = node.knows("1.2.3.1")
        silent.ask(reference)
        time.sleep(0.5)
        modality.ask(reference)
        assert modality.hears(within=6).committed == [reference]  # the other one takes eight seconds to fail
        assert node.count("dgis_commitment_reports_total", outcome="failed") == 0
    until(lambda: node.count("dgis_commitment_reports_total", outcome="failed") >= 1)
    silent.listen()
    assert silent.hears().committed == [reference]
    assert any("CT2" in error.text for error in node.errors.all())


def test_a_report_that_is_refused_is_repeated_then_given_up(make_node: Callable[..., Node]) -> None:
    node = make_node(retry=4.0)
    modality = node.requester()
    modality.answer = 0x0110
    modality.ask(node.knows("1.2.3.1"))
    modality.hears()
    until(lambda: [one.state for one in node.store.closed()] == ["given_up"])
    assert modality.told.qsize() >= 1, "it was repeated"
    assert node.count("dgis_commitment_reports_total", outcome="given_up") == 1
    key = node.store.closed()[0].key
    modality.answer = 0x0000
    assert node.store.retry(key)
    until(lambda: [one.state for one in node.store.closed()] == ["reported"])


# --- surviving -------------------------------------------------------------------------------------------------------


def test_a_transaction_survives_restarts_between_request_verdict_and_report(node: Node) -> None:
    modality = node.requester()
    node.stop("worker")
    reference = node.knows("1.2.3.1", copies=1)
    modality.ask(reference)
    node.stop()
    node.start()
    modality.hears_nothing()
    modality.deafen()
    node.knows("1.2.3.1")
    until(lambda: [one.state for one in node.store.open()] == ["judged"])
    node.stop()
    modality.listen()
    node.start()
    assert modality.hears().committed == [reference]
    until(lambda: not node.store.open())


def test_a_receiver_that_died_holds_nothing(make_node: Callable[..., Node]) -> None:
    node = make_node(report="same_then_new")
    modality = node.requester()
    reference = node.knows("1.2.3.1")
    stale = node.store.root / "held" / "4711-dead"
    stale.mkdir()
    (stale / ".lock").touch()
    (stale / transaction_key("CT1", "1.2.10")).touch()
    modality.ask(reference, transaction="1.2.10")
    assert modality.hears().committed == [reference]
    assert not stale.exists()


def test_files_hold_no_uid_in_their_names_and_rubbish_stops_nobody(node: Node) -> None:
    (node.store.root / "open" / "0.json").write_text("{")
    (node.store.root / "open" / "1.json").write_text(json.dumps({"state": "pending"}))
    modality = node.requester()
    transaction = modality.ask(node.knows("1.2.3.1", copies=1))
    until(lambda: node.committer.shown.pending == 1)
    names = [path.name for path in node.store.root.rglob("*")]
    assert not any(transaction in name or "CT1" in name for name in names)
    node.knows("1.2.3.1")
    modality.hears()
