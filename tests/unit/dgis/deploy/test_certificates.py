"""Certificates by file: what is issued, what is issued again, and what is not taken into a seed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from certs import ca
from certs.credential import Credential
from certs.errors import CertsError
from dgis.deploy import certificates, check, sitefile
from dgis.deploy.errors import DeployError
from dgis.deploy.topology import Site
from tests.helpers import sitefiles

FILE = f"""\
site: here
organisation: Grid
domain: here.example
hypervisor: {{kind: kvm}}
admins: [192.0.2.0/28]
admin_keys: [{sitefiles.KEY}]
hosts:
  - name: kvm1
    uplink: {{interface: eth0, address: 198.51.100.10/24}}
    networks: [{{name: grid, bridge: br0, cidr: 10.77.0.0/24}}]
guests:
  - {{name: store, host: kvm1, address: 10.77.0.11, roles: [storage]}}
  - {{name: meta, host: kvm1, address: 10.77.0.12, roles: [catalog]}}
"""
STORE = "store/storage.cert.pem"


def site(old: str = "", new: str = "") -> Site:
    return check.resolved(*sitefile.parse(FILE.replace(old, new) if old else FILE, "f.yml"))


HERE = site()
MOVED = site("198.51.100.10/24", "198.51.100.77/24")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("authority")
    ca.init_site(home, organisation="Grid")
    return home


@pytest.fixture
def home(authority: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(authority, tmp_path / "home"))


def store(out: Path) -> Credential:
    return Credential(out / STORE, out / "store/storage.key.pem")


def issued_days_ago(days: int, home: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Then(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Then:
            return cls.fromtimestamp((datetime.now(tz) - timedelta(days=days)).timestamp(), tz)

    monkeypatch.setattr(ca, "datetime", Then)
    certificates.issue(HERE, home, out)
    monkeypatch.undo()


def test_what_is_there_and_right_stays(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert certificates.issue(HERE, home, out) == (STORE, "meta/catalog.cert.pem")
    before = (out / STORE).read_bytes()
    assert certificates.issue(HERE, home, out) == ()
    assert (out / STORE).read_bytes() == before == (out / "ssh_peers/storage.store.here.example.pem").read_bytes()
    assert not (out / "ssh_peers/catalog.meta.here.example.pem").exists()
    found = certificates.of_guest(HERE, out, HERE.guest("store"))
    assert found["/etc/dgis/storage/storage.key.pem"].mode == 0o600
    assert "/etc/dgis/trust/ca.pem" in found


def test_another_address_gets_another_certificate(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    certificates.issue(HERE, home, out)
    with pytest.raises(DeployError, match=r"is for .*198.51.100.10, the site file says .*198.51.100.77: run dgis depl"):
        certificates.of_guest(MOVED, out, MOVED.guest("store"))
    name = "storage.store.here.example"
    assert certificates.issue(MOVED, home, out)[0] == (
        f"{STORE}: again, for {name}, 198.51.100.77 instead of {name}, 198.51.100.10"
    )
    store(out).check()
    assert (out / STORE).read_bytes() == (out / f"ssh_peers/{name}.pem").read_bytes()
    assert certificates.of_guest(MOVED, out, MOVED.guest("store"))
    assert certificates.issue(MOVED, home, out) == ()


def test_a_certificate_whose_key_is_elsewhere_is_never_replaced(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    certificates.issue(HERE, home, out)
    store(out).key.unlink()
    before = (out / STORE).read_bytes()
    assert certificates.issue(HERE, home, out) == ()
    with pytest.raises(DeployError, match="its key is not here: sign its request again"):
        certificates.issue(MOVED, home, out)
    assert (out / STORE).read_bytes() == before and not store(out).key.exists()


def test_a_pair_that_is_none_is_issued_anew(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    certificates.issue(HERE, home, out)
    shutil.copy(out / "meta/catalog.key.pem", store(out).key)
    assert certificates.issue(HERE, home, out) == (f"{STORE}: again, since its key was another one's",)
    store(out).check()


def test_what_is_due_is_renewed_with_its_key(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    issued_days_ago(65, home, out, monkeypatch)
    key = store(out).key.read_bytes()
    assert certificates.of_guest(HERE, out, HERE.guest("store"))
    made = certificates.issue(HERE, home, out)
    assert len(made) == 2 and made[0].startswith(f"{STORE}: renewed, until 20")
    assert store(out).key.read_bytes() == key
    assert (out / STORE).read_bytes() == (out / "ssh_peers/storage.store.here.example.pem").read_bytes()
    assert certificates.issue(HERE, home, out) == ()


def test_what_was_revoked_is_not_renewed_silently(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    issued_days_ago(85, home, out, monkeypatch)
    ca.revoke(home, out / STORE)
    with pytest.raises(DeployError, match="is due, but the authority does not renew it"):
        certificates.issue(HERE, home, out)


@pytest.mark.parametrize(
    ("days", "says"), [(85, r"runs out on 20.* UTC: run dgis deploy certificates again"), (91, "expired on")]
)
def test_what_is_about_to_run_out_goes_into_no_seed(
    days: int, says: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    issued_days_ago(days, home, out, monkeypatch)
    with pytest.raises((DeployError, CertsError), match=says):
        certificates.of_guest(HERE, out, HERE.guest("store"))


def test_an_authority_of_another_organisation_issues_nothing(home: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", site("organisation: Grid", "organisation: Other Grid")
    with pytest.raises(DeployError, match="is of the organisation Grid, the site file of Other Grid: give both the sa"):
        certificates.issue(other, home, out)
    assert not out.exists() and len(ca.issued_certificates(home)) == 2
    with pytest.raises(DeployError, match="has no site CA: run dgis-certs init --home"):
        certificates.issue(HERE, tmp_path / "nowhere", out)


def test_a_directory_of_another_site_is_refused(home: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", site("domain: here.example", "domain: there.example")
    certificates.issue(HERE, home, out)
    for ask in (lambda: certificates.issue(other, home, out), lambda: certificates.of_guest(other, out, STORE_THERE)):
        with pytest.raises(DeployError, match=r"here.example's, not /O=Grid.*there.example's: name a directory of"):
            ask()


STORE_THERE = site("domain: here.example", "domain: there.example").guest("store")


def _copy(source: str) -> Callable[[Path, Path], object]:
    return lambda out, target: shutil.copy(out / source, target)


def _empty(out: Path, target: Path) -> None:
    target.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        (STORE, _copy("meta/catalog.cert.pem"), r"catalog.meta.here.example's, not /O=Grid/OU=Hosts/CN=storage.store"),
        (STORE, _empty, "storage.cert.pem is empty: remove it and run dgis deploy certificates again"),
        (STORE, lambda _, target: target.unlink(), "is missing: run dgis deploy certificates first"),
        (STORE, lambda _, target: target.write_text("hello"), "holds no PEM certificate"),
        ("store/storage.key.pem", _copy("meta/catalog.key.pem"), "does not belong to"),
        ("store/storage.key.pem", _empty, "storage.key.pem is empty"),
        ("store/storage.key.pem", lambda _, target: target.chmod(0o644), "others may read this private key"),
        ("trust/ca.pem", _empty, "ca.pem is empty"),
    ],
)
def test_what_is_not_the_services_goes_into_no_seed(
    name: str, spoil: Callable[[Path, Path], object], says: str, home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    certificates.issue(HERE, home, out)
    spoil(out, out / name)
    with pytest.raises((DeployError, CertsError), match=says):
        certificates.of_guest(HERE, out, HERE.guest("store"))
