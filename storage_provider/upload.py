"""The life of one staged upload, pure: which ranges came, which are still missing, what a request may do now.

    receiving --claim/land--> receiving --verify--> verifying --accept--> committed
                                  ^------reject-------'            abort: from receiving only
A range that is being written (claimed) cannot be claimed again; bytes that came before may come again and must then be
the same (the caller compares them, see `known`). A rejected verification makes the bad chunks missing again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from storage_provider.channel import ObjectSpec
from storage_provider.checksum import CHUNK_BYTES
from storage_provider.errors import Busy, Conflict, Refused
from storage_provider.ranges import Ranges, Span

State = Literal["receiving", "verifying", "committed", "aborted"]


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload's state; every method returns a new one or raises without changing anything."""

    spec: ObjectSpec
    received: Ranges = Ranges()
    claimed: Ranges = Ranges()
    state: State = "receiving"

    @property
    def missing(self) -> tuple[Span, ...]:
        """The spans whose bytes are not here yet (claimed ones count as missing until they have landed)."""
        return self.received.missing(0, self.spec.size).spans

    def known(self, start: int, stop: int) -> Ranges:
        """Return the part of a span that came before; the bytes sent for it must equal the bytes kept."""
        return self.received.intersect(start, stop)

    def claim(self, start: int, stop: int) -> Upload:
        """Allow one request to write a span; Busy when another one is writing part of it."""
        self._must_be("receiving")
        if not 0 <= start < stop <= self.spec.size:
            raise Refused("the range lies outside the object")
        if self.claimed.intersect(start, stop):
            raise Busy("another request is sending part of this range")
        return replace(self, claimed=self.claimed.add(start, stop))

    def land(self, start: int, reached: int, stop: int) -> Upload:
        """End a claim of which the bytes up to `reached` are safe on disk (`reached` == `start`: none)."""
        self._must_be("receiving")
        if not start <= reached <= stop or not self.claimed.covers(start, stop):
            raise Refused("that range was not claimed")
        return replace(self, claimed=self.claimed.subtract(start, stop), received=self.received.add(start, reached))

    def settle(self, synced: Ranges) -> Upload:
        """End every claim: what of them is synced counts as received from now on."""
        self._must_be("receiving")
        received = Ranges.of((*self.received, *synced.intersect(0, self.spec.size)))
        return replace(self, claimed=Ranges(), received=received)

    def verify(self) -> Upload:
        """Begin the digest check; Refused while bytes are missing, Busy while a range is being written."""
        self._must_be("receiving")
        if self.claimed:
            raise Busy("a range is still being sent")
        if self.missing:
            raise Refused("bytes are still missing")
        return replace(self, state="verifying")

    def accept(self) -> Upload:
        """End a verification that went well."""
        self._must_be("verifying")
        return replace(self, state="committed")

    def reject(self, bad_chunks: tuple[int, ...]) -> Upload:
        """End a verification that failed: the bad chunks (all bytes when none is known) are missing again."""
        self._must_be("verifying")
        received = self.received
        for index in bad_chunks:
            received = received.subtract(index * CHUNK_BYTES, (index + 1) * CHUNK_BYTES)
        return replace(self, state="receiving", received=received if bad_chunks else Ranges())

    def abort(self) -> Upload:
        """Give the upload up; Busy while it is being verified or written."""
        if self.claimed or self.state == "verifying":
            raise Busy("the upload is in use")
        self._must_be("receiving")
        return replace(self, state="aborted")

    def _must_be(self, state: State) -> None:
        if self.state == state:
            return
        if self.state == "verifying":
            raise Busy("the upload is being verified")
        raise Conflict(f"the upload is {self.state}")
