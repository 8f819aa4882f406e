"""Which transfer syntax an instance goes out in, and what has to be done for it. Pure.

The original is preferred. Otherwise an uncompressed syntax that the receiver accepts: native encodings are re-encoded,
lossless codestreams are decoded, and lossy ones are decoded as well when the receiver cannot take the original: a
decoded lossy image has lost nothing more, and keeps saying that it is lossy (PS3.3 C.7.6.1.1.5). Nothing is compressed
on the way out but by the deflated syntax, which is lossless.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

IMPLICIT_LE, EXPLICIT_LE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED_LE, EXPLICIT_BE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
NATIVE = (EXPLICIT_LE, IMPLICIT_LE, DEFLATED_LE, EXPLICIT_BE)  # in the order of preference

_JPEG = "1.2.840.10008.1.2.4."
JPEG_LOSSY = frozenset((_JPEG + "50", _JPEG + "51"))
LOSSY = JPEG_LOSSY | {_JPEG + "81", _JPEG + "91", _JPEG + "203"}  # 91 and 203 may be lossless, their name does not say
LOSSLESS = frozenset(_JPEG + n for n in ("57", "70", "80", "90", "201", "202")) | {"1.2.840.10008.1.2.5"}
DECODABLE = LOSSY | LOSSLESS

# What a C-STORE SCU proposes beside the stored syntax; implicit little endian is never missing (PS3.5 10.1).
FALLBACKS = (EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE)


@dataclass(frozen=True, slots=True)
class Way:
    """How an instance goes out: `target` is its transfer syntax; `convert` is False when that is the stored one."""

    target: str
    convert: bool


def plan(stored: str, accepted: Collection[str]) -> Way | None:
    """Return the way from the stored transfer syntax to one of the accepted ones; None when there is none."""
    if stored in accepted:
        return Way(stored, convert=False)
    if stored not in NATIVE and stored not in DECODABLE:
        return None
    target = next((syntax for syntax in NATIVE if syntax in accepted), None)
    return None if target is None else Way(target, convert=True)
