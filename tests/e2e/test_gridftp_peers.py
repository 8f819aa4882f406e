"""Stock globus-url-copy and globus-gridftp-server of Debian (GCT) against our GridFTP server, over real connections."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from certs import ca
from certs.config import IdentityConfig
from storage_provider.gridftp.settings import GsiftpSettings
from tests.helpers import gct
from tests.helpers.gsiftp import OwnServer, path_of, serving, settled
from tests.helpers.pki import SiteHome, fresh_site, site

__all__ = ["fresh_site", "site"]

pytestmark = pytest.mark.peer
SMALL = random.Random(11).randbytes(300_000)
BIG = random.Random(12).randbytes(20_000_000)
PRIVATE = "-dcpriv"


@dataclass
class Pair:
    """Two of our servers, a stock one, and a user whom all of them know."""

    user: IdentityConfig
    ours: OwnServer
    other: OwnServer
    stock: gct.GctServer
    work: Path

    def copy(self, *args: str) -> CompletedProcess[str]:
        return gct.copy(self.user, *args)

    def good(self, *args: str) -> CompletedProcess[str]:
        done = self.copy(*args)
        assert done.returncode == 0, done.stderr[-2000:]
        return done

    def url(self, data: bytes, server: OwnServer | None = None) -> str:
        return localhost((server or self.ours).url) + path_of(data)

    def stock_url(self, name: str) -> str:
        return f"gsiftp://localhost:{self.stock.port}{self.stock.root}/{name}"

    def local(self, name: str, data: bytes | None = None) -> str:
        if data is not None:
            (self.work / name).write_bytes(data)
        return f"file://{self.work / name}"

    def got(self, name: str) -> bytes:
        return (self.work / name).read_bytes()


def localhost(url: str) -> str:
    return url.replace("127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def pair(site: SiteHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    tmp = tmp_path_factory.mktemp("peers")
    user = site.user("copier", "gateway")
    with (
        serving(site.storage("se1"), tmp / "se1") as ours,
        serving(site.storage("se2"), tmp / "se2") as other,
        gct.serve(site, user) as stock,
    ):
        yield Pair(user, ours, other, stock, tmp)
        assert settled(), "a session did not end"
        assert ours.leftovers() == other.leftovers() == []


WAYS = {
    "mode-s": (),
    "fast": ("-fast",),
    "parallel": ("-p", "4"),
    "fast-parallel": ("-fast", "-p", "4"),
    "pipelined": ("-fast", "-pp"),
    "own-data-credential": ("-fast", "-data-cred", "auto"),
    "checked": ("-fast", "-verify-checksum", "-checksum-alg", "SHA256"),
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_put_and_get(pair: Pair, options: tuple[str, ...]) -> None:
    for number, data in enumerate((SMALL, BIG)):
        salted = data[:-8] + hashlib.sha256(repr(options).encode()).digest()[:8]
        source = pair.local(f"in{number}", salted)
        pair.good(PRIVATE, *options, source, pair.url(salted))
        pair.good(PRIVATE, *options, pair.url(salted), pair.local(f"out{number}"))
        assert pair.got(f"out{number}") == salted
        assert path_of(salted)[-64:] in pair.ours.objects()


def test_many_files_in_one_session(pair: Pair) -> None:
    many = [random.Random(number).randbytes(1000 * number) for number in range(40)]
    lines = [f"{pair.local(f'm{number}', data)} {pair.url(data)}\n" for number, data in enumerate(many)]
    back = [f"{pair.url(data)} {pair.local(f'b{number}')}\n" for number, data in enumerate(many)]
    for options in (("-fast",), ("-fast", "-pp"), ()):
        for name, listed in (("there", lines), ("back", back)):
            (pair.work / name).write_text("".join(listed))
            pair.good(PRIVATE, *options, "-f", str(pair.work / name))
        for number, data in enumerate(many):
            assert pair.got(f"b{number}") == data
            (pair.work / f"b{number}").unlink()


@pytest.mark.parametrize("options", [(), ("-fast",)], ids=["mode-s", "mode-e"])
def test_a_part_of_a_file(pair: Pair, options: tuple[str, ...]) -> None:
    pair.ours.put(SMALL)
    (pair.stock.root / "same").write_bytes(SMALL)
    part = ("-off", "1000", "-len", "5000")
    pair.good(PRIVATE, *options, *part, pair.url(SMALL), pair.local("ours"))
    pair.good(PRIVATE, *options, *part, pair.stock_url("same"), pair.local("stock"))
    assert pair.got("ours") == pair.got("stock") == bytes(1000) + SMALL[1000:6000]
    for name in ("ours", "stock"):
        (pair.work / name).unlink()


def test_a_partial_put_moves_what_comes(pair: Pair) -> None:
    stage = localhost(pair.ours.url) + "/areas/main/stage/partial.part"
    source = pair.local("whole", SMALL)
    pair.good(PRIVATE, "-fast", "-len", "100000", source, stage)
    pair.good(PRIVATE, "-fast", "-off", "100000", "-len", "200000", source, stage)
    pair.good(PRIVATE, "-fast", stage, pair.local("again"))
    assert len(pair.got("again")) == 300_000
    pair.ours.service._areas["main"].parts.delete("/O=Test Grid/OU=People/CN=copier", "partial.part")


def test_lists_and_takes_whole_folders(pair: Pair) -> None:
    pair.ours.put(SMALL)
    area = localhost(pair.ours.url) + "/areas/main/"
    assert "objects/" in pair.good(PRIVATE, "-list", area).stdout
    folder = pair.url(SMALL).rpartition("/")[0] + "/"
    assert path_of(SMALL)[-64:] in pair.good(PRIVATE, "-list", folder).stdout
    # The stock client takes 50 ms per file and folder in mode S, from its own server, too
    pair.good(PRIVATE, "-fast", "-r", "-cd", area + "objects/", pair.local("all") + "/")
    found = sorted(path.name for path in (pair.work / "all").rglob("*") if path.is_file())
    assert found == pair.ours.objects()


@pytest.mark.parametrize("options", [(), ("-fast",), ("-fast", "-pp", "-p", "2")], ids=["mode-s", "fast", "parallel"])
@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "big"])
def test_third_party(pair: Pair, options: tuple[str, ...], data: bytes) -> None:
    salted = hashlib.sha256(repr((options, len(data))).encode()).digest() + data
    pair.ours.put(salted)
    pair.good(PRIVATE, *options, pair.url(salted), pair.url(salted, pair.other))
    assert path_of(salted)[-64:] in pair.other.objects()
    pair.good(PRIVATE, *options, pair.url(salted), pair.stock_url("there"))
    assert (pair.stock.root / "there").read_bytes() == salted
    back = salted[::-1]
    (pair.stock.root / "here").write_bytes(back)
    pair.good(PRIVATE, *options, pair.stock_url("here"), pair.url(back))
    assert path_of(back)[-64:] in pair.ours.objects()


@pytest.mark.parametrize(
    "options", [(), ("-dcsafe",), ("-nodcau",), ("-fast",)], ids=["default", "safe", "nodcau", "fast"]
)
def test_clear_data_is_refused(pair: Pair, options: tuple[str, ...]) -> None:
    pair.ours.put(SMALL)
    fresh = b"never stored"
    for args in (
        (pair.url(SMALL), pair.local("x")),
        (pair.local("y", fresh), pair.url(fresh)),
        ("-list", localhost(pair.ours.url) + "/areas/main/"),
    ):
        done = pair.copy(*options, *args)
        assert done.returncode != 0 and "534 denied" in done.stderr
    assert path_of(fresh)[-64:] not in pair.ours.objects()


def test_wrong_bytes_are_refused(pair: Pair) -> None:
    done = pair.copy(PRIVATE, "-fast", pair.local("z", SMALL[1:]), pair.url(b"something else"))
    assert done.returncode != 0 and "550 corrupt" in done.stderr
    done = pair.copy(PRIVATE, pair.url(b"something else"), pair.local("z"))
    assert done.returncode != 0 and "550 not-found" in done.stderr


def test_who_is_not_known_or_revoked_is_refused(fresh_site: SiteHome, tmp_path: Path) -> None:
    known, leaver, nobody = (
        fresh_site.user(name, *roles)
        for name, roles in (("known", ("gateway",)), ("leaver", ("gateway",)), ("nobody", ()))
    )
    with serving(fresh_site.storage(), tmp_path / "se1") as door:
        path = door.put(SMALL)
        out = f"file://{tmp_path / 'out'}"
        source = localhost(door.url) + path
        assert gct.copy(known, PRIVATE, source, out).returncode == 0
        assert "550 denied" in gct.copy(nobody, PRIVATE, source, out).stderr
        assert gct.copy(leaver, PRIVATE, source, out).returncode == 0
        # The client keeps the old CRL: it is the server that refuses
        kept = leaver.model_copy(update={"trust": Path(shutil.copytree(fresh_site.trust, tmp_path / "trust"))})
        fresh_site.revoke(leaver)
        assert gct.copy(kept, PRIVATE, source, out).returncode != 0
        assert gct.copy(known, PRIVATE, source, out).returncode == 0
        assert settled()


def test_over_ipv6(site: SiteHome, tmp_path: Path) -> None:
    user = site.user("copier", "gateway")
    names = {"dns": ("localhost",), "ips": ("::1",), "roles": ("storage",)}
    host = site.identity(ca.issue_host(site.home, "se6", out=tmp_path / "identity", **names))
    with serving(host, tmp_path / "se6", GsiftpSettings(host="::1")) as door:
        path = door.put(SMALL)
        for number, options in enumerate(((), ("-fast",))):
            out = tmp_path / str(number)
            done = gct.copy(user, PRIVATE, "-ipv6", *options, door.url + path, f"file://{out}")
            assert done.returncode == 0, done.stderr[-2000:]
            assert out.read_bytes() == SMALL
