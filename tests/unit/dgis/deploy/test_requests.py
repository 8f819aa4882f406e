"""Certificate requests: what stock openssl makes of the configuration is what was derived, and our CA agrees."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from hypothesis import example, given, settings
from hypothesis import strategies as st

from certs import ca
from certs.cli import main
from certs.dn import DN
from certs.gridmap import read_gridmap
from dgis.deploy import names, requests, sitefile, topology
from dgis.deploy.errors import DeployError
from dgis.deploy.requests import AltNames
from dgis.deploy.topology import Guest, Service, Site

EXAMPLES = sorted((Path(__file__).parents[4] / "vm-images/examples").glob("*.yml"))
OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="the openssl program is not installed")


@functools.cache
def load(path: Path) -> Site:
    return topology.resolve(sitefile.read(path)[0])


def site(name: str) -> Site:
    return load(next(path for path in EXAMPLES if path.stem == name))


def services(site: Site) -> Iterator[tuple[Guest, Service]]:
    return ((guest, service) for guest in site.guests for service in guest.services)


def new_key(path: Path) -> Path:
    made = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_key(tmp_path_factory.mktemp("key") / "key.pem")


def make(text: str, folder: Path, key: Path) -> x509.CertificateSigningRequest:
    """What `openssl req` makes of a configuration."""
    config, out = folder / "csr.cnf", folder / "csr.pem"
    config.write_text(text, encoding="utf-8")
    assert OPENSSL is not None
    words = [OPENSSL, "req", "-new", "-config", config, "-key", key, "-out", out]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return x509.load_pem_x509_csr(out.read_bytes())


def alt_names(request: x509.CertificateSigningRequest) -> AltNames:
    found = request.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    assert isinstance(found, x509.SubjectAlternativeName)
    addresses = found.get_values_for_type(x509.IPAddress)
    return AltNames(tuple(found.get_values_for_type(x509.DNSName)), tuple(IPv4Address(str(ip)) for ip in addresses))


@needs_openssl
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_openssl_asks_for_what_was_derived(path: Path, tmp_path: Path, key: Path) -> None:
    own = load(path)
    for guest, service in services(own):
        request = make(requests.config(own, guest, service), tmp_path, key)
        assert str(DN.from_name(request.subject)) == f"/O={own.organisation}/OU=Hosts/CN={service.name}"
        assert alt_names(request) == requests.alt_names(own, guest, service)
        usage = request.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
        assert not request.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@needs_openssl
def test_the_first_lines_of_the_file_are_a_command_that_works(tmp_path: Path) -> None:
    own = site("hospital")
    guest = own.guest("store1")
    (service,) = guest.services
    text = requests.config(own, guest, service)
    (tmp_path / "storage.csr.cnf").write_text(text)
    command = "\n".join(line.removeprefix("#") for line in text.splitlines() if line.startswith("#"))
    subprocess.run(["sh", "-ec", command], cwd=tmp_path, check=True, capture_output=True)
    request = x509.load_pem_x509_csr((tmp_path / "storage.csr.pem").read_bytes())
    made = request.public_key()
    assert isinstance(made, ec.EllipticCurvePublicKey) and isinstance(made.curve, ec.SECP256R1)
    assert (tmp_path / "storage.key.pem").exists()


@needs_openssl
def test_our_ca_signs_exactly_that(tmp_path: Path) -> None:
    own, home = site("hospital"), tmp_path / "home"
    ca.init_site(home, organisation=own.organisation)
    for number, (guest, service) in enumerate(services(own)):
        make(requests.config(own, guest, service), tmp_path, new_key(tmp_path / f"{number}.pem"))
        words = ["sign", tmp_path / "csr.pem", "--name", service.name, *requests.sign_arguments(own, guest, service)]
        words += ["--strict", "--home", home, "--out", tmp_path]
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        cert = x509.load_pem_x509_certificate((tmp_path / f"{service.name}.cert.pem").read_bytes())
        assert DN.from_name(cert.subject) == names.subject(own, service.name)
    roles = {str(dn).rpartition("=")[2]: sorted(entry.roles) for dn, entry in read_gridmap(home / "gridmap").items()}
    assert roles["storage.store2.motol.example"] == ["storage"] and roles["dgis.gate.motol.example"] == ["gateway"]
    assert roles["ca.authority.motol.example"] == []


def test_a_dgis_is_also_called_as_viewers_call_it() -> None:
    expected = {
        ("hospital", "gate"): ("192.0.2.10", "10.20.1.10"),  # the LAN's address
        ("dmz-pair", "gate"): ("198.51.100.80", "10.30.1.20"),
        ("pilot-uvn", "node"): ("203.0.113.130", "172.16.8.130"),  # no LAN: the uplink as the institution sees it
        ("pilot-cesnet", "node"): ("198.51.100.10",),
    }
    for (file, name), addresses in expected.items():
        own = site(file)
        guest = own.guest(name)
        service = guest.service("dgis")
        assert service is not None
        found = requests.alt_names(own, guest, service)
        assert (found.dns, found.ips) == ((service.name,), tuple(map(IPv4Address, addresses)))


def test_storage_is_not_called_by_the_lans_address() -> None:
    own = site("hospital")
    store = own.guest("store1")
    assert requests.alt_names(own, store, store.services[0]).ips == (IPv4Address("192.0.2.10"),)
    assert requests.sign_arguments(own, store, store.services[0]) == (
        "--dns", "storage.store1.motol.example", "--ip", "192.0.2.10", "--role", "storage",
    )  # fmt: skip


@needs_openssl
@given(organisation=st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=64))
@example(organisation="${ENV::PATH}")
@example(organisation="a $(b) \\ # c ; [d] = e, f+g")
@example(organisation="#grid")
@example(organisation="a`b`")
@example(organisation="@names")
@settings(max_examples=60, deadline=None)
def test_no_organisation_breaks_out_of_the_file(
    organisation: str, key: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own = replace(site("pilot-lf1"), organisation=organisation)
    guest = own.guests[0]
    service = guest.services[0]
    try:
        text = requests.config(own, guest, service)
    except DeployError:
        return
    request = make(text, tmp_path_factory.mktemp("cnf"), key)
    assert DN.from_name(request.subject).parts == (("O", organisation), ("OU", "Hosts"), ("CN", service.name))
    assert alt_names(request) == requests.alt_names(own, guest, service)


@pytest.mark.parametrize("name", ["a.example\nDNS.9 = evil.example", "a.example, IP:192.0.2.1", "", "a..example"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    own = site("pilot-lf1")
    guest = own.guests[0]
    with pytest.raises(DeployError):
        requests.config(own, guest, replace(guest.services[0], name=name))
