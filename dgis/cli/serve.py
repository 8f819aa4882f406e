"""``dgis serve``: one DGIS from its node.toml, and the hidden ``dgis process`` that its children run."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import click

from certs.log import configure
from dgis.config import NodeConfig, load_node
from dgis.processes import listen, write_process_table
from dgis.supervisor import Child, Supervisor

METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"


@click.command("serve", epilog="Example: dgis serve --config /etc/dgis/node.toml")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The node's TOML file.")
@click.option("--respawn/--no-respawn", default=True, show_default=True, help="Restart a process that died.")
def command(*, config: Path, respawn: bool) -> None:
    """Run a DGIS: DIMSE receivers on one listening socket, one worker, one HTTPS process, until SIGTERM."""
    node = load_node(config)
    configure("dgis", node.log.level, node.log.format)
    metrics = node.dgis.spool.parent / "metrics"
    shutil.rmtree(metrics, ignore_errors=True)  # counters of processes that are gone
    metrics.mkdir(parents=True, mode=0o700)
    supervisor = Supervisor(respawn=respawn, environment={**os.environ, METRICS_DIRECTORY: str(metrics)})
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.request_stop())
    listeners = _listen(node, supervisor)
    receivers = _start(supervisor, node, config, listeners)
    try:
        supervisor.watch(tick=lambda: write_process_table(node, supervisor.pids()))
    finally:
        for listener in listeners.values():
            listener.close()
        supervisor.stop_all([receivers, ("worker", "https")])


def _listen(node: NodeConfig, supervisor: Supervisor) -> dict[str, socket.socket]:
    """The sockets that all receivers inherit, by the option that hands them on."""

    def bound(host: str, port: int) -> socket.socket:
        return listen(host, port, patience=15.0, given_up=lambda: supervisor.stopping)

    listeners = {"--fd": bound(node.dimse.host, node.dimse.port)}
    if node.dimse_tls is not None:
        listeners["--tls-fd"] = bound(node.dimse_tls.host, node.dimse_tls.port)
    return listeners


def _start(
    supervisor: Supervisor, node: NodeConfig, config: Path, listeners: dict[str, socket.socket]
) -> tuple[str, ...]:
    def child(name: str, role: str, *extra: str, fds: tuple[int, ...] = ()) -> None:
        argv = (sys.executable, "-m", "dgis.cli", "process", role, "--config", str(config.resolve()), *extra)
        supervisor.start(Child(name, argv, fds=fds))

    child("worker", "worker")
    receivers = tuple(f"dimse{number}" for number in range(1, node.dgis.workers + 1))
    fds = {option: listener.fileno() for option, listener in listeners.items()}
    options = [text for option, fd in fds.items() for text in (option, str(fd))]
    for name in receivers:
        child(name, "dimse", *options, fds=tuple(fds.values()))
    child("https", "https")
    return receivers


@click.group("process", hidden=True)
def process_group() -> None:
    """What the supervisor starts; not for people."""


def _node_of(config: Path, service: str) -> NodeConfig:
    node = load_node(config)
    configure(service, node.log.level, node.log.format)
    return node


_config_option = click.option("--config", type=click.Path(path_type=Path, dir_okay=False), required=True)


@process_group.command("worker")
@_config_option
def worker_process(*, config: Path) -> None:
    """Register and copy what receivers put into the spool."""
    from dgis.node import run_worker

    run_worker(_node_of(config, "dgis-worker"), config)


@process_group.command("dimse")
@_config_option
@click.option("--fd", type=int, required=True)
@click.option("--tls-fd", type=int)
def dimse_process(*, config: Path, fd: int, tls_fd: int | None) -> None:
    """Receive associations on inherited listening sockets."""
    from dgis.node import run_receiver

    tls = None if tls_fd is None else socket.socket(fileno=tls_fd)
    run_receiver(_node_of(config, "dgis-dimse"), config, socket.socket(fileno=fd), tls)


@process_group.command("https")
@_config_option
def https_process(*, config: Path) -> None:
    """Health, metrics and whoami of the node."""
    from dgis.node import run_https

    run_https(_node_of(config, "dgis-https"))
