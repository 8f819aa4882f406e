"""Certificates by request: the key stays on its machine, the CA says what the certificate says."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sqlite3
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from certs import ca, csr, profiles
from certs.cli import main
from certs.credential import Credential
from certs.errors import CaError
from certs.gridmap import read_gridmap
from certs.trust import Trust
from tests.helpers.pki import SiteHome

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="the openssl program is not installed")
# As the product renders it for a machine that has stock openssl and nothing of ours
CNF = """\
[req]
prompt = no
distinguished_name = subject
req_extensions = extensions
[subject]
CN = se3
[extensions]
subjectAltName = DNS:se3.b.example, IP:192.0.2.30
"""
SE3 = ca.Host("se3", ("se3.b.example",), ("192.0.2.30",), ("storage",))


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def openssl(*words: object) -> str:
    assert OPENSSL is not None
    done = subprocess.run([OPENSSL, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Maker:
    """Makes requests that say whatever a test wants them to."""

    folder: Path

    def request(
        self,
        *extensions: x509.ExtensionType,
        key: rsa.RSAPrivateKey
        | ec.EllipticCurvePrivateKey
        | ed25519.Ed25519PrivateKey
        | dsa.DSAPrivateKey
        | None = None,
        subject: tuple[tuple[x509.ObjectIdentifier, str], ...] = ((NameOID.COMMON_NAME, "se3"),),
        digest: hashes.SHA256 | None = hashes.SHA256(),  # noqa: B008  # a value, stateless
    ) -> Path:
        builder = x509.CertificateSigningRequestBuilder()
        builder = builder.subject_name(x509.Name([x509.NameAttribute(*each) for each in subject]))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        made = builder.sign(key or profiles.new_host_key(), digest)
        return self.file(made.public_bytes(serialization.Encoding.PEM))

    def file(self, data: bytes) -> Path:
        path = self.folder / "asked.csr.pem"
        path.write_bytes(data)
        return path


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


def san(*names: x509.GeneralName) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(names)


AGREEING = san(*SE3.names())


def leaf_of(signed: ca.Signed) -> x509.Certificate:
    return x509.load_pem_x509_certificates(signed.cert.read_bytes())[0]


def alternative_names(cert: x509.Certificate) -> list[str]:
    found = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = found.get_values_for_type(x509.IPAddress)
    return [*found.get_values_for_type(x509.DNSName), *map(str, addresses)]


def test_from_a_machine_to_its_certificate(fresh_site: SiteHome, tmp_path: Path) -> None:
    """The machine needs no CA home, the CA no private key."""
    machine, out = tmp_path / "machine", tmp_path / "out"
    names = ("--dns", "se3.b.example", "--ip", "192.0.2.30")
    asked = run("request", "se3", *names, "--out", machine)
    assert (asked.exit_code, asked.stdout) == (0, f"{machine / 'se3.csr.pem'}\n")
    assert stat.S_IMODE((machine / "se3.key.pem").stat().st_mode) == 0o600
    home = ("--home", fresh_site.home)
    signed = run("sign", machine / "se3.csr.pem", "--name", "se3", *names, "--role", "storage", *home, "--out", out)
    assert (signed.exit_code, signed.stderr) == (0, "")
    assert signed.stdout.splitlines() == ["/O=Test Grid/OU=Hosts/CN=se3", str(out / "se3.cert.pem")]
    assert [path.name for path in out.iterdir()] == ["se3.cert.pem"]
    credential = Credential(out / "se3.cert.pem", machine / "se3.key.pem")
    credential.check()
    assert alternative_names(credential.chain()[0]) == ["se3.b.example", "192.0.2.30"]
    peer = Trust(fresh_site.trust).judge(credential.cert.read_bytes())
    assert str(peer.dn) == "/O=Test Grid/OU=Hosts/CN=se3"
    entry = read_gridmap(fresh_site.gridmap)[credential.dn()]
    assert (entry.account, entry.roles) == ("se3", frozenset({"storage"}))


def test_both_ways_give_the_same_certificate(fresh_site: SiteHome, tmp_path: Path) -> None:
    """issue and sign are one path: apart from key, serial and time nothing differs."""
    issued = ca.issue_host(fresh_site.home, "se3", dns=SE3.dns, ips=SE3.ips, roles=SE3.roles, out=tmp_path / "issued")
    made = csr.make("se3", dns=SE3.dns, ips=SE3.ips, out=tmp_path / "asked")
    signed = ca.sign_request(fresh_site.home, made.request, SE3, out=tmp_path / "signed")
    theirs, ours = issued.chain(), x509.load_pem_x509_certificates(signed.cert.read_bytes())
    assert (theirs[1], theirs[0].subject) == (ours[1], ours[0].subject)
    varying = (x509.SubjectKeyIdentifier,)
    for one, other in zip(theirs[0].extensions, ours[0].extensions, strict=True):
        assert (one.oid, one.critical) == (other.oid, other.critical)
        assert isinstance(one.value, varying) or one.value == other.value
    assert theirs[0].not_valid_after_utc - ours[0].not_valid_after_utc < timedelta(minutes=1)


@needs_openssl
def test_a_request_of_stock_openssl(fresh_site: SiteHome, tmp_path: Path) -> None:
    (tmp_path / "se3.cnf").write_text(CNF)
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    files = ("-keyout", tmp_path / "se3.key.pem", "-out", tmp_path / "se3.csr.pem")
    openssl("req", "-new", *curve, "-config", tmp_path / "se3.cnf", *files)
    signed = ca.sign_request(fresh_site.home, tmp_path / "se3.csr.pem", SE3, out=tmp_path, strict=True)
    assert signed.differences == ()
    Credential(signed.cert, tmp_path / "se3.key.pem").check()
    said = openssl("verify", "-x509_strict", "-crl_check_all", "-CApath", fresh_site.trust, signed.cert)
    assert said.strip() == f"{signed.cert}: OK"


@needs_openssl
def test_openssl_reads_our_request(tmp_path: Path) -> None:
    made = csr.make("se3", dns=SE3.dns, ips=SE3.ips, out=tmp_path)
    said = openssl("req", "-in", made.request, "-noout", "-text", "-verify")
    assert "ASN1 OID: prime256v1" in said
    assert re.search(r"Subject: CN ?= ?se3\n", said)
    assert "DNS:se3.b.example, IP Address:192.0.2.30" in said


class TestTheCommandLineDecides:
    """What a request says about itself reaches no certificate."""

    CASES = (
        pytest.param((), ((NameOID.COMMON_NAME, "root"),), ["subject: the request says /CN=root, the certificate /O=Te",
                     "names: the certificate gets DNS:se3.b.example, IP:192.0.2.30, which"], id="nothing right"),
        pytest.param((AGREEING,), ((NameOID.ORGANIZATION_NAME, "Other"), (NameOID.COMMON_NAME, "se3")),
                     ["subject: the request says /O=Other/CN=se3"], id="another organisation"),
        pytest.param((AGREEING,), (), ["subject: the request says nothing"], id="no subject"),
        pytest.param((san(*SE3.names(), x509.DNSName("catalog.a.example"), x509.RFC822Name("a@b.example")),), None,
                     ["names: the request asks for DNS:catalog.a.example, RFC822Name:a@b.example, which"], id="more"),
        pytest.param((san(SE3.names()[0]),), None, ["names: the certificate gets IP:192.0.2.30"], id="fewer"),
        pytest.param((AGREEING, x509.BasicConstraints(ca=True, path_length=None)), None,
                     ["the request asks for a CA certificate"], id="a CA"),
        pytest.param((san(x509.DNSName("SE3.B.Example"), SE3.names()[1]),), None, [], id="case alone"),
        pytest.param((AGREEING,), ((NameOID.ORGANIZATION_NAME, "Test Grid"), (NameOID.COMMON_NAME, "se3")), [],
                     id="knows its organisation"),
    )  # fmt: skip

    @pytest.mark.parametrize(("extensions", "subject", "told"), CASES)
    def test_it(
        self,
        fresh_site: SiteHome,
        maker: Maker,
        tmp_path: Path,
        extensions: tuple[x509.ExtensionType, ...],
        subject: tuple[tuple[x509.ObjectIdentifier, str], ...] | None,
        told: list[str],
    ) -> None:
        asked = maker.request(*extensions, subject=((NameOID.COMMON_NAME, "se3"),) if subject is None else subject)
        if told:
            with pytest.raises(CaError, match="not signed, since it says otherwise"):
                ca.sign_request(fresh_site.home, asked, SE3, out=tmp_path / "out", strict=True)
            assert not (tmp_path / "out").exists()
        signed = ca.sign_request(fresh_site.home, asked, SE3, out=tmp_path / "out", strict=not told)
        assert len(signed.differences) == len(told)
        assert all(said.startswith(start) for said, start in zip(signed.differences, told, strict=True))
        cert = leaf_of(signed)
        assert str(signed.dn) == "/O=Test Grid/OU=Hosts/CN=se3"
        assert alternative_names(cert) == ["se3.b.example", "192.0.2.30"]
        assert not cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca

    def test_the_command_tells_on_stderr(self, fresh_site: SiteHome, maker: Maker, tmp_path: Path) -> None:
        asked = maker.request(san(x509.DNSName("catalog.a.example")))
        words = ("sign", asked, "--name", "se3", "--dns", "se3.b.example", "--home", fresh_site.home, "--out", tmp_path)
        refused = run(*words, "--strict")
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert refused.stderr.startswith(f"dgis-certs: {asked}: not signed, since it says otherwise than the command: ")
        signed = run(*words, "--format", "json")
        assert signed.exit_code == 0
        assert [line.split(": ")[1] for line in signed.stderr.splitlines()] == ["names", "names"]
        assert json.loads(signed.stdout)["differences"] == [
            "names: the request asks for DNS:catalog.a.example, which the certificate does not get",
            "names: the certificate gets DNS:se3.b.example, which the request does not ask for",
        ]

    def test_a_strangers_text_cannot_drive_the_terminal(
        self, fresh_site: SiteHome, maker: Maker, tmp_path: Path
    ) -> None:
        asked = maker.request(subject=((NameOID.COMMON_NAME, "se3\x1b[2J\x9b31m"), (NameOID.PSEUDONYM, "x" * 500)))
        signed = ca.sign_request(fresh_site.home, asked, SE3, out=tmp_path)
        assert signed.differences[0].isprintable()
        assert len(signed.differences[0]) < 500


class TestOneKeyOneName:
    def test_again_for_the_same_name(self, fresh_site: SiteHome, tmp_path: Path) -> None:
        """A renewal: the key stays, and the request command does not touch it."""
        made = csr.make("se3", out=tmp_path)
        key = made.key.read_bytes()
        first = ca.sign_request(fresh_site.home, made.request, ca.Host("se3"), out=tmp_path)
        serial = leaf_of(first).serial_number
        again = csr.make("se3", out=tmp_path)
        assert (made.new_key, again.new_key, again.key.read_bytes()) == (True, False, key)
        second = ca.sign_request(fresh_site.home, again.request, ca.Host("se3"), out=tmp_path, strict=True)
        assert leaf_of(second).serial_number != serial
        Credential(second.cert, made.key).check()

    def test_refused_for_another_name(self, fresh_site: SiteHome, tmp_path: Path) -> None:
        made = csr.make("se3", out=tmp_path)
        ca.sign_request(fresh_site.home, made.request, ca.Host("se3"), out=tmp_path)
        before = ca.issued_certificates(fresh_site.home), fresh_site.gridmap.read_text()
        with pytest.raises(CaError, match=r"catalog: this key belongs to /O=Test Grid/OU=Hosts/CN=se3; one key, one"):
            ca.sign_request(fresh_site.home, made.request, ca.Host("catalog"), out=tmp_path / "out")
        assert (ca.issued_certificates(fresh_site.home), fresh_site.gridmap.read_text()) == before
        assert not (tmp_path / "out").exists()

    def test_the_key_of_an_issued_credential_counts_too(
        self, fresh_site: SiteHome, maker: Maker, tmp_path: Path
    ) -> None:
        """A user's key cannot become a host's."""
        user = fresh_site.user("joe", "user")
        key = Credential(user.cert, user.key).private_key()
        assert isinstance(key, rsa.RSAPrivateKey)
        with pytest.raises(CaError, match=r"belongs to /O=Test Grid/OU=People/CN=joe"):
            ca.sign_request(fresh_site.home, maker.request(key=key), SE3, out=tmp_path)

    def test_a_revoked_key_does_not_come_back(self, fresh_site: SiteHome, tmp_path: Path) -> None:
        made = csr.make("se3", out=tmp_path)
        signed = ca.sign_request(fresh_site.home, made.request, ca.Host("se3"), out=tmp_path)
        ca.revoke(fresh_site.home, signed.cert)
        with pytest.raises(CaError, match=r"se3: a certificate of this key was revoked on \d{4}-.* with a new key"):
            ca.sign_request(fresh_site.home, made.request, ca.Host("se3"), out=tmp_path)

    def test_a_renewed_key_stays_its_names(self, fresh_site: SiteHome, maker: Maker, tmp_path: Path) -> None:
        """Books from before keys were recorded: a renewal enters the key."""
        old = fresh_site.host("old")
        credential = Credential(old.cert, old.key)
        key = credential.private_key()
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        with closing(sqlite3.connect(fresh_site.home / "ca" / "issuing" / "certs.sqlite")) as books:
            books.execute("DROP TABLE keys")
        assert ca.renew_due(fresh_site.home, [credential], now=datetime.now(UTC) + timedelta(days=61)) == (credential,)
        with pytest.raises(CaError, match="one key, one name"):
            ca.sign_request(fresh_site.home, maker.request(key=key), SE3, out=tmp_path / "out")

    def test_an_older_release_still_writes_into_the_books(self, fresh_site: SiteHome) -> None:
        """Going back is one step: its INSERT names seven values and no key."""
        with closing(sqlite3.connect(fresh_site.home / "ca" / "issuing" / "certs.sqlite")) as books, books:
            now = datetime.now(UTC).isoformat()
            row = ("abc", "issuing", "/O=Test Grid/CN=x", "host", now, now, None)
            books.execute("INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        assert 0xABC in {each.serial for each in ca.issued_certificates(fresh_site.home)}


class TestKeysAndSignatures:
    @pytest.mark.parametrize("bits", [2048, 4096])
    def test_rsa_from_2048_bits(self, fresh_site: SiteHome, maker: Maker, tmp_path: Path, bits: int) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
        signed = ca.sign_request(fresh_site.home, maker.request(AGREEING, key=key), SE3, out=tmp_path, strict=True)
        usage = leaf_of(signed).extensions.get_extension_for_class(x509.KeyUsage).value
        assert (usage.digital_signature, usage.key_encipherment, usage.key_cert_sign) == (True, True, False)

    @pytest.mark.parametrize(
        ("kind", "said"),
        [("rsa1024", "an RSA 1024 bit key"), ("p384", "an EC secp384r1 key"), ("ed25519", "a Ed25519 key"),
         ("dsa", "a DSA key")],
    )  # fmt: skip
    def test_others_are_refused(self, site: SiteHome, maker: Maker, tmp_path: Path, kind: str, said: str) -> None:
        if kind == "rsa1024":
            asked = maker.request(key=rsa.generate_private_key(public_exponent=65537, key_size=1024))
        elif kind == "p384":
            asked = maker.request(key=ec.generate_private_key(ec.SECP384R1()))
        elif kind == "dsa":
            asked = maker.request(key=dsa.generate_private_key(key_size=2048))
        else:
            asked = maker.request(key=ed25519.Ed25519PrivateKey.generate(), digest=None)
        with pytest.raises(CaError, match=f"{said}; make a P-256 key"):
            ca.sign_request(site.home, asked, SE3, out=tmp_path / "out")

    def test_another_key_signed_it(self, site: SiteHome, maker: Maker, tmp_path: Path) -> None:
        """A request for somebody else's key proves nothing: swap the key inside, keep the signature."""
        path = maker.request(AGREEING)
        request = x509.load_pem_x509_csr(path.read_bytes())
        mine, theirs = (_point(key) for key in (request.public_key(), profiles.new_host_key().public_key()))
        der = request.public_bytes(serialization.Encoding.DER).replace(mine, theirs)
        swapped = x509.load_der_x509_csr(der).public_bytes(serialization.Encoding.PEM)
        with pytest.raises(CaError, match="not signed by its own key"):
            ca.sign_request(site.home, maker.file(swapped), SE3, out=tmp_path / "out")

    def test_an_existing_key_of_another_kind_is_not_taken(self, tmp_path: Path) -> None:
        key = ec.generate_private_key(ec.SECP384R1())
        (tmp_path / "se3.key.pem").touch(mode=0o600)
        (tmp_path / "se3.key.pem").write_bytes(profiles.key_pem(key))
        with pytest.raises(CaError, match=r"se3\.key\.pem: an EC secp384r1 key"):
            csr.make("se3", out=tmp_path)
        assert not (tmp_path / "se3.csr.pem").exists()


