"""Conversions of real and made files, judged by pydicom's own reading of both sides."""

from __future__ import annotations

import copy
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from dgis import part10
from dgis.transcode.convert import Bounds, Job, convert
from dgis.transcode.errors import TranscodeError
from dgis.transcode.plan import (
    DECODABLE,
    DEFLATED_LE,
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    LOSSY,
    NATIVE,
    Way,
    plan,
)
from tests.helpers.dicomfiles import NEEDS_REAL, REAL

J2K, RLE, JPEG, HTJ2K = (
    "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.201"
)  # fmt: skip
MPEG4 = "1.2.840.10008.1.2.4.102"
PIXELS, IMAGE_TAGS = 0x7FE00010, (0x7FE00010, 0x7FE00001, 0x7FE00002, 0x00280004, 0x00280006, 0x00282110)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def converted(path: Path, target: str, out: Path, **limits: int) -> Path:
    """Convert a Part 10 file; return the result as one."""
    with path.open("rb") as stream:
        offset, stored = part10.data_set_offset(stream)
    bare = out / "converted"
    bare.unlink(missing_ok=True)
    job = Job(str(path), offset, path.stat().st_size - offset, stored, target, str(bare))
    length = convert(job, Bounds(**limits), frame_done=lambda: None)
    assert length == bare.stat().st_size
    result = out / "converted.dcm"
    result.write_bytes(part10.file_meta("1.2", "1.2.3", target) + bare.read_bytes())
    return result


def header(data_set: Dataset) -> dict[str, Any]:
    """Everything but the pixel data and what decoding changes; group lengths are retired and left out."""
    return {
        str(e.tag): (e.VR, str(e.value)) for e in data_set
        if e.tag not in IMAGE_TAGS and e.tag.element != 0 and not e.tag.is_private
        and e.VR not in ("SQ", "UN", "OW", "OF", "OD", "OL")
    }  # fmt: skip


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_original_is_preferred_then_an_uncompressed_syntax() -> None:
    assert plan(J2K, [IMPLICIT_LE, J2K]) == Way(J2K, convert=False)
    assert plan(MPEG4, [MPEG4]) == Way(MPEG4, convert=False)
    for stored in (*NATIVE, *DECODABLE):
        for accepted in NATIVE:
            assert plan(stored, [accepted, "1.2.3"]) == Way(accepted, convert=stored != accepted)
    assert plan(EXPLICIT_BE, [IMPLICIT_LE, EXPLICIT_LE]) == Way(EXPLICIT_LE, convert=True)


def test_nothing_is_compressed_and_what_cannot_be_decoded_has_no_way() -> None:
    assert plan(EXPLICIT_LE, [J2K, RLE, JPEG]) is None
    assert plan(J2K, [RLE, *LOSSY]) is None
    assert plan(MPEG4, NATIVE) is None and plan("1.2.3", NATIVE) is None and plan(J2K, []) is None


# --- real files -------------------------------------------------------------------------------------------------------

_BROKEN = {
    "pydicom/test_files/MR_truncated.dcm", "pydicom/test_files/rtplan_truncated.dcm",
    "pydicom-data/emri_small_jpeg_2k_lossless_too_short.dcm",
    "pydicom/test_files/JPEG2000-embedded-sequence-delimiter.dcm",  # no plugin of pydicom reads it
}  # fmt: skip
_TWELVE_BITS = {"pydicom/test_files/JPEG-lossy.dcm", "pydicom/test_files/JPGExtended.dcm"}  # needs a GPL library


def _real() -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for path in sorted(REAL.rglob("*")) if REAL else ():
        if path.is_file() and not path.name.startswith("DICOMDIR") and "DIRFILE" not in path.name:
            with path.open("rb") as stream:
                try:
                    found[str(path.relative_to(REAL))] = part10.data_set_offset(stream)[1]  # type: ignore[arg-type]
                except part10.Part10Error:
                    continue
    return list(found.items())


COMPRESSED = [name for name, syntax in _real() if syntax in DECODABLE]
NATIVELY = [name for name, syntax in _real() if syntax in NATIVE and "dcm_qa_" not in name]


def _pixels(data_set: Dataset) -> Any:
    """The sample values as pydicom decodes them, without its conversion of colours where that would round."""
    syntax = data_set.file_meta.TransferSyntaxUID
    raw = syntax not in ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
    return pydicom.pixels.pixel_array(data_set, raw=raw)


