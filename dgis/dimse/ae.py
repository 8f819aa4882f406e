"""The AE table: which application entities may do what, and where move destinations are (`HOME/ae.toml`).

    [[ae]]
    title = "VIEWER1"
    host = "10.1.2.3"       # needed to be a move destination
    port = 11112
    rights = ["echo", "find", "move", "get"]
    networks = ["10.1.2.0/24"]
    issuer = "HOSPITAL-A"   # of its patient IDs when a data set names none
    requesters = ["self"]   # who may move to it; nobody named: every AE with the right to move
    tls = true              # the port above speaks DICOM TLS
    identity = "/O=Hospital A/CN=reading room"  # who it is for the VO's policy; without: ae:TITLE@SITE
    certificate = "/O=Hospital A/CN=viewer1"    # it calls, and answers, with this certificate only
    charset = "ISO_IR 100"  # answer its queries in this set, whatever it asks in
    find_limit = 500        # answers to one C-FIND

The file is read again when it changes and is replaced by rename; a file that cannot be read leaves the old table in
force. A title may stand in the table more than once with different networks; the first entry that fits counts.
"""

from __future__ import annotations

import ipaddress
import json
import os
import threading
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from certs.dn import DN
from certs.errors import CertsError
from certs.log import get_log
from dgis.dimse.charset import Charset
from dgis.dimse.limits import PeerAddress
from dgis.errors import DgisError

log = get_log()

Right = Literal["echo", "store", "find", "move", "get", "commit"]
SELF = "self"
ALL_RIGHTS: frozenset[Right] = frozenset(("echo", "store", "find", "move", "get", "commit"))


class AeTableError(DgisError):
    """The AE table cannot be read or changed; the message names file, entry and key."""


def _network(text: str) -> str:
    return str(ipaddress.ip_network(text, strict=False))


def _title(text: str) -> str:
    if not text.strip() or "\\" in text or not text.isascii() or not text.isprintable():
        raise ValueError("1 to 16 printable ASCII characters without backslash")
    return text.strip()


def _dn(text: str) -> str:
    try:
        return str(DN.parse(text)) if text else ""
    except CertsError as error:
        raise ValueError(str(error)) from error


def _charset(text: str) -> str:
    return Charset.parse(text).value if text else ""


