"""The worker processes: hostile codestreams end one of them, never the caller; limits of time, memory and number."""

from __future__ import annotations

import io
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder

from dgis import part10
from dgis.transcode.convert import Job
from dgis.transcode.errors import TranscodeCancelled, TranscodeError
from dgis.transcode.plan import EXPLICIT_LE, IMPLICIT_LE
from dgis.transcode.pool import Limits, Transcoder

RLE, J2K = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90"


def never() -> bool:
    return False


@pytest.fixture
def transcoder() -> Iterator[Callable[..., Transcoder]]:
    made: list[Transcoder] = []

    def make(limits: Limits | None = None) -> Transcoder:
        made.append(Transcoder(limits))
        return made[-1]

    yield make
    for one in made:
        one.close()
    wait_for(lambda: not workers())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers() -> list[psutil.Process]:
    return [
        child for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "dgis.transcode" in child.cmdline()
    ]  # fmt: skip


def compressed(path: Path, frames: list[bytes], syntax: str, *, size: int = 64) -> Path:
    """A file with these codestreams, each said to be a 16 bit image of size x size."""
    data_set = Dataset()
    data_set.SOPClassUID = pydicom.uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    data_set.SOPInstanceUID = "1.2.3"
    data_set.Rows = data_set.Columns = size
    data_set.SamplesPerPixel, data_set.PhotometricInterpretation = 1, "MONOCHROME2"
    data_set.BitsAllocated = data_set.BitsStored = 16
    data_set.HighBit, data_set.PixelRepresentation, data_set.NumberOfFrames = 15, 0, len(frames)
    data_set.PixelData = encapsulate(frames)
    data_set["PixelData"].is_undefined_length = True
    data_set["PixelData"].VR = "OB"
    data_set.file_meta = FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = syntax
    data_set.save_as(path, enforce_file_format=True)
    return path


def rle(frame: np.ndarray) -> bytes:  # type: ignore[type-arg]
    rows, columns = frame.shape
    return bytes(RLELosslessEncoder.encode(
        frame, rows=rows, columns=columns, samples_per_pixel=1, bits_allocated=16, bits_stored=16,
        pixel_representation=0, photometric_interpretation="MONOCHROME2", number_of_frames=1,
    ))  # fmt: skip


def job(path: Path, out: Path, *, target: str = EXPLICIT_LE) -> Job:
    with path.open("rb") as stream:
        offset, stored = part10.data_set_offset(stream)
    return Job(str(path), offset, path.stat().st_size - offset, stored, target, str(out))


def good(folder: Path) -> tuple[Path, np.ndarray]:  # type: ignore[type-arg]
    frame = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    return compressed(folder / "good.dcm", [rle(frame)], RLE), frame


def test_one_worker_serves_many_jobs(tmp_path: Path, transcoder: Callable[..., Transcoder]) -> None:
    pool = transcoder()
    path, frame = good(tmp_path)
    for number in range(5):
        out = tmp_path / f"out{number}"
        length = pool.convert(job(path, out, target=IMPLICIT_LE), cancelled=never)
        assert length == out.stat().st_size
        assert out.read_bytes()[-frame.nbytes :] == frame.tobytes()
    assert len(workers()) == 1


