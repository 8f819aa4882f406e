"""A new CA takes over: both are trusted in between, each step may be killed and run again, nobody is left behind."""

from __future__ import annotations

import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509

from certs import ca, rollover
from certs.cli import main
from certs.credential import Credential
from certs.errors import CaError, TrustError
from certs.trust import Trust
from tests.helpers.pki import ORGANISATION, SiteHome

NOW = timedelta(0)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, site: SiteHome) -> Path:
    """A site whose roll-over has started (the keys cost a second): copy it."""
    home = tmp_path_factory.mktemp("begun") / "site"
    shutil.copytree(site.home, home)
    for name in ("one", "two"):
        ca.issue_host(home, f"rolling-{name}", roles=("gateway",), out=home / "rolling")
    rollover.start(home)
    return home


@pytest.fixture
def home(begun: Path, tmp_path: Path) -> Path:
    shutil.copytree(begun, tmp_path / "site")
    return tmp_path / "site"


def host(home: Path, name: str) -> Credential:
    found = home / "rolling" / f"rolling-{name}.cert.pem"
    return Credential(found, found.with_name(f"rolling-{name}.key.pem"))


def issuer(credential: Credential) -> str:
    return credential.chain()[0].issuer.rfc4514_string().split(",")[0].removeprefix("CN=")


def judged(home: Path, credential: Credential) -> str:
    return str(Trust(home / "trust").judge(credential.cert.read_bytes()).dn)


def everybody_else_gone(home: Path) -> None:
    """Revoke what other tests have issued in the shared site."""
    with ca.SiteFiles(home).store.exclusive() as books:
        for one in books.all():
            if one.profile != "ca" and "rolling" not in one.dn:
                books.revoke(one.serial, at=datetime.now(UTC))


def test_start_publishes_beside_and_the_old_still_issues(home: Path) -> None:
    trust = Trust(home / "trust")
    assert len(trust.anchors()) == 3 and trust.problems() == ()
    assert rollover.start(home) == rollover.current(home)
    assert ca.SiteFiles(home).authorities() == ("root", "issuing", "issuing-2")
    made = ca.issue_host(home, "early", out=home / "rolling")
    assert issuer(made) == f"{ORGANISATION} Issuing CA" and judged(home, made)
    assert len(x509.load_pem_x509_certificates((home / "trust" / "ca.pem").read_bytes())) == 3
    with pytest.raises(CaError, match="still issues"):
        rollover.finish(home, settled=NOW)


def test_the_new_one_takes_over(home: Path) -> None:
    one, two = host(home, "one"), host(home, "two")
    everybody_else_gone(home)
    rollover.switch(home)
    assert rollover.switch(home) == rollover.current(home)
    key = one.key.read_bytes()
    assert ca.renew_due(home, [one]) == (one,) and ca.renew_due(home, [one]) == ()
    assert issuer(one) == f"{ORGANISATION} Issuing CA 2" and one.key.read_bytes() == key
    assert judged(home, one) and judged(home, two)  # both are good now
    assert [(row.dn[-3:], bool(row.again)) for row in rollover.standing(home)] == [("two", False), ("one", True)]
    with pytest.raises(CaError, match="1 have no certificate of the new CA yet: .*rolling-two"):
        rollover.finish(home, settled=NOW)
    ca.renew_due(home, [two])
    with pytest.raises(CaError, match="less than 24 h"):
        rollover.finish(home)
    old = ca.SiteFiles(home).credential("issuing").chain()[0]
    assert rollover.finish(home, settled=NOW) == ("issuing",)
    assert rollover.current(home) is None and len(Trust(home / "trust").anchors()) == 2
    assert old not in x509.load_pem_x509_certificates((home / "trust" / "ca.pem").read_bytes())
    assert Trust(home / "trust").problems() == () and judged(home, one) and judged(home, two)
    ca.refresh_crls(home)
    ca.init_site(home, organisation=ORGANISATION)
    assert len(Trust(home / "trust").anchors()) == 2  # nothing brings the old one back
    made = ca.issue_user(home, "late", out=home / "rolling")
    assert issuer(made) == f"{ORGANISATION} Issuing CA 2"
    ca.revoke(home, made.cert)
    with pytest.raises(TrustError, match="revoked"):
        judged(home, made)


def test_certificates_of_a_ca_that_is_gone(home: Path, tmp_path: Path) -> None:
    left = tmp_path / "left.cert.pem"
    shutil.copy(host(home, "one").cert, left)
    everybody_else_gone(home)
    rollover.switch(home)
    ca.renew_due(home, [host(home, "one"), host(home, "two")])
    rollover.finish(home, settled=NOW)
    with pytest.raises(TrustError):
        Trust(home / "trust").judge(left.read_bytes())
    with pytest.raises(CaError, match="taken out"):
        ca.revoke(home, left)


