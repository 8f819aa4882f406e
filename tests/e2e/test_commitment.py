"""Storage commitment on a real grid: Orthanc both ways, conflicts, dead processes between request and report."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from dgis.commit_store import CommitmentStore
from dgis.demo.images import Image
from dgis.demo.viewer import Viewer
from tests.helpers import orthanc
from tests.helpers.dicomfiles import images, synth
from tests.helpers.grid import Grid, free_port, wait_until
from tests.unit.dgis.dimse.commitnode import Requester, Told, information, request

pytestmark = pytest.mark.xdist_group("commitment")
COUNT = 40
KILLS = 6  # a process that dies again and again is restarted ever later


@dataclass
class Site:
    """A local grid with an Orthanc and two modalities in its AE table, all images stored by CT1."""

    grid: Grid
    images: list[Image]
    archive: Any
    ports: dict[str, int]

    @property
    def port(self) -> int:
        return self.grid.port

    def references(self) -> list[tuple[str, str]]:
        return [(image.sop_class_uid, image.instance_uid) for image in self.images]

    def store(self, title: str, images: list[Image]) -> None:
        viewer = Viewer(title=title, called="DGIS", host="127.0.0.1", port=self.port)
        assert [status for _, status in viewer.store(images)] == [0] * len(images)

    def modality(self, title: str = "CT1", *, listen: bool = True) -> Requester:
        return Requester(self, title, listen=listen, port=self.ports[title])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("commitment")
    found = images(synth(folder / "images", "--instances", str(COUNT), "--rows", "32", "--cols", "32"))
    ports = {title: free_port() for title in ("CT1", "CT2")}
    grid = Grid(folder / "grid", options=("--respawn",))
    archive = orthanc.Orthanc(folder / "orthanc", modalities={"dgis": ("DGIS", "127.0.0.1", grid.port)})
    grid.peers = (f"ORTHANC:127.0.0.1:{archive.port}", *(f"{t}:127.0.0.1:{p}" for t, p in ports.items()))
    with grid:
        made = Site(grid, found, archive, ports)
        made.store("CT1", found)
        yield made


def test_committed_on_verified_copies_and_reported(site: Site) -> None:
    modality = site.modality()
    transaction = modality.ask(*site.references())
    told = modality.hears(within=60)
    assert told == Told(1, transaction, site.references(), {}, "DGIS", same=False)
    modality.deafen()
    wait_until(lambda: site.grid.status()["commitment"]["unreported"] == 0, seconds=30, what="closed")


def test_another_content_under_a_known_uid_is_not_committed_until_resolved(site: Site, tmp_path: Path) -> None:
    """The sender asks right after its last C-STORE, when the catalog does not know the conflict yet."""
    original = site.images[0]
    other = dcmread(original.path)
    other.PatientComments = "another content"
    other.save_as(tmp_path / "other.dcm")
    modality = site.modality("CT2")
    again = images(tmp_path)
    site.store("CT2", again)
    reference = (original.sop_class_uid, original.instance_uid)
    modality.ask(reference)
    assert modality.hears(within=60).failed == {original.instance_uid: 0x0110}
    first = site.modality("CT1")
    first.ask(reference)  # whose content is the kept one
    assert first.hears(within=60).committed == [reference]
    listed = site.grid.cli("conflicts", "list", "--format", "json")
    (conflict,) = json.loads(listed.stdout)
    site.grid.cli("conflicts", "resolve", conflict["id"], "keep_first")
    modality.ask(reference)
    assert modality.hears(within=60).committed == [reference]
    first.deafen()
    modality.deafen()


@pytest.fixture(scope="module")
def archive(site: Site) -> Iterator[orthanc.Orthanc]:
    with site.archive as running:
        yield running


@orthanc.NEEDS
@pytest.mark.peer
def test_orthanc_asks_dgis(site: Site, archive: orthanc.Orthanc) -> None:
    another = ("1.2.840.10008.5.1.4.1.1.7", site.images[5].instance_uid)
    wanted = [*site.references()[:5], another]
    asked: Any = archive.rest(
        "/modalities/dgis/storage-commitment",
        {"DicomInstances": [{"SOPClassUID": c, "SOPInstanceUID": i} for c, i in wanted]},
    )

    def result() -> Any:
        return archive.rest(f"/storage-commitment/{asked['ID']}")

    wait_until(lambda: result()["Status"] != "Pending", seconds=60, what="Orthanc got the report", every=0.3)
    told = result()
    assert told["Status"] == "Failure"
    assert sorted(one["SOPInstanceUID"] for one in told["Success"]) == sorted(uid for _, uid in wanted[:5])
    assert [one["SOPInstanceUID"] for one in told["Failures"]] == [another[1]], told
    assert told["Failures"][0]["FailureReason"] == 0x0119, told


@orthanc.NEEDS
@pytest.mark.peer
def test_dgis_asks_orthanc(site: Site, archive: orthanc.Orthanc) -> None:
    """Orthanc reports on an association of its own, to our AE title at the node's port: a receiver takes it."""
    folder = str(site.images[0].path.parent)
    lacking = site.grid.cli("commit", "check", "ORTHANC", folder, "--format", "json", check=False)
    assert lacking.returncode == 1, lacking.stderr
    site.grid.cli("send", "ORTHANC", folder)
    kept = site.grid.cli("commit", "check", "ORTHANC", folder, "--format", "json", check=False)
    assert kept.returncode == 0, kept.stderr
    answer = json.loads(kept.stdout)
    assert (answer["committed"], answer["failed"]) == (COUNT, [])
    assert len(json.loads(lacking.stdout)["failed"]) == COUNT


