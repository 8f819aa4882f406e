"""Everything wrong that can be thrown at a running grid: each gets a clear refusal, and others go on undisturbed.

All the while a good peer sends C-ECHO, which must be answered within a second, and at the end what was stored before is
still there, byte for byte.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE

from certs import ca
from certs.config import IdentityConfig
from certs.errors import ServiceError
from certs.https.session import GridSession
from dgis.demo.images import Image
from dgis.demo.viewer import Viewer
from tests.helpers.dicomfiles import images, synth
from tests.helpers.grid import Grid

pytestmark = [pytest.mark.xdist_group("bad-input"), pytest.mark.timeout(180)]

ECHO_LIMIT = 1.0


class EchoWatch(threading.Thread):
    """A good peer: one association and C-ECHO after the other; remembers the slowest answer."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._viewer = Viewer(title="WATCH", called="DGIS", host="127.0.0.1", port=port)
        self._done = threading.Event()
        self.slowest = 0.0
        self.answers = 0
        self.failures: list[str] = []

    def run(self) -> None:
        last = False
        while not last:
            last = self._done.wait(0.1)  # one more after the attack
            started = time.monotonic()
            try:
                if not self._viewer.echo():
                    self.failures.append("no success")
            except (ConnectionError, OSError) as error:
                self.failures.append(str(error))
            self.slowest = max(self.slowest, time.monotonic() - started)
            self.answers += 1

    def finish(self) -> None:
        self._done.set()
        self.join(15)
        assert not self.failures, self.failures
        assert self.slowest < ECHO_LIMIT, f"C-ECHO took {self.slowest:.2f} s"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    folder = synth(
        tmp_path_factory.mktemp("bad") / "images",
        "--studies",
        "2",
        "--series",
        "1",
        "--instances",
        "5",
        "--rows",
        "64",
        "--cols",
        "64",
    )
    return images(folder)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, stored: list[Image]) -> Iterator[Grid]:
    with Grid(tmp_path_factory.mktemp("bad-grid")) as grid:
        viewer = Viewer(title="BEFORE", called="DGIS", host="127.0.0.1", port=grid.port)
        assert [status for _, status in viewer.store(stored)] == [0x0000] * len(stored)
        yield grid


@pytest.fixture
def undisturbed(grid: Grid, stored: list[Image]) -> Iterator[Grid]:
    """The grid, watched: C-ECHO in time throughout, nothing stored is harmed, nobody died."""
    before = {role: len(processes) for role, processes in grid.processes().items()}
    watch = EchoWatch(grid.port)
    watch.start()
    yield grid
    watch.finish()
    assert {role: len(processes) for role, processes in grid.processes().items()} == before
    viewer = Viewer(title="AFTER", called="DGIS", host="127.0.0.1", port=grid.port)
    (completed, failed), received = viewer.get(stored)
    assert (completed, failed) == (len(stored), 0)
    assert received.digests == {image.instance_uid: image.data_sha256 for image in stored}


def _connect(grid: Grid) -> socket.socket:
    return socket.create_connection(("127.0.0.1", grid.port), timeout=10)


def _closed_by_peer(connection: socket.socket, seconds: float) -> bool:
    """True when the peer ends the connection (after an A-ABORT or not) within ``seconds``."""
    connection.settimeout(seconds)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def test_garbage_instead_of_pdus(undisturbed: Grid) -> None:
    chance = random.Random(1)
    for size in (5, 6, 7, 100, 5000, 70000):
        with _connect(undisturbed) as connection:
            connection.sendall(b"\x09" + chance.randbytes(size))
            assert _closed_by_peer(connection, 5.0), f"{size} bytes of garbage left hanging"


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, 0x10000000])
def test_a_pdu_that_announces_gigabytes(undisturbed: Grid, length: int) -> None:
    with _connect(undisturbed) as connection:
        connection.sendall(struct.pack(">BBL", 1, 0, length) + b"\0" * 100)
        assert _closed_by_peer(connection, 5.0)


def test_two_hundred_idle_connections(undisturbed: Grid) -> None:
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(_connect(undisturbed))
        time.sleep(3.0)  # the watch goes on behind them