@NEEDS_REAL
@pytest.mark.parametrize("target", [EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE])
def test_every_compressed_image_is_pixel_equal(tmp_path: Path, target: str) -> None:
    assert REAL is not None
    seen, refused = set(), set()
    for name in COMPRESSED:
        original = pydicom.dcmread(REAL / name)
        try:
            ours = pydicom.dcmread(converted(REAL / name, target, tmp_path))
        except TranscodeError:
            refused.add(name)
            continue
        if "PixelData" not in original:
            assert header(original) == header(ours), name
            continue
        expected = _pixels(original)
        got = pydicom.pixels.pixel_array(ours, raw=True)
        assert np.array_equal(expected, got), name
        assert got.dtype.itemsize * 8 == original.BitsAllocated == ours.BitsAllocated, name
        assert header(original) == header(ours), name
        assert ours.PhotometricInterpretation not in ("YBR_RCT", "YBR_ICT", "YBR_FULL_422"), name
        assert ours.SamplesPerPixel == 1 or ours.PlanarConfiguration == 0, name
        lossy = original.file_meta.TransferSyntaxUID in ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
        expected_lossy = "01" if lossy else original.get("LossyImageCompression")
        assert ours.get("LossyImageCompression") == expected_lossy, name
        seen.add(str(original.file_meta.TransferSyntaxUID))
    assert refused <= _BROKEN | _TWELVE_BITS
    assert len(seen) >= 9, "RLE, JPEG, JPEG lossless, two JPEG-LS, two JPEG 2000, two HTJ2K are in the collection"


