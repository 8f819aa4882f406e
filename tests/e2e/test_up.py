"""The contracts of `dgis up` and the operator's commands, on a running grid."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner
from pydicom.dataset import Dataset
from pynetdicom import AE

from dgis.cli import cli
from dgis.demo.images import Image
from dgis.demo.viewer import STUDY_ROOT_FIND, Viewer
from tests.helpers.dicomfiles import images, synth
from tests.helpers.grid import BIN, Grid, free_port, wait_until

pytestmark = [pytest.mark.xdist_group("up"), pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    place = tmp_path_factory.mktemp("up") / "images"
    return images(synth(place, "--studies", "3", "--series", "1", "--instances", "4", "--rows", "64", "--cols", "64"))


def _viewer(grid: Grid, title: str = "VIEWER") -> Viewer:
    return Viewer(title=title, called=grid.aet, host="127.0.0.1", port=grid.port)


def _store(grid: Grid, sent: list[Image]) -> None:
    assert [status for _, status in _viewer(grid).store(sent)] == [0x0000] * len(sent)


def _assert_there(grid: Grid, sent: list[Image]) -> None:
    (completed, failed), received = _viewer(grid).get(sent)
    assert (completed, failed) == (len(sent), 0)
    assert received.digests == {image.instance_uid: image.data_sha256 for image in sent}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    with Grid(tmp_path_factory.mktemp("up-grid"), peers=("SOMEWHERE:127.0.0.1:11999",)) as grid:
        yield grid


def test_ready_json_holds_what_scripts_rely_on(grid: Grid) -> None:
    ready = grid.ready
    assert ready["dimse"] == {"aet": "DGIS", "host": "127.0.0.1", "port": grid.port}
    assert {len(ready["providers"]), ready["providers"][0]["name"]} == {2, "se1"}
    for pid in (ready["dgis"]["pid"], ready["catalog"]["pid"], *(p["pid"] for p in ready["providers"])):
        os.kill(pid, 0)
    client = ready["client"]
    for url in (ready["dgis"]["url"], ready["catalog"]["url"]):
        reply = requests.get(f"{url}/v1/whoami", cert=(client["cert"], client["key"]), verify=client["ca"], timeout=5)
        assert reply.json()["roles"] == ["operator"]
    context = ssl.create_default_context(capath=client["ca_dir"])
    assert context.load_cert_chain(client["cert"], client["key"]) is None
    assert (Path(client["ca_dir"]) / "ca.pem").exists()


def test_an_operator_lists_its_own_storage(grid: Grid, sent: list[Image]) -> None:
    _store(grid, sent)
    grid.wait_drained()
    client = grid.ready["client"]
    for provider in grid.ready["providers"]:
        door = grid.doors(provider["name"])["https"]
        reply = requests.get(f"{door}/objects", cert=(client["cert"], client["key"]), verify=client["ca"], timeout=5)
        assert reply.status_code == 200
        assert len(reply.json()["objects"]) >= len(sent)


def test_status_sees_a_well_grid(grid: Grid) -> None:
    def elements() -> set[bool | None]:
        return {element["reachable"] for element in grid.status()["storage_elements"]}

    wait_until(lambda: elements() == {True}, seconds=15, what="the worker has asked every element")
    done = grid.cli("status", "--format", "json")
    status = json.loads(done.stdout)
    assert status["ok"] and status["spool"]["backlog"] == 0
    assert {service["name"] for service in status["services"]} == {"catalog", "dgis", "se1", "se2"}
    text = grid.cli("status").stdout
    assert "All is well" in text and "Certificates" in text


def test_storage_elements_by_command(grid: Grid, sent: list[Image]) -> None:
    def se(*args: str, code: int = 0) -> Any:
        """In this process: eleven starts of one would be most of the test."""
        done = CliRunner().invoke(cli, ["se", *args, "--home", str(grid.home)])
        assert done.exit_code == code, done.output
        return json.loads(done.stdout) if "json" in args else done.output

    _store(grid, sent)
    grid.wait_drained()

    def shown() -> bool:
        return all(row["doors"][0]["in_use"] for row in se("list", "--format", "json"))

    wait_until(shown, seconds=5, what="the doors in use are on the board", every=0.3)
    rows = {row["name"]: row for row in se("list", "--format", "json")}
    for name in ("se1", "se2"):
        doors = rows[name]["doors"]
        assert [door["url"] for door in doors] == list(grid.doors(name).values())
        assert [door["url"].split(":")[0] for door in doors] == ["gsiftp", "sftp", "https"]
        assert [door["in_use"] for door in doors] == [True, False, False]
    tested = se("test", "se1", "--size", "1", "--format", "json")
    assert [row["trouble"] for row in tested] == ["", "", ""] and all(row["put_mb_s"] > 0 for row in tested)
    assert "no channel for ftp" in se("add", "se9", "--site", "b", "--door", "ftp://h/x", code=2)
    closed = f"gsiftp://127.0.0.1:{free_port()}/areas/main"
    for door in grid.doors("se2").values():  # one file under two names would count as two copies
        assert "it is se2, not se9" in " ".join(se("add", "se9", "--site", "b", "--door", door, code=1).split())
    assert "does not say" in se("add", "se9", "--site", "b", "--state", "readonly", "--door", closed)
    assert "se9" in se("add", "se8", "--site", "b", "--door", closed + "/", code=1)
    se("test", "se9", "--size", "0.1", "--format", "json", code=1)
    se("remove", "se9")
    doors = ("--door", grid.doors("se2")["https"], "--door", closed)
    se("add", "se2", "--site", "local", *doors)
    partly = se("test", "se2", "--size", "0.1", "--format", "json", code=3)
    assert [bool(row["trouble"]) for row in partly] == [True, False]  # sorted: gsiftp comes first
    se("add", "se2", "--site", "local", "--ordered", *doors)
    (ordered,) = (row for row in se("list", "--format", "json") if row["name"] == "se2")
    assert ordered["doors"][1]["url"] == closed
    se("add", "se2", "--site", "local", *(part for door in grid.doors("se2").values() for part in ("--door", door)))
    assert "copies" in se("remove", "se1", code=1)
    assert {row["name"] for row in se("list", "--format", "json")} == {"se1", "se2"}


def test_no_patient_data_in_logs_names_or_metrics(grid: Grid, sent: list[Image]) -> None:
    _store(grid, sent)
    words = {b"Doe", b"Smith", b"SYN000", *(image.instance_uid.encode() for image in sent[:3])}
    client = grid.ready["client"]
    metrics = requests.get(
        f"{grid.ready['dgis']['url']}/metrics", cert=(client["cert"], client["key"]), verify=client["ca"], timeout=5
    ).content
    assert b"dgis_stored_objects_total" in metrics
    texts = {path.name: path.read_bytes() for path in (grid.home / "log").iterdir()} | {"metrics": metrics}
    texts["names"] = "\n".join(str(path) for path in grid.home.rglob("*")).encode()
    texts["board"] = (grid.home / "dgis" / "spool" / "state" / "worker.json").read_bytes()
    leaks = [(name, word) for name, text in texts.items() for word in words if word in text]
    assert leaks == []


def test_ae_table_by_command(grid: Grid) -> None:
    port = free_port()
    grid.cli("ae", "add", "NEW1", "--host", "127.0.0.1", "--port", str(port), "--rights", "echo,find")
    rows = {row["title"]: row for row in json.loads(grid.cli("ae", "list", "--format", "json").stdout)}
    assert rows["NEW1"]["destination"] == f"127.0.0.1:{port}"
    assert rows["SOMEWHERE"]["destination"] == "127.0.0.1:11999"
    assert grid.cli("ae", "echo", "NEW1", check=False).returncode == 1
    assert grid.cli("ae", "add", "SELF", "--host", "127.0.0.1", "--port", str(grid.port)).returncode == 0
    denied = grid.cli("ae", "echo", "SELF", check=False)
    assert denied.returncode == 1 and "not called SELF" in denied.stdout
    grid.cli("ae", "remove", "NEW1")
    assert "NEW1" not in grid.cli("ae", "list").stdout
    assert grid.cli("ae", "remove", "NEW1", check=False).returncode == 1


def test_rights_of_the_table_hold(grid: Grid, sent: list[Image]) -> None:
    grid.cli("ae", "add", "READER", "--rights", "echo,find,get")
    statuses = {status for _, status in _viewer(grid, "READER").store(sent[:1])}
    assert statuses == {0x0124}  # refused: not authorised (PS3.7 C.4.1)
    assert _viewer(grid, "READER").echo()


def test_import_files_a_folder(grid: Grid, tmp_path: Path) -> None:
    folder = synth(tmp_path / "cd", "--studies", "1", "--instances", "3", "--rows", "64", "--cols", "64", "--seed", "7")
    (folder / "notes.txt").write_text("not an image")
    done = grid.cli("import", str(folder), "--format", "json", check=False)
    report = json.loads(done.stdout)
    assert (done.returncode, report["filed"], report["catalogued"]) == (3, 3, True)
    assert [Path(item["path"]).name for item in report["refused"]] == ["notes.txt"]
    _assert_there(grid, images(folder))


def test_conflicts_are_listed_and_resolved(grid: Grid, sent: list[Image], tmp_path: Path) -> None:
    original = sent[0]
    other = tmp_path / "other.dcm"
    other.write_bytes(original.path.read_bytes()[:-2] + b"\x55\x55")
    _store(grid, sent)
    (changed,) = images(tmp_path)
    assert changed.instance_uid == original.instance_uid and changed.data_sha256 != original.data_sha256
    _store(grid, [changed])
    wait_until(lambda: json.loads(grid.cli("conflicts", "list", "--format", "json").stdout), seconds=10, what="listed")
    (row,) = json.loads(grid.cli("conflicts", "list", "--format", "json").stdout)
    assert (row["instance_uid"], row["kind"]) == (original.instance_uid, "content")
    _assert_there(grid, sent)
    grid.wait_drained()
    grid.cli("conflicts", "resolve", row["id"], "replace")
    _, received = _viewer(grid).get([changed])
    assert received.digests[original.instance_uid] == changed.data_sha256
    assert json.loads(grid.cli("conflicts", "list", "--format", "json").stdout) == []


def test_a_second_grid_in_one_home_is_refused(grid: Grid) -> None:
    argv = [str(BIN / "dgis"), "up", "--home", str(grid.home), "--port", str(free_port())]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "another dgis up runs" in done.stderr
    assert (grid.home / "ready.json").exists(), "the running grid's ready.json must stay"


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        argv = [str(BIN / "dgis"), "up", "--home", str(tmp_path / "g"), "--port", str(taken.getsockname()[1])]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "in use" in done.stderr


def _find_status(grid: Grid) -> int:
    ae = AE("ASKER")
    ae.add_requested_context(STUDY_ROOT_FIND)
    association = ae.associate("127.0.0.1", grid.port, ae_title="DGIS")
    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", ""
    statuses = [int(status.Status) for status, _ in association.send_c_find(query, STUDY_ROOT_FIND) if status]
    association.release()
    return statuses[-1]


def test_both_elements_silent_does_not_hang_a_retrieve(grid: Grid, sent: list[Image]) -> None:
    """Twelve images on two frozen elements: each fails, and the later ones at once."""
    _store(grid, sent)
    grid.wait_drained()
    pids = [provider["pid"] for provider in grid.ready["providers"]]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        (completed, failed), _ = _viewer(grid).get(sent)
        assert (completed, failed) == (0, len(sent))
        assert time.monotonic() - started < 60  # at 12 s each it would be 144
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: _viewer(grid).get(sent)[0] == (len(sent), 0), seconds=90, what="back", every=3.0)


def test_an_operator_cannot_permit_itself_to_delete(grid: Grid) -> None:
    client = grid.ready["client"]
    key = "v1/ab/cd/abcd" + "0" * 60
    body = {"dn": "/O=dgis local grid/OU=People/CN=operator", "se": "se1", "keys": [key], "verbs": ["delete"]}
    reply = requests.post(
        f"{grid.ready['catalog']['url']}/v1/permits", json=body, timeout=5,
        cert=(client["cert"], client["key"]), verify=client["ca"],
    )  # fmt: skip
    assert reply.status_code in (403, 409, 422), reply.status_code
    assert "delete" in reply.text


def test_life_of_a_grid(tmp_path: Path, sent: list[Image]) -> None:
    """Killed children are reported and stay away; storing goes on without them; a restart finds everything."""
    grid = Grid(tmp_path / "grid").start()
    _store(grid, sent[:4])
    os.kill(grid.ready["catalog"]["pid"], signal.SIGKILL)
    wait_until(lambda: "catalog (pid" in grid.log(), seconds=5, what="death reported")
    _store(grid, sent[4:8])  # Success: safe in the spool
    assert _find_status(grid) == 0xC001  # unavailable is not empty
    done = grid.cli("status", check=False)
    assert done.returncode == 3 and "catalog" in done.stdout
    time.sleep(0.5)
    assert "catalog" not in grid.processes()
    assert grid.stop() == 0
    assert not (grid.home / "ready.json").exists()
    with Grid(grid.home, port=grid.port, options=("--respawn",)) as again:
        _store(again, sent[8:])
        wait_until(lambda: _find_status(again) == 0x0000, seconds=10, what="catalog asked again")
        again.wait_drained()
        _assert_there(again, sent)
        first = again.ready["providers"][0]["pid"]
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: "se1" in again.processes(), seconds=30, what="se1 back")
        ready = grid.home / "ready.json"
        wait_until(
            lambda: json.loads(ready.read_text())["providers"][0]["pid"] not in (None, first), seconds=5, what="told"
        )
    fewer = subprocess.run(
        [str(BIN / "dgis"), "up", "--home", str(grid.home), "--providers", "1", "--port", str(free_port())],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert fewer.returncode == 1 and "out of reach" in fewer.stderr
