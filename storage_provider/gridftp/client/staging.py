"""Where an object is put and how it becomes visible: at our own servers by the transfer itself, elsewhere by rename.

On a foreign server: `stage/<sha256>.<party>.part` is written, its SHA-256 asked of the far side, and only then renamed
to its place. So nothing is ever seen half, and what is seen was verified where it lies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from certs.dn import DN
from storage_provider.channel import ObjectSpec
from storage_provider.errors import Corrupt, Denied, NotFound, Refused, StorageError, Unreachable
from storage_provider.gridftp.client.door import Door, part_suffix
from storage_provider.gridftp.client.session import Session
from storage_provider.gridftp.commands import CommandError, parse_size
from storage_provider.gridftp.facts import parse_entry
from storage_provider.gridftp.markers import parse_spans
from storage_provider.gridftp.replies import Reply
from storage_provider.keys import is_sha256
from storage_provider.ranges import Ranges

# Parts of ours that nobody has taken up again for so long are removed
PART_LIFE = timedelta(hours=24)


@dataclass
class Staging:
    """The places of one party's uploads at one door, and which folders are known to be there."""

    door: Door
    who: DN
    _folders: set[str] = field(default_factory=set)
    _tidied: bool = False

    def path(self, key: str) -> str:
        """Where the bytes of an object are sent."""
        return self.door.object(key) if self.door.own else self.door.part(key, self.who)

    def prepare(self, session: Session) -> None:
        """Make the folder of parts and remove old ones of this party, once."""
        if self.door.own or self._tidied:
            return
        self.make(session, self.door.stage)
        oldest = datetime.now(UTC) - PART_LIFE
        for line in session.control.ask(f"MLSC {self.door.stage}").lines[1:-1]:
            try:
                entry = parse_entry(line)
            except Refused:
                continue
            if entry.name.endswith(part_suffix(self.who)) and entry.modified is not None and entry.modified < oldest:
                session.control.send(f"DELE {self.door.stage}/{entry.name}")
                session.control.final()
        self._tidied = True

    def unknown(self, folder: str) -> list[str]:
        """Return what may have to be made so that a folder is there, top first."""
        return [step for step in self._steps(folder) if step not in self._folders]

    def known(self, key: str) -> None:
        """Note that an object's folder is there."""
        self._folders.update(self._steps(_folder(self.door.object(key))))

    def make(self, session: Session, folder: str) -> None:
        """Make a folder with what is above it (within the door), whatever of that is there."""
        wanted = self.unknown(folder)
        session.control.send(*(f"MKD {each}" for each in wanted))
        for _ in wanted:
            session.control.final()  # that it is there already is no fault; what else is wrong will show

    def _steps(self, folder: str) -> list[str]:
        below = folder.removeprefix(self.door.path).strip("/").split("/")
        return [self.door.path, *(f"{self.door.path}/{'/'.join(below[:depth])}" for depth in range(1, len(below) + 1))]

    def forget_folders(self) -> None:
        """Somebody removed folders: make them anew when they are needed."""
        self._folders.clear()
        self._tidied = False

    def have(self, session: Session, spec: ObjectSpec) -> Ranges:
        """Return what of an object came in earlier, interrupted calls."""
        path = self.path(spec.key)
        try:
            if self.door.own:
                text = session.control.ask(f"SITE MISSING {spec.size} {path}", key=spec.key).text
                return Ranges.of(parse_spans(text).missing(0, spec.size))
            size = parse_size(session.control.ask(f"SIZE {path}", key=spec.key).text.strip())
        except (NotFound, CommandError):
            return Ranges()
        return Ranges.of([(0, size)]) if size <= spec.size else Ranges()

    def commit(self, session: Session, spec: ObjectSpec) -> None:
        """Verify a part at the far side and move it to its place; Corrupt keeps nothing. Own servers have done so."""
        if self.door.own:
            return
        part = self.path(spec.key)
        patience = session.control.timeouts.verifying(spec.size)
        session.control.send(f"CKSM SHA256 0 -1 {part}")
        self.judge(session, spec, session.control.final(patience))
        self.rename(session, spec)

    def judge(self, session: Session, spec: ObjectSpec, reply: Reply) -> None:
        """Read the far side's checksum of a part; a wrong one removes it and raises Corrupt."""
        found = checksum_of(session, reply, spec.key)
        if found != spec.sha256:
            self.discard(session, spec.key)
            raise Corrupt("the far side holds other bytes than were to be sent", door=self.door.url, key=spec.key)

    def rename(self, session: Session, spec: ObjectSpec) -> None:
        """Move a verified part to its place; raises what the far side answers."""
        target = self.door.object(spec.key)
        self.make(session, _folder(target))
        session.control.send(f"RNFR {self.path(spec.key)}", f"RNTO {target}")
        source, moved = session.control.final(), session.control.final()
        try:
            session.control.checked(source, spec.key)
            session.control.checked(moved, spec.key)
        except StorageError:
            self.forget_folders()
            raise
        self.known(spec.key)

    def discard(self, session: Session, key: str) -> None:
        """Remove a part, as far as that is possible."""
        session.control.send(f"DELE {self.path(key)}")
        session.control.final()

    def verified(self, session: Session, specs: list[ObjectSpec]) -> list[bool]:
        """Say which objects lie at their places with the right digest, re-read there now."""
        session.control.send(*(f"CKSM SHA256 0 -1 {self.door.object(spec.key)}" for spec in specs))
        found = []
        for spec in specs:
            reply = session.control.final(session.control.timeouts.verifying(spec.size))
            try:
                found.append(checksum_of(session, reply, spec.key) == spec.sha256)
            except (NotFound, Denied, Refused):
                found.append(False)
        return found


def checksum_of(session: Session, reply: Reply, key: str) -> str:
    """Read the reply to CKSM; raises what a no stands for."""
    digest = session.control.checked(reply, key).text.strip().lower()
    if not is_sha256(digest):
        raise Unreachable("the answer to CKSM is no SHA-256", door=session.door.url, key=key)
    return digest


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
