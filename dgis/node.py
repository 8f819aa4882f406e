"""Composition: which objects make up each process of a DGIS. The only room that knows all the others.

A receiver answers DIMSE and puts objects into the spool, the worker catalogs and copies them, the HTTPS process answers
operators. They share the spool directory and nothing else.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from catalog.client import CatalogClient
from certs.https.session import GridSession
from certs.log import get_log
from dgis.board import Unreachable, read_board
from dgis.config import NodeConfig
from dgis.copier import CopyPlan
from dgis.dimse.ae import AeTable, UnknownAe
from dgis.dimse.serve import serve_dimse
from dgis.dimse.services import DimseSettings, Services
from dgis.elements import Elements
from dgis.ingest import Ingest, Promise
from dgis.metrics import Metrics, make_metrics
from dgis.processes import NodeError, read_process_table
from dgis.retrieve import Retrieve
from dgis.search import Search
from dgis.sources import BlameReporter, Sources
from dgis.spool import Spool
from dgis.worker import Worker, WorkerSettings
from storage_provider.channels import open_channels
from storage_provider.transfer.engine import Engine

log = get_log()

POOL = 16
STALE_BOARD_SECONDS = 60.0


def ae_table(node: NodeConfig, config: Path) -> AeTable:
    """The AE table of a node: ``[dgis] ae_table``, else ae.toml beside its node.toml."""
    unknown = UnknownAe(frozenset(node.unknown_ae.rights), tuple(node.unknown_ae.networks))
    return AeTable(node.dgis.ae_table or config.with_name("ae.toml"), unknown=unknown)


def open_spool(node: NodeConfig) -> Spool:
    """The node's spool with its limits."""
    return Spool(node.dgis.spool, limit_bytes=node.dgis.spool_limit, reserve_bytes=node.dgis.spool_reserve)


def make_ingest(node: NodeConfig, metrics: Metrics) -> Ingest:
    """The C-STORE use case of a node."""
    promise = Promise(accept=node.dgis.accept, timeout=node.dgis.accept_timeout)
    return Ingest(open_spool(node), metrics, promise=promise)


def catalog_client(node: NodeConfig) -> CatalogClient:
    """The node's own client of its catalog."""
    return CatalogClient(GridSession(node.identity, pool=POOL), node.catalog.url)


def stop_on_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def run_worker(node: NodeConfig) -> None:
    """The worker process, until SIGTERM."""
    stop = stop_on_signal()
    plan = CopyPlan(node=node.dgis.name, site=node.dgis.site, copies=node.dgis.copies, parallel=node.dgis.transfers)
    engine = Engine(open_channels(GridSession(node.identity, pool=POOL)))
    settings = WorkerSettings(plan=plan, spool_limit=node.dgis.spool_limit)
    Worker(open_spool(node), catalog_client(node), engine, settings, make_metrics()).run(stop)


def run_receiver(node: NodeConfig, config: Path, listener: socket.socket) -> None:
    """One receiver process on an inherited listening socket, until SIGTERM."""
    stop = stop_on_signal()
    settings = DimseSettings(
        aet=node.dgis.aet,
        site=node.dgis.site,
        node=node.dgis.name,
        issuer=node.dgis.default_issuer,
        accept_any_called=node.dimse.accept_any_called,
        also_called=tuple(node.dimse.also_called),
        find_limit=node.dimse.find_limit,
        names=node.dimse.names,
        settle=node.dgis.settle,
    )
    serve_dimse(listener, settings, _services(node, config, make_metrics()), stop)


def _services(node: NodeConfig, config: Path, metrics: Metrics) -> Services:
    """The use cases of a receiver, over one session and one spool."""
    session = GridSession(node.identity, pool=POOL)
    catalog = CatalogClient(session, node.catalog.url)
    elements = Elements(catalog)
    engine = Engine(open_channels(session), on_blame=BlameReporter(catalog))
    unreachable = Unreachable(node.dgis.spool)
    sources = Sources(open_spool(node), engine, elements, site=node.dgis.site, metrics=metrics, unreachable=unreachable)
    return Services(
        ingest=make_ingest(node, metrics),
        search=Search(catalog, unreachable, metrics),
        retrieve=Retrieve(catalog, sources, elements, metrics),
        ae_table=ae_table(node, config),
    )


def run_https(node: NodeConfig) -> None:
    """Health, metrics of all processes, whoami; until SIGTERM."""
    from certs.https.server import add_check, create_app, serve

    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    app = create_app(
        title=f"DGIS {node.dgis.aet}", version=version("dgis"), identity=node.identity, metrics_registry=registry
    )
    add_check(app, "worker", lambda: _check_worker(node))
    add_check(app, "receivers", lambda: _check_receivers(node))
    serve(app, node.https, node.identity)


def _check_worker(node: NodeConfig) -> str:
    board = read_board(node.dgis.spool)
    if board is None:
        raise NodeError("no worker has written its board yet")
    age = (datetime.now(UTC) - board.at).total_seconds()
    if age > STALE_BOARD_SECONDS:
        raise NodeError("the worker's board is stale: it does not run")
    return f"{board.backlog.count} objects waiting"


def _check_receivers(node: NodeConfig) -> str:
    pids = [pid for name, pid in read_process_table(node).items() if name.startswith("dimse")]
    alive = sum(pid is not None and Path(f"/proc/{pid}").exists() for pid in pids)
    if not alive:
        raise NodeError("no receiver runs")
    return f"{alive} of {len(pids)} run"
