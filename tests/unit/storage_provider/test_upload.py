"""The upload state machine against a plain model, in any order of events."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from storage_provider.channel import ObjectSpec
from storage_provider.checksum import CHUNK_BYTES
from storage_provider.errors import Busy, Conflict, Refused, StorageError
from storage_provider.keys import object_key
from storage_provider.upload import Upload

SHA = hashlib.sha256(b"").hexdigest()
UNIT = CHUNK_BYTES // 4
UNITS = 10
SPEC = ObjectSpec(object_key(SHA), UNIT * UNITS, SHA, (SHA, SHA, SHA))


class Machine(RuleBasedStateMachine):
    """Claims and landings in quarter chunks; the model is a set of units."""

    def __init__(self) -> None:
        super().__init__()
        self.upload = Upload(SPEC)
        self.have: set[int] = set()
        self.claims: list[tuple[int, int]] = []
        self.over = False

    @rule(start=st.integers(-1, UNITS), length=st.integers(0, UNITS))
    def claim(self, start: int, length: int) -> None:
        stop = start + length
        outside = not 0 <= start < stop <= UNITS
        taken = any(a < stop and b > start for a, b in self.claims)
        try:
            self.upload = self.upload.claim(start * UNIT, stop * UNIT)
        except StorageError as error:
            assert self.over or (outside and isinstance(error, Refused)) or (taken and isinstance(error, Busy))
        else:
            assert not (self.over or outside or taken)
            self.claims.append((start, stop))

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def land(self, data: st.DataObject) -> None:
        start, stop = self.claims.pop(data.draw(st.integers(0, len(self.claims) - 1)))
        reached = data.draw(st.integers(start, stop))
        self.upload = self.upload.land(start * UNIT, reached * UNIT, stop * UNIT)
        self.have |= set(range(start, reached))

    @rule(outcome=st.sampled_from(["good", "bad", "bad-unknown"]), chunk=st.integers(0, 2))
    def verify(self, outcome: str, chunk: int) -> None:
        try:
            verifying = self.upload.verify()
        except StorageError:
            assert self.over or self.claims or len(self.have) < UNITS
            return
        assert len(self.have) == UNITS and not self.claims
        with pytest.raises(Busy):
            verifying.claim(0, UNIT)
        if outcome == "good":
            self.upload, self.over = verifying.accept(), True
        elif outcome == "bad":
            self.upload = verifying.reject((chunk,))
            self.have -= set(range(chunk * 4, chunk * 4 + 4))
        else:
            self.upload, self.have = verifying.reject(()), set()

    @rule()
    def abort(self) -> None:
        try:
            aborted = self.upload.abort()
        except StorageError:
            assert self.over or self.claims
            return
        with pytest.raises(Conflict):
            aborted.claim(0, UNIT)

    @invariant()
    def missing_is_what_has_not_landed(self) -> None:
        missing = {n // UNIT for start, stop in self.upload.missing for n in range(start, stop, UNIT)}
        assert missing == set(range(UNITS)) - self.have


TestMachine = Machine.TestCase


def test_landing_without_a_claim_is_refused() -> None:
    with pytest.raises(Refused):
        Upload(SPEC).land(0, UNIT, UNIT)
