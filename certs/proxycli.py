"""``dgis-certs proxy``: hand on rights for some hours, all of them or few, without handing on a key."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from certs import profiles
from certs.credential import Credential
from certs.errors import CredentialError
from certs.files import write_atomically
from certs.proxy import make, sign_request
from certs.proxyinfo import FULL, LIMITED, ProxyCertInfo, ProxyPolicy, reading

_PATH = click.Path(path_type=Path)
_PRIVATE, _PUBLIC = 0o600, 0o644

_cert = click.option("--cert", type=_PATH, required=True, help="The certificate whose rights are handed on.")
_key = click.option("--key", type=_PATH, required=True, help="Its private key.")
_limited = click.option("--limited", is_flag=True, help="Transfers only: no administration, nothing is deleted.")
_studies = click.option("--study", "studies", multiple=True, metavar="UID",
                        help="Reading this study only; repeat for more.")  # fmt: skip
_hours = click.option("--hours", type=click.FloatRange(0, 12, min_open=True), default=12.0, show_default=True)
_depth = click.option("--depth", type=click.IntRange(0, 1), default=1, show_default=True,
                      help="How many proxies may be made of this one.")  # fmt: skip


@click.group("proxy")
def proxy_group() -> None:
    """Proxies (RFC 3820): short-lived certificates that act for their owner.

    \b
    Examples:
      dgis-certs proxy make --cert me.cert.pem --key me.key.pem --out proxy.pem
      dgis-certs proxy make --cert me.cert.pem --key me.key.pem --study 1.2.840.99.1 --hours 2 --out for-a-colleague.pem
    """


@proxy_group.command("make")
@_cert
@_key
@_limited
@_studies
@_hours
@_depth
@click.option("--out", type=_PATH, required=True, help="One file with proxy, key and chain (mode 0600).")
def make_proxy(
    cert: Path, key: Path, limited: bool, studies: tuple[str, ...], hours: float, depth: int, out: Path
) -> None:
    """Make a proxy with a key of its own. The file serves as certificate and as key, here and for GSI's tools.

    \b
    Example:
      dgis-certs proxy make --cert me.cert.pem --key me.key.pem --limited --out /tmp/x509up_u1000
    """
    info = ProxyCertInfo(_policy(limited, studies), depth)
    write_atomically(out, make(Credential(cert, key), info, timedelta(hours=hours)), mode=_PRIVATE)
    click.echo(out)


@proxy_group.command("request")
@click.option("--out", type=_PATH, required=True, help="Directory for proxy.key.pem and proxy.csr.pem.")
def request_proxy(out: Path) -> None:
    """Make a key where it will be used, and a request to bring to the one whose rights are handed on.

    \b
    Example:
      dgis-certs proxy request --out work
    """
    key = profiles.new_user_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "proxy.key.pem", profiles.key_pem(key), mode=_PRIVATE)
    write_atomically(out / "proxy.csr.pem", request.public_bytes(serialization.Encoding.PEM), mode=_PUBLIC)
    click.echo(out / "proxy.csr.pem")


@proxy_group.command("sign")
@click.argument("request", type=_PATH)
@_cert
@_key
@_limited
@_studies
@_hours
@_depth
@click.option("--out", type=_PATH, required=True, help="Where the proxy with its chain goes; no key is in it.")
def sign_proxy(
    request: Path,
    cert: Path,
    key: Path,
    limited: bool,
    studies: tuple[str, ...],
    hours: float,
    depth: int,
    out: Path,
) -> None:
    """Sign a request as a proxy of yours: neither your key nor the other's leaves its place.

    \b
    Example:
      dgis-certs proxy sign proxy.csr.pem --cert me.cert.pem --key me.key.pem --study 1.2.840.99.1 --out proxy.cert.pem
    """
    info = ProxyCertInfo(_policy(limited, studies), depth)
    signed = sign_request(request.read_bytes(), Credential(cert, key), info, timedelta(hours=hours))
    write_atomically(out, signed, mode=_PUBLIC)
    click.echo(out)


def _policy(limited: bool, studies: tuple[str, ...]) -> ProxyPolicy:
    if limited and studies:
        raise CredentialError("a proxy is --limited, or for one --study or more, not both")
    return reading(frozenset(studies)) if studies else LIMITED if limited else FULL
