"""The runtime as a whole: shared listening sockets, stopping, our own SCU under load."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage, StudyRootQueryRetrieveInformationModelMove

from dgis.dimse.command import MoveOriginator
from dgis.dimse.echo import echo
from dgis.dimse.limits import PeerAddress, Timeouts
from dgis.dimse.outgoing import Outgoing
from dgis.dimse.runtime.entity import GridAE
from dgis.dimse.scu import StoreSender
from tests.unit.dgis.dimse.conftest import Edge
from tests.unit.dgis.dimse.doubles import data_bytes, make_file
from tests.unit.dgis.dimse.raw import associate

EXPLICIT = "1.2.840.10008.1.2.1"


def test_processes_share_one_listening_socket(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import os, signal, socket, sys, threading
        from pathlib import Path
        from dgis.dimse.ae import AeTable
        from dgis.dimse.serve import serve_dimse
        from dgis.dimse.services import DimseSettings, Services
        from tests.unit.dgis.dimse.doubles import IngestDouble, RetrieveDouble, SearchDouble
        sock = socket.create_server(("127.0.0.1", 0))
        print(sock.getsockname()[1], flush=True)
        child = os.fork()
        os.write(1, b"%d\\n" % os.getpid())
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        store = IngestDouble(Path(sys.argv[1]) / str(os.getpid()))
        services = Services(store, SearchDouble(), RetrieveDouble(), AeTable(Path(sys.argv[1]) / "ae.toml"))
        serve_dimse(sock, DimseSettings(), services, stop)
        """
    )
    server = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[4]
    )
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        pids = [int(server.stdout.readline()) for _ in range(2)]
        assert all(echo("127.0.0.1", port, called_aet="DGIS", calling_aet="T").ok for _ in range(10))
        child = next(pid for pid in pids if pid != server.pid)
        os.kill(child, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert all(echo("127.0.0.1", port, called_aet="DGIS", calling_aet="T").ok for _ in range(10))
    finally:
        server.terminate()
        assert server.wait(10) == 0


def test_a_thousand_associations_do_not_fail_for_want_of_descriptors(tmp_path: Path) -> None:
    """Two descriptors each; the customary soft limit of 1024 would end at five hundred."""
    program = textwrap.dedent(
        """
        import resource, socket, sys, threading
        from pathlib import Path
        from dgis.dimse.ae import AeTable
        from dgis.dimse.limits import Limits
        from dgis.dimse.serve import serve_dimse
        from dgis.dimse.services import DimseSettings, Services
        from tests.unit.dgis.dimse.doubles import IngestDouble, RetrieveDouble, SearchDouble
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        stop = threading.Event()
        stop.set()
        store = IngestDouble(Path(sys.argv[1]))
        services = Services(store, SearchDouble(), RetrieveDouble(), AeTable(Path(sys.argv[1]) / "ae.toml"))
        settings = DimseSettings(limits=Limits(total=int(sys.argv[2])))
        serve_dimse(socket.create_server(("127.0.0.1", 0)), settings, services, stop)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, 65536)
        """
    )
    for total, said in ((100, False), (30000, True)):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path), str(total)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[4],
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert ("few file descriptors" in done.stderr + done.stdout) == said


def test_echo_says_what_is_wrong(edge: Edge) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert "nothing answers" in echo("127.0.0.1", sock.getsockname()[1], called_aet="X", calling_aet="Y").detail
    assert "not called" in echo("127.0.0.1", edge.port, called_aet="WRONG", calling_aet="Y").detail
    assert echo("127.0.0.1", edge.port, called_aet="DGIS", calling_aet="Y").ok


def test_stopping_ends_idle_associations_at_once(make_edge: Any) -> None:
    before = threading.active_count()
    edge = make_edge(shutdown_grace=5.0)
    with socket.create_connection(("127.0.0.1", edge.port), timeout=5) as sock:
        associate(sock, [(CTImageStorage, EXPLICIT)])
        edge.echo()
        started = time.monotonic()
        stop, thread, _ = _stop_of(make_edge)
        stop.set()
        thread.join(5)
        assert time.monotonic() - started < 2
        assert sock.recv(100)[:1] == b"\x07"
    deadline = time.monotonic() + 3
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _stop_of(make_edge: Any) -> Any:
    cells = dict(zip(make_edge.__code__.co_freevars, make_edge.__closure__, strict=True))
    return cells["stops"].cell_contents[0]


@pytest.mark.peer
def test_no_response_is_lost_under_load(tmp_path: Path) -> None:
    """Upstream loses a C-STORE-RSP in about 1 of 500 sends to a fast peer under CPU load (stack.md 4.2)."""
    if not os.path.exists("/usr/bin/storescp"):
        pytest.skip("/usr/bin/storescp is not installed")
    path = make_file(tmp_path / "in")
    size = len(data_bytes(path))
    offset = path.stat().st_size - size
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    storescp = subprocess.Popen(["/usr/bin/storescp", "--ignore", str(port)])
    busy = threading.Event()
    burners = [threading.Thread(target=_burn, args=(busy,)) for _ in range(1)]
    try:
        _await_listening(port)
        for burner in burners:
            burner.start()
        ae = GridAE("US", timeouts=Timeouts(dimse=10))
        sender = StoreSender(
            ae,
            PeerAddress("ANY", "127.0.0.1", port),
            [(CTImageStorage, EXPLICIT)],
            originator=MoveOriginator("THEM", 1),
            cancelled=lambda: False,
        )
        items = [Outgoing(CTImageStorage, f"1.2.{i}", EXPLICIT, path, offset, size) for i in range(300)]
        assert {sender.send(item) for item in items} == {0}
        sender.close()
    finally:
        busy.set()
        for burner in burners:
            burner.join()
        storescp.kill()
        storescp.wait()


def test_a_move_is_cancelled_while_the_destination_does_not_answer(edge: Edge, tmp_path: Path) -> None:
    edge.retrieve.add(make_file(tmp_path / "in"))
    model = StudyRootQueryRetrieveInformationModelMove
    with socket.create_server(("127.0.0.1", 0)) as silent:
        edge.destination("DEST", silent.getsockname()[1])
        ae = AE("VIEWER")
        ae.add_requested_context(model)
        association = ae.associate("127.0.0.1", edge.port, ae_title="DGIS")
        from pydicom.dataset import Dataset

        identifier = Dataset()
        identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", "1.2.3.1"
        answers = association.send_c_move(identifier, "DEST", model, msg_id=3)
        next(answers)
        time.sleep(0.3)
        started = time.monotonic()
        association.send_c_cancel(3, query_model=model)
        *_, (final, _) = answers
        assert final.Status == 0xFE00 and time.monotonic() - started < 1.0
        association.release()


def _burn(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(range(1000))


def _await_listening(port: int) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("storescp did not start")
