"""`dgis echo`, `find`, `move`, `get` and `send` as operators use them: against a grid, DCMTK and Orthanc."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydicom import dcmread
from pydicom.fileset import FileSet

from dgis.cli import cli
from dgis.demo.images import Image
from dgis.medium import open_instance
from tests.helpers import dcmtk, orthanc
from tests.helpers.dicomfiles import images, synth
from tests.helpers.grid import BIN, Grid, free_port

pytestmark = pytest.mark.xdist_group("scu-tools")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two CT studies in several syntaxes and character sets, and a file that is none."""
    out = synth(
        tmp_path_factory.mktemp("scu") / "in",
        *("--studies", "2", "--series", "2", "--instances", "4", "--rows", "32", "--cols", "32"),
        *("--modality", "CT,MR", "--charset", "latin2,japanese", "--syntax", "explicit,implicit,rle"),
    )
    (out / "readme.txt").write_text("not an image")
    return out


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Grid]:
    with Grid(tmp_path_factory.mktemp("scu-grid") / "g", options=("--tls-port", str(free_port()))) as running:
        done = running.cli("send", "DGIS", str(folder), "--format", "json", check=False)
        assert done.returncode == 3, done.stderr
        told = json.loads(done.stdout)
        assert told["sent"] == len(images(folder)) == 16
        assert [(Path(one["path"]).name, one["reason"]) for one in told["failures"]] == [
            ("readme.txt", "not a DICOM file")
        ]
        yield running


def data_set(path: Path) -> bytes:
    return path.read_bytes()[open_instance(path).data_set_offset :]


def by_uid(paths: list[Path]) -> dict[str, bytes]:
    return {open_instance(path).instance_uid: data_set(path) for path in paths}


def bare(*args: str, home: str = "/nowhere") -> subprocess.CompletedProcess[str]:
    """A command without a node: only AET@HOST:PORT."""
    env = dict(os.environ, DGIS_HOME=home, COLUMNS="160")
    return subprocess.run([str(BIN / "dgis"), *args], capture_output=True, text=True, timeout=60, env=env, check=False)


def study_of(image: Image) -> str:
    return image.study_uid


# --- against the grid ----------------------------------------------------------------------------------------------


def test_echo_says_what_is_wrong(grid: Grid) -> None:
    assert "answers in" in grid.cli("echo", "DGIS").stdout
    for target, says, code in (
        (f"WRONG@127.0.0.1:{grid.port}", "the peer is not called WRONG", 1),
        ("DGIS@127.0.0.1:1", "nothing answers there", 1),
        ("NOBODY", "not in the AE table", 2),
        ("DGIS@127.0.0.1", "is not AET@HOST:PORT", 2),
    ):
        done = grid.cli("echo", target, check=False)
        assert done.returncode == code and says in done.stdout + done.stderr, target
    answer = json.loads(bare("echo", f"DGIS@127.0.0.1:{grid.port}", "--format", "json").stdout)
    assert answer["ok"] and answer["answers"][0]["seconds"] < 5


def test_find_shows_decoded_names_and_sorted_columns(grid: Grid, folder: Path) -> None:
    text = grid.cli("find", "DGIS").stdout
    header = next(line for line in text.splitlines() if "Study UID" in line)
    assert header.index("Patient Name") < header.index("Study Date") < header.index("Study UID")
    answer = json.loads(grid.cli("find", "DGIS", "--format", "json").stdout)
    assert {row["StudyInstanceUID"] for row in answer["matches"]} == {study_of(one) for one in images(folder)}
    for row in answer["matches"]:
        path = next(one.path for one in images(folder) if one.study_uid == row["StudyInstanceUID"])
        assert row["PatientName"] == str(dcmread(path, stop_before_pixels=True).PatientName)
        assert row["PatientName"].split("=")[0].replace("^", ", ") in text
        assert row["StudyInstanceUID"] in text
    assert any(not row["PatientName"].isascii() for row in answer["matches"]), "real character sets"


def test_find_at_each_level_with_keys_and_limits(grid: Grid, folder: Path) -> None:
    one = images(folder)[0]
    keys = ("-k", f"StudyInstanceUID={one.study_uid}", "--format", "json")
    series = json.loads(grid.cli("find", "DGIS", "--level", "series", *keys).stdout)["matches"]
    assert len(series) == 2 and {row["NumberOfSeriesRelatedInstances"] for row in series} == {"4"}
    found = json.loads(grid.cli("find", "DGIS", "--level", "image", *keys).stdout)["matches"]
    assert len(found) == 8
    few = json.loads(grid.cli("find", "DGIS", "--level", "image", "--limit", "3", *keys).stdout)
    assert len(few["matches"]) == 3
    alone = grid.cli("find", "DGIS", "-k", "0010,0020", "--only-keys", "--format", "json").stdout
    assert "StudyDate" not in json.loads(alone)["matches"][0]
    none = grid.cli("find", "DGIS", "-k", "PatientID=NOBODY")
    assert none.stdout == "" and "no matches" in none.stderr
    patients = json.loads(
        grid.cli("find", "DGIS", "--level", "patient", "--model", "patient", "--format", "json").stdout
    )
    assert len(patients["matches"]) == 2


