"""A NoCloud seed as the ISO 9660 image that a guest gets as a disk. Pure: the same seed gives the same bytes."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import pycdlib

from dgis.deploy.cloudinit import Seed

LABEL = "cidata"
_SECTOR = 2048
_DESCRIPTORS = 16  # the sector of the first volume descriptor (ECMA-119 section 8.1)
_PRIMARY, _SUPPLEMENTARY, _END = 1, 2, 255
# 2026-01-01 00:00:00 UTC in both forms (ECMA-119 sections 9.1.5 and 8.4.26.1), and "not specified"
_RECORD_DATE = bytes((126, 1, 1, 0, 0, 0, 0))
_VOLUME_DATE = b"2026010100000000\x00"
_NO_DATE = b"0" * 16 + b"\x00"


def iso(seed: Seed) -> bytes:
    """The image: label cidata, with Joliet and Rock Ridge names."""
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    out = io.BytesIO()
    try:
        for short, name, text in (
            ("META_DATA", "meta-data", seed.meta_data),
            ("NETWORK_CONFIG", "network-config", seed.network_config),
            ("USER_DATA", "user-data", seed.user_data),
        ):
            data = text.encode()
            image.add_fp(
                io.BytesIO(data), len(data), f"/{short}.;1", rr_name=name, joliet_path=f"/{name}", file_mode=0o100444
            )
        image.write_fp(out)
    finally:
        image.close()
    return _undated(out.getvalue())


def _undated(image: bytes) -> bytes:
    """Set every date to the same: pycdlib writes the time of day, and in the machine's time zone."""
    data = bytearray(image)
    for descriptor in _descriptors(data):
        for offset, date in ((813, _VOLUME_DATE), (830, _VOLUME_DATE), (847, _NO_DATE), (864, _VOLUME_DATE)):
            data[descriptor + offset : descriptor + offset + 17] = date
        root = descriptor + 156
        extent, size = struct.unpack_from("<I", data, root + 2)[0], struct.unpack_from("<I", data, root + 10)[0]
        records = [root, *_records(data, extent * _SECTOR, size)]
        for record in records:
            data[record + 18 : record + 25] = _RECORD_DATE
            _undate_rock_ridge(data, record)
    return bytes(data)


def _descriptors(data: bytearray) -> Iterator[int]:
    """Where the primary and the Joliet descriptor begin."""
    place = _DESCRIPTORS * _SECTOR
    while data[place] != _END:
        if data[place] in (_PRIMARY, _SUPPLEMENTARY):
            yield place
        place += _SECTOR


def _records(data: bytearray, start: int, size: int) -> Iterator[int]:
    """Where the records of a directory begin (ECMA-119 section 9.1); a length of 0 fills up a sector."""
    place = start
    while place < start + size:
        if data[place] == 0:
            place = (place // _SECTOR + 1) * _SECTOR
            continue
        yield place
        place += data[place]


def _undate_rock_ridge(data: bytearray, record: int) -> None:
    """The time stamps of a record (RRIP 1.09 section 4.1.6), in the system use area behind its name."""
    length, name = data[record], data[record + 32]
    place = record + 33 + name + (1 - name % 2)
    while place + 4 <= record + length and data[place + 2] >= 4:
        if data[place : place + 2] == b"TF":
            for stamp in range(place + 5, place + data[place + 2], 7):
                data[stamp : stamp + 7] = _RECORD_DATE
        place += data[place + 2]
