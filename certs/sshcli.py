"""``dgis-certs ssh``: what an OpenSSH server or client needs, made from certificates that are judged first."""

from __future__ import annotations

import signal
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from certs import ssh, sshsync
from certs.errors import CredentialError
from certs.files import write_atomically
from certs.ssh import SSHCertificateRequest, SSHSigner
from certs.sshpeers import SshPeers, load_certificates
from certs.trust import Trust

_PATH = click.Path(path_type=Path)
_PUBLIC = 0o644

_trust = click.option(
    "--trust", type=_PATH, required=True, help="Trust directory with CAs and CRLs (of a site: HOME/trust)."
)
_certs = click.argument("files", metavar="CERT...", nargs=-1, required=True, type=_PATH)


@click.group("ssh")
def ssh_group() -> None:
    """Let OpenSSH know the grid's names: lines and certificates for keys whose X.509 certificate is good.

    OpenSSH looks at keys only. Everything here is made from certificates that chain to the trust directory, are not
    revoked and not expired; it ends with them.
    """


@ssh_group.command("authorized-keys")
@_certs
@_trust
def authorized_keys(files: tuple[Path, ...], trust: Path) -> None:
    """Print an authorized_keys line for each certificate: no forwarding, no terminal, over when it expires.

    A revocation does not reach lines that were copied somewhere; on the server itself use `sync`.

    \b
    Example:
      dgis-certs ssh authorized-keys dgis.cert.pem --trust HOME/trust >> authorized_keys
    """
    for cert in _judged(files, trust):
        click.echo(ssh.authorized_key(cert, until=cert.not_valid_after_utc))


@ssh_group.command("known-hosts")
@_certs
@_trust
@click.option("--port", type=click.IntRange(1, 65535), default=ssh.SSH_PORT, show_default=True)
def known_hosts(files: tuple[Path, ...], trust: Path, port: int) -> None:
    """Print a known_hosts line for each host certificate, under every name in it.

    For stock clients; dgis itself takes the certificates (ssh_peers), because it then sees revocations, too.

    \b
    Example:
      dgis-certs ssh known-hosts se1.cert.pem --port 2222 --trust HOME/trust >> ~/.ssh/known_hosts
    """
    for cert in _judged(files, trust):
        click.echo(ssh.known_host(cert, port=port))


@ssh_group.command("certificate")
@click.argument("file", metavar="CERT", type=_PATH)
@_trust
@click.option("--ca-key", type=_PATH, required=True, help="Private key of the SSH CA (PEM or OpenSSH, mode 0600).")
@click.option("--principal", "principals", multiple=True, help="Account to log in to; repeat for more.")
@click.option("--host", "for_host", is_flag=True, help="Make a host certificate for the names in CERT.")
@click.option("--hours", type=click.FloatRange(0.1, 24 * 31), default=12.0, show_default=True)
@click.option("--out", type=_PATH, help="Write it here (NAME.key.pem-cert.pub is found by ssh) instead of to stdout.")
def certificate(
    file: Path,
    trust: Path,
    ca_key: Path,
    principals: tuple[str, ...],
    for_host: bool,
    hours: float,
    out: Path | None,
) -> None:
    """Make a short SSH certificate for the key of an X.509 certificate; its key id is the DN.

    Servers that name the CA's public key in TrustedUserCAKeys let it in without any line of its own. A revocation
    reaches them through RevokedKeys (`sync`), or when the certificate ends.

    \b
    Examples:
      dgis-certs ssh certificate ada.cert.pem --principal dgis --ca-key ssh_ca --trust HOME/trust \\
          --out ada.key.pem-cert.pub
      dgis-certs ssh certificate se1.cert.pem --host --hours 168 --ca-key ssh_ca --trust HOME/trust \\
          --out ssh_host_key-cert.pub
    """
    if bool(principals) is for_host:
        raise click.UsageError("name either accounts (--principal) or --host")
    (cert,) = _judged((file,), trust)
    request = SSHCertificateRequest(cert, principals, timedelta(hours=hours))
    line = ssh.ssh_certificate(request, _signer(ca_key), now=datetime.now(UTC))
    if out is None:
        click.echo(line)
    else:
        write_atomically(out, f"{line}\n".encode(), mode=_PUBLIC)


@ssh_group.command("sync")
@click.option("--peers", type=_PATH, required=True, help="Directory with the certificates (PEM) of who may log in.")
@_trust
@click.option("--authorized-keys", "authorized", type=_PATH, required=True, help="sshd's AuthorizedKeysFile.")
@click.option("--revoked-keys", "revoked", type=_PATH, help="sshd's RevokedKeys file.")
@click.option("--watch", "follow", is_flag=True, help="Go on until stopped.")
@click.option("--every", type=click.FloatRange(0.1, 60), default=sshsync.WATCH_SECONDS, show_default=True, help="s")
@click.option("--end-sessions", "account", help="End this account's sessions when a key is taken away.")
@click.option("--sshd-pid-file", "pid_file", type=_PATH, default=Path("/run/sshd.pid"), show_default=True)
def sync(
    peers: Path,
    trust: Path,
    authorized: Path,
    revoked: Path | None,
    follow: bool,
    every: float,
    account: str | None,
    pid_file: Path,
) -> None:
    """Write authorized_keys (and RevokedKeys) from a directory of certificates, as they are judged now.

    Revoked, expired and unknown certificates lose their line; sshd reads the files at each login, so with --watch a
    revocation holds within --every seconds after the CRL has arrived. A line ends with the CRL it was judged by: with
    nobody syncing any more, nobody gets in any more. What was logged in stays, unless --end-sessions ends it.

    \b
    Examples:
      dgis-certs ssh sync --peers /etc/dgis/ssh-peers --trust /etc/dgis/trust \\
          --authorized-keys /etc/ssh/dgis_keys --revoked-keys /etc/ssh/dgis_revoked
      dgis-certs ssh sync --watch --end-sessions dgis --peers ... --trust ... --authorized-keys ...
    """
    people, targets = SshPeers(peers, Trust(trust)), sshsync.Targets(authorized, revoked)

    def told(outcome: sshsync.Synced) -> None:
        _tell(outcome)
        if account and outcome.gone:
            ended = sshsync.end_sessions(pid_file, account)
            click.echo(f"{ended} sessions of {account} ended", err=True)

    if not follow:
        told(sshsync.sync(people, targets))
        return
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    sshsync.watch(people, targets, stop=stop, every=every, told=told)


def _tell(outcome: sshsync.Synced) -> None:
    for name, reason in outcome.refused:
        click.echo(f"refused: {name}: {reason}", err=True)
    files = ", ".join(map(str, outcome.written)) or "nothing changed"
    click.echo(f"{len(outcome.admitted)} keys may log in: {files}", err=True)


def _judged(files: tuple[Path, ...], trust: Path) -> list[x509.Certificate]:
    known = Trust(trust)
    found = []
    for path in files:
        certs, pem = load_certificates(path)
        known.judge(pem)
        found.append(certs[0])
    return found


def _signer(path: Path) -> SSHSigner:
    if path.stat().st_mode & 0o077:
        raise CredentialError(f"{path}: others may read this private key; run: chmod 600")
    data = path.read_bytes()
    try:
        load = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else load_pem_private_key
        key = load(data, password=None)
    except (ValueError, TypeError) as error:
        raise CredentialError(f"{path}: not an unencrypted private key") from error
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise CredentialError(f"{path}: an SSH CA needs an Ed25519, RSA or P-256/384/521 key")
    return key
