"""The HTTPS channel: one door of a storage element, over the process's grid session. Imports no server library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from certs.https.session import GridSession
from storage_provider.channel import EVERYTHING, Capabilities, Got, ObjectSpec, Put, Space, Stat, Stored, Want
from storage_provider.errors import DoorURL, Faulty, NotFound, StorageError, Unreachable
from storage_provider.https.asking import Ask, Asker
from storage_provider.https.batches import PutMany, blocks_of, get_ahead
from storage_provider.https.problems import error_named
from storage_provider.https.putting import Putting, opened, stored_of
from storage_provider.keys import parse_key
from storage_provider.ranges import format_range
from storage_provider.timeouts import Timeouts
from storage_provider.wire import STORED_HEADER, ChecksumReply, ListReply, PullEvent, PullRequest, SpaceReply


class HttpsChannel:
    """A door `https://HOST:PORT/areas/NAME`; thread-safe. `permit` is shown with every request."""

    def __init__(
        self, session: GridSession, door: str, *, permit: str | None = None, timeouts: Timeouts | None = None
    ) -> None:
        parts = urlsplit(door)
        path = parts.path.split("/")
        plain = not (parts.query or parts.fragment or "@" in parts.netloc or set("?#") & set(door))
        sound = len(path) == 3 and path[1] == "areas" and bool(path[2])
        if parts.scheme != "https" or not parts.hostname or not plain or not sound:
            raise DoorURL("an https door looks like https://HOST:PORT/areas/NAME", door=door)
        self._asker = Asker(session, door, permit=permit, timeouts=timeouts or Timeouts())
        self._root = f"https://{parts.netloc}"
        self._area = path[2]

    @property
    def door(self) -> str:
        """The door's URL."""
        return self._asker.door

    @property
    def capabilities(self) -> Capabilities:
        """Everything: the far side is our own."""
        return EVERYTHING

    def put(self, spec: ObjectSpec, path: Path, *, offset: int = 0, acting_for: str | None = None) -> Stored:
        """Store an object: one request when it is small, a resumable upload when it is not."""
        with opened(path, spec.key) as fd:
            return Putting(self._asker, spec, fd, offset, acting_for).run()

    @contextmanager
    def get(
        self, key: str, *, offset: int = 0, length: int | None = None, acting_for: str | None = None
    ) -> Iterator[Iterator[bytes]]:
        """Hand out the bytes of an object or a range as they arrive."""
        with self._asker.answered(self._want(Want(key, offset, length, acting_for))) as exchange:
            yield blocks_of(self._asker, exchange, key, length)

    def put_many(self, puts: Iterable[Put]) -> Iterator[tuple[Put, Stored | StorageError]]:
        """Store objects over a few lines at once, the outcomes in the order of `puts`."""
        return PutMany(self._asker).outcomes(puts)

    def get_many(self, wants: Sequence[Want]) -> AbstractContextManager[Iterator[Got]]:
        """Hand out objects in the order asked; requests for the next ones are under way on lines of their own."""
        return get_ahead(self._asker, wants, self._want)

    def stat(self, key: str) -> Stat:
        """Ask for size and age."""
        with self._asker.stream(Ask("HEAD", self._object(key), key)) as response:
            try:
                stored_at = datetime.fromisoformat(response.headers[STORED_HEADER])
                return Stat(key, int(response.headers["content-length"]), stored_at)
            except (KeyError, ValueError) as error:
                raise Faulty("the answer to HEAD is not complete", door=self.door, key=key) from error

    def checksum(self, key: str) -> str:
        """Let the far side re-read the object; waits by its size."""
        patience = self._asker.timeouts.verifying(self.stat(key).size)
        ask = Ask("GET", f"{self.door}/checksums/{key}", key, patience=patience)
        return self._asker.model(ChecksumReply, ask).sha256

    def delete(self, key: str) -> None:
        """Delete the object."""
        ask, tries = Ask("DELETE", self._object(key), key), 0

        def call() -> None:
            nonlocal tries
            tries += 1
            self._asker.whole(ask)

        try:
            self._asker.again(call)
        except NotFound:
            if tries < 2:  # the second time the first may have done it
                raise

    def list(self, prefix: str = "") -> Iterator[Stat]:
        """List page by page."""
        after: str | None = ""
        while after is not None:
            ask = Ask("GET", f"{self.door}/objects", params={"prefix": prefix, "after": after})
            page = self._asker.model(ListReply, ask)
            for each in page.objects:
                yield Stat(each.key, each.size, each.stored_at)
            after = page.after

    def pull(
        self, spec: ObjectSpec, source_doors: Sequence[str], permit: str | None, *, acting_for: str | None = None
    ) -> Stored:
        """Start a third-party copy at the far side and follow its markers."""
        body = PullRequest(key=spec.key, size=spec.size, chunks=spec.chunks, sources=tuple(source_doors), permit=permit)
        headers = {"content-type": "application/json"}
        data = body.model_dump_json().encode()
        ask = Ask("POST", f"{self.door}/pulls", spec.key, headers=headers, data=data, acting_for=acting_for)
        with self._asker.stream(ask) as response:
            # One byte at a time from a buffer: a marker counts the moment it is there
            for line in response.iter_lines(chunk_size=1):
                event = self._asker.parsed(PullEvent, line, spec.key)
                if event.stored is not None:
                    return stored_of(event.stored)
                if event.error is not None:
                    raise error_named(event.error, event.detail, door=self.door, key=spec.key)
        raise Unreachable("the pull's answer ended early", door=self.door, key=spec.key)

    def space(self) -> Space:
        """Ask for the space of this door's area."""
        for area in self._space().areas:
            if area.name == self._area:
                return Space(total=area.total, free=area.free, used=area.used)
        raise NotFound("the storage element has no such area", door=self.door)

    def element(self) -> str | None:
        """Ask for the name of the storage element."""
        return self._space().name

    def close(self) -> None:
        """Do nothing: the session belongs to the process."""

    def _space(self) -> SpaceReply:
        return self._asker.model(SpaceReply, Ask("GET", f"{self._root}/v1/space"))

    def _object(self, key: str) -> str:
        parse_key(key)
        return f"{self.door}/objects/{key}"

    def _want(self, want: Want) -> Ask:
        ranged = want.offset or want.length is not None
        headers = {"range": format_range(want.offset, want.length)} if ranged else {}
        return Ask("GET", self._object(want.key), want.key, headers=headers, acting_for=want.acting_for)
