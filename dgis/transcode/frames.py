"""Decode encapsulated pixel data frame by frame with the codecs behind pydicom. Memory holds one frame.

Decoded are the sample values as they were coded; colour is converted only where the codestream's own transformation
is part of the coding (YBR_RCT, YBR_ICT) and for lossy JPEG, so that nothing is rounded that was lossless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from dgis.transcode.errors import TranscodeError
from dgis.transcode.image import (
    ALLOCATED,
    COLUMNS,
    LENGTHS,
    LOSSY,
    OFFSETS,
    PHOTOMETRIC,
    PLANAR,
    REPRESENTATION,
    ROWS,
    SAMPLES,
    STORED,
    Image,
)
from dgis.transcode.plan import JPEG_LOSSY
from dgis.transcode.rewrite import Output, Replacement

RLE = "1.2.840.10008.1.2.5"
_PREFERRED = ("pylibjpeg", "pyjpegls", "pillow", "gdcm", "pydicom")


class DecodedPixels:
    """The frames of one image in their order; the first is decoded at once, to know what comes out."""

    def __init__(self, stream: BinaryIO, image: Image, syntax: str, *, frame_done: Callable[[], None]) -> None:
        """Begin; nobody else may use `stream`. Raises TranscodeError when no decoder can read the first frame."""
        self._stream, self._image, self._syntax, self._frame_done = stream, image, syntax, frame_done
        self._photometric = image.text(PHOTOMETRIC)
        self._first, self._rest = self._begin()
        frame_done()
        self._bytes = image.frame_bytes * image.frames
        self.length = self._bytes + self._bytes % 2
        self.vr = "OB" if image.needed(ALLOCATED) <= 8 else "OW"

    def replacements(self) -> dict[int, Replacement]:
        """Return the elements whose values change by decoding."""
        changed: dict[int, Replacement] = {}
        if self._photometric != self._image.text(PHOTOMETRIC):
            value = self._photometric.encode("ascii")
            changed[PHOTOMETRIC] = ("CS", value + b" " * (len(value) % 2))
        if self._image.needed(SAMPLES) > 1:
            changed[PLANAR] = ("US", b"\x00\x00")
        if self._syntax in JPEG_LOSSY and self._image.text(LOSSY) != "01":
            changed[LOSSY] = ("CS", b"01")  # PS3.3 C.7.6.1.1.5: once lossy, it says so for ever
        return changed

    def write(self, output: Output, *, big: bool) -> None:
        """Write all frames and the padding byte."""
        self._write_frame(output, self._first, big)
        for number in range(2, self._image.frames + 1):
            self._write_frame(output, self._next(number), big)
            self._frame_done()
        output.write(bytes(self._bytes % 2))

    def _next(self, number: int) -> np.ndarray[Any, Any]:
        try:
            return next(self._rest)
        except StopIteration:
            raise TranscodeError(f"{number - 1} frames where {self._image.frames} are announced") from None
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - the edge to codecs: whatever they raise, it is this frame's fault
            raise TranscodeError(f"frame {number} cannot be decoded ({type(error).__name__})") from None

    def _write_frame(self, output: Output, frame: np.ndarray[Any, Any], big: bool) -> None:
        if frame.nbytes != self._image.frame_bytes:
            raise TranscodeError("a frame has another size than the data set says")
        ordered = frame.astype(frame.dtype.newbyteorder(">" if big else "<"), copy=False)
        output.write(np.ascontiguousarray(ordered).data)  # type: ignore[arg-type]

    def _begin(self) -> tuple[np.ndarray[Any, Any], Iterator[np.ndarray[Any, Any]]]:
        decoder = get_decoder(UID(self._syntax))
        reasons = []
        for name in _PREFERRED:
            if name not in decoder.available_plugins:
                continue
            frames = self._frames(name)
            try:
                return next(frames), frames
            except StopIteration:
                raise TranscodeError("there is no frame in the pixel data") from None
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - the edge to codecs: whatever they raise, the next one is tried
                reasons.append(f"{name}: {type(error).__name__}")
        if not reasons:
            raise TranscodeError(f"no decoder for {UID(self._syntax).name} is installed")
        raise TranscodeError("the codestream cannot be decoded (" + ", ".join(reasons) + ")")

    def _frames(self, plugin: str) -> Iterator[np.ndarray[Any, Any]]:
        image = self._image
        assert image.fragments is not None
        self._stream.seek(image.fragments)
        kind = "i" if image.number(REPRESENTATION) else "u"
        dtype = np.dtype(f"{kind}{image.needed(ALLOCATED) // 8}")
        decoded = get_decoder(UID(self._syntax)).iter_array(
            self._stream, decoding_plugin=plugin, raw=self._syntax not in JPEG_LOSSY, **self._options()
        )
        for frame, properties in decoded:
            self._photometric = _photometric(str(properties["photometric_interpretation"]), frame)
            # A codec may give bytes where the data set allocates words.
            yield frame.astype(dtype, copy=False)

    def _options(self) -> dict[str, Any]:
        image = self._image
        options: dict[str, Any] = {
            "rows": image.needed(ROWS),
            "columns": image.needed(COLUMNS),
            "samples_per_pixel": image.needed(SAMPLES),
            "bits_allocated": image.needed(ALLOCATED),
            "bits_stored": image.number(STORED) or image.needed(ALLOCATED),
            "pixel_representation": image.number(REPRESENTATION) or 0,
            "photometric_interpretation": image.text(PHOTOMETRIC),
            "number_of_frames": image.frames,
            "pixel_keyword": "PixelData",
            # RLE codes whole bytes, unused bits too: they stay (an overlay may live there).
            "correct_unused_bits": self._syntax != RLE,
            "as_rgb": True,
        }
        if options["samples_per_pixel"] > 1:
            options["planar_configuration"] = image.number(PLANAR) or 0
        offsets, lengths = image.values.get(OFFSETS), image.values.get(LENGTHS)
        if offsets and lengths:
            options["extended_offsets"] = (offsets, lengths)
        return options


def _photometric(name: str, frame: np.ndarray[Any, Any]) -> str:
    """A decoder gives a value for every sample: nothing is subsampled any more (PS3.3 C.7.6.3.1.2)."""
    return "YBR_FULL" if name.startswith("YBR_FULL_422") and frame.ndim == 3 else name
