"""The images that are stored: real Part 10 files of the size that was asked for, new ones after a few bytes."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest

from bench.images import KIB, STUDIES, ImageSet, spread


def _uids(images: ImageSet) -> set[str]:
    found = set()
    for share in images.take(images.count, 1):
        for path in share:
            one = pydicom.dcmread(path, stop_before_pixels=True)
            assert one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID
            assert one.StudyInstanceUID in images.studies() and one.SeriesInstanceUID.startswith(one.StudyInstanceUID)
            found.add(str(one.SOPInstanceUID))
    return found


def test_renewed_images_are_all_new(tmp_path: Path) -> None:
    images = ImageSet.make(tmp_path, size=4 * KIB, count=20)
    assert images.count == 2 * STUDIES
    before, studies = _uids(images), set(images.studies())
    images.renew()
    after = _uids(images)
    assert len(before) == len(after) == images.count
    assert not before & after and not studies & set(images.studies())


@pytest.mark.parametrize("size", [4 * KIB, 128 * KIB, 512 * KIB])
def test_they_have_the_size_that_was_asked_for(tmp_path: Path, size: int) -> None:
    images = ImageSet.make(tmp_path, size=size, count=1)
    (path,) = images.take(1, 1)[0]
    assert abs(path.stat().st_size - size) < 0.02 * size + 100
    read = pydicom.dcmread(path)
    assert read.pixel_array.shape == (read.Rows, read.Columns)


def test_every_sender_has_studies_of_its_own(tmp_path: Path) -> None:
    images = ImageSet.make(tmp_path, size=4 * KIB, count=64)
    for senders in (1, 4, 16):
        shares = images.take(images.count, senders)
        assert len(shares) == senders and spread(shares) == images.count and len({len(s) for s in shares}) == 1
        studies = [{path.parent for path in share} for share in shares]
        assert sum(map(len, studies)) == len(set().union(*studies)) == STUDIES
    assert spread(images.take(5, 4)) == 5
