"""Images for storing: files of one size whose UIDs are all of one length, so that a few bytes make them new ones.

Every cell sends images that its server has never seen; making 500 files of 512 KiB anew each time would take longer
than sending them. Each UID holds a generation number; `renew` overwrites it in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dgis import part10
from dgis.dimse.answer import data_set

KIB = 1024
STUDIES = 16
"""Every set has 16 studies, so that 1, 4 and 16 senders have the same to do; a study goes to one sender."""
ROOT = "1.2.826.0.1.3680043.10.1445.8"
FIRST_GENERATION = 1000
CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"


def study_uid(generation: int, study: int) -> str:
    """All UIDs of a set have the same length: every number in them has a fixed one."""
    return f"{ROOT}.{FIRST_GENERATION + generation}.{100 + study}"


@dataclass(slots=True)
class ImageSet:
    """``count`` CT images of ``size`` bytes each (within 2 %) below ``folder``, spread over `STUDIES` studies."""

    folder: Path
    size: int
    count: int
    generation: int = 0
    _files: list[list[Path]] = field(default_factory=list)
    _marks: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, *, size: int, count: int) -> ImageSet:
        """Write the files; `count` is rounded up to a multiple of `STUDIES` when it is above it."""
        made = cls(folder, size, count if count <= STUDIES else STUDIES * math.ceil(count / STUDIES))
        for study in range(min(STUDIES, made.count)):
            made._files.append([])
            for number in range(made.count // min(STUDIES, made.count)):
                path = folder / f"study{study:02d}" / f"{number:05d}.dcm"
                path.parent.mkdir(parents=True, exist_ok=True)
                content = image(study, number, size)
                path.write_bytes(content)
                made._files[-1].append(path)
            made._marks[study] = _marks(content, f"{ROOT}.{FIRST_GENERATION}.".encode())
        return made

    def renew(self) -> None:
        """Make every image another one, of other studies."""
        self.generation += 1
        text = str(FIRST_GENERATION + self.generation).encode()
        for study, paths in enumerate(self._files):
            for path in paths:
                with path.open("r+b", buffering=0) as stream:
                    for mark in self._marks[study]:
                        stream.seek(mark)
                        stream.write(text)

    def take(self, count: int, senders: int) -> list[list[Path]]:
        """The first ``count`` images, shared out by study: one list of files for each sender, none empty."""
        order = [(number, study) for number in range(len(self._files[0])) for study in range(len(self._files))]
        shares: list[list[Path]] = [[] for _ in range(senders)]
        for number, study in sorted(order)[:count]:
            shares[study % senders].append(self._files[study][number])
        return [sorted(share) for share in shares if share]

    def studies(self) -> list[str]:
        """The Study Instance UIDs of this generation."""
        return [study_uid(self.generation, study) for study in range(len(self._files))]


def image(study: int, number: int, size: int) -> bytes:
    """A CT image of generation 0 as a Part 10 file of about ``size`` bytes."""
    side = max(8, 2 * round(math.sqrt(max(0, size - 1100) / 2) / 2))
    uid = f"{study_uid(0, study)}.1.{100000 + number}"
    values = {
        0x00080008: ("CS", "ORIGINAL\\PRIMARY\\AXIAL"), 0x00080016: ("UI", CT), 0x00080018: ("UI", uid),
        0x00080020: ("DA", f"202401{1 + study % 28:02d}"), 0x00080030: ("TM", "101500"),
        0x00080050: ("SH", f"ACC{study:04d}"), 0x00080060: ("CS", "CT"), 0x00080070: ("LO", "SYNTH"),
        0x00080080: ("LO", "Test General Hospital"), 0x00080090: ("PN", "DOC^REF"),
        0x00081030: ("LO", "Head without contrast"), 0x0008103E: ("LO", "CT series"),
        0x00100010: ("PN", f"BENCH{study:02d}^IMAGE"), 0x00100020: ("LO", f"BENCH{study:06d}"),
        0x00100030: ("DA", "19700101"), 0x00100040: ("CS", "F"), 0x00180015: ("CS", "HEAD"),
        0x00180050: ("DS", "1.25"), 0x00180060: ("DS", "120"), 0x00185100: ("CS", "HFS"),
        0x0020000D: ("UI", study_uid(0, study)), 0x0020000E: ("UI", f"{study_uid(0, study)}.1"),
        0x00200010: ("SH", str(study)), 0x00200011: ("IS", "1"), 0x00200013: ("IS", str(10000 + number)),
        0x00200032: ("DS", f"-125\\-125\\{100000 + number}"), 0x00200037: ("DS", "1\\0\\0\\0\\1\\0"),
        0x00200052: ("UI", f"{study_uid(0, study)}.2"),
        0x00280004: ("CS", "MONOCHROME2"), 0x00280030: ("DS", "0.488281\\0.488281"),
        0x00281050: ("DS", "40"), 0x00281051: ("DS", "400"), 0x00281052: ("DS", "-1024"), 0x00281053: ("DS", "1"),
    }  # fmt: skip
    numbers = {0x00280002: 1, 0x00280010: side, 0x00280011: side, 0x00280100: 16, 0x00280101: 12, 0x00280102: 11,
               0x00280103: 0}  # fmt: skip
    elements = {tag: (vr, text.encode()) for tag, (vr, text) in values.items()}
    elements |= {tag: ("US", value.to_bytes(2, "little")) for tag, value in numbers.items()}
    head = part10.file_meta(CT, uid, EXPLICIT) + data_set(dict(sorted(elements.items())), EXPLICIT)
    pixels = _pixels(side, study, number)
    return head + bytes.fromhex("e07f1000") + b"OW\0\0" + len(pixels).to_bytes(4, "little") + pixels


def _pixels(side: int, study: int, number: int) -> bytes:
    """Twelve-bit grey values; no two images of a set are alike."""
    row = bytearray(b"".join(((column * 7 + study) % 4096).to_bytes(2, "little") for column in range(side)))
    pixels = row * side
    pixels[:4] = number.to_bytes(4, "little")
    return bytes(pixels)


def _marks(content: bytes, marker: bytes) -> list[int]:
    """Where the generation's digits begin, everywhere in the file."""
    marks: list[int] = []
    at = content.find(marker)
    while at >= 0:
        marks.append(at + len(marker) - 5)
        at = content.find(marker, at + 1)
    return marks


def label(size: int) -> str:
    """``4 KiB``, ``50 MiB``."""
    return f"{size // KIB**2} MiB" if size >= KIB**2 else f"{size // KIB} KiB"


def spread(images: Sequence[Sequence[Path]]) -> int:
    """How many images these shares hold."""
    return sum(map(len, images))
