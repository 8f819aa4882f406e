"""Revocation under load: how long a party that was just revoked is still served, over each channel, beside others.

A local grid on loopback. Over each channel one party, soon to be revoked, and some others use one storage element (or
DGIS) at the same time: reading a large object over and over, asking over one kept-alive connection, or sending C-ECHO
over one DICOM TLS association. Then ``dgis-certs revoke`` publishes the CRL. What counts is the time from then until
the last byte or answer that the revoked party gets, and whether the others noticed anything: errors, the longest time
without progress, their speed before and after.
"""

from __future__ import annotations

import contextlib
import random
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pynetdicom import AE

from bench.report import Options, Row, Run, Table, median, number
from certs import ca
from certs.config import IdentityConfig
from certs.credential import Credential
from certs.errors import CertsError
from certs.https.session import GridSession
from dgis.localgrid import write_atomic
from storage_provider.channel import ObjectSpec
from storage_provider.channels import open_channels
from storage_provider.checksum import digests_of
from storage_provider.errors import StorageError
from storage_provider.keys import object_key
from tests.helpers.grid import Grid, free_port, wait_until

CHANNELS = ("https", "gsiftp", "sftp")
KEPT_ALIVE, DICOM_TLS = "https, one request after the other", "DICOM TLS, one C-ECHO after the other"
KINDS = (*CHANNELS, KEPT_ALIVE, DICOM_TLS)
OTHERS = 4
SIZE = 64 * 1024 * 1024
WATCHED_SECONDS = 2.0
GIVE_UP_SECONDS = 60.0
# Each reader takes so much a second: full buffers on the way, and none so full that it hides the cut for long
PACE = 24 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """One round over one kind of channel; times in seconds, speeds in MiB/s or answers/s."""

    kind: str
    round: int
    others: int
    served_on: float
    others_failed: int
    longest_gap: float
    speed_before: float
    speed_after: float
    said: str = ""
    """What the revoked party heard."""


class Party(threading.Thread):
    """Somebody who uses a channel until he is put out or stopped; `units` is what he got, in MiB or answers."""

    def __init__(self, use: Callable[[Party], None]) -> None:
        super().__init__(daemon=True)
        self._use = use
        self._done = threading.Event()
        self.error: Exception | None = None
        self.units = 0.0
        self.last = time.monotonic()
        self.gap = 0.0

    def run(self) -> None:
        try:
            while not self._done.is_set():
                self._use(self)
        except (StorageError, CertsError, OSError) as error:
            self.error = error

    def got(self, units: float) -> bool:
        """Note progress; whether there should be more."""
        now = time.monotonic()
        self.gap, self.last = max(self.gap, now - self.last), now
        self.units += units
        return not self._done.is_set()

    def stop(self) -> None:
        self._done.set()
        self.join(30)


class Ground:
    """The grid that is used, with an object on its storage element, and whoever uses it."""

    def __init__(self, grid: Grid, *, size: int = SIZE) -> None:
        self.grid = grid
        self._folder = grid.home / "parties"
        self._numbers = iter(range(10_000))
        self.spec = self._put(size)

    def credential(self, name: str) -> Credential:
        """A new gateway of the grid, known over SSH as well."""
        made = ca.issue_host(self.grid.home, name, ips=("127.0.0.1",), roles=("gateway",), out=self._folder)
        self.show(made)
        return made

    def show(self, *credentials: Credential) -> None:
        """Let the certificates of these be known over SSH."""
        for one in credentials:
            name = one.cert.name.removesuffix(".cert.pem")
            # By rename, as everywhere: what is overwritten in place is noticed some seconds later
            write_atomic(self.grid.home / "ssh_peers" / f"{name}.pem", one.cert.read_bytes())

    def identity(self, credential: Credential) -> IdentityConfig:
        """What a client of it stands on."""
        home = self.grid.home
        return IdentityConfig(
            cert=credential.cert, key=credential.key, trust=home / "trust", ssh_peers=home / "ssh_peers"
        )

    @contextlib.contextmanager
    def party(self, kind: str) -> Iterator[tuple[Party, Credential]]:
        """Somebody at work; stopped at the end."""
        credential = self.credential(f"party-{next(self._numbers)}")
        with contextlib.ExitStack() as stack:
            party = Party(self._use(kind, credential, stack))
            party.start()
            stack.callback(party.stop)
            yield party, credential

    def _use(self, kind: str, credential: Credential, stack: contextlib.ExitStack) -> Callable[[Party], None]:
        if kind == DICOM_TLS:
            return self._echo(credential, stack)
        session = GridSession(self.identity(credential), read_timeout=10.0)
        stack.callback(session.close)
        if kind == KEPT_ALIVE:
            url = self.grid.ready["catalog"]["url"] + "/v1/whoami"
            return lambda party: _ask(party, session, url)
        channel = open_channels(session)(self.grid.doors("se1")[kind])
        stack.callback(channel.close)

        def read(party: Party) -> None:
            with channel.get(self.spec.key) as blocks:
                for block in blocks:
                    if not party.got(len(block) / 2**20):
                        return
                    time.sleep(len(block) / PACE)

        return read

    def _echo(self, credential: Credential, stack: contextlib.ExitStack) -> Callable[[Party], None]:
        context = ssl.create_default_context(cafile=self.grid.ready["client"]["ca"])
        context.load_cert_chain(credential.cert, credential.key)
        ae = AE("BENCH")
        ae.add_requested_context("1.2.840.10008.1.1")
        place = self.grid.ready["dimse_tls"]
        made = ae.associate(place["host"], place["port"], ae_title=self.grid.aet, tls_args=(context, place["host"]))
        if not made.is_established:
            raise ConnectionError("no association")
        stack.callback(made.release)

        def echo(party: Party) -> None:
            status = made.send_c_echo() if made.is_established else None
            if not status or status.Status != 0x0000:
                raise ConnectionError("the association is over")
            party.got(1)
            time.sleep(0.01)

        return echo

    def _put(self, size: int) -> ObjectSpec:
        path = self.grid.home / "object"
        path.write_bytes(random.Random(7).randbytes(size))
        sha256, chunks = digests_of(path, size=size)
        spec = ObjectSpec(object_key(sha256), size, sha256, chunks)
        self.putter = self.credential("putter")
        session = GridSession(self.identity(self.putter))
        channel = open_channels(session)(self.grid.doors("se1")["https"])
        wait_until(lambda: _can(channel.space), seconds=20, what="the new certificate is known")
        channel.put(spec, path)
        channel.close()
        session.close()
        path.unlink()
        return spec


