"""Composition: which objects make up each process of a DGIS. The only room that knows all the others.

A receiver answers DIMSE and puts objects into the spool, the worker catalogs and copies them, the HTTPS process answers
operators. They share the spool directory and nothing else.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from catalog.client import CatalogClient
from certs.config import IdentityConfig
from certs.https.session import GridSession
from certs.log import get_log
from certs.memory import settle_memory
from dgis.board import Unreachable, read_board
from dgis.commit_answers import CommitAnswers
from dgis.commit_store import CommitmentStore
from dgis.committer import CommitRules
from dgis.config import NodeConfig
from dgis.copier import CopyPlan
from dgis.dimse.ae import AeTable, UnknownAe
from dgis.dimse.commit_report import EventReporter
from dgis.dimse.learned import Destinations, LearnedStore, LearningRules
from dgis.dimse.limits import Limits, Timeouts
from dgis.dimse.outgoing import Adapter
from dgis.dimse.secure import TlsCaller
from dgis.dimse.serve import TlsListener, serve_dimse
from dgis.dimse.services import DimseSettings, Services
from dgis.disk import ProcessDirectory
from dgis.elements import Elements, Near
from dgis.ingest import Ingest, Promise
from dgis.metrics import Metrics, make_metrics
from dgis.processes import NodeError, read_process_table
from dgis.retrieve import Retrieve
from dgis.rights import PolicyCopy, Rights, policy_file
from dgis.search import Search
from dgis.sources import BlameReporter, Sources
from dgis.spool import Spool
from dgis.transcode.convert import Bounds
from dgis.transcode.pool import Limits as ConversionLimits
from dgis.transcode.pool import Transcoder
from dgis.worker import Commitments, Worker, WorkerSettings
from storage_provider.channel import Channel
from storage_provider.channels import open_channels
from storage_provider.gridftp.settings import DataSettings
from storage_provider.transfer.engine import Blame, Engine, ignore_blame

log = get_log()

POOL = 16
STALE_BOARD_SECONDS = 60.0


def ae_table(node: NodeConfig, config: Path) -> AeTable:
    """The AE table of a node: ``[dgis] ae_table``, else ae.toml beside its node.toml."""
    unknown = UnknownAe(frozenset(node.unknown_ae.rights), tuple(node.unknown_ae.networks))
    path = node.dgis.ae_table or config.with_name("ae.toml")
    return AeTable(path, unknown=unknown, ignore_case=node.dimse.ignore_title_case)


def learned_store(node: NodeConfig) -> LearnedStore:
    """What the receivers have learned about move destinations."""
    return LearnedStore(node.dgis.spool / "state" / "learned.json")


def learning_rules(node: NodeConfig) -> LearningRules:
    """What they may learn."""
    rules = node.learned_destinations
    return LearningRules(
        enabled=rules.enabled,
        networks=tuple(rules.networks),
        ports=tuple(rules.ports),
        require_existing_rights=rules.require_existing_rights,
    )


def make_adapter(node: NodeConfig, metrics: Metrics) -> Adapter | None:
    """What converts instances for receivers that do not take them as they are stored."""
    rules = node.transcoding
    if not rules.enabled:
        return None
    bounds = Bounds(frame=rules.frame, reserve=node.dgis.spool_reserve)
    limits = ConversionLimits(rules.workers, rules.stall, rules.total, rules.memory, bounds)
    scratch = ProcessDirectory(node.dgis.spool / "scratch")
    return Adapter(
        Transcoder(limits),
        lambda: scratch.get().path,
        ended=lambda outcome: metrics.conversions.labels(outcome=outcome).inc(),
    )


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


def open_doors(node: NodeConfig, session: GridSession) -> Callable[[str], Channel]:
    """What opens a door of a storage element for this node."""
    data = DataSettings(
        active=node.transfer.active,
        ports=node.transfer.ports,
        advertise=node.transfer.advertise,
        sessions=node.transfer.sessions,
    )
    return open_channels(session, data=data)


def make_engine(node: NodeConfig, session: GridSession, *, on_blame: Callable[[Blame], None] = ignore_blame) -> Engine:
    """What moves objects between this node and storage elements, by every kind of door."""
    return Engine(open_doors(node, session), on_blame=on_blame)


def stop_on_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def run_worker(node: NodeConfig, config: Path) -> None:
    """The worker process, until SIGTERM."""
    stop = stop_on_signal()
    plan = CopyPlan(node=node.dgis.name, site=node.dgis.site, copies=node.dgis.copies, parallel=node.dgis.transfers)
    engine = make_engine(node, GridSession(node.identity, pool=POOL))
    yields = node.dgis.accept == "spooled"
    settings = WorkerSettings(plan=plan, spool_limit=node.dgis.spool_limit, yields=yields)
    spool, catalog = open_spool(node), catalog_client(node)
    commitment = Commitments(
        CommitmentStore(spool.root),
        catalog,
        EventReporter(ae_table(node, config), aet=node.dgis.aet, tls=TlsCaller(dimse_identity(node))),
        CommitRules(
            copies=node.dgis.copies,
            timeout=node.dgis.commit_timeout,
            grace=node.dgis.commit_grace,
            retry=node.dgis.commit_retry,
            report=node.dgis.commit_report,
        ),
    )
    policy = PolicyCopy(catalog, policy_file(spool.root))
    worker = Worker(spool, catalog, engine, settings, make_metrics(), commitment=commitment, policy=policy.refresh)
    settle_memory()
    worker.run(stop)


def run_receiver(
    node: NodeConfig, config: Path, listener: socket.socket, tls_listener: socket.socket | None = None
) -> None:
    """One receiver process on inherited listening sockets, until SIGTERM."""
    stop = stop_on_signal()
    tls = None
    if tls_listener is not None and node.dimse_tls is not None:
        required = node.dimse_tls.client_certificate == "required"
        tls = TlsListener(tls_listener, node.dimse_tls.identity(node.identity), certificate_required=required)
    services = _services(node, config, make_metrics())
    settle_memory()
    serve_dimse(listener, dimse_settings(node), services, stop, tls=tls, identity=dimse_identity(node))


def dimse_identity(node: NodeConfig) -> IdentityConfig:
    """What the node shows to AEs over DICOM TLS: the listener's identity, else its own."""
    return node.dimse_tls.identity(node.identity) if node.dimse_tls is not None else node.identity