def _point(key: object) -> bytes:
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


@pytest.fixture(scope="module")
def good_der(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    made = csr.make("se3", dns=SE3.dns, ips=SE3.ips, out=tmp_path_factory.mktemp("good"))
    return x509.load_pem_x509_csr(made.request.read_bytes()).public_bytes(serialization.Encoding.DER)


@example(cut=8, put=b"\x01")  # the version
@given(cut=st.integers(0, 400), put=st.binary(min_size=1, max_size=6))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_always_an_error_of_ours(good_der: bytes, tmp_path: Path, cut: int, put: bytes) -> None:
    """Whatever bytes a stranger sends: a CaError, or what was signed (a bit that counts for nothing may differ)."""
    at = cut % len(good_der)
    path = tmp_path / "damaged.csr.pem"
    path.write_bytes(_armour(good_der[:at] + put + good_der[at + len(put) :]))
    try:
        asked = csr.load(path)
    except CaError as error:
        assert str(path) in str(error)
    else:
        key = x509.load_der_x509_csr(good_der).public_key()
        assert asked == csr.Asked(key, (("CN", "se3"),), frozenset({"DNS:se3.b.example", "IP:192.0.2.30"}), False)  # type: ignore[arg-type]  # ours is P-256


def test_a_signed_oddity_is_an_error_of_ours(maker: Maker) -> None:
    """A subject in a type that its attribute does not have (BIT STRING) is no string to compare."""
    path = maker.request(subject=((NameOID.COMMON_NAME, "se3"),))
    key = profiles.new_host_key()
    body = path.read_bytes()
    der = x509.load_pem_x509_csr(body).tbs_certrequest_bytes.replace(b"\x0c\x03se3", b"\x03\x03\x00e3")
    old = _point(x509.load_pem_x509_csr(body).public_key())
    maker.file(_armour(_sealed(der.replace(old, _point(key.public_key())), key)))
    with pytest.raises(CaError, match="a damaged certificate request"):
        csr.load(path)


def _sealed(body: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """CertificationRequest ::= SEQUENCE { info, ecdsa-with-SHA256, signature } (RFC 2986 section 4.2)."""
    signature = b"\x00" + key.sign(body, ec.ECDSA(hashes.SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    whole = body + algorithm + bytes([3, len(signature)]) + signature
    return b"\x30\x81" + bytes([len(whole)]) + whole


def _armour(der: bytes) -> bytes:
    body = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + body + b"-----END CERTIFICATE REQUEST-----\n"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"hello", "no PEM certificate request"),
        (b"", "no PEM certificate request"),
        (b"x" * 70_000, "larger than 64 KiB"),
        (b"-----BEGIN PRIVATE KEY-----\n", "holds a private key, which nobody but its machine may have"),
    ],
)
def test_files_that_are_no_request(site: SiteHome, maker: Maker, tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(CaError, match=said):
        ca.sign_request(site.home, maker.file(data), SE3, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("request", "se3", "--dns", "10.0.0.1"), "10.0.0.1: is an IP address, no DNS name; say --ip 10.0.0.1"),
        (("request", "se3", "--ip", "se3.b.example"), "se3.b.example: not an IP address such as"),
        (("request", "se 3"), "se 3: not a DNS name"),
        (("request", "../se3"), "name: 1 to 64 printable characters"),
        (("sign", "none.pem", "--name", "se3", "--home", "nowhere"), "none.pem: cannot be read: No such file"),
        (("sign", "none.pem", "--name", "a/b", "--home", "nowhere"), "name: 1 to 64 printable characters"),
        (("issue", "host", "se3", "--ip", "se3", "--home", "nowhere"), "se3: not an IP address such as"),
    ],
)
def test_failures_say_what_to_write(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = run(*words, "--out", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"dgis-certs: {said}")
    assert not (tmp_path / "out").exists()


def test_a_certificate_is_not_laid_beside_another_key(fresh_site: SiteHome, tmp_path: Path) -> None:
    """It would break the running service of that name at its next reload."""
    ca.issue_host(fresh_site.home, "se3", out=tmp_path / "out")
    before = (tmp_path / "out" / "se3.cert.pem").read_bytes()
    made = csr.make("se3", out=tmp_path / "machine")
    with pytest.raises(CaError, match=r"se3\.key\.pem: is not the key of this request; name another --out"):
        ca.sign_request(fresh_site.home, made.request, ca.Host("se3"), out=tmp_path / "out")
    assert (tmp_path / "out" / "se3.cert.pem").read_bytes() == before


def test_many_at_once_all_reach_the_gridmap(fresh_site: SiteHome, tmp_path: Path) -> None:
    """Ansible signs for several machines at a time; a large gridmap makes its rewriting slow enough to collide."""
    lines = [f'"/O=Test Grid/OU=People/CN=user {number}" user_{number} user\n' for number in range(3000)]
    fresh_site.gridmap.write_text("".join(lines))
    names = [f"h{number}" for number in range(12)]
    made = {name: csr.make(name, out=tmp_path / name).request for name in names}
    with ThreadPoolExecutor(12) as pool:
        signed = pool.map(lambda n: ca.sign_request(fresh_site.home, made[n], ca.Host(n), out=tmp_path / n), names)
        dns = {each.dn for each in signed}
    assert len(dns) == 12
    assert dns <= set(read_gridmap(fresh_site.gridmap))
