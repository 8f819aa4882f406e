"""`dgis-certs proxy`: what it makes is admitted over real TLS, and by stock grid tools' eyes."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from certs.cli import main
from certs.config import IdentityConfig
from certs.credential import Credential
from certs.proxyinfo import LIMITED, reading
from certs.trust import Trust
from tests.helpers.pki import SiteHome, service


def run(*words: object) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_proxy_in_one_file_is_its_owner(site: SiteHome, tmp_path: Path) -> None:
    joe, out = site.user("joe", "user"), tmp_path / "proxy.pem"
    run("proxy", "make", "--cert", joe.cert, "--key", joe.key, "--hours", "1", "--out", out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    proxy = IdentityConfig(cert=out, key=out, trust=site.trust, gridmap=site.gridmap)
    with service(site.catalog(), proxy) as (_app, url, sessions):
        me = sessions[0].json("GET", f"{url}/v1/whoami")
    assert me["dn"].endswith("CN=joe") and me["proxied"]


def test_a_proxy_by_request_takes_no_key_anywhere(site: SiteHome, tmp_path: Path) -> None:
    """The delegate's key never leaves it, the owner's neither; the policy is the owner's."""
    joe = site.user("joe", "user")
    run("proxy", "request", "--out", tmp_path)
    out = tmp_path / "proxy.cert.pem"
    run("proxy", "sign", tmp_path / "proxy.csr.pem", "--cert", joe.cert, "--key", joe.key, "--study", "1.2.3",
        "--study", "1.2.4", "--out", out)  # fmt: skip
    assert b"PRIVATE" not in out.read_bytes()
    Credential(out, tmp_path / "proxy.key.pem").check()
    chain = Trust(site.trust).judge(out.read_bytes())
    assert chain.proxy_policy == reading(frozenset({"1.2.3", "1.2.4"}))


def test_of_a_proxy_a_stricter_one_and_then_none(site: SiteHome, tmp_path: Path) -> None:
    joe, one, two = site.user("joe", "user"), tmp_path / "one.pem", tmp_path / "two.pem"
    run("proxy", "make", "--cert", joe.cert, "--key", joe.key, "--limited", "--out", one)
    run("proxy", "make", "--cert", one, "--key", one, "--depth", "0", "--out", two)
    chain = Trust(site.trust).judge(two.read_bytes())
    assert chain.proxies == 2 and chain.proxy_policy == LIMITED
    again = CliRunner().invoke(main, ["proxy", "make", "--cert", str(two), "--key", str(two), "--out", str(one)])
    assert again.exit_code == 1 and "take the certificate itself" in again.output


@pytest.mark.parametrize("words", [("--limited", "--study", "1.2"), ("--study", "x"), ("--study", "1" * 65)])
def test_what_cannot_be_asked_for_teaches(site: SiteHome, tmp_path: Path, words: tuple[str, ...]) -> None:
    joe = site.user("joe", "user")
    named = ["proxy", "make", "--cert", str(joe.cert), "--key", str(joe.key), "--out", str(tmp_path / "p")]
    done = CliRunner().invoke(main, [*named, *words])
    assert done.exit_code == 1 and "Traceback" not in done.output and "dgis-certs:" in done.output
    assert not (tmp_path / "p").exists()
