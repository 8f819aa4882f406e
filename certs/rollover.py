"""Roll-over: a new CA beside the old one, until the old one's last certificate is gone. Nobody is cut off meanwhile.

    start    a new issuing CA (with a new root, if wanted) is made and published; the old one still issues
    switch   the new one issues, renewals included; to be done when its certificate and CRL have reached everybody
    finish   the old one leaves the trust directory: when nobody stands on it any more

The plan lies in HOME/ca/rollover.json while it is under way. Each step may be killed and run again.

The new CA is not signed by the old root as well: dgis admits nobody without the CRL of every CA in the chain, so the
trust directory has to arrive first anyway.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from certs import profiles
from certs.ca import CRL_LIFE, ROOT_CRL_LIFE, SiteFiles, book, organisation_of, pem
from certs.credential import Credential
from certs.errors import CaError
from certs.files import sync_directory, write_atomically
from certs.profiles import Authority, CrlRequest
from certs.store import Books, Issued
from certs.trustdir import publish_new, unpublish

SETTLED = timedelta(hours=24)
_NUMBERED = re.compile(r"(?:root|issuing)-(\d+)")


@dataclass(frozen=True, slots=True)
class Rollover:
    """A roll-over that is under way: authorities by their names below HOME/ca, times as ISO 8601 or "" until then."""

    leaving: tuple[str, ...]
    coming: tuple[str, ...]
    published: str = ""
    switched: str = ""

    @property
    def issuing(self) -> str:
        """The authority that is to issue."""
        return self.coming[-1]


@dataclass(frozen=True, slots=True)
class Standing:
    """A name that has a good certificate of a leaving CA; ``again``: and one of the new CA since then (ISO 8601)."""

    dn: str
    not_after: str
    again: str = ""


def current(home: Path) -> Rollover | None:
    """Return the roll-over that is under way, or None. Raises CaError for a plan that cannot be read."""
    path = _plan(home)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Rollover(
            tuple(found["leaving"]), tuple(found["coming"]), str(found["published"]), str(found["switched"])
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CaError(f"{path}: cannot be read as a roll-over; put it back from a backup of {home / 'ca'}") from error


def start(home: Path, *, new_root: bool = False) -> Rollover:
    """Make the new CA and publish it, with its CRL, beside the old. Idempotent; the old one goes on issuing.

    A new issuing CA takes the root's key, a new root does not. Raises CaError.
    """
    site = SiteFiles(home)
    plan = current(home)
    if plan is None:
        plan = _new_plan(site, new_root=new_root)
        _write(home, plan)
    for name in plan.coming:
        if name not in site.authorities():
            _bring_in(site, plan, name)
    site.publish()
    if not plan.published:
        plan = replace(plan, published=_now())
        _write(home, plan)
    return plan


def switch(home: Path) -> Rollover:
    """Let the new CA issue from now on; whatever is renewed, is renewed by it. Idempotent. Raises CaError."""
    plan = _needed(home)
    if not plan.published:
        raise CaError(f"{home}: the new CA is not published yet; run: dgis-certs rollover start --home {home}")
    with SiteFiles(home).store.exclusive():
        write_atomically(home / "ca" / "current", f"{plan.issuing}\n".encode(), mode=0o644)
    if not plan.switched:
        plan = replace(plan, switched=_now())
        _write(home, plan)
    return plan


def standing(home: Path, *, now: datetime | None = None) -> tuple[Standing, ...]:
    """Return who has a good certificate of a CA that is leaving, who has no new one first. Raises CaError.

    Nobody stands on a CA that its root has revoked.
    """
    plan, moment, site = _needed(home), now or datetime.now(UTC), SiteFiles(home)
    own = {name: site.credential(name).chain()[0].serial_number for name in plan.leaving}
    with site.store.exclusive() as books:
        known = books.all()
    revoked = {one.serial for one in known if one.revoked_at}
    lost = {name for name, serial in own.items() if serial in revoked}
    good = [one for one in known if one.profile != "ca" and not one.revoked_at and one.not_after > moment]
    again: dict[str, Issued] = {one.dn: one for one in good if one.authority == plan.issuing}
    last: dict[str, Issued] = {
        one.dn: one for one in good if one.authority in plan.leaving and one.authority not in lost
    }
    rows = (
        Standing(dn, old.not_after.isoformat(), again[dn].not_before.isoformat() if dn in again else "")
        for dn, old in last.items()
    )
    return tuple(sorted(rows, key=lambda row: (bool(row.again), row.dn)))


def finish(home: Path, *, settled: timedelta = SETTLED, now: datetime | None = None) -> tuple[str, ...]:
    """Take the old CA out of the trust directory and put its key away; returns the names of what went.

    Raises CaError while somebody stands on it: no certificate of the new CA yet, or for less than ``settled``, in
    which connections made with the old certificate end by themselves. A kill is made good by running it again.
    """
    plan = _needed(home)
    moment = now or datetime.now(UTC)
    if not plan.switched:
        raise CaError(f"{home}: the old CA still issues; run: dgis-certs rollover switch --home {home}")
    _check_nobody_stands(standing(home, now=moment), settled, moment)
    site = SiteFiles(home)
    with site.store.exclusive():
        for name in plan.leaving:
            unpublish(site.trust, _put_away(site, name))
    site.publish()
    _plan(home).unlink()
    sync_directory(home / "ca")
    return plan.leaving


def _check_nobody_stands(rows: tuple[Standing, ...], settled: timedelta, moment: datetime) -> None:
    waiting = [row.dn for row in rows if not row.again]
    if waiting:
        some = "; ".join(waiting[:5]) + (f" and {len(waiting) - 5} more" if len(waiting) > 5 else "")
        raise CaError(f"{len(waiting)} have no certificate of the new CA yet: {some} (dgis-certs rollover reissue)")
    # The beginning lies a little back in a certificate, for clocks that disagree
    fresh = [row.dn for row in rows if datetime.fromisoformat(row.again) + profiles.CLOCK_SKEW > moment - settled]
    if fresh:
        hours = settled.total_seconds() / 3600
        raise CaError(f"{fresh[0]} has had its new certificate for less than {hours:g} h; old connections may stand")


def _new_plan(site: SiteFiles, *, new_root: bool) -> Rollover:
    issuing = site.issuing
    root = _root_of(site, issuing)
    number = 1 + max((int(found[1]) for found in map(_NUMBERED.fullmatch, _names(site.home)) if found), default=1)
    if not new_root and not site.credential(root).key.exists():
        key = site.credential(root).key
        raise CaError(f"{key}: the root's key is needed to sign a new issuing CA; bring it back for this command")
    if new_root:
        return Rollover((root, issuing), (f"root-{number}", f"issuing-{number}"))
    return Rollover((issuing,), (f"issuing-{number}",))


def _names(home: Path) -> list[str]:
    return [path.name for folder in ("ca", "ca/retired") for path in (home / folder).glob("*")]


def _root_of(site: SiteFiles, issuing: str) -> str:
    issuer = site.credential(issuing).chain()[0].issuer
    return next(name for name in site.authorities() if site.credential(name).chain()[0].subject == issuer)


def _bring_in(site: SiteFiles, plan: Rollover, name: str) -> None:
    """Make one authority: staged with its key, published, and only then there (a kill leaves no CA without a key)."""
    root = name if name.startswith("root") else _signer(site, plan)
    staged = site.home / "ca" / f".new-{name}"
    made = Credential(staged / f"{name}.cert.pem", staged / f"{name}.key.pem")
    if not made.cert.exists():
        _make(site, made, None if root == name else root)
    key = made.private_key()
    if not isinstance(key, profiles.CaKey):
        raise CaError(f"{made.key}: is no RSA key; remove {staged} and begin again")
    authority = Authority(made.chain()[0], key)
    with site.store.exclusive() as books:
        if books.find(authority.cert.serial_number) is None:
            book(books, authority.cert, authority=root, profile="ca")
        crl = _first_crl(books, name, authority)
        publish_new(site.trust, authority.cert, crl, organisation=organisation_of(authority.cert))
        staged.rename(site.home / "ca" / name)
        sync_directory(site.home / "ca")


def _make(site: SiteFiles, made: Credential, root: str | None) -> None:
    """Make key and certificate; the certificate comes last, without it there is nothing yet."""
    number = int(made.cert.parent.name.rpartition("-")[2])
    organisation, now = organisation_of(site.credential(site.issuing).chain()[0]), datetime.now(UTC)
    if root is None:
        new = profiles.root(organisation, now=now, generation=number)
    else:
        new = profiles.issuing(organisation, site.authority(root), now=now, generation=number)
    made.cert.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomically(made.key, profiles.key_pem(new.key), mode=0o600)
    write_atomically(made.cert, pem((new.cert,)), mode=0o644)


def _signer(site: SiteFiles, plan: Rollover) -> str:
    """The root that signs the new issuing CA: the new one, if there is one."""
    return plan.coming[0] if len(plan.coming) > 1 else _root_of(site, plan.leaving[-1])


def _first_crl(books: Books, name: str, authority: Authority) -> x509.CertificateRevocationList:
    life = ROOT_CRL_LIFE if name.startswith("root") else CRL_LIFE
    number, begins = books.next_crl(name, wanted=datetime.now(UTC) - profiles.CLOCK_SKEW)
    return profiles.crl(CrlRequest((), number, begins, begins + life), authority)


def _put_away(site: SiteFiles, name: str) -> x509.Certificate:
    """Move a CA's key to HOME/ca/retired, which says that it counts no more; its certificate stays, for the record."""
    there, away = site.credential(name), site.home / "ca" / "retired" / name
    away.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # moved before a kill, or a root's key, which is elsewhere
        there.key.rename(away / there.key.name)
    sync_directory(away)
    return there.chain()[0]


def _needed(home: Path) -> Rollover:
    plan = current(home)
    if plan is None:
        raise CaError(f"{home}: no roll-over is under way; run: dgis-certs rollover start --home {home}")
    return plan


def _plan(home: Path) -> Path:
    return home / "ca" / "rollover.json"


def _write(home: Path, plan: Rollover) -> None:
    write_atomically(_plan(home), json.dumps(asdict(plan), indent=1).encode() + b"\n", mode=0o644)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
