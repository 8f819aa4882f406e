"""Ask every enabled dgis service in this guest how it is: GET /health over mutual TLS, as the service itself.

Writes /run/dgis/health.json and prints one line for each change. Exit 0 when all that were asked about are well, 1
when not, 2 usage. No patient data: names of services and checks only, and what the checks say of certificates.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from certs.config import IdentityConfig, ListenConfig, load_toml
from certs.credential import Credential
from certs.errors import Answered, CertsError, ServiceError
from certs.https.session import GridSession

REPORT = Path("/run/dgis/health.json")
ETC = Path("/etc/dgis")
ROLES = ("catalog", "storage", "node")
OK, FAILED, SILENT, WAITING = "ok", "failed", "silent", "waiting"
_AGAIN = 2.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}


class Settings(BaseModel):
    """What is needed of a service's configuration; the rest is the service's own business."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    identity: IdentityConfig
    server: ListenConfig | None = None
    https: ListenConfig | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """How one service is; `since` is when it became so (ISO 8601, UTC)."""

    status: str
    detail: str
    since: str = ""


def main(argv: Sequence[str]) -> int:
    """Ask, report, and return the exit code."""
    options = _parser().parse_args(argv)
    if options.well:
        found = {role: _asked(role) for role in ROLES if _enabled(role)}
        sys.stdout.write("".join(f"{role}\n" for role, health in found.items() if health.status == OK))
        return 0
    until = time.monotonic() + options.wait
    while True:
        found = {role: _asked(role) for role in options.role or ROLES if _enabled(role)}
        well = all(health.status == OK for health in found.values())
        # What starts gets its time; what says itself that it is unwell is believed, unless somebody waits for it
        hopeless = not options.role and all(health.status != SILENT for health in found.values())
        last = well or hopeless or time.monotonic() > until
        report(found, last=last)
        if last:
            return 0 if well else 1
        time.sleep(_AGAIN)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dgis-health", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--wait", type=float, default=60.0, metavar="SECONDS", help="time for services that start (60)")
    parser.add_argument("--well", action="store_true", help="print the names of those that are well now, no more")
    # Not choices=: argparse of Python 3.11 then refuses to be given none
    parser.add_argument("role", nargs="*", type=_role, help="catalog, storage or node; without: all that are enabled")
    return parser


def _role(text: str) -> str:
    if text not in ROLES:
        raise argparse.ArgumentTypeError(f"no service {text}; there are {', '.join(ROLES)}")
    return text


def _enabled(role: str) -> bool:
    """Say whether the guest is meant to run the service."""
    asked = ["systemctl", "is-enabled", "--quiet", f"dgis-{role}.service"]
    return subprocess.run(asked, check=False, stderr=subprocess.DEVNULL).returncode == 0


def _asked(role: str) -> Health:
    for name in (f"{role}.toml", f"{role}.cert.pem", f"{role}.key.pem"):
        if not (ETC / role / name).exists():
            return Health(WAITING, f"{ETC / role / name} is not there yet")
    try:
        settings = load_toml(ETC / role / f"{role}.toml", Settings)
        return _answer(settings)
    except CertsError as error:
        return Health(FAILED, str(error).splitlines()[0])


def _answer(settings: Settings) -> Health:
    listen = settings.server or settings.https
    if listen is None or listen.port == 0:
        return Health(FAILED, "its configuration names no port to ask at")
    name = _own_name(settings.identity)
    session = GridSession(settings.identity, connect_timeout=3.0, read_timeout=30.0)
    try:
        with _at_home(name, _ANYWHERE.get(listen.host, listen.host)):
            session.json("GET", f"https://{f'[{name}]' if ':' in name else name}:{listen.port}/health")
    except Answered as error:
        return Health(FAILED, str(error).splitlines()[0])
    except ServiceError as error:
        return Health(SILENT, str(error).splitlines()[0])
    finally:
        session.close()
    return Health(OK, "")


def _own_name(identity: IdentityConfig) -> str:
    """Return a name that the service's certificate is good for: it has no other for its host name check."""
    from cryptography import x509

    leaf = Credential(identity.cert, identity.key).chain()[0]
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return socket.gethostname()
    dns = [each for each in names.get_values_for_type(x509.DNSName) if "*" not in each]
    addresses = [str(each) for each in names.get_values_for_type(x509.IPAddress)]
    return (dns + addresses or [socket.gethostname()])[0]


@contextmanager
def _at_home(name: str, address: str) -> Iterator[None]:
    """Reach `name` at `address`: its public name leads to the site's gateway, and this asks the guest itself."""
    real = socket.getaddrinfo

    def here(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        return real(address if str(host).strip("[]") == name else host, port, family, type, proto, flags)

    socket.getaddrinfo = here
    try:
        yield
    finally:
        socket.getaddrinfo = real


def report(found: dict[str, Health], *, last: bool) -> None:
    """Write the report by rename; print what changed. Before the ``last`` look a service may be silent: it starts."""
    before = _before()
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    services = dict(before)
    for role, health in found.items():
        old = before.get(role)
        if old is None and health.status == SILENT and not last:
            continue
        same = old is not None and old.status == health.status
        services[role] = Health(health.status, health.detail, old.since if old and same else now)
        if not same:
            sys.stdout.write(f"dgis-health: {role} {health.status}{': ' if health.detail else ''}{health.detail}\n")
            sys.stdout.flush()
    REPORT.parent.mkdir(exist_ok=True)
    staged = REPORT.with_name(f".health.{os.getpid()}")
    release = Path("/opt/dgis/current").resolve().name
    text = {"checked": now, "release": release, "services": {role: asdict(each) for role, each in services.items()}}
    staged.write_text(json.dumps(text, indent=1) + "\n")
    staged.chmod(0o644)
    staged.replace(REPORT)


def _before() -> dict[str, Health]:
    """Return the last report on services that are still enabled."""
    try:
        services = json.loads(REPORT.read_text())["services"]
        return {role: Health(**each) for role, each in services.items() if role in ROLES and _enabled(role)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
