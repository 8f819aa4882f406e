"""Object keys: `v1/ab/cd/<sha256 of the stored bytes>`, the only names that exist in a store.

The layout lives here and nowhere else. A key is built from a digest or parsed by one exact pattern; whatever else a
peer sends (`..`, absolute paths, percent codes, NUL, upper case) is refused before it can become a path.
"""

from __future__ import annotations

import re

from storage_provider.errors import Refused

_SHA256 = re.compile(r"[0-9a-f]{64}", re.A)
_KEY = re.compile(r"v1/([0-9a-f]{2})/([0-9a-f]{2})/([0-9a-f]{64})", re.A)
_PREFIX = re.compile(r"(v1?|v1/[0-9a-f]{0,2}|v1/[0-9a-f]{2}/[0-9a-f]{0,2}|v1(/[0-9a-f]{2}){2}/[0-9a-f]{0,64})?", re.A)


def is_sha256(text: str) -> bool:
    """Tell whether `text` is a SHA-256 in lower-case hexadecimal, the only spelling used."""
    return _SHA256.fullmatch(text) is not None


def object_key(sha256: str) -> str:
    """Return the key of the object with this digest; refuse anything that is not a digest."""
    if not is_sha256(sha256):
        raise Refused("not a SHA-256 in lower-case hexadecimal")
    return f"v1/{sha256[:2]}/{sha256[2:4]}/{sha256}"


def parse_key(key: str) -> str:
    """Return the digest that a key names; refuse everything that `object_key` could not have made."""
    match = _KEY.fullmatch(key)
    if match is None or match[3][:2] != match[1] or match[3][2:4] != match[2]:
        raise Refused("not an object key (v1/ab/cd/<sha256>)")
    return match[3]


def parse_prefix(prefix: str) -> str:
    """Return `prefix` when some key can begin with it ("" means all); refuse it otherwise."""
    if _PREFIX.fullmatch(prefix) is None:
        raise Refused("not the beginning of an object key")
    return prefix
