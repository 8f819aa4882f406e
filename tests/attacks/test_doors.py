"""Attacks at the doors of a running grid: places, paths, UIDs, sizes; each docstring is a row of docs/security.md."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import ssl
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paramiko
import pytest
from cryptography.hazmat.primitives import serialization

from certs import ca
from certs.config import IdentityConfig
from certs.credential import Credential
from dgis.demo.viewer import Viewer
from tests.helpers.grid import Grid, wait_until
from tests.helpers.gsiftp import Raw

HOME, ELSEWHERE = "127.0.0.1", "127.0.0.2"
KEY = "v1/ab/cd/" + "abcd" * 16
# Each is one more way to say "above the folder"; none of them is the key of an object
PATHS = (
    "../../../../se1.key.pem", "v1/../../../../../se1.key.pem", "/etc/passwd", "//etc/passwd", "v1/ab/cd/../../../../x",
    "..%2f..%2f..%2f..%2fse1.key.pem", "%2e%2e/%2e%2e/se1.key.pem", "..%5c..%5cse1.key.pem", "%00", KEY + "%00.txt",
    "v1/ab/cd/%2e%2e%2f%2e%2e%2fx", KEY + "/x", KEY.upper(), "v1/" + "a" * 3000, "..;/..;/x", "%c0%ae%c0%ae/x",
)  # fmt: skip


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    return parts.hostname, parts.port


@dataclass(frozen=True)
class Thief:
    """Somebody with a key of the grid, who says over each door who he is; False when it does not let him."""

    grid: Grid
    credential: Credential

    def identity(self) -> IdentityConfig:
        return IdentityConfig(cert=self.credential.cert, key=self.credential.key, trust=self.grid.home / "trust")

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.grid.ready["client"]["ca"])
        context.load_cert_chain(self.credential.cert, self.credential.key)
        return context

    def ask(self, url: str, request: bytes, *, source: str = HOME) -> bytes:
        """Send bytes to an HTTPS door and return what comes until it closes (or nothing comes for some seconds)."""
        plain = socket.create_connection(_address(url), timeout=5, source_address=(source, 0))
        answer = b""
        with self.context().wrap_socket(plain, server_hostname=HOME) as tls, contextlib.suppress(OSError):
            tls.sendall(request)
            while data := tls.recv(65536):
                answer += data
        return answer

    def https(self, url: str, source: str) -> bool:
        request = b"GET /v1/whoami HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        return self.ask(url, request, source=source).startswith(b"HTTP/1.1 200")

    def gsiftp(self, source: str) -> bool:
        try:
            with _From(_address(self.grid.doors("se1")["gsiftp"]), source) as raw:
                raw.login(self.identity())
                return raw.ask("MLST /areas/main").code == 250
        except (AssertionError, ConnectionError):
            return False

    def sftp(self, source: str) -> bool:
        try:
            with self.files(source) as client:
                return client.listdir("/areas") == ["main"]
        except paramiko.SSHException:
            return False

    @contextlib.contextmanager
    def files(self, source: str = HOME) -> Iterator[paramiko.SFTPClient]:
        address = _address(self.grid.doors("se1")["sftp"])
        made = paramiko.Transport(socket.create_connection(address, 5, source_address=(source, 0)))
        try:
            made.start_client(timeout=5)
            made.auth_publickey("anyone", _ssh_key(self.credential))
            client = paramiko.SFTPClient.from_transport(made)
            assert client is not None
            yield client
        finally:
            made.close()


class _From(Raw):
    """A GridFTP client that comes from a given address."""

    def __init__(self, address: tuple[str, int], source: str) -> None:
        real = socket.create_connection
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket, "create_connection", lambda a, timeout: real(a, timeout, source_address=(source, 0)))
            super().__init__(address)


def _ssh_key(credential: Credential) -> paramiko.PKey:
    form = serialization.PrivateFormat.TraditionalOpenSSL
    pem = credential.private_key().private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return paramiko.ECDSAKey(file_obj=io.StringIO(pem.decode()))


def _issue(grid: Grid, name: str, *roles: str) -> Thief:
    """A host of the grid's CA, known over SSH as well."""
    out = grid.home / "others"
    known = Credential(out / f"{name}.cert.pem", out / f"{name}.key.pem")
    made = known if known.cert.exists() else ca.issue_host(grid.home, name, ips=(HOME,), roles=roles, out=out)
    (grid.home / "ssh_peers" / f"{name}.pem").write_bytes(made.cert.read_bytes())
    return Thief(grid, made)


@pytest.fixture(scope="module")
def insider(attacked: Grid) -> Thief:
    """Somebody who may do everything a gateway may: what is refused is refused to all."""
    made = _issue(attacked, "insider", "gateway")
    wait_until(lambda: made.sftp(HOME), seconds=10, what="the insider is known")
    return made


