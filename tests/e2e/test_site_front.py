"""One public port for many names: real TLS and real SSH through the front, its routes changed while it runs."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.helpers.frontpeer import TlsEcho
from tests.helpers.netlab import require_netlab
from tests.helpers.netssh import SSHD
from tests.helpers.sitescene import NAMES, PUBLIC, Edit, Scene, scene

WIKI, CATALOG, STORAGE = "wiki.cesnet.example", "catalog.node.cesnet.example", "storage.node.cesnet.example"
ANOTHER: Edit = (NAMES[0], NAMES[0] + "      - {name: docs.cesnet.example, port: 8444, from: [any]}\n")
MOVED: Edit = ("{name: wiki.cesnet.example, port: 8443,", "{name: wiki.cesnet.example, port: 8444,")
INSPECT = 5.0  # seconds that a client may take to say which name it wants


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    require_netlab()
    with scene(tmp_path_factory.mktemp("front"), prefix="front") as made:
        yield made


def front_pid(stage: Scene) -> str:
    return (Path(stage.way.root) / "pid").read_text()


def workers(stage: Scene) -> list[str]:
    """The processes of the front, as its master counts them."""
    said = stage.way.front._ask([(f"{stage.way.root}/master.sock", "show proc")])[0] or ""
    return [line.split()[0] for line in said.splitlines() if "worker" in line.split()[1:2]]


def test_names_lead_to_their_guests_and_only_for_those_who_may(stage: Scene) -> None:
    outside, lf1 = stage.caller(stage.outside), stage.caller(stage.peers["lf1"])
    assert outside.who(WIKI) == f"{stage.guest('wiki').name} outside"
    # mutual TLS end to end: the guest sees the client's certificate, the client checked the guest's
    assert lf1.who(CATALOG) == lf1.who(STORAGE) == f"{stage.guest('node').name} lf1"
    assert lf1.who(CATALOG.upper()) == lf1.who(CATALOG)
    assert outside.who(CATALOG) == outside.who(STORAGE) == ""
    assert lf1.who("dgis.node.cesnet.example") == lf1.who("nobody.cesnet.example") == ""


def test_a_client_without_a_certificate_is_the_guests_to_refuse(stage: Scene) -> None:
    context = ssl.create_default_context(cafile=str(stage.authority.folder / "ca.pem"))
    with stage.peers["lf1"].dial(PUBLIC, 443) as plain:
        link = context.wrap_socket(plain, server_hostname=CATALOG)
        with link, pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            link.recv(1)


def test_tls_without_a_name_is_closed_at_once(stage: Scene) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    begun = time.monotonic()
    with stage.outside.dial(PUBLIC, 443) as plain, pytest.raises((ssl.SSLEOFError, ConnectionError)):
        context.wrap_socket(plain)
    assert time.monotonic() - begun < INSPECT / 2


def test_a_greeting_may_come_in_pieces(stage: Scene) -> None:
    client = stage.authority.client("outside")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    link = client.wrap_bio(incoming, outgoing, server_hostname=WIKI)
    with pytest.raises(ssl.SSLWantReadError):
        link.do_handshake()
    hello = outgoing.read()
    with stage.outside.dial(PUBLIC, 443) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size in (1, 4, 5, 1, 60, 100):
            plain.sendall(hello[:size])
            hello = hello[size:]
            plain.settimeout(0.05)
            with pytest.raises(TimeoutError):
                plain.recv(1)
        plain.settimeout(5)
        plain.sendall(hello)
        assert plain.recv(1) == b"\x16"  # the guest's ServerHello


def closed(link: socket.socket) -> bool:
    try:
        return link.recv(1) == b""
    except ConnectionError:
        return True


def test_clients_that_say_nothing_are_closed_and_hold_nobody_up(stage: Scene) -> None:
    begun = time.monotonic()
    with ExitStack() as opened:
        silent = [opened.enter_context(stage.outside.dial(PUBLIC, 443, timeout=INSPECT + 4)) for _ in range(200)]
        for link in silent[:100]:
            link.sendall(b"\x16\x03\x01\x02\x00\x01")  # the first bytes of a ClientHello, and never the rest
        silent[100].sendall(b"GET / HTTP/1.0\r\n\r\n")  # nothing that the port is for
        caller, worst = stage.caller(stage.outside), 0.0
        while time.monotonic() - begun < INSPECT - 2:
            asked = time.monotonic()
            assert caller.who(WIKI)
            worst = max(worst, time.monotonic() - asked)
        assert worst < INSPECT  # they are not waited for, however busy the machine is
        assert all(closed(link) for link in silent)
    assert INSPECT - 1 < time.monotonic() - begun < INSPECT + 4


def test_routes_change_while_it_runs(stage: Scene) -> None:
    process, serving, caller = front_pid(stage), workers(stage), stage.caller(stage.outside)
    flowing, lf1 = stage.named(stage.outside, WIKI), stage.named(stage.peers["lf1"], CATALOG)
    wiki = stage.guest("wiki")
    with TlsEcho(wiki, 8444, stage.authority.server("docs.cesnet.example")):
        assert caller.who("docs.cesnet.example") == ""
        assert "front maps" in stage.apply(ANOTHER).changed
        assert caller.who("docs.cesnet.example") == f"{wiki.name} outside"
        assert flowing.still_flows()
        stage.apply((ANOTHER[1], ANOTHER[0]))
        assert caller.who("docs.cesnet.example") == ""
        assert flowing.still_flows()
    with TlsEcho(wiki, 8444, stage.authority.server(WIKI)):
        done = stage.apply(MOVED)  # the name leads to another port: the old way is no way any more
        assert done.cut == 1 and flowing.end(within=3)[0] in ("reset", "eof")
        again = stage.named(stage.outside, WIKI)
        stage.apply((MOVED[1], MOVED[0]))
        assert again.end(within=3)[0] in ("reset", "eof")
    assert caller.who(WIKI) and lf1.still_flows()
    assert front_pid(stage) == process and workers(stage) == serving and len(serving) == 1


def test_a_session_from_before_a_reload_is_cut_with_its_name(stage: Scene) -> None:
    flowing, kept = stage.named(stage.outside, WIKI), stage.named(stage.peers["lf1"], CATALOG)
    stage.way.machine.run(stage.way.reload)
    until = time.monotonic() + 10
    while len(workers(stage)) < 2:
        assert time.monotonic() < until
    assert flowing.still_flows() and kept.still_flows()
    stage.apply(NAMES)
    assert flowing.end(within=3)[0] in ("reset", "eof") and kept.still_flows()
    stage.apply(("    egress:\n", f"{NAMES[0]}    egress:\n"))
    assert stage.caller(stage.outside).who(WIKI)


@pytest.mark.skipif(not SSHD.exists(), reason="sshd is not installed (Debian: openssh-server)")
def test_ssh_shares_the_port(stage: Scene) -> None:
    done = stage.peers["lf1"].ssh(PUBLIC, ["echo", "$SSH_CONNECTION"], port=443)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "10.77.0.1"  # the front is who comes to the guest
    refused = stage.outside.ssh(PUBLIC, ["true"], port=443)
    assert refused.returncode == 255 and "ermission" not in refused.stderr