def test_revoking_works_for_both_in_between(home: Path) -> None:
    rollover.switch(home)
    ca.renew_due(home, [host(home, "one")])
    for name in ("one", "two"):
        assert judged(home, host(home, name))
        ca.revoke(home, host(home, name).cert)
        with pytest.raises(TrustError, match="revoked"):
            judged(home, host(home, name))


def test_the_old_ca_s_key_was_stolen(home: Path) -> None:
    """The root revokes it: whatever its thief signs is refused at once, and nobody stands on it any more."""
    rollover.switch(home)
    ca.renew_due(home, [host(home, "one")])
    site = ca.SiteFiles(home)
    assert judged(home, host(home, "two"))
    ca.revoke(home, site.credential("issuing").cert)
    with pytest.raises(TrustError, match="revoked"):
        judged(home, host(home, "two"))
    assert judged(home, host(home, "one")) and rollover.standing(home) == ()
    assert rollover.finish(home) == ("issuing",)
    assert judged(home, host(home, "one"))


@pytest.mark.parametrize("killed", ["staged", "published", "moved"])
def test_a_kill_is_made_good(home: Path, monkeypatch: pytest.MonkeyPatch, killed: str) -> None:
    """Killed between making, publishing and moving: the next start goes on with the same key."""
    everybody_else_gone(home)
    rollover.switch(home)
    ca.renew_due(home, [host(home, "one"), host(home, "two")])
    rollover.finish(home, settled=NOW)

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    place = {
        "staged": "certs.rollover.publish_new",
        "published": "pathlib.Path.rename",
        "moved": "certs.rollover.replace",
    }[killed]
    with monkeypatch.context() as patch:
        patch.setattr(place, dies)
        with pytest.raises(KeyboardInterrupt):
            rollover.start(home)
    ca.refresh_crls(home)  # what runs hourly is not disturbed
    made = next((home / "ca").rglob("issuing-3.cert.pem")).read_bytes()
    plan = rollover.start(home)
    assert plan.coming == ("issuing-3",) and plan.published
    assert (home / "ca" / "issuing-3" / "issuing-3.cert.pem").read_bytes() == made
    assert len(Trust(home / "trust").anchors()) == 3 and Trust(home / "trust").problems() == ()


def test_finish_that_was_killed_is_made_good(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everybody_else_gone(home)
    rollover.switch(home)
    ca.renew_due(home, [host(home, "one"), host(home, "two")])

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("certs.rollover.unpublish", dies)
        with pytest.raises(KeyboardInterrupt):
            rollover.finish(home, settled=NOW)
    ca.refresh_crls(home)
    assert rollover.finish(home, settled=NOW) == ("issuing",)
    assert len(Trust(home / "trust").anchors()) == 2 and Trust(home / "trust").problems() == ()


def test_a_new_root(site: SiteHome, tmp_path: Path) -> None:
    home = tmp_path / "site"
    shutil.copytree(site.home, home)
    everybody_else_gone(home)
    made = ca.issue_host(home, "rolling-one", out=home / "rolling")
    (home / "ca" / "root" / "root.key.pem").unlink()  # it is offline, and not needed
    with pytest.raises(CaError, match="bring it back"):
        rollover.start(home)
    assert rollover.start(home, new_root=True).coming == ("root-2", "issuing-2")
    assert Trust(home / "trust").problems() == () and len(Trust(home / "trust").anchors()) == 4
    rollover.switch(home)
    ca.renew_due(home, [made])
    assert rollover.finish(home, settled=NOW) == ("root", "issuing")
    assert len(Trust(home / "trust").anchors()) == 2 and judged(home, made)
    (home / "ca" / "root-2" / "root-2.key.pem").unlink()
    ca.refresh_crls(home)
    assert judged(home, made)


def test_on_the_command_line(home: Path) -> None:
    def run(*words: object, code: int = 0) -> str:
        done = CliRunner().invoke(main, ["rollover", *map(str, words), "--home", str(home)])
        assert done.exit_code == code, done.output
        return done.output

    everybody_else_gone(home)
    assert "issuing-2" in run("start")
    assert "issues since" in run("switch")
    assert "rolling-one" in run("status")
    assert "rolling-one.cert.pem" in run("reissue", host(home, "one").cert, host(home, "two").cert)
    shown = json.loads(run("status", "--format", "json"))
    assert shown["rollover"]["coming"] == ["issuing-2"] and all(row["again"] for row in shown["standing"])
    assert "less than 24 h" in run("finish", code=1)
    said = run("finish", "--settled-hours", "0")
    assert "destroy it" in said and re.search(r"copy of the trust directory: \w{8}\.0 \w{8}\.r0 \w{8}\.signing", said)
    assert [path.name for path in (home / "ca" / "retired").rglob("*.pem")] == ["issuing.key.pem"]
    assert "no roll-over" in run("status") and "no roll-over" in run("switch", code=1)