def dimse_settings(node: NodeConfig) -> DimseSettings:
    """How the DIMSE edge answers."""
    limits = node.dimse_limits
    return DimseSettings(
        aet=node.dgis.aet,
        site=node.dgis.site,
        node=node.dgis.name,
        issuer=node.dgis.default_issuer,
        accept_any_called=node.dimse.accept_any_called,
        also_called=tuple(node.dimse.also_called),
        ignore_title_case=node.dimse.ignore_title_case,
        user_identity=node.dimse.user_identity,
        users={user.name: user.passcode for user in node.user},
        limits=Limits(
            total=limits.associations,
            per_ae=limits.per_ae,
            waiting=limits.waiting,
            artim=limits.artim,
            handshake=limits.handshake,
            retrieves=limits.retrieves,
        ),
        timeouts=Timeouts(
            connect=limits.connect,
            acse=limits.acse,
            dimse=limits.dimse,
            send=limits.send,
            stall=limits.stall,
            idle=limits.network,
            close=limits.close,
        ),
        max_pdu=node.dimse.max_pdu,
        find_limit=node.dimse.find_limit,
        names=node.dimse.names,
        hierarchy=node.dimse.hierarchy,
        settle=node.dgis.settle,
        commit_report=node.dgis.commit_report,
    )


def _services(node: NodeConfig, config: Path, metrics: Metrics) -> Services:
    """The use cases of a receiver, over one session and one spool."""
    session = GridSession(node.identity, pool=POOL)
    catalog = CatalogClient(session, node.catalog.url)
    elements = Elements(catalog)
    engine = make_engine(node, session, on_blame=BlameReporter(catalog))
    unreachable = Unreachable(node.dgis.spool)
    table = ae_table(node, config)
    sources = Sources(
        open_spool(node),
        engine,
        elements,
        site=node.dgis.site,
        metrics=metrics,
        unreachable=unreachable,
        reading=engine,
    )
    return Services(
        ingest=make_ingest(node, metrics),
        search=Search(catalog, unreachable, metrics, near=Near(elements, site=node.dgis.site, node=node.dgis.name)),
        retrieve=Retrieve(catalog, sources, elements, metrics),
        ae_table=table,
        destinations=Destinations(table, learned_store(node), learning_rules(node)),
        adapter=make_adapter(node, metrics),
        commitment=CommitmentStore(node.dgis.spool),
        commit_answers=CommitAnswers(node.dgis.spool),
        rights=Rights(policy_file(node.dgis.spool), required=node.policy.required),
        replaced=metrics.replaced_characters.inc,
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
