"""The CA of a running grid is replaced, root and all, while images are stored and associations stand: nothing fails."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bench.revocation import CHANNELS, KEPT_ALIVE, Ground
from certs import ca, rollover
from certs.credential import Credential
from certs.trust import Trust
from dgis import localgrid
from dgis.demo.viewer import Viewer
from dgis.dimse import command as dimse
from dgis.localgrid import GridOptions
from tests.helpers.dicomfiles import images, synth
from tests.helpers.grid import Grid, free_port, wait_until
from tests.unit.dgis.dimse.raw import associate, read_pdu

VERIFICATION, IMPLICIT = "1.2.840.10008.1.1", "1.2.840.10008.1.2"
SETTLE = 3.0  # between the steps, so that each is seen by everybody


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[Grid]:
    options = ("--tls-port", str(free_port()))
    with Grid(tmp_path / "grid", options=options, providers=2, workers=1) as grid:
        yield grid


class Storing(threading.Thread):
    """A modality that stores new images all the time."""

    def __init__(self, grid: Grid, folder: Path) -> None:
        super().__init__(daemon=True)
        self._viewer = Viewer(title="CT1", called="DGIS", host="127.0.0.1", port=grid.port)
        self._folder = folder
        self._done = threading.Event()
        self.statuses: list[int] = []
        self.error: Exception | None = None

    def run(self) -> None:
        number = 0
        try:
            while not self._done.is_set():
                number += 1
                size = ("--studies", "1", "--series", "1", "--instances", "10", "--rows", "64", "--cols", "64")
                made = images(synth(self._folder / str(number), *size, "--seed", str(number)))
                self.statuses += [status for _, status in self._viewer.store(made)]
        except Exception as error:  # noqa: BLE001  # whatever ends it is told by the test
            self.error = error

    def finish(self) -> None:
        self._done.set()
        self.join(60)


class Echoes:
    """Raw associations, plain and over TLS, on which a C-ECHO is answered now and then."""

    def __init__(self, ground: Ground, stack: ExitStack) -> None:
        self._ground, self._stack = ground, stack
        self.made: list[socket.socket] = []

    def open(self, credential: Credential | None) -> None:
        grid = self._ground.grid
        port = grid.ready["dimse_tls"]["port"] if credential else grid.port
        sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        if credential is not None:
            context = ssl.create_default_context(cafile=grid.ready["client"]["ca"])
            context.load_cert_chain(credential.cert, credential.key)
            sock = context.wrap_socket(sock, server_hostname="127.0.0.1")
        associate(self._stack.enter_context(sock), [(VERIFICATION, IMPLICIT)])
        self.made.append(sock)

    def answered(self) -> bool:
        return all(self._echo(sock) for sock in self.made)

    def close(self, which: socket.socket) -> None:
        self.made.remove(which)
        which.sendall(b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00")
        assert read_pdu(which)[0] == 0x06  # A-RELEASE-RP

    def _echo(self, sock: socket.socket) -> bool:
        for pdu in dimse.p_data(1, dimse.echo_request(1), is_command=True, max_pdu=16384):
            sock.sendall(pdu)
        return read_pdu(sock)[0] == 0x04


def issuer_at(url: str, grid: Grid) -> str:
    """Who signed the certificate that a service shows now."""
    parts = urlsplit(url)
    context = ssl.create_default_context(cafile=grid.ready["client"]["ca"])
    context.load_cert_chain(grid.ready["client"]["cert"], grid.ready["client"]["key"])
    plain = socket.create_connection((parts.hostname, parts.port), timeout=10)
    with context.wrap_socket(plain, server_hostname=parts.hostname) as tls:
        shown = tls.getpeercert()
    assert shown is not None
    return str(dict(part[0] for part in shown["issuer"])["commonName"])  # type: ignore[misc]


def test_the_ca_is_replaced_under_load(grid: Grid, tmp_path: Path) -> None:
    """Stores, transfers over every channel, kept connections and associations go on through all of it."""
    ground, options = Ground(grid, size=16 * 1024 * 1024), GridOptions(home=grid.home, providers=2)
    urls = [grid.ready["catalog"]["url"], grid.ready["dgis"]["url"], grid.doors("se1")["https"]]
    with ExitStack() as stack:
        parties = {kind: stack.enter_context(ground.party(kind)) for kind in (*CHANNELS, KEPT_ALIVE)}
        storing, echoes, person = Storing(grid, tmp_path / "images"), Echoes(ground, stack), ground.credential("person")
        storing.start()
        stack.callback(storing.finish)
        echoes.open(None)
        echoes.open(person)

        def all_is_well(after: str) -> None:
            before = {kind: party.units for kind, (party, _) in parties.items()}
            stored = len(storing.statuses)
            wait_until(
                lambda: (
                    all(party.units > before[kind] or party.error for kind, (party, _) in parties.items())
                    and (len(storing.statuses) > stored or storing.error)
                ),
                seconds=30,
                what=f"everybody goes on after {after}",
            )
            assert {kind: party.error for kind, (party, _) in parties.items()} == dict.fromkeys(parties), after
            assert storing.error is None and set(storing.statuses) == {0x0000}, after
            assert echoes.answered(), after

        all_is_well("the beginning")
        rollover.start(grid.home, new_root=True)
        time.sleep(SETTLE)
        all_is_well("start")
        rollover.switch(grid.home)
        localgrid.keep_fresh(options)  # as dgis up does by itself within the hour
        people = [credential for _, credential in parties.values()]
        people += [person, ground.putter, localgrid.Paths(grid.home).credential("operator")]
        ca.renew_due(grid.home, people)
        ground.show(*people)
        time.sleep(SETTLE)
        all_is_well("switch")
        assert {issuer_at(url, grid) for url in urls} == {"dgis local grid Issuing CA 2"}
        echoes.open(person)
        echoes.close(echoes.made[1])  # made with the old certificate: within the day that finish waits for
        assert rollover.finish(grid.home, settled=timedelta(0)) == ("root", "issuing")
        time.sleep(SETTLE)
        all_is_well("finish")
        storing.finish()
        assert storing.error is None and set(storing.statuses) == {0x0000}
        print(f"{len(storing.statuses)} images stored, { ({k: round(p.units) for k, (p, _) in parties.items()}) }")
    grid.wait_drained()
    # The object that is read lies on one of them as well
    assert [grid.stored(name) for name in ("se1", "se2")] == [len(storing.statuses) + 1, len(storing.statuses)]
    assert json.loads(grid.cli("status", "--format", "json").stdout)["spool"]["backlog"] == 0
    assert len(Trust(grid.home / "trust").anchors()) == 2