def test_what_was_asked_is_listed(site: Site) -> None:
    rows = json.loads(site.grid.cli("commit", "list", "--format", "json").stdout)
    assert {row["state"] for row in rows} == {"reported"}
    assert {row["ae"] for row in rows} >= {"CT1", "CT2"}
    number = rows[0]["id"]
    site.grid.cli("commit", "forget", number)
    store = CommitmentStore(site.grid.home / "dgis" / "spool")
    assert number not in [one.number for one in store.closed()]


def test_kill_of_everything_between_request_and_report(site: Site) -> None:
    modality = site.modality(listen=False)
    references = site.references()
    transaction = modality.ask(*references)
    site.grid.kill()
    modality.listen()
    site.grid.start()
    told = modality.hears(within=60)
    modality.deafen()
    assert (told.transaction, told.committed) == (transaction, references)


def test_kills_of_worker_and_receivers_lose_no_transaction(site: Site) -> None:
    """Every transaction that got 0000 is reported, complete, whatever died in between."""
    modality = site.modality()
    enough = threading.Event()
    killed: list[str] = []
    killer = threading.Thread(target=_kill, args=(site.grid, enough, killed))
    killer.start()
    asked: dict[str, tuple[str, str]] = {}
    deadline = time.monotonic() + 90
    pairs = itertools.cycle(site.references())
    while len(asked) < 25 or len(killed) < KILLS:
        assert time.monotonic() < deadline, f"{len(asked)} asked, {killed} killed"
        transaction, reference = generate_uid(), next(pairs)
        if _accepted(modality, information(transaction, [reference])):
            asked[transaction] = reference
        time.sleep(0.1)
    enough.set()
    killer.join()
    told: dict[str, Told] = {}
    while set(asked) - set(told):
        one = modality.hears(within=60)
        told[one.transaction] = one
    modality.deafen()
    assert all(told[transaction].committed == [reference] for transaction, reference in asked.items())


def _kill(grid: Grid, enough: threading.Event, killed: list[str]) -> None:
    choice = random.Random(7)
    for role in itertools.cycle(("worker", "dimse")):
        if len(killed) == KILLS or enough.wait(choice.uniform(0.2, 0.8)):
            return
        victims = grid.processes().get(role, [])
        if victims:
            try:
                choice.choice(victims).kill()
            except psutil.NoSuchProcess:
                continue
            killed.append(role)


def _accepted(modality: Requester, action: Dataset) -> bool:
    try:
        with modality.association() as association:
            return request(association, action) == 0x0000
    except AssertionError:  # no association, or no answer: then nothing was promised
        return False