def _dataset(uid: str) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.4", "1.2.3.4.5"
    ds.PatientID, ds.PatientName, ds.Modality = "BAD1", "Bad^Input", "CT"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def _store_raw(grid: Grid, data: bytes, instance_uid: str = "1.2.3.99") -> int:
    """C-STORE of arbitrary bytes as the data set; returns the status."""
    from io import BytesIO

    from pynetdicom.dimse_primitives import C_STORE

    ae = AE("BADSENDER")
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    assoc = ae.associate("127.0.0.1", grid.port, ae_title="DGIS")
    assert assoc.is_established
    try:
        request = C_STORE()
        request.MessageID, request.AffectedSOPClassUID = 1, CTImageStorage
        request.AffectedSOPInstanceUID, request.Priority = instance_uid, 2
        request.DataSet = BytesIO(data)
        assoc._reactor_checkpoint.clear()
        assoc.dimse.send_msg(request, 1)
        _, answer = assoc.dimse.get_msg(block=True)
        assoc._reactor_checkpoint.set()
        return -1 if answer is None else int(answer.Status)
    finally:
        assoc.release()


@pytest.mark.parametrize(
    "data",
    [b"not a data set at all, just text that goes on", os.urandom(3000), b"\0" * 4000, b"\x08\x00\x16\x00UI"],
    ids=["text", "random", "zeros", "cut"],
)
def test_what_is_no_data_set_is_refused(undisturbed: Grid, data: bytes) -> None:
    status = _store_raw(undisturbed, data)
    assert status & 0xF000 in (0xA000, 0xC000), hex(status)


def test_mismatching_instance_uid_is_refused(undisturbed: Grid) -> None:
    assert _store_raw(undisturbed, _encoded(_dataset("1.2.3.1000")), "1.2.3.2000") == 0xA900


def _encoded(ds: Dataset) -> bytes:
    from io import BytesIO

    from pydicom.filebase import DicomFileLike
    from pydicom.filewriter import write_dataset

    buffer = DicomFileLike(BytesIO())
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, ds)
    return buffer.parent.getvalue()


def test_a_data_set_cut_within_its_pixel_data_is_refused(undisturbed: Grid) -> None:
    cut = _encoded(_dataset("1.2.3.3000")) + struct.pack("<HH2s2xL", 0x7FE0, 0x0010, b"OW", 100000) + b"abc"
    assert _store_raw(undisturbed, cut, "1.2.3.3000") == 0xC000


@pytest.mark.parametrize("uid", ["../../../etc/x", "/etc/passwd", "1.2.3\\4"])
def test_a_path_for_a_uid_is_refused(undisturbed: Grid, uid: str) -> None:
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        ds = _dataset("1.2.3.4000")
        with pydicom_config.disable_value_validation():
            setattr(ds, keyword, uid)
            status = _store_raw(undisturbed, _encoded(ds), str(ds.SOPInstanceUID).split("\\")[0])
        assert status == 0xA900 or (keyword == "SOPInstanceUID" and status == 0xC000), (keyword, hex(status))


def test_odd_files_from_the_generator(undisturbed: Grid, tmp_path: Path) -> None:
    """Twenty non-conformant kinds, `../` in UIDs and a 4000-deep sequence among them: stored whole or refused."""
    folder = synth(tmp_path / "odd", "--studies", "0", "--odd", "all")
    odd = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(odd) >= 15
    outcome = undisturbed.cli("import", *map(str, odd), "--format", "json", check=False)
    assert outcome.returncode in (0, 3), outcome.stderr
    outside = [path for path in undisturbed.home.parent.rglob("*") if ".." in path.name]
    assert not outside


def test_strangers_are_refused_by_every_service(undisturbed: Grid, tmp_path: Path) -> None:
    ready = undisturbed.ready
    urls = [
        ready["catalog"]["url"],
        ready["dgis"]["url"],
        *(undisturbed.doors(p["name"])["https"].split("/areas")[0] for p in ready["providers"]),
    ]
    other = tmp_path / "other"
    ca.init_site(other, organisation="Another grid")
    stranger = ca.issue_user(other, "stranger", roles=("operator",), out=other)
    trust = undisturbed.home / "trust"
    revoked = ca.issue_user(undisturbed.home, "leaver", roles=("operator",), out=tmp_path)
    ca.revoke(undisturbed.home, revoked.cert)
    time.sleep(3.0)  # the services notice the new list by themselves
    for url in urls:
        for credential in (stranger, revoked):
            session = GridSession(IdentityConfig(cert=credential.cert, key=credential.key, trust=trust))
            with pytest.raises(ServiceError):
                session.json("GET", f"{url}/v1/whoami")
        with pytest.raises(requests.exceptions.RequestException):
            requests.get(f"{url}/v1/whoami", verify=str(trust / "ca.pem"), timeout=5)
        good = ready["client"]
        with requests.get(f"{url}/v1/whoami", cert=(good["cert"], good["key"]), verify=good["ca"], timeout=5) as reply:
            assert reply.status_code == 200
            assert "operator" in reply.json()["roles"]
