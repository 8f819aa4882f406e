"""A service as a process: ready, inherited sockets, a stop that is graceful and short."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from certs.config import IdentityConfig
from certs.https.session import GridSession
from tests.helpers import rawtls
from tests.helpers.pki import SiteHome
from tests.helpers.rawtls import Kept

PROGRAM = """
import asyncio, sys
from fastapi import Depends
from certs.config import IdentityConfig, ListenConfig
from certs.https.server import create_app, rule, serve
from certs.log import configure
from certs.policy import OPEN_TO_VERIFIED

configure("svc", "info", "text")
identity = IdentityConfig(cert=sys.argv[1], key=sys.argv[2], trust=sys.argv[3], gridmap=sys.argv[4])
app = create_app(title="svc", version="1", identity=identity)

@app.get("/slow", dependencies=[Depends(rule(OPEN_TO_VERIFIED))])
async def slow() -> dict[str, bool]:
    print("in", flush=True)
    await asyncio.sleep(1)
    return {"done": True}

serve(app, ListenConfig(), identity, ready=lambda url: print(url, flush=True), extra_fds=[int(n) for n in sys.argv[5:]])
print("stopped", flush=True)
"""


@contextmanager
def process(identity: IdentityConfig, *descriptors: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    files = [str(path) for path in (identity.cert, identity.key, identity.trust, identity.gridmap)]
    command = [sys.executable, "-c", PROGRAM, *files, *map(str, descriptors)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=descriptors)
    assert child.stdout is not None
    try:
        yield child, child.stdout.readline().strip()
    finally:
        child.kill()
        child.wait(10)
        child.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_requests_finish_and_exits_0(site: SiteHome, number: signal.Signals) -> None:
    context = rawtls.client_context(site.gateway(), site.catalog())
    with process(site.catalog()) as (child, url):
        assert child.stdout is not None
        idle = Kept(url, context)
        assert idle.get()[0] == 200
        busy = rawtls.connect(url, context)
        busy.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        assert child.stdout.readline() == "in\n"
        began = time.monotonic()
        child.send_signal(number)
        with busy.makefile("rb") as answer:
            assert answer.read().endswith(b'{"done":true}')
        assert child.wait(10) == 0
        assert time.monotonic() - began < 5
        assert child.stdout.readline() == "stopped\n"


def test_an_inherited_socket_is_served_too(site: SiteHome) -> None:
    with socket.create_server(("127.0.0.1", 0)) as inherited:
        port = inherited.getsockname()[1]
        with process(site.catalog(), inherited.fileno()) as (_child, url):
            session = GridSession(site.gateway())
            for address in (url, f"https://127.0.0.1:{port}"):
                assert session.json("GET", f"{address}/v1/whoami")["account"] == "dgis"


def test_small_answers_are_not_held_back(site: SiteHome) -> None:
    """Without TCP_NODELAY on accepted connections each of these takes 40 ms."""
    with process(site.catalog()) as (_child, url):
        kept = Kept(url, rawtls.client_context(site.gateway(), site.catalog()))
        kept.get()
        began = time.monotonic()
        for _ in range(50):
            kept.get()
        assert time.monotonic() - began < 1.0
