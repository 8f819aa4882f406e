"""The whole collection of real files through a running grid, with DCMTK and pynetdicom as the peers.

What "identical" means here: the data set as it crossed the wire. dcmsend re-encodes what it reads, so the same
dcmsend run goes to DCMTK's own storescp first, which keeps the bytes as received (+B), and that is what must come
back.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dgis.demo.images import Image, data_set_sha256
from dgis.demo.viewer import Viewer
from tests.helpers import dcmtk
from tests.helpers.dicomfiles import NEEDS_REAL, REAL, images
from tests.helpers.grid import Grid, free_port, wait_until

pytestmark = [NEEDS_REAL, dcmtk.NEEDS, pytest.mark.xdist_group("real-images"), pytest.mark.timeout(300)]

BASELINE_ACCEPTED = 896  # Orthanc 1.10.1 on the same run


@dataclass(frozen=True, slots=True)
class Sent:
    """One line of dcmsend's report."""

    path: Path
    uid: str
    syntax: str
    ok: bool


@dataclass(frozen=True, slots=True)
class Run:
    """The grid after dcmsend of everything, what dcmsend reported, and the reference bytes by UID, in order."""

    grid: Grid
    report: list[Sent]
    reference: dict[str, list[str]]
    destination: Path
    destination_port: int

    @property
    def accepted(self) -> list[Sent]:
        return [sent for sent in self.report if sent.ok]


def dcmsend(port: int, report: Path, called: str) -> list[Sent]:
    assert REAL is not None
    dcmtk.run(
        "dcmsend",
        "-aec",
        called,
        "--scan-directories",
        "--recurse",
        "--no-halt",
        "+crf",
        report,
        "127.0.0.1",
        str(port),
        REAL,
        timeout=240,
    )
    return list(_parse(report.read_text(errors="replace")))


def _uids() -> dict[Path, str]:
    """SOP Instance UID of each file's data set; dcmsend reports the one of its file meta information, which may lie."""
    assert REAL is not None
    with (REAL / "MANIFEST.csv").open(newline="") as stream:
        return {REAL / row["path"]: row["sop_instance_uid"] for row in csv.DictReader(stream)}


def _parse(text: str) -> Iterator[Sent]:
    uids = _uids()
    for block in text.split("\nNumber        : ")[1:]:
        fields = dict(re.findall(r"^([A-Z][\w. ]+?)\s*: (.*)$", block, re.MULTILINE))
        path, syntax = Path(fields["Filename"]), fields.get("Network Xfer", "").split(" = ")[0]
        yield Sent(path, uids[path], syntax, "0x0000" in fields.get("DIMSE Status", ""))


