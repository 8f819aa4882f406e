"""Move destinations that nobody declared: learned under the operator's policy, and never beyond it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, StudyRootQueryRetrieveInformationModelMove, Verification

from dgis.config import LearnedDestinationsConfig
from dgis.dimse.ae import AeEntry, AeTable, UnknownAe
from dgis.dimse.learned import Destinations, Learned, LearnedStore, LearningRules, seen_now
from dgis.dimse.limits import PeerAddress
from tests.helpers.grid import free_port
from tests.unit.dgis.dimse.conftest import Edge
from tests.unit.dgis.dimse.doubles import make_file

MOVE, EXPLICIT = StudyRootQueryRetrieveInformationModelMove, pydicom.uid.ExplicitVRLittleEndian
KEY = ("-k", "0008,0052=STUDY", "-k", "0020,000D=1.2.3.1")
LAN = LearningRules(enabled=True, networks=("10.0.0.0/8",), ports=(104, 11112))


def _table(path: Path, rights: tuple[Any, ...] = ("echo", "find", "move")) -> AeTable:
    return AeTable(path / "ae.toml", unknown=UnknownAe(rights=frozenset(rights)))


def _learn(tmp_path: Path, rules: LearningRules, **options: Any) -> tuple[Destinations, LearnedStore]:
    store = LearnedStore(tmp_path / "state" / "learned.json")
    return Destinations(_table(tmp_path, **options), store, rules), store


def test_the_caller_itself_is_reached_at_its_address_and_the_approved_ports(tmp_path: Path) -> None:
    destinations, _ = _learn(tmp_path, LAN)
    viewer = seen_now("VIEWER ", "::ffff:10.1.2.3")
    assert destinations.find("VIEWER", viewer) == tuple(
        PeerAddress("VIEWER", "10.1.2.3", port) for port in (104, 11112)
    )


@pytest.mark.parametrize(
    ("rules", "address"),
    [
        (LearningRules(), "10.1.2.3"),
        (LearningRules(enabled=True, ports=(104,)), "10.1.2.3"),
        (LearningRules(enabled=True, networks=("10.0.0.0/8",)), "10.1.2.3"),
        (LAN, "192.0.2.1"),
        (LAN, "::1"),
        (LAN, "not an address"),
    ],
)
def test_never_without_permission_or_from_elsewhere(tmp_path: Path, rules: LearningRules, address: str) -> None:
    destinations, store = _learn(tmp_path, rules)
    viewer = seen_now("VIEWER", address)
    destinations.called(viewer)
    assert destinations.find("VIEWER", viewer) == ()
    other = seen_now("OTHER", "10.9.9.9")
    assert destinations.find("VIEWER", other) == ()
    if rules.ports:
        assert store.entries() == ()


def test_another_ae_is_reached_when_it_called_before(tmp_path: Path) -> None:
    destinations, store = _learn(tmp_path, LAN)
    asking = seen_now("VIEWER", "10.1.2.3")
    assert destinations.find("STATION", asking) == ()
    destinations.called(seen_now("STATION", "10.1.2.4"))
    assert [peer.host for peer in destinations.find("STATION", asking)] == ["10.1.2.4"] * 2
    restarted = Destinations(_table(tmp_path), LearnedStore(store.path), LAN)
    assert [peer.port for peer in restarted.find("STATION", asking)] == [104, 11112]
    restarted.reached(PeerAddress("STATION", "10.1.2.4", 11112))
    assert [peer.port for peer in destinations.find("STATION", asking)] == [11112, 104]
    narrowed = Destinations(_table(tmp_path), store, LearningRules(True, ("10.1.2.3/32",), (104,)))
    assert narrowed.find("STATION", asking) == (), "the policy of now counts"


def test_one_title_from_two_addresses_serves_each_caller_itself_only(tmp_path: Path) -> None:
    """Every Weasis calls itself WEASIS_AE: its images must come back to the one that asked."""
    destinations, _ = _learn(tmp_path, LAN)
    for address in ("10.1.2.3", "10.1.2.4"):
        destinations.called(seen_now("WEASIS_AE", address))
    for address in ("10.1.2.3", "10.1.2.4"):
        assert {p.host for p in destinations.find("WEASIS_AE", seen_now("WEASIS_AE", address))} == {address}
    assert destinations.find("WEASIS_AE", seen_now("OTHER", "10.1.2.5")) == ()


def test_rights_come_first(tmp_path: Path) -> None:
    destinations, _ = _learn(tmp_path, LAN, rights=("echo",))
    modality = seen_now("CT1", "10.1.2.3")
    destinations.called(modality)
    assert destinations.find("CT1", seen_now("VIEWER", "10.1.2.9")) == ()
    free = LearningRules(True, LAN.networks, LAN.ports, require_existing_rights=False)
    destinations, _ = _learn(tmp_path, free, rights=("echo",))
    destinations.called(modality)
    assert len(destinations.find("CT1", seen_now("VIEWER", "10.1.2.9"))) == 2
    refused, _ = _learn(tmp_path, free, rights=())
    assert refused.find("CT1", modality) == ()


def test_the_table_comes_first_and_tls_stays_tls(tmp_path: Path) -> None:
    destinations, _ = _learn(tmp_path, LAN)
    secure = seen_now("VIEWER", "10.1.2.3", tls=True, certificate="/O=Grid/CN=viewer")
    destinations.called(secure)
    found = destinations.find("VIEWER", secure)
    assert {(p.tls, p.certificate) for p in found} == {(True, "/O=Grid/CN=viewer")}
    assert {p.tls for p in destinations.find("VIEWER", seen_now("X", "10.0.0.9"))} == {True}
    _table(tmp_path).put(AeEntry(title="VIEWER", host="h", port=5, rights=("move",)))
    assert destinations.find("VIEWER", secure) == (PeerAddress("VIEWER", "h", 5),)


def test_the_state_file_is_bounded_removable_and_survives_damage(tmp_path: Path) -> None:
    store = LearnedStore(tmp_path / "learned.json")
    start = datetime.now(UTC)
    store.path.write_text("{ damaged")
    assert store.entries() == ()
    for number in range(3):
        store.put(Learned(title=f"AE{number}", address="10.0.0.1", seen=start))
    assert [one.title for one in store.entries()] == ["AE0", "AE1", "AE2"]
    assert store.remove("AE1 ") and not store.remove("AE1")
    assert [one.title for one in LearnedStore(store.path).entries()] == ["AE0", "AE2"]
    many = tuple(Learned(title=f"X{n}", address="10.0.0.1", seen=start) for n in range(1200))
    store._change(lambda known: (*known, *many))
    store.put(Learned(title="LAST", address="10.0.0.1", seen=start))
    assert len(store.entries()) == 1000 and store.entries()[-1].title == "LAST"


def test_a_repeated_call_is_written_down_once_an_hour(tmp_path: Path) -> None:
    destinations, store = _learn(tmp_path, LAN)
    viewer = seen_now("VIEWER", "10.1.2.3")
    destinations.called(viewer)
    inode = store.path.stat().st_ino
    destinations.called(seen_now("VIEWER", "10.1.2.3"))
    assert store.path.stat().st_ino == inode
    destinations.called(viewer.model_copy(update={"seen": viewer.seen + timedelta(hours=2)}))
    assert store.path.stat().st_ino != inode and len(store.entries()) == 1


def test_receivers_write_at_once_and_lose_nothing(tmp_path: Path) -> None:
    """Each has its own view of the file, as each receiver process has."""

    def write(name: str) -> None:
        store = LearnedStore(tmp_path / "learned.json")
        for number in range(25):
            store.put(Learned(title=f"{name}{number}", address="10.0.0.1", seen=datetime.now(UTC)))

    writers = [threading.Thread(target=write, args=(name,)) for name in "ABC"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert len(LearnedStore(tmp_path / "learned.json").entries()) == 75


def test_the_configuration_wants_networks() -> None:
    with pytest.raises(ValueError, match="approved networks"):
        LearnedDestinationsConfig(enabled=True)
    assert not LearnedDestinationsConfig().enabled


# --- over the wire ----------------------------------------------------------------------------------------------------


def test_movescu_to_itself_needs_no_table_entry(make_edge: Any, dcmtk: Any, tmp_path: Path) -> None:
    """Its listener exists only during the retrieve, on the second of the approved ports."""
    port, out = free_port(), tmp_path / "out"
    out.mkdir()
    edge: Edge = make_edge(learning=LearningRules(True, ("127.0.0.0/8",), (free_port(), port)))
    paths = [make_file(tmp_path / "in", pixels=70_000) for _ in range(3)]
    for path in paths:
        edge.retrieve.add(path)
    args = ("-S", "-aet", "NEWVIEWER", "-aem", "NEWVIEWER", "-aec", "DGIS", "+P", port, "-od", out, *KEY)
    for _ in range(2):
        result = dcmtk("movescu", *args, "127.0.0.1", edge.port)
        assert result.returncode == 0, result.stderr
    got = sorted(pydicom.dcmread(path).PixelData for path in out.iterdir())
    assert got == sorted(pydicom.dcmread(path).PixelData for path in paths)
    assert edge.table.entries() == ()
    assert [(one.title, one.port) for one in edge.learned.entries()] == [("NEWVIEWER", port)]


def test_without_the_policy_it_is_a801(make_edge: Any, dcmtk: Any, tmp_path: Path) -> None:
    edge: Edge = make_edge(learning=LearningRules(True, ("192.0.2.0/24",), (free_port(),)))
    edge.retrieve.add(make_file(tmp_path / "in"))
    args = ("-v", "-S", "-aet", "NEWVIEWER", "-aem", "NEWVIEWER", "-aec", "DGIS", "+P", free_port(), *KEY)
    result = dcmtk("movescu", *args, "127.0.0.1", edge.port)
    assert result.returncode != 0 and "MoveDestinationUnknown" in result.stderr + result.stdout
    assert edge.learned.entries() == ()


def test_a_station_that_called_before_gets_what_another_asks_for(make_edge: Any, tmp_path: Path) -> None:
    got: list[str] = []
    station = AE("STATION")
    station.add_supported_context(CTImageStorage, EXPLICIT)
    station.add_requested_context(Verification)

    def store(event: Any) -> int:
        got.append(event.request.AffectedSOPInstanceUID)
        return 0

    server = station.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    edge: Edge = make_edge(learning=LearningRules(True, ("127.0.0.1/32",), (server.socket.getsockname()[1],)))
    located = edge.retrieve.add(make_file(tmp_path / "in"))
    hello = station.associate("127.0.0.1", edge.port, ae_title="DGIS")
    hello.send_c_echo()
    hello.release()
    viewer = AE("VIEWER")
    viewer.add_requested_context(MOVE)
    association = viewer.associate("127.0.0.1", edge.port, ae_title="DGIS")
    identifier = pydicom.Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", "1.2.3.1"
    (*_, (status, _)) = association.send_c_move(identifier, "STATION", MOVE)
    (*_, (unknown, _)) = association.send_c_move(identifier, "NOBODY", MOVE)
    association.release()
    server.shutdown()
    assert status.Status == 0 and got == [located.instance_uid]
    assert unknown.Status == 0xA801 and "learned" in unknown.ErrorComment
