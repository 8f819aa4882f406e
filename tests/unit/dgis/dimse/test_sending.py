"""A data set laid out for sending: the same fragments from a file and from pieces in memory, in few writes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from dgis.dimse.command import fragment_room, pdvs
from dgis.dimse.outgoing import Adapter, Outgoing
from dgis.dimse.sending import BATCH_BYTES, Buffer, SendCancelled, send_data_set
from dgis.transcode.convert import Job

DATA = random.Random(5).randbytes(700_001)


class Association:
    """Keeps what is written."""

    def __init__(self, max_pdu: int) -> None:
        self.peer_max_pdu = max_pdu
        self.written: list[bytes] = []
        self.aborted = False

    @contextlib.contextmanager
    def turn(self) -> Iterator[bool]:
        yield True

    def write_in_turn(self, pdu: bytes | memoryview) -> None:
        self.written.append(bytes(pdu))

    def abort(self, *, block: bool) -> None:
        self.aborted = True


def sent(association: Association, max_pdu: int) -> tuple[bytes, bytes]:
    """Check every PDU; the command and the data set that were written."""
    stream, parts, last = b"".join(association.written), (bytearray(), bytearray()), [False, False]
    while stream:
        length = int.from_bytes(stream[2:6], "big")
        assert stream[0] == 4 and (not max_pdu or length <= max_pdu)
        ((context, control, fragment),) = pdvs(memoryview(stream)[6 : 6 + length])
        is_data = not control & 1
        assert context == 7 and not last[is_data], "nothing comes after the last fragment"
        parts[is_data].extend(fragment)
        last[is_data] = bool(control & 2)
        stream = stream[6 + length :]
    assert last == [True, True]
    return bytes(parts[0]), bytes(parts[1])


@pytest.mark.parametrize("max_pdu", [0, 4096, 16384, 131072])
@pytest.mark.parametrize("length", [0, 2, 16372, 16378, 300_000, 700_000])
def test_file_and_memory_give_the_same(tmp_path: Path, max_pdu: int, length: int) -> None:
    path = tmp_path / "object"
    path.write_bytes(b"head" + DATA[:length] + b"trailer")
    cuts = sorted(random.Random(length).sample(range(length + 4), min(3, length)))
    whole = b"head" + DATA[:length]
    pieces = tuple(whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True) if b > a)
    buffer = Buffer()
    for content in (None, pieces):
        association = Association(max_pdu)
        item = Outgoing("1.2", "1.3", "1.4", path, 4, length, content)
        send_data_set(association, 7, b"command!", item, buffer=buffer)  # type: ignore[arg-type]
        assert sent(association, max_pdu) == (b"command!", DATA[:length])
        batch = max(1, BATCH_BYTES // (fragment_room(max_pdu) + 12)) * fragment_room(max_pdu)
        assert len(association.written) == max(1, -(-length // batch)), "one write for each batch, the command in it"


def test_a_file_too_short_sends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "object"
    path.write_bytes(DATA[:100])
    association = Association(16384)
    with pytest.raises(OSError, match="shorter"):
        send_data_set(association, 7, b"command!", Outgoing("1.2", "1.3", "1.4", path, 4, 97))  # type: ignore[arg-type]
    assert not association.written and not association.aborted


def test_pieces_that_end_early_and_a_cancel_abort(tmp_path: Path) -> None:
    item = Outgoing("1.2", "1.3", "1.4", Path(), 0, 5000, (DATA[:4000],))
    association = Association(16384)
    with pytest.raises(SendCancelled):
        send_data_set(association, 7, b"command!", item)  # type: ignore[arg-type]
    assert association.aborted and not association.written
    association, answers = Association(16384), iter([False, True])
    item = Outgoing("1.2", "1.3", "1.4", Path(), 0, 600_000, (DATA,))
    with pytest.raises(SendCancelled):
        send_data_set(association, 7, b"command!", item, cancelled=lambda: next(answers))  # type: ignore[arg-type]
    assert association.aborted and len(association.written) == 1


def test_what_is_in_memory_is_written_down_to_be_converted_and_removed(tmp_path: Path) -> None:
    class Copying:
        def convert(self, job: Job, *, cancelled: object) -> int:
            data = Path(job.path).read_bytes()[job.offset : job.offset + job.length]
            return Path(job.output).write_bytes(data[::-1])

    item = Outgoing("1.2", "1.3", "1.4", Path(), 4, 5, (b"he", b"adda", b"ta!"))
    with Adapter(Copying(), lambda: tmp_path).adapted(item, "1.5", cancelled=lambda: False) as ready:
        assert ready.content is None and ready.path.read_bytes() == b"!atad"
        assert sorted(tmp_path.iterdir()) == [ready.path]
    assert not list(tmp_path.iterdir())