def _ask(party: Party, session: GridSession, url: str) -> None:
    session.json("GET", url)
    party.got(1)
    time.sleep(0.01)


def _can(call: Callable[[], object]) -> bool:
    try:
        call()
    except StorageError:
        return False
    return True


def revoked_among(
    ground: Ground, kind: str, *, others: int, round_number: int = 0, seconds: float = WATCHED_SECONDS
) -> Sample:
    """Let some work, revoke one of them, and see what becomes of him and of the others."""
    with contextlib.ExitStack() as stack:
        working = [stack.enter_context(ground.party(kind)) for _ in range(others + 1)]
        (leaver, credential), rest = working[0], [party for party, _ in working[1:]]
        wait_until(lambda: all(party.units for party, _ in working), seconds=30, what=f"everybody works over {kind}")
        before = _speed(rest, seconds)
        for party in rest:
            party.gap = 0.0
        ca.revoke(ground.grid.home, credential.cert)
        published = time.monotonic()
        wait_until(lambda: not leaver.is_alive(), seconds=GIVE_UP_SECONDS, what="the revoked one is put out")
        after = _speed(rest, seconds)
        failed = sum(1 for party in rest if party.error is not None)
        gap = max((party.gap for party in rest), default=0.0)
        served_on = max(0.0, leaver.last - published)
    return Sample(kind, round_number, others, served_on, failed, gap, before, after, str(leaver.error))


def _speed(parties: list[Party], seconds: float) -> float:
    had, began = sum(party.units for party in parties), time.monotonic()
    time.sleep(seconds)
    return (sum(party.units for party in parties) - had) / (time.monotonic() - began)


def main() -> int:
    """Measure, print, write revocation.json; the exit code."""
    options = Options.parse()
    run = Run.begin("revocation", options)
    with tempfile.TemporaryDirectory(prefix="dgis-bench-") as folder:
        tls = ("--tls-port", str(free_port()))
        with Grid(Path(folder) / "grid", options=tls, providers=1, workers=1) as grid:
            ground = Ground(grid)
            others = 1 if options.quick else OTHERS
            for turn in range(options.rounds):
                for kind in KINDS:
                    run.cell(f"{kind} {turn}", partial(revoked_among, ground, kind, others=others, round_number=turn))
    return run.finish(tables)


def tables(samples: Sequence[Row]) -> list[Table]:
    """The slowest of the rounds: a revocation is as fast as its slowest."""
    columns = ("channel", "served on, worst (s)", "median (s)", "others", "failed", "longest gap (s)", "speed after")
    rows = []
    for kind in KINDS:
        found = [sample for sample in samples if sample["kind"] == kind]
        if not found:
            continue
        speed = median(found, lambda one: one["speed_after"] / one["speed_before"] if one["speed_before"] else None)
        rows.append(
            (
                kind,
                number(max(one["served_on"] for one in found), 2),
                number(median(found, lambda one: one["served_on"]), 2),
                str(sum(one["others"] for one in found)),
                str(sum(one["others_failed"] for one in found)),
                number(max(one["longest_gap"] for one in found), 2),
                number(speed, 2) + "x",
            )
        )
    return [Table("Revoked while it is served: until the last byte, and what others see", columns, tuple(rows))]


if __name__ == "__main__":
    sys.exit(main())