@NEEDS_REAL
@pytest.mark.parametrize("target", NATIVE)
def test_every_native_file_keeps_header_and_pixels(tmp_path: Path, target: str) -> None:
    assert REAL is not None
    refused = set()
    for name in NATIVELY:
        original = pydicom.dcmread(REAL / name)
        if original.file_meta.TransferSyntaxUID == target:
            continue
        try:
            ours = pydicom.dcmread(converted(REAL / name, target, tmp_path))
        except TranscodeError:
            refused.add(name)
            continue
        assert header(original) == header(ours), name
        if {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(original.dir()) and "Rows" in original:
            try:
                expected = original.pixel_array
            except (AttributeError, ValueError):
                continue
            assert np.array_equal(expected, ours.pixel_array), name
    assert refused <= _BROKEN


# --- made files -------------------------------------------------------------------------------------------------------


def image(shape: tuple[int, ...], *, bits: int = 16, **values: Any) -> Dataset:
    """A data set with every kind of element and an image of random samples."""
    random = np.random.default_rng(7)
    data_set = Dataset()
    data_set.SOPClassUID, data_set.SOPInstanceUID = pydicom.uid.CTImageStorage, "1.2.3"
    data_set.PatientName, data_set.PatientID = "Käfer^Ümit", "P1"
    data_set.SpecificCharacterSet = "ISO_IR 192"
    nested = Dataset()
    nested.ReferencedSOPClassUID = "1.2.3"
    nested.add_new(0x00720074, "FD", [1.5, -2.25])
    deeper = Dataset()
    deeper.add_new(0x00081140, "SQ", Sequence([copy.deepcopy(nested), Dataset()]))
    data_set.ReferencedImageSequence = Sequence([nested, deeper])
    data_set.SmallestImagePixelValue = -5 if values.get("PixelRepresentation") else 5
    data_set.FrameIncrementPointer = 0x00181063
    data_set.add_new(0x00091010, "UN", b"\x01\x02\x03\x04")
    data_set.add_new(0x00090010, "LO", "CREATOR")
    data_set.PixelRepresentation, data_set.SamplesPerPixel = 0, 1
    data_set.PhotometricInterpretation = "MONOCHROME2"
    data_set.BitsAllocated = data_set.BitsStored = bits
    data_set.HighBit = bits - 1
    frames = shape[0] if len(shape) > 2 else 1
    data_set.Rows, data_set.Columns = shape[-2:]
    if frames > 1:
        data_set.NumberOfFrames = frames
    for keyword, value in values.items():
        setattr(data_set, keyword, value)
    samples = data_set.SamplesPerPixel
    kind = np.dtype(f"u{bits // 8}")
    pixels = random.integers(0, 1 << bits, size=(*shape, samples) if samples > 1 else shape).astype(kind)
    data_set.add_new(PIXELS, "OB" if bits == 8 else "OW", pixels.tobytes() + bytes(pixels.nbytes % 2))
    return data_set


def write(path: Path, data_set: Dataset, syntax: str) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data_set.SOPClassUID, data_set.SOPInstanceUID
    data_set.file_meta = meta
    data_set.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("target", NATIVE)
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("signed", [0, 1])
def test_there_and_back_is_the_same(tmp_path: Path, target: str, bits: int, signed: int) -> None:
    data_set = image((3, 5, 7), bits=bits, PixelRepresentation=signed)
    original = write(tmp_path / "original.dcm", data_set, EXPLICIT_LE)
    there = converted(original, target, tmp_path)
    back = pydicom.dcmread(converted(there.rename(tmp_path / "there.dcm"), EXPLICIT_LE, tmp_path))
    expected = pydicom.dcmread(original)
    for side in (pydicom.dcmread(tmp_path / "there.dcm"), back):
        assert np.array_equal(side.pixel_array, expected.pixel_array)
        assert header(side) == header(expected)
        inner = side.ReferencedImageSequence[1][0x00081140].value[0]
        assert list(inner[0x00720074].value) == [1.5, -2.25] and inner.ReferencedSOPClassUID == "1.2.3"
        assert len(side.ReferencedImageSequence[1][0x00081140].value) == 2
        assert side[0x00091010].value == b"\x01\x02\x03\x04"
        assert side.SmallestImagePixelValue == (-5 if signed else 5)


def test_dcmtk_reads_what_we_write(tmp_path: Path, dcmdump: Callable[[Path], str]) -> None:
    original = write(tmp_path / "original.dcm", image((2, 4, 4)), EXPLICIT_LE)
    expected = dcmdump(original)
    for target in NATIVE:
        assert dcmdump(converted(original, target, tmp_path)) == expected, target


@pytest.fixture
def dcmdump() -> Callable[[Path], str]:
    from tests.helpers import dcmtk

    if not (dcmtk.PLACE / "dcmdump").exists():
        pytest.skip("DCMTK is not installed (Debian: dcmtk)")

    def dump(path: Path) -> str:
        done = dcmtk.run("dcmdump", "-q", "+P", "0028,0010", "+P", "0028,0106", "+P", "7fe0,0010", "+P", "0072,0074",
                         "+s", path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return "\n".join(line.split("#")[0].replace("OB", "OW") for line in done.stdout.splitlines())

    return dump


def test_a_long_value_of_a_short_vr_becomes_un(tmp_path: Path) -> None:
    data_set = image((4, 4))
    data_set.add_new(0x00081120, "SQ", Sequence([]))
    original = write(tmp_path / "original.dcm", data_set, IMPLICIT_LE)
    raw = original.read_bytes()
    long = b"A" * 70_000  # an LO of more than 64 KiB can exist in implicit VR only
    place = raw.index(struct.pack("<HH", 0x0010, 0x0010))
    original.write_bytes(raw[:place] + struct.pack("<HHL", 0x0008, 0x1030, len(long)) + long + raw[place:])
    ours = pydicom.dcmread(converted(original, EXPLICIT_LE, tmp_path))
    assert ours.get_item(0x00081030).VR == "UN" and ours.get_item(0x00081030).value == long


@pytest.mark.parametrize("depth", [1000, 4000])
def test_deep_sequences_cost_no_stack(tmp_path: Path, depth: int) -> None:
    raw = b"".join(struct.pack("<HH2s2xLHHL", 8, 0x1140, b"SQ", 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
                   for _ in range(depth))  # fmt: skip
    raw += struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0) * depth
    path = tmp_path / "deep.dcm"
    path.write_bytes(part10.file_meta("1.2", "1.2.3", EXPLICIT_LE) + raw)
    there = converted(path, IMPLICIT_LE, tmp_path).rename(tmp_path / "there.dcm")
    assert converted(there, EXPLICIT_LE, tmp_path).read_bytes()[-len(raw) :] == raw


# --- compressed ones --------------------------------------------------------------------------------------------------


def _jpeg2000(frame: np.ndarray[Any, Any]) -> bytes:
    from PIL import Image as Pillow

    out = io.BytesIO()
    Pillow.fromarray(frame).save(out, "JPEG2000", irreversible=False, no_jp2=True)
    return out.getvalue()


def colour(tmp_path: Path, *, frames: int = 3, **values: Any) -> tuple[Path, np.ndarray[Any, Any]]:
    """A JPEG 2000 lossless colour image with its reversible colour transformation."""
    data_set = image((frames, 16, 16), bits=8, SamplesPerPixel=3, PlanarConfiguration=0, **values)
    pixels = np.frombuffer(data_set.PixelData, np.uint8)[: frames * 768].reshape(frames, 16, 16, 3)
    data_set.PhotometricInterpretation = "YBR_RCT"
    data_set[PIXELS].value = encapsulate([_jpeg2000(frame) for frame in pixels])
    data_set[PIXELS].is_undefined_length = True
    return write(tmp_path / "colour.dcm", data_set, J2K), pixels


@pytest.mark.parametrize("target", NATIVE)
def test_ybr_rct_comes_out_as_rgb(tmp_path: Path, target: str) -> None:
    path, pixels = colour(tmp_path)
    ours = pydicom.dcmread(converted(path, target, tmp_path))
    assert ours.PhotometricInterpretation == "RGB" and ours.PlanarConfiguration == 0 and ours.NumberOfFrames == 3
    assert np.array_equal(ours.pixel_array, pixels)
    assert "LossyImageCompression" not in ours


def test_a_compressed_icon_is_left_out(tmp_path: Path) -> None:
    path, pixels = colour(tmp_path)
    data_set = pydicom.dcmread(path)
    icon = Dataset()
    icon.Rows = icon.Columns = 16
    icon.add_new(PIXELS, "OB", data_set.PixelData)
    icon[PIXELS].is_undefined_length = True
    data_set.IconImageSequence = Sequence([icon])
    ours = pydicom.dcmread(converted(write(path, data_set, J2K), EXPLICIT_LE, tmp_path))
    assert "IconImageSequence" not in ours and np.array_equal(ours.pixel_array, pixels)


def test_extended_offsets_are_used_and_left_out(tmp_path: Path) -> None:
    path, pixels = colour(tmp_path)
    data_set = pydicom.dcmread(path)
    frames = list(pydicom.encaps.generate_frames(data_set.PixelData, number_of_frames=3))
    data_set.PixelData, data_set.ExtendedOffsetTable, data_set.ExtendedOffsetTableLengths = (
        pydicom.encaps.encapsulate_extended(frames)
    )
    data_set[PIXELS].is_undefined_length = True
    ours = pydicom.dcmread(converted(write(path, data_set, J2K), IMPLICIT_LE, tmp_path))
    assert np.array_equal(ours.pixel_array, pixels)
    assert "ExtendedOffsetTable" not in ours and "ExtendedOffsetTableLengths" not in ours


# --- what cannot be converted -----------------------------------------------------------------------------------------


def _refusal(path: Path, tmp_path: Path, **limits: int) -> str:
    with pytest.raises(TranscodeError) as caught:
        converted(path, EXPLICIT_LE, tmp_path, **limits)
    assert not (tmp_path / "converted").exists()
    return str(caught.value)


def test_a_damaged_frame_leaves_nothing(tmp_path: Path) -> None:
    path, _ = colour(tmp_path)
    raw = bytearray(path.read_bytes())
    third = raw.rindex(b"\xff\x4f\xff\x51")  # SOC and SIZ of the last codestream
    raw[third : third + 40] = b"x" * 40
    path.write_bytes(raw)
    assert "frame 3" in _refusal(path, tmp_path)


def test_too_few_frames(tmp_path: Path) -> None:
    path, _ = colour(tmp_path)
    data_set = pydicom.dcmread(path)
    data_set.NumberOfFrames = 4
    assert "frames" in _refusal(write(path, data_set, J2K), tmp_path)


@pytest.mark.parametrize("values", [{"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 6_000_000}])
def test_bombs_are_refused_before_anything_is_decoded(tmp_path: Path, values: dict[str, int]) -> None:
    path, _ = colour(tmp_path)
    data_set = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(data_set, keyword, value)
    assert "at most" in _refusal(write(path, data_set, J2K), tmp_path)


def test_a_deflated_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.dcm"
    engine = zlib.compressobj(wbits=-15)
    raw = engine.compress(struct.pack("<HH2s2xL", 0x7FE0, 0x10, b"OW", 1 << 26) + bytes(1 << 26)) + engine.flush()
    path.write_bytes(part10.file_meta("1.2", "1.2.3", DEFLATED_LE) + raw)
    assert "inflated" in _refusal(path, tmp_path, result=1 << 20)
    path.write_bytes(part10.file_meta("1.2", "1.2.3", DEFLATED_LE) + raw[:-100])
    assert "ends early" in _refusal(path, tmp_path)


def test_no_room_on_the_disk(tmp_path: Path) -> None:
    path, _ = colour(tmp_path)
    assert "no room" in _refusal(path, tmp_path, reserve=1 << 60)


@pytest.mark.parametrize("cut", [1, 9, 300])
def test_a_truncated_data_set_is_refused(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "cut.dcm", image((8, 8)), IMPLICIT_LE)
    path.write_bytes(path.read_bytes()[:-cut])
    assert "ends within" in _refusal(path, tmp_path)