def test_get_brings_every_byte_back(grid: Grid, folder: Path, tmp_path: Path) -> None:
    sent = by_uid([image.path for image in images(folder)])
    studies = "\\".join(sorted({image.study_uid for image in images(folder)}))
    done = grid.cli("get", "DGIS", "--out", str(tmp_path / "out"), "-k", f"StudyInstanceUID={studies}")
    assert "16 files" in done.stdout
    assert by_uid(sorted((tmp_path / "out").iterdir())) == sent
    syntaxes = {open_instance(path).transfer_syntax for path in (tmp_path / "out").iterdir()}
    assert len(syntaxes) == 3, "as stored, each"
    one = images(folder)[0]
    again = grid.cli(
        "get", "DGIS", "--out", str(tmp_path / "one"), "--level", "image", "--format", "json",
        "-k", f"StudyInstanceUID={one.study_uid}", "-k", f"SeriesInstanceUID={series_of(one)}",
        "-k", f"SOPInstanceUID={instance_of(one)}",
    )  # fmt: skip
    assert json.loads(again.stdout)["completed"] == 1


def test_a_patient_is_got_without_asking_for_the_whole_archive(grid: Grid, folder: Path, tmp_path: Path) -> None:
    one = images(folder)[0]
    patient = str(dcmread(one.path, stop_before_pixels=True).PatientID)
    done = grid.cli("get", "DGIS", "--out", str(tmp_path / "p"), "--model", "patient", "-k", f"PatientID={patient}")
    assert "8 files" in done.stdout
    queries = [line for line in association_lines(grid) if "queries=1" in line or '"queries": 1' in line]
    nothing = grid.cli("get", "DGIS", "--out", str(tmp_path / "n"), "--level", "study", "--model", "study", check=False)
    assert nothing.returncode == 1 and "A900" in nothing.stderr
    again = [line for line in association_lines(grid) if "queries=1" in line or '"queries": 1' in line]
    assert len(again) == len(queries) > 0, "no query went out for a get that names nothing"


def association_lines(grid: Grid) -> list[str]:
    return [line for path in (grid.home / "log").iterdir() for line in path.read_text(errors="replace").splitlines()]


def series_of(image: Image) -> str:
    return str(dcmread(image.path, stop_before_pixels=True).SeriesInstanceUID)


def instance_of(image: Image) -> str:
    return open_instance(image.path).instance_uid


def test_a_get_that_cannot_be_whole_is_exit_code_3(grid: Grid, folder: Path, tmp_path: Path) -> None:
    studies = "\\".join(sorted({image.study_uid for image in images(folder)}))
    keys = ("--out", str(tmp_path), "-k", f"StudyInstanceUID={studies}", "--format", "json")
    done = grid.cli("get", "DGIS", *keys, "--sop-class", "CTImageStorage", check=False)
    told = json.loads(done.stdout)
    assert (done.returncode, told["status"], told["completed"], told["failed"]) == (3, "B000", 8, 8)
    assert len(told["failed_instances"]) == 8 and len(told["files"]) == 8
    nothing = grid.cli("get", "DGIS", *keys, "--sop-class", "RTPlanStorage", check=False)
    assert nothing.returncode == 1 and json.loads(nothing.stdout)["status"] == "A702"
    assert grid.cli("get", "DGIS", "--out", str(tmp_path), "-k", "StudyInstanceUID=1.2.3").returncode == 0
    assert grid.cli("get", "DGIS", "--out", str(tmp_path), check=False).returncode == 2


@dcmtk.NEEDS
def test_move_to_a_peer_and_send_to_it(grid: Grid, folder: Path, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "in").mkdir()
    receiver = dcmtk.start("storescp", "+B", "+xa", "-od", tmp_path / "in", str(port))
    try:
        grid.cli("ae", "add", "RECEIVER", "--host", "127.0.0.1", "--port", str(port))
        deadline = time.monotonic() + 10
        while grid.cli("echo", "RECEIVER", check=False).returncode and time.monotonic() < deadline:
            time.sleep(0.1)
        one = images(folder)[0]
        moved = grid.cli("move", "DGIS", "--to", "RECEIVER", "-k", f"StudyInstanceUID={one.study_uid}")
        assert "8 sent, 0 with warnings, 0 failed" in moved.stdout
        unknown = grid.cli("move", "DGIS", "--to", "NOWHERE", "-k", f"StudyInstanceUID={one.study_uid}", check=False)
        assert unknown.returncode == 1 and "A801" in unknown.stderr
        nothing = grid.cli("move", "DGIS", "--to", "RECEIVER", "-k", "StudyInstanceUID=1.2.3")
        assert "nothing matches" in nothing.stderr
        received = {dcmread(path).SOPInstanceUID for path in dcmtk.files(tmp_path / "in")}
        assert received == {instance_of(image) for image in images(folder) if image.study_uid == one.study_uid}
    finally:
        receiver.terminate()
        receiver.wait(10)


