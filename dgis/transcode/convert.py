"""Convert one file: first pass, decoder if needed, second pass. Run by the worker process; whatever the input is like,
the result is a converted data set or a TranscodeError (or the process's end, which its owner sees).
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dgis.transcode.errors import TranscodeError
from dgis.transcode.image import Image, survey
from dgis.transcode.plan import DECODABLE, DEFLATED_LE, EXPLICIT_LE
from dgis.transcode.rewrite import Rewriter
from dgis.transcode.walk import Encoding, encoding_of

_CHUNK = 1 << 20
_MAX_VALUE = 0xFFFFFFFE  # PS3.5 8.1.1: the value length of native pixel data has 32 bits


@dataclass(frozen=True, slots=True)
class Job:
    """The data set of `length` bytes from `offset` of `path`, from `stored` to the native syntax `target`."""

    path: str
    offset: int
    length: int
    stored: str
    target: str
    output: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a conversion may take: bytes of the result, of one frame, and bytes that must stay free on the disk."""

    result: int = _MAX_VALUE
    frame: int = 256 << 20
    reserve: int = 64 << 20


def convert(job: Job, bounds: Bounds, *, frame_done: Callable[[], None]) -> int:
    """Write the converted data set to `job.output`; return its length. Calls `frame_done` after each frame.

    Raises TranscodeError; OSError when the disk does not take it. Nothing is left at `output` then.
    """
    try:
        with Path(job.path).open("rb") as stream, Path(job.output).open("xb") as output:
            stream.seek(job.offset)
            return _Conversion(job, bounds, output, frame_done).run(stream)
    except BaseException:
        Path(job.output).unlink(missing_ok=True)
        raise


@dataclass(frozen=True, slots=True)
class _Conversion:
    job: Job
    bounds: Bounds
    output: BinaryIO
    frame_done: Callable[[], None]

    def run(self, stream: BinaryIO) -> int:
        if self.job.stored != DEFLATED_LE:
            return self._rewrite(stream, self.job.length, self.job.stored)
        # Inflate first: the walk goes to and fro. The inflated file has no name and vanishes with the process.
        scratch = os.open(Path(self.job.output).parent, os.O_TMPFILE | os.O_RDWR, 0o600)
        with open(scratch, "w+b") as inflated:
            size = self._inflate(stream, inflated)
            inflated.seek(0)
            return self._rewrite(inflated, size, EXPLICIT_LE)

    def _rewrite(self, stream: BinaryIO, size: int, stored: str) -> int:
        start = stream.tell()
        image = survey(stream, size, encoding_of(stored))
        self._room(size)
        stream.seek(start)
        if image.fragments is None:
            return self._write(Rewriter(stream, self._sink(), self._target, image), size, stored)
        if stored not in DECODABLE:
            raise TranscodeError("encapsulated pixel data in a native transfer syntax")
        self._refuse_bomb(image)
        from dgis.transcode.frames import DecodedPixels  # numpy and codecs only when needed

        # A stream of its own: the second pass reads on while frames are decoded.
        with Path(self.job.path).open("rb") as frames:
            pixels = DecodedPixels(frames, image, stored, frame_done=self.frame_done)
            changed = pixels.replacements()
            rewriter = Rewriter(stream, self._sink(), self._target, image, pixels=pixels, replace=changed)
            return self._write(rewriter, size, stored)

    @property
    def _target(self) -> Encoding:
        return encoding_of(self.job.target)

    def _sink(self) -> BinaryIO | Deflated:
        return Deflated(self.output) if self.job.target == DEFLATED_LE else self.output

    def _write(self, rewriter: Rewriter, size: int, stored: str) -> int:
        rewriter.run(size, encoding_of(stored))
        if isinstance(rewriter.output, Deflated):
            rewriter.output.finish()
        self.output.flush()
        return self.output.tell()

    def _refuse_bomb(self, image: Image) -> None:
        """Refuse what claims to be larger than anything that is let out, before a byte is allocated for it."""
        frame, total = image.frame_bytes, image.frame_bytes * image.frames
        if frame > self.bounds.frame:
            raise TranscodeError(f"one frame has {frame} bytes; at most {self.bounds.frame} are decoded")
        if not total or total > self.bounds.result:
            raise TranscodeError(f"the decoded pixel data has {total} bytes; at most {self.bounds.result} can be sent")
        self._room(total)

    def _room(self, size: int) -> None:
        if shutil.disk_usage(Path(self.job.output).parent).free < size + self.bounds.reserve:
            raise TranscodeError("no room on the disk to convert the instance")

    def _inflate(self, stream: BinaryIO, inflated: BinaryIO) -> int:
        engine, left = zlib.decompressobj(wbits=-zlib.MAX_WBITS), self.job.length
        try:
            while left and not engine.eof:
                piece = stream.read(min(left, _CHUNK))
                if not piece:
                    raise TranscodeError("the file is shorter than the object")
                left -= len(piece)
                self._inflate_piece(engine, piece, inflated)
        except zlib.error:
            raise TranscodeError("the deflated data set is damaged") from None
        if not engine.eof:
            raise TranscodeError("the deflated data set ends early")
        return inflated.tell()

    def _inflate_piece(self, engine: zlib._Decompress, piece: bytes, inflated: BinaryIO) -> None:
        while piece and not engine.eof:
            inflated.write(engine.decompress(piece, _CHUNK))
            piece = engine.unconsumed_tail
            if inflated.tell() > self.bounds.result:
                raise TranscodeError(f"inflated it has more than {self.bounds.result} bytes")


class Deflated:
    """Deflates what is written, PS3.5 A.5."""

    def __init__(self, output: BinaryIO) -> None:
        """Write to `output`."""
        self._output, self._engine, self._size = output, zlib.compressobj(wbits=-zlib.MAX_WBITS), 0

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._size += self._output.write(self._engine.compress(data))

    def finish(self) -> None:
        """Write what is left, and the padding byte."""
        self._size += self._output.write(self._engine.flush())
        self._output.write(bytes(self._size % 2))