# -- places -----------------------------------------------------------------------------------------------------


def test_a_stolen_key_from_elsewhere(attacked: Grid) -> None:
    """A host's stolen key, used from another site -> refused by https, gsiftp and sftp where the gridmap says from=."""
    stolen = _issue(attacked, "stolen", "gateway")
    urls = [attacked.ready["catalog"]["url"], attacked.ready["dgis"]["url"], attacked.doors("se1")["https"]]

    def open_to(source: str) -> list[bool]:
        return [*(stolen.https(url, source) for url in urls), stolen.gsiftp(source), stolen.sftp(source)]

    wait_until(lambda: open_to(ELSEWHERE) == [True] * 5, seconds=10, what="nothing binds it yet")
    gridmap = attacked.home / "gridmap"
    bound = [line + f" from={HOME}/32,192.0.2.0/24" if "CN=stolen" in line else line
             for line in gridmap.read_text().splitlines()]  # fmt: skip
    gridmap.write_text("\n".join(bound) + "\n")
    wait_until(lambda: open_to(ELSEWHERE) == [False] * 5, seconds=10, what="bound to its site")
    assert open_to(HOME) == [True] * 5


def test_a_spoofed_title(attacked: Grid) -> None:
    """An AE title that the table binds to a network, from another one, to an AE that takes strangers -> rejected."""
    attacked.cli("ae", "add", "CT7", "--rights", "echo,store,find", "--network", "192.0.2.0/24")
    attacked.cli("ae", "add", "CT8", "--rights", "echo,store,find", "--network", f"{HOME}/32")
    assert Viewer(title="STRANGER", called="DGIS", host=HOME, port=attacked.port).echo()
    assert Viewer(title="CT8", called="DGIS", host=HOME, port=attacked.port).echo()
    with pytest.raises(ConnectionError):
        Viewer(title="CT7", called="DGIS", host=HOME, port=attacked.port).echo()


# -- paths ------------------------------------------------------------------------------------------------------


def _files(grid: Grid) -> set[Path]:
    """Everything on disk but logs and what the databases keep beside themselves."""
    return {path for path in grid.home.rglob("*") if path.is_file() and path.parent.name not in ("log", "spool")}


def _status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_paths_over_https(attacked: Grid, insider: Thief, method: str) -> None:
    """`..`, absolute paths, encoded slashes, NUL, overlong names over https -> 4xx; nothing is read or written."""
    url, before = attacked.doors("se1")["https"], _files(attacked)
    for path in PATHS:
        head = f"{method} /areas/main/objects/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
        answer = insider.ask(url, f"{head}Connection: close\r\n\r\nevil".encode())
        assert 400 <= _status(answer) < 500, (path, answer[:200])
        assert b"PRIVATE KEY" not in answer
    kept = {path for path in before if "spool" not in path.parts and path.suffix in (".pem", ".toml")}
    assert kept <= _files(attacked) and not [path for path in _files(attacked) - before if "store" in path.parts]


def test_paths_over_gsiftp(attacked: Grid, insider: Thief) -> None:
    """`..`, absolute paths, NUL, overlong names over gsiftp -> 5xx to every verb; nothing is read or written."""
    before = _files(attacked)
    with Raw(_address(attacked.doors("se1")["gsiftp"])) as raw:
        raw.login(insider.identity()).private()
        for path in (*PATHS, "/areas/main/objects/" + KEY + "\0.txt", "/areas/../../etc/passwd"):
            for verb in ("RETR", "STOR", "SIZE", "MLST", "DELE", "RNFR", "CWD", "MLSC", "CKSM SHA256 0 -1"):
                raw.must("EPSV", 229)
                reply = raw.ask(f"{verb} {path}")
                assert reply.code >= 500, (verb, path[:80], reply)
        assert raw.ask("CWD /areas/main/objects/../../../../../..").code == 250
        assert '"/"' in raw.ask("PWD").text
    assert not [path for path in _files(attacked) - before if "store" in path.parts]


def test_paths_over_sftp(attacked: Grid, insider: Thief) -> None:
    """`..`, absolute paths, NUL, overlong names, links over sftp -> refused; nothing is read, written or linked."""
    before = _files(attacked)
    with insider.files() as client:
        for path in (*PATHS, "/areas/main/objects/" + KEY + "\0.txt", "/areas/../../etc/passwd"):
            for ask in (client.stat, client.remove, client.mkdir, client.listdir, client.readlink):
                with pytest.raises(OSError):
                    ask(path)
            for mode in ("r", "w"):
                with pytest.raises(OSError):
                    client.open(path, mode)
        with pytest.raises(OSError):
            client.symlink("/etc/passwd", "/areas/main/objects/link")
        with pytest.raises(OSError):
            client.rename("/areas/main/objects", "/areas/main/stage")
        assert client.normalize("/areas/main/../../../../..") == "/"
    assert not [path for path in _files(attacked) - before if "store" in path.parts]