def test_send_takes_a_dicomdir_and_names_what_a_peer_refuses(grid: Grid, folder: Path, tmp_path: Path) -> None:
    medium = FileSet()
    for image in images(folder)[:3]:
        medium.add(image.path)
    medium.write(tmp_path / "medium")
    told = json.loads(grid.cli("send", "DGIS", str(tmp_path / "medium" / "DICOMDIR"), "--format", "json").stdout)
    assert told["sent"] == 3 and not told["failures"]
    grid.cli("ae", "add", "READER", "--rights", "echo,find")
    refused = grid.cli("send", "DGIS", "--aet", "READER", str(tmp_path / "medium"), "--format", "json", check=False)
    reasons = {one["reason"] for one in json.loads(refused.stdout)["failures"]}
    assert refused.returncode == 1 and reasons == {"0124: This AE may not do that (this AE may not store)"}
    away = bare("send", "DGIS@127.0.0.1:1", str(tmp_path / "medium"), "--format", "json")
    assert away.returncode == 1
    assert all("nothing answers there" in one["reason"] for one in json.loads(away.stdout)["failures"])


def test_the_same_over_dicom_tls(grid: Grid, folder: Path, tmp_path: Path) -> None:
    assert "answers in" in grid.cli("echo", "DGIS", "--tls").stdout
    one = images(folder)[0]
    grid.cli("get", "DGIS", "--tls", "--out", str(tmp_path), "-k", f"StudyInstanceUID={one.study_uid}")
    assert len(list(tmp_path.iterdir())) == 8
    wrong = grid.cli("echo", f"DGIS@127.0.0.1:{grid.port}", "--tls", check=False)
    assert wrong.returncode == 1 and "TLS" in wrong.stdout
    anonymous = bare("echo", f"DGIS@127.0.0.1:{grid.port}", "--tls")
    assert anonymous.returncode == 2 and "node.toml" in anonymous.stderr


def test_send_asks_for_commitment(grid: Grid, folder: Path) -> None:
    paths = [str(image.path) for image in images(folder)[:4]]
    grid.cli("ae", "add", "CAREFUL", "--rights", "echo,store,commit")
    careful = ("--aet", "CAREFUL", "--commit", "--wait", "60", "--format", "json")
    done = grid.cli("send", "DGIS", *paths, *careful, check=False)
    told = json.loads(done.stdout)
    assert (done.returncode, told["sent"], told["committed"], told["not_committed"]) == (0, 4, 4, []), done.stderr
    grid.cli("ae", "add", "SENDER", "--rights", "echo,store")
    done = grid.cli("send", "DGIS", *paths, "--aet", "SENDER", "--commit", "--format", "json", check=False)
    told = json.loads(done.stdout)
    assert (done.returncode, told["sent"], told["committed"]) == (3, 4, 0)
    assert "may not commit" in told["not_committed"][0]["reason"]


# --- against Orthanc -----------------------------------------------------------------------------------------------


@orthanc.NEEDS
def test_all_five_against_orthanc(grid: Grid, folder: Path, tmp_path: Path) -> None:
    with orthanc.Orthanc(tmp_path / "o", modalities={"dgis": ("DGIS", "127.0.0.1", grid.port)}) as peer:
        target = f"ORTHANC@127.0.0.1:{peer.port}"
        assert bare("echo", target).returncode == 0
        sent = json.loads(grid.cli("send", target, str(folder), "--format", "json", check=False).stdout)
        assert sent["sent"] == 16
        answer = json.loads(bare("find", target, "--format", "json").stdout)
        assert {row["StudyInstanceUID"] for row in answer["matches"]} == {one.study_uid for one in images(folder)}
        one = images(folder)[0]
        names = {row["StudyInstanceUID"]: row["PatientName"] for row in answer["matches"]}
        whole = str(dcmread(one.path, stop_before_pixels=True).PatientName)
        # Debian's Orthanc answers in Latin-1 whatever the query says, and leaves out what that lacks.
        assert names[one.study_uid] in (whole, whole.encode("latin-1", "ignore").decode("latin-1"))
        study = ("-k", f"StudyInstanceUID={one.study_uid}")
        got = bare("get", target, "--out", str(tmp_path / "out"), *study, "--format", "json")
        told: dict[str, Any] = json.loads(got.stdout)
        assert (got.returncode, told["status"], len(told["files"])) == (0, "0000", 8), got.stderr
        wanted = {instance_of(image) for image in images(folder) if image.study_uid == one.study_uid}
        assert {open_instance(path).instance_uid for path in (tmp_path / "out").iterdir()} == wanted
        moved = bare("move", target, "--to", "DGIS", *study)
        assert moved.returncode == 0 and "8 sent" in moved.stdout, moved.stderr


def test_every_tool_has_examples() -> None:
    for name in ("echo", "find", "move", "get", "send", "conformance"):
        text = CliRunner().invoke(cli, [name, "--help"]).output
        assert "Example" in text and f"dgis {name} " in text.split("Example")[1], name