def _data_sets(folder: Path) -> dict[str, list[str]]:
    """Digests of the data sets below ``folder`` by SOP Instance UID, oldest file first."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((p for p in folder.iterdir() if p.is_file()), key=lambda p: p.stat().st_mtime_ns):
        meta = path.read_bytes()[:4096]
        uid = re.search(rb"\x02\x00\x03\x00UI..([0-9A-Za-z.]+)", meta, re.DOTALL)
        assert uid is not None
        found[uid[1].decode()].append(data_set_sha256(path))
    return found


def _storescp(folder: Path, port: int, *options: str) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True)
    process = dcmtk.start("storescp", "-aet", "STORESCP", "+B", "+xa", "+uf", *options, "-od", folder, str(port))
    wait_until(lambda: dcmtk.echo("127.0.0.1", port, called="STORESCP"), seconds=10, what="storescp answers")
    return process


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    place = tmp_path_factory.mktemp("real")
    port = free_port()
    reference = _storescp(place / "reference", port)
    try:
        dcmsend(port, place / "reference.txt", "STORESCP")
    finally:
        reference.terminate()
        reference.wait(10)
    destination_port = free_port()
    with Grid(place / "grid", peers=(f"STORESCP:127.0.0.1:{destination_port}",)) as grid:
        report = dcmsend(grid.port, place / "dgis.txt", "DGIS")
        yield Run(grid, report, _data_sets(place / "reference"), place / "moved", destination_port)


def _viewer(run: Run, title: str = "VIEWER") -> Viewer:
    return Viewer(title=title, called="DGIS", host="127.0.0.1", port=run.grid.port)


def _retrievable(run: Run) -> list[Image]:
    """One Image for each distinct accepted instance, in the syntax that it was sent in."""
    by_path = {image.path: image for image in images_by_dcmtk(run)}
    return list({image.instance_uid: image for image in by_path.values()}.values())


@pytest.fixture(scope="module")
def everything(run: Run) -> list[Image]:
    return _retrievable(run)


def images_by_dcmtk(run: Run) -> Iterator[Image]:
    """Study and series of each accepted instance, asked from the grid itself."""
    viewer = _viewer(run)
    first: dict[str, Sent] = {}
    for sent in run.accepted:
        first.setdefault(sent.uid, sent)
    for study in viewer.find("STUDY", StudyInstanceUID=""):
        for series in viewer.find("SERIES", StudyInstanceUID=study.StudyInstanceUID, SeriesInstanceUID=""):
            keys = {"StudyInstanceUID": study.StudyInstanceUID, "SeriesInstanceUID": series.SeriesInstanceUID}
            for one in viewer.find("IMAGE", **keys, SOPInstanceUID="", SOPClassUID=""):
                uid = str(one.SOPInstanceUID)
                yield Image(
                    first[uid].path,
                    str(one.SOPClassUID),
                    uid,
                    str(study.StudyInstanceUID),
                    str(series.SeriesInstanceUID),
                    first[uid].syntax,
                    "",
                    0,
                    "",
                )


def test_at_least_the_baseline_is_accepted(run: Run) -> None:
    refused = [sent.path.name for sent in run.report if sent.syntax and not sent.ok]
    assert len(run.accepted) >= BASELINE_ACCEPTED, f"{len(run.accepted)} accepted; refused: {refused}"


def test_everything_accepted_is_findable_at_release_and_drains(run: Run) -> None:
    assert {image.instance_uid for image in images_by_dcmtk(run)} == {sent.uid for sent in run.accepted}
    run.grid.wait_drained(120)


def test_each_instance_comes_back_identical_by_get(run: Run, everything: list[Image]) -> None:
    wanted = everything
    (completed, failed), received = _viewer(run).get(wanted)
    assert (completed, failed) == (len(wanted), 0)
    known = {uid: digest for uid, digest in received.digests.items() if run.reference.get(uid)}
    assert len(known) >= len(wanted) - 5  # storescp itself refuses a few SOP classes that dgis takes
    wrong = [uid for uid, digest in known.items() if digest != run.reference[uid][0]]
    # Of a UID that was sent twice dgis may have seen another one first than storescp did: they negotiate for themselves
    assert not [uid for uid in wrong if len(set(run.reference[uid])) == 1], "data sets differ from what was sent"
    assert not [uid for uid in wrong if known[uid] not in run.reference[uid]], "bytes that were never sent came back"


def test_same_uid_other_bytes_keeps_the_first_and_lists_the_second(run: Run) -> None:
    taken = {sent.uid for sent in run.accepted}
    expected = {uid for uid, digests in run.reference.items() if len(set(digests)) > 1 and uid in taken}
    assert expected, "the collection has UIDs with different bytes"
    listed = json.loads(run.grid.cli("conflicts", "list", "--format", "json").stdout)
    assert {row["instance_uid"] for row in listed if row["kind"] in ("content", "syntax")} >= expected


def test_dcmtk_moves_everything_to_storescp(run: Run, everything: list[Image]) -> None:
    wanted = everything
    receiver = _storescp(run.destination, run.destination_port)
    try:
        for study in sorted({image.study_uid for image in wanted}):
            done = dcmtk.run(
                "movescu",
                "-S",
                "-aet",
                "MOVER",
                "-aec",
                "DGIS",
                "-aem",
                "STORESCP",
                "-k",
                "QueryRetrieveLevel=STUDY",
                "-k",
                f"StudyInstanceUID={study}",
                "127.0.0.1",
                str(run.grid.port),
                timeout=120,
            )
            assert done.returncode in (0, 68), done.stdout + done.stderr  # 68: some refused by storescp (B000)
    finally:
        time.sleep(0.2)
        receiver.terminate()
        receiver.wait(10)
    moved = _data_sets(run.destination)
    # storescp refuses SOP classes that DCMTK does not know; what it took must be the bytes that were sent
    wrong = [uid for uid, digests in moved.items() if digests[-1] not in run.reference.get(uid, digests)]
    assert not wrong
    assert len(moved) >= len(wanted) - 5


GETSCU_FAMILIES = {
    "+xe": "1.2.840.10008.1.2.1",
    "+xi": "1.2.840.10008.1.2",
    "+xb": "1.2.840.10008.1.2.2",
    "+xd": "1.2.840.10008.1.2.1.99",
    "+xs": "1.2.840.10008.1.2.4.70",
    "+xy": "1.2.840.10008.1.2.4.50",
    "+xx": "1.2.840.10008.1.2.4.51",
    "+xt": "1.2.840.10008.1.2.4.80",
    "+xu": "1.2.840.10008.1.2.4.81",
    "+xv": "1.2.840.10008.1.2.4.90",
    "+xw": "1.2.840.10008.1.2.4.91",
    "+xr": "1.2.840.10008.1.2.5",
}


@pytest.mark.parametrize("option", GETSCU_FAMILIES)
def test_getscu_gets_each_syntax_family(run: Run, everything: list[Image], tmp_path: Path, option: str) -> None:
    """getscu can prefer one transfer syntax a run; what DCMTK knows of the family comes back as it was sent."""
    wanted = [image.instance_uid for image in everything if image.transfer_syntax_uid == GETSCU_FAMILIES[option]]
    if not wanted:
        pytest.skip("dcmsend sent nothing in this transfer syntax")
    keys = ("-k", "QueryRetrieveLevel=IMAGE", "-k", "SOPInstanceUID=" + "\\".join(wanted))
    done = dcmtk.run(
        "getscu", "-S", "+B", option, "-aec", "DGIS", *keys, "-od", tmp_path, "127.0.0.1", str(run.grid.port)
    )
    assert done.returncode in (0, 68), done.stdout + done.stderr  # 68: a SOP class that getscu does not propose
    got = _data_sets(tmp_path)
    assert not [uid for uid, digests in got.items() if digests[0] not in run.reference.get(uid, digests)]
    assert len(got) >= 0.98 * len(wanted) - 1


def test_file_bytes_survive_a_bit_preserving_sender(run: Run, tmp_path: Path) -> None:
    """pynetdicom sends the file's own bytes: the data set must come back as it lies in the file."""
    assert REAL is not None
    sent = images(REAL / "dcm_qa_ct_philips") + images(REAL / "dcm_qa_ts") + images(REAL / "pydicom-data")
    with Grid(tmp_path / "grid") as grid:
        viewer = Viewer(title="EXACT", called="DGIS", host="127.0.0.1", port=grid.port)
        statuses = {image.instance_uid: status for image, status in viewer.store(sent)}
        assert set(statuses.values()) == {0x0000}
        (completed, failed), received = viewer.get(sent)
        assert (completed, failed) == (len(sent), 0)
        assert received.digests == {image.instance_uid: image.data_sha256 for image in sent}
