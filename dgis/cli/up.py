"""``dgis up``: a whole grid on this machine."""

from __future__ import annotations

import json
import os
import signal
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import click
from pydantic import TypeAdapter

from dgis import localgrid
from dgis.config import AeTitle
from dgis.localgrid import GridOptions, Paths, PeerAE
from dgis.supervisor import Child, Supervisor

READY_SECONDS = 60.0
FRESHEN_SECONDS = 3600.0


def _peers(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[PeerAE, ...]:
    try:
        return tuple(PeerAE.parse(value) for value in values)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _title(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    try:
        return TypeAdapter(AeTitle).validate_python(value)
    except ValueError:
        raise click.BadParameter("1 to 16 printable ASCII characters, no backslash (PS3.5 6.2)") from None


@click.command(
    "up",
    epilog="Example: dgis up --home grid --aet DGIS --port 11112 --peer VIEWER:127.0.0.1:11113",
)
@click.option("--home", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where all state lies.")
@click.option("--aet", default="DGIS", show_default=True, callback=_title, help="AE title of the DGIS.")
@click.option("--port", default=11112, show_default=True, type=click.IntRange(1, 65535), help="DIMSE port.")
@click.option("--tls-port", default=0, type=click.IntRange(0, 65535), help="DICOM TLS port; none without it.")
@click.option("--peer", "peers", multiple=True, callback=_peers, metavar="AET:HOST:PORT", help="A move destination.")
@click.option(
    "--learn-port", "learn_ports", multiple=True, type=click.IntRange(1, 65535), metavar="PORT",
    help="Move to AEs that called, without --peer, at this port.",
)  # fmt: skip
@click.option("--providers", default=2, show_default=True, type=click.IntRange(1, 9), help="Storage providers.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 64), help="DIMSE receivers.")
@click.option(
    "--accept",
    type=click.Choice(["spooled", "replicated"]),
    default="spooled",
    show_default=True,
    help="When a C-STORE is answered with Success.",
)
@click.option("--respawn", is_flag=True, help="Restart a process that died.")
def command(  # one parameter for each option of the contract in docs/operator.md
    *,
    home: Path,
    aet: str,
    port: int,
    tls_port: int,
    peers: tuple[PeerAE, ...],
    learn_ports: tuple[int, ...],
    providers: int,
    workers: int,
    accept: str,
    respawn: bool,
) -> None:
    """Run a certificate authority, a catalog, storage providers and a DGIS on loopback, over mutual TLS, until Ctrl-C.

    Prints one line when every service answers and writes HOME/ready.json. State in HOME survives a restart.
    """
    options = GridOptions(home.absolute(), aet, port, peers, providers, workers, accept, tls_port, learn_ports)
    paths = Paths(options.home)
    lock = _lock(options.home)
    paths.ready.unlink(missing_ok=True)
    if tls_port == port:
        raise click.UsageError("--tls-port must be another port than --port: plain and TLS have listeners of their own")
    for option, wanted in (("--port", port), ("--tls-port", tls_port)):
        if wanted and not localgrid.is_free(wanted):
            raise click.ClickException(
                f"port {wanted} is in use: stop what listens there, or choose another with {option}"
            )
    ports = localgrid.prepare(options)
    grid = _Grid(options, paths, ports, respawn=respawn)
    signal.signal(signal.SIGTERM, lambda *_: grid.supervisor.request_stop())
    signal.signal(signal.SIGINT, lambda *_: grid.supervisor.request_stop())
    try:
        code = grid.run()
    finally:
        paths.ready.unlink(missing_ok=True)
        os.close(lock)
    sys.exit(code)


def _lock(home: Path) -> int:
    """Hold HOME for this process: two grids in one directory would tear each other's state."""
    import fcntl

    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(home / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise click.ClickException(f"another dgis up runs in {home}: stop it first, or choose another --home") from None
    return descriptor


class _Grid:
    """The running processes of a local grid."""

    def __init__(self, options: GridOptions, paths: Paths, ports: dict[str, int], *, respawn: bool) -> None:
        self.options, self.paths, self.ports = options, paths, ports
        self.respawn = respawn
        self.supervisor = Supervisor(respawn=respawn, on_death=_report_death, environment=dict(os.environ))
        self._told: dict[str, Any] = {}
        self._next_freshen = time.monotonic() + FRESHEN_SECONDS

    def run(self) -> int:
        """Start, announce, watch, stop. Returns the exit code."""
        try:
            self._start()
            if not self.supervisor.stopping:
                self._announce()
                self.supervisor.watch(tick=self._tick)
            return 0
        finally:
            self.supervisor.stop_all([["dgis"], self.options.provider_names, ["catalog"]])

    def _start(self) -> None:
        from dgis.localprobe import Probe

        for name, program in self._services().items():
            self.supervisor.start(self._child(name, program))
        probe = Probe(self.paths, deadline=time.monotonic() + READY_SECONDS, given_up=self._given_up)
        for name in ("catalog", *self.options.provider_names):
            probe.wait_https(name, localgrid.service_url(self.ports[name]))
        probe.put_first_policy(self.paths, self.ports)
        probe.register_elements(self.options, self.ports)
        extra = ("--respawn",) if self.respawn else ("--no-respawn",)
        self.supervisor.start(self._child("dgis", "dgis", *extra))
        probe.wait_https("dgis", localgrid.service_url(self.ports["dgis"]))
        probe.wait_echo(self.options.aet, localgrid.LOOPBACK, self.options.port)

    def _services(self) -> dict[str, str]:
        return {"catalog": "dgis-catalog", **dict.fromkeys(self.options.provider_names, "dgis-storage")}

    def _child(self, name: str, program: str, *extra: str) -> Child:
        script = Path(sysconfig.get_path("scripts")) / program  # beside this Python, whatever PATH says
        argv = (str(script), "serve", "--config", str(self.paths.config(name)), *extra)
        return Child(name, argv, log=self.paths.logs / f"{name}.log")

    def _given_up(self) -> str | None:
        """Why waiting for readiness is in vain, or None."""
        if self.supervisor.stopping:
            return "stopped"
        for name, alive in self.supervisor.alive().items():
            if not alive:
                return f"{name} did not start; see {self.paths.logs / (name + '.log')}"
        return None

    def _announce(self) -> None:
        self._told = self._facts()
        localgrid.write_atomic(self.paths.ready, json.dumps(self._told, indent=1).encode())
        names = self.options.provider_names
        doors = ", ".join(f"{name} at {' and '.join(localgrid.doors(self.ports, name))}" for name in names)
        tls = f" (DICOM TLS {self.options.tls_port})" if self.options.tls_port else ""
        click.echo(
            f"ready: AE {self.options.aet} at {localgrid.LOOPBACK}:{self.options.port}{tls}, "
            f"catalog at {localgrid.service_url(self.ports['catalog'])}, {doors}; Ctrl-C stops it"
        )
        sys.stdout.flush()

    def _facts(self) -> dict[str, Any]:
        operator = self.paths.credential("operator")
        pid = self.supervisor.pid
        tls = (
            {"dimse_tls": {"host": localgrid.LOOPBACK, "port": self.options.tls_port}} if self.options.tls_port else {}
        )
        return {
            "dimse": {"aet": self.options.aet, "host": localgrid.LOOPBACK, "port": self.options.port},
            **tls,
            "dgis": {"pid": pid("dgis"), "url": localgrid.service_url(self.ports["dgis"])},
            "catalog": {"pid": pid("catalog"), "url": localgrid.service_url(self.ports["catalog"])},
            "providers": [
                {"name": name, "pid": pid(name), "urls": list(localgrid.doors(self.ports, name))}
                for name in self.options.provider_names
            ],
            "client": {
                "cert": str(operator.cert),
                "key": str(operator.key),
                "ca": str(self.paths.trust / "ca.pem"),
                "ca_dir": str(self.paths.trust),
            },
        }

    def _tick(self) -> None:
        facts = self._facts()
        if facts != self._told:  # a child came back under another process id
            self._told = facts
            localgrid.write_atomic(self.paths.ready, json.dumps(facts, indent=1).encode())
        if time.monotonic() >= self._next_freshen:
            self._next_freshen = time.monotonic() + FRESHEN_SECONDS
            localgrid.keep_fresh(self.options)


def _report_death(name: str, pid: int, code: int) -> None:
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    click.echo(f"dgis up: {name} (pid {pid}) ended with {how}", err=True)