class AeEntry(BaseModel):
    """One application entity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: Annotated[str, Field(max_length=16), AfterValidator(_title)]
    host: str = ""
    port: int = Field(default=0, ge=0, le=65535)
    rights: tuple[Right, ...] = ("echo",)
    issuer: str = ""
    networks: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    certificate: Annotated[str, AfterValidator(_dn)] = ""  # subject DN: who calls, and who answers there, over TLS
    identity: Annotated[str, AfterValidator(_dn)] = ""  # who it is for the VO's policy, when it shows no certificate
    tls: bool = False  # the destination's port is a DICOM TLS port
    charset: Annotated[str, AfterValidator(_charset)] = ""  # the only one that it reads; "" means what it asks in
    find_limit: int | None = Field(default=None, ge=1)  # of answers to a C-FIND, in place of the node's

    requesters: tuple[Annotated[str, AfterValidator(_title)], ...] = ()  # who may move to it; "self" is its own title

    def fits(self, address: str, certificate: str = "") -> bool:
        """Whether a peer at this address, with this verified subject DN, may use the entry."""
        if self.certificate and self.certificate != certificate:
            return False
        return not self.networks or within(address, self.networks)

    @property
    def destination(self) -> PeerAddress | None:
        """Where to move to, None for an entry without host and port."""
        if not (self.host and self.port):
            return None
        return PeerAddress(self.title, self.host, self.port, tls=self.tls, certificate=self.certificate)


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    ae: tuple[AeEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class UnknownAe:
    """What an AE that is not in the table may do, from node.toml; `networks` empty means from anywhere."""

    rights: frozenset[Right] = frozenset(("echo",))
    networks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Caller:
    """What the table says about a calling AE."""

    title: str
    rights: frozenset[Right]
    issuer: str
    known: bool
    charset: str = ""
    find_limit: int | None = None
    identity: str = ""


class AeTable:
    """Looks up the table's file as it is now. Thread-safe; several processes may share the file."""

    def __init__(self, path: Path, *, unknown: UnknownAe | None = None, ignore_case: bool = False) -> None:
        """Read nothing yet; a file that does not exist is an empty table."""
        self._ignore_case = ignore_case
        self.path = path
        self._unknown = unknown or UnknownAe()
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._entries: tuple[AeEntry, ...] = ()

    def entries(self) -> tuple[AeEntry, ...]:
        """Return the table, read again if the file changed; the last good one when it cannot be read."""
        with self._lock:
            stamp = _stamp(self.path)
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._entries = read(self.path)
                except AeTableError as error:
                    log.error("ae table kept as it was", reason=str(error))
            return self._entries

    def caller(self, title: str, address: str, certificate: str = "") -> Caller:
        """Return what the AE `title` calling from `address` with this verified subject DN may do.

        A title that is bound to a certificate or to networks has no rights without them: nobody takes it by naming it.
        """
        wanted = title.strip()
        named = [entry for entry in self.entries() if self._same(entry.title, wanted)]
        for entry in named:
            if entry.fits(address, certificate):
                return _caller(wanted, entry)
        if any(entry.certificate or entry.networks for entry in named):
            return Caller(wanted, frozenset(), "", known=False)
        allowed = not self._unknown.networks or within(address, self._unknown.networks)
        return Caller(wanted, self._unknown.rights if allowed else frozenset(), "", known=False)

    def destination(self, title: str) -> PeerAddress | None:
        """Return where the move destination `title` listens, None when the table does not say."""
        found = (e.destination for e in self.entries() if self._same(e.title, title.strip()))
        return next((peer for peer in found if peer is not None), None)

    def may_move(self, requester: str, title: str) -> bool:
        """Whether the AE `requester` may move to `title`; who is not named in its `requesters` may not, if any is."""
        for entry in self.entries():
            if entry.destination is not None and self._same(entry.title, title.strip()):
                allowed = (entry.title if one == SELF else one for one in entry.requesters)
                return not entry.requesters or any(self._same(one, requester.strip()) for one in allowed)
        return True

    def _same(self, one: str, other: str) -> bool:
        """Compare AE titles; no character of a title is a wildcard."""
        return one.casefold() == other.casefold() if self._ignore_case else one == other

    def put(self, entry: AeEntry) -> None:
        """Add an entry in place of those with the same title and networks."""
        kept = [e for e in read(self.path) if (e.title, e.networks) != (entry.title, entry.networks)]
        write(self.path, (*kept, entry))

    def remove(self, title: str) -> bool:
        """Remove every entry with this title; False when there was none."""
        before = read(self.path)
        kept = tuple(e for e in before if e.title != title.strip())
        if len(kept) != len(before):
            write(self.path, kept)
        return len(kept) != len(before)


def _caller(title: str, entry: AeEntry) -> Caller:
    return Caller(
        title,
        frozenset(entry.rights),
        entry.issuer,
        known=True,
        charset=entry.charset,
        find_limit=entry.find_limit,
        identity=entry.identity,
    )


def read(path: Path) -> tuple[AeEntry, ...]:
    """Read a table; raise AeTableError naming file, entry and key."""
    try:
        return _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).ae
    except FileNotFoundError:
        return ()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise AeTableError(f"{path}: {where}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise AeTableError(f"{path}: {error}") from error


def write(path: Path, entries: tuple[AeEntry, ...]) -> None:
    """Replace the table by rename; readers see the old one or the new one."""
    text = "".join(_toml(entry) for entry in entries)
    stage = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with stage.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        stage.rename(path)
    except OSError as error:
        stage.unlink(missing_ok=True)
        raise AeTableError(f"{path}: {error.strerror}") from error


def _toml(entry: AeEntry) -> str:
    # A JSON string or list of strings is a TOML one.
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in entry.model_dump(exclude_defaults=True).items()]
    return "[[ae]]\n" + "".join(lines) + "\n"


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def within(address: str, networks: tuple[str, ...]) -> bool:
    """Say whether an address lies in one of the networks; no networks, or no address: no."""
    try:
        peer = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
        peer = peer.ipv4_mapped
    return any(peer in ipaddress.ip_network(network, strict=False) for network in networks)