def test_no_more_workers_than_allowed(tmp_path: Path, transcoder: Callable[..., Transcoder]) -> None:
    pool = transcoder(Limits(workers=2))
    path, _ = good(tmp_path)
    threads = [
        threading.Thread(target=pool.convert, args=(job(path, tmp_path / f"out{n}"),), kwargs={"cancelled": never})
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(most, len(workers()))
        time.sleep(0.005)
    assert 1 <= most <= 2 and all((tmp_path / f"out{n}").exists() for n in range(8))


def test_a_dead_worker_is_one_failed_conversion(tmp_path: Path, transcoder: Callable[..., Transcoder]) -> None:
    pool = transcoder()
    path, _ = good(tmp_path)
    pool.convert(job(path, tmp_path / "out1"), cancelled=never)
    victim = workers()[0]
    victim.suspend()

    def kill_it() -> bool:  # asked while the job waits for its answer, and only then
        os.kill(victim.pid, signal.SIGSEGV)
        os.kill(victim.pid, signal.SIGCONT)
        return False

    with pytest.raises(TranscodeError, match="SIGSEGV"):
        pool.convert(job(path, tmp_path / "out2"), cancelled=kill_it)
    assert not (tmp_path / "out2").exists()
    assert pool.convert(job(path, tmp_path / "out3"), cancelled=never)


def test_a_codestream_that_hangs_is_ended(tmp_path: Path, transcoder: Callable[..., Transcoder]) -> None:
    pool = transcoder(Limits(stall=1.0))
    path, _ = good(tmp_path)
    pool.convert(job(path, tmp_path / "out1"), cancelled=never)
    worker = workers()[0]
    worker.suspend()
    started = time.monotonic()
    with pytest.raises(TranscodeError, match="too long"):
        pool.convert(job(path, tmp_path / "out2"), cancelled=never)
    assert 0.8 < time.monotonic() - started < 3
    assert not workers() and not (tmp_path / "out2").exists()


def test_cancel_is_heard_at_once(tmp_path: Path, transcoder: Callable[..., Transcoder]) -> None:
    pool = transcoder()
    path, _ = good(tmp_path)
    pool.convert(job(path, tmp_path / "out1"), cancelled=never)
    workers()[0].suspend()
    started = time.monotonic()
    with pytest.raises(TranscodeCancelled):
        pool.convert(job(path, tmp_path / "out2"), cancelled=lambda: time.monotonic() > started + 0.2)
    assert time.monotonic() - started < 0.8 and not (tmp_path / "out2").exists()


@pytest.mark.parametrize("seed", range(6))
def test_damaged_codestreams_never_end_the_pool(
    tmp_path: Path, transcoder: Callable[..., Transcoder], seed: int
) -> None:
    random = np.random.default_rng(seed)
    out = io.BytesIO()
    noise = random.integers(0, 4096, (64, 64)).astype(np.uint16)
    Image.fromarray(noise).save(out, "JPEG2000", irreversible=False, no_jp2=True)
    raw = bytearray(out.getvalue())
    for place in random.integers(2, 200 if seed % 2 else len(raw), 12):
        raw[place] = random.integers(0, 256)
    pool = transcoder()
    damaged, (path, _) = compressed(tmp_path / "bad.dcm", [bytes(raw)], J2K), good(tmp_path)
    try:
        pool.convert(job(damaged, tmp_path / "out1"), cancelled=never)
    except TranscodeError:
        assert not (tmp_path / "out1").exists()
    assert pool.convert(job(path, tmp_path / "out2"), cancelled=never)


def test_a_codestream_larger_than_its_image_says(tmp_path: Path, transcoder: Callable[..., Transcoder]) -> None:
    """The data set says 64 x 64, the codestream says 60,000 x 60,000: decoding would take 14 GB."""
    out = io.BytesIO()
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(out, "JPEG2000", irreversible=False, no_jp2=True)
    raw = bytearray(out.getvalue())
    size = raw.index(b"\xff\x51") + 6
    raw[size : size + 8] = struct.pack(">LL", 60_000, 60_000)
    raw[size + 16 : size + 24] = struct.pack(">LL", 60_000, 60_000)  # one tile
    pool = transcoder(Limits(stall=10, memory=1 << 30))
    path, (fine, _) = compressed(tmp_path / "bomb.dcm", [bytes(raw)], J2K), good(tmp_path)
    with pytest.raises(TranscodeError):
        pool.convert(job(path, tmp_path / "out1"), cancelled=never)
    assert pool.convert(job(fine, tmp_path / "out2"), cancelled=never)


def test_memory_stays_flat_over_300_mb_of_frames(tmp_path: Path, transcoder: Callable[..., Transcoder]) -> None:
    frame = rle(np.arange(1 << 20, dtype=np.uint16).reshape(1024, 1024))
    path = compressed(tmp_path / "many.dcm", [frame] * 150, RLE, size=1024)
    pool = transcoder()
    good_one, _ = good(tmp_path)
    pool.convert(job(good_one, tmp_path / "warm"), cancelled=never)
    worker, before = workers()[0], psutil.Process().memory_info().rss
    seen = [worker.memory_info().rss]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            seen.append(worker.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        length = pool.convert(job(path, tmp_path / "out"), cancelled=never)
    finally:
        done.set()
        watcher.join()
    assert length > 300 << 20
    grown = max(seen) - seen[0]
    assert len(seen) > 5 and grown < 60 << 20, f"{grown >> 20} MiB for frames of 2 MiB"
    assert psutil.Process().memory_info().rss - before < 20 << 20