# -- UIDs -------------------------------------------------------------------------------------------------------

UIDS = ("../../etc/passwd", "/etc/passwd", "1.2." + "3" * 61, "1' OR '1'='1", "1.2.3\n4", "1.2;DROP TABLE instances")


def test_uids_over_dimse(attacked: Grid) -> None:
    """A path, SQL or 65 characters for a UID in C-FIND and C-MOVE -> no match, nothing is moved."""
    viewer = Viewer(title="ATTACKER", called="DGIS", host=HOME, port=attacked.port)
    for uid in UIDS:
        with contextlib.suppress(ConnectionError):
            assert viewer.find("STUDY", StudyInstanceUID=uid) == [], uid
        completed, _failed = viewer.move([uid], "ATTACKER")
        assert completed == 0
    assert viewer.echo()


def test_uids_in_the_catalog(attacked: Grid, insider: Thief) -> None:
    """A path, SQL or 65 characters for a UID in the catalog's JSON -> no match."""
    for uid in UIDS:
        match = {"keyword": "StudyInstanceUID", "op": "eq", "values": [uid]}
        for route, body in (
            ("/v1/query", {"level": "STUDY", "matches": [match], "keys": ["StudyInstanceUID"]}),
            ("/v1/locate", {"studies": [uid]}),
        ):
            assert _posted(insider, route, body) == {"$end": {"count": 0, "truncated": False}}, (route, uid)
        assert "status" in _posted(insider, "/v1/shares", {"study_uid": uid, "grantee": "/O=Evil/CN=x"})


def _posted(who: Thief, route: str, body: object) -> Any:
    text = json.dumps(body).encode()
    head = f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    answer = who.ask(who.grid.ready["catalog"]["url"], f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
    head_text, _, reply = answer.partition(b"\r\n\r\n")
    return json.loads(reply.split(b"\r\n")[1] if b"chunked" in head_text else reply)


# -- sizes ------------------------------------------------------------------------------------------------------


def _ends(sock: socket.socket) -> bytes:
    """What comes until the far side closes; it must, in time."""
    sock.settimeout(20)
    answer = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := sock.recv(65536):
            answer += data
    return answer


@pytest.mark.parametrize("head", ["GET /" + "a" * 100_000, "GET / HTTP/1.1\r\n" + "X-A: b\r\n" * 20_000])
def test_oversized_head(attacked: Grid, insider: Thief, head: str) -> None:
    """A request line of 100 kB, twenty thousand headers -> 431 at 64 KiB, or cut off; the service goes on."""
    for url in (attacked.ready["catalog"]["url"], attacked.ready["dgis"]["url"], attacked.doors("se1")["https"]):
        assert _status(insider.ask(url, head.encode())) in (431, 400, 0)
        assert insider.https(url, HOME)


def test_oversized_body(attacked: Grid, insider: Thief) -> None:
    """A JSON body of a terabyte, or of chunks without end -> 413 before it is read."""
    url = attacked.ready["catalog"]["url"]
    head = "POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    assert _status(insider.ask(url, f"{head}Content-Length: {10**12}\r\n\r\n".encode() + b"{")) == 413
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    endless = f"{head}Transfer-Encoding: chunked\r\n\r\n".replace("Connection: close\r\n", "").encode() + chunk * 70
    last = b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert _status(insider.ask(url, endless + last)) == 413
    assert insider.https(url, HOME)


def test_oversized_command(attacked: Grid, insider: Thief) -> None:
    """A GridFTP command line of 8 MiB, before the login or as a token -> cut off; the door goes on."""
    for begin in (b"USER ", b"AUTH GSSAPI\r\nADAT "):
        with socket.create_connection(_address(attacked.doors("se1")["gsiftp"]), 10) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(begin + b"A" * (8 << 20))
            assert b"235" not in _ends(sock)
    assert insider.gsiftp(HOME)


def test_oversized_packet(attacked: Grid, insider: Thief) -> None:
    """An SSH banner of a megabyte, a packet that announces 4 GiB -> cut off; the door goes on."""
    for bytes_sent in (b"SSH-2.0-" + b"A" * (1 << 20), b"SSH-2.0-x\r\n" + struct.pack(">I", 0xFFFFFFFF) + b"A" * 4096):
        with socket.create_connection(_address(attacked.doors("se1")["sftp"]), 10) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(bytes_sent)
            _ends(sock)
    assert insider.sftp(HOME)
