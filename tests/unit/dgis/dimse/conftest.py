"""A DIMSE edge on a free port with doubles behind it."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE

from certs.config import IdentityConfig
from dgis.dimse.ae import ALL_RIGHTS, AeEntry, AeTable, UnknownAe
from dgis.dimse.learned import Destinations, LearnedStore, LearningRules
from dgis.dimse.limits import Limits, Timeouts
from dgis.dimse.outgoing import Adapter
from dgis.dimse.serve import TlsListener, serve_dimse
from dgis.dimse.services import DimseSettings, Services
from dgis.transcode.pool import Transcoder
from tests.unit.dgis.dimse.doubles import IngestDouble, RetrieveDouble, SearchDouble

SETTINGS = DimseSettings(
    aet="DGIS",
    site="a",
    timeouts=Timeouts(connect=2, acse=3, dimse=5, send=3, stall=3, idle=30, close=1),
    limits=Limits(artim=2.0),
    shutdown_grace=1.0,
)


@dataclass
class Edge:
    """What a test talks to."""

    port: int
    ingest: IngestDouble
    search: SearchDouble
    retrieve: RetrieveDouble
    table: AeTable
    settings: DimseSettings
    learned: LearnedStore
    tls_port: int = 0
    replaced: list[int] = field(default_factory=list)

    def destination(self, title: str, port: int) -> None:
        self.table.put(AeEntry(title=title, host="127.0.0.1", port=port, rights=tuple(sorted(ALL_RIGHTS))))

    def echo(self, *, within: float = 1.0) -> None:
        """Assert that a good peer gets its C-ECHO in time."""
        started = time.monotonic()
        ae = AE("GOOD")
        ae.add_requested_context("1.2.840.10008.1.1")
        ae.connection_timeout = within
        association = ae.associate("127.0.0.1", self.port, ae_title=self.settings.aet)
        assert association.is_established
        assert association.send_c_echo().Status == 0
        took = time.monotonic() - started
        association.release()
        assert took < within, f"C-ECHO took {took:.2f} s"


@pytest.fixture
def make_edge(tmp_path: Path) -> Iterator[Callable[..., Edge]]:
    """Return a factory of running edges; keyword arguments change the settings."""
    stops: list[tuple[threading.Event, threading.Thread, Any]] = []

    def make(
        *,
        rights: frozenset[Any] = ALL_RIGHTS,
        tls: IdentityConfig | None = None,
        certificate_required: bool = True,
        learning: LearningRules | None = None,
        **changes: Any,
    ) -> Edge:
        settings = replace(SETTINGS, **changes)
        number = len(stops)
        table = AeTable(tmp_path / f"ae{number}.toml", unknown=UnknownAe(rights=rights))
        learned = LearnedStore(tmp_path / f"learned{number}.json")
        ingest = IngestDouble(tmp_path / f"store{number}")
        edge = Edge(0, ingest, SearchDouble(), RetrieveDouble(), table, settings, learned)
        scratch = tmp_path / f"scratch{number}"
        scratch.mkdir()
        adapter = Adapter(transcoder, lambda: scratch)
        services = Services(
            edge.ingest,
            edge.search,
            edge.retrieve,
            table,
            adapter=adapter,
            destinations=Destinations(table, learned, learning),
            replaced=edge.replaced.append,
        )
        sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        edge.port = sock.getsockname()[1]
        stop = threading.Event()
        secure = None
        if tls is not None:
            secure = TlsListener(socket.create_server(("127.0.0.1", 0), backlog=512), tls, certificate_required)
            edge.tls_port = secure.listening_socket.getsockname()[1]
        thread = threading.Thread(target=serve_dimse, args=(sock, settings, services, stop), kwargs={"tls": secure})
        thread.start()
        stops.append((stop, thread, [sock, *([secure.listening_socket] if secure else [])]))
        return edge

    transcoder = Transcoder()
    yield make
    transcoder.close()
    for stop, thread, sockets in stops:
        stop.set()
        thread.join(10)
        for sock in sockets:
            sock.close()
        assert not thread.is_alive()


@pytest.fixture
def edge(make_edge: Callable[..., Edge]) -> Edge:
    """A running edge that allows everybody everything."""
    return make_edge()


@pytest.fixture
def dcmtk() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a DCMTK tool by absolute path (pynetdicom installs scripts of the same names)."""

    def run(tool: str, *args: object, nodelay: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        program = f"/usr/bin/{tool}"
        if not os.path.exists(program):
            pytest.skip(f"{program} is not installed")
        env = {**os.environ, **({"TCP_NODELAY": "1"} if nodelay else {})}
        return subprocess.run(
            [program, *map(str, args)], capture_output=True, text=True, timeout=timeout, env=env, check=False
        )

    return run


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Return a factory of nodes for storage commitment; keyword arguments change the rules."""
    from tests.unit.dgis.dimse.commitnode import FAST, Node

    made: list[Any] = []

    def make(*, report: str = "new", start: bool = True, **rules: Any) -> Any:
        node = Node(tmp_path / f"node{len(made)}", rules=replace(FAST, report=report, **rules))
        made.append(node)
        return node.start() if start else node

    yield make
    for node in made:
        node.close()


@pytest.fixture
def node(make_node: Callable[..., Any]) -> Any:
    """A running node with short times."""
    return make_node()
