"""Users of user identity negotiation (PS3.7 D.3.3.7): names with hashed passcodes.

A passcode is kept as a salted scrypt hash only, appears in no log, and is compared in constant time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping
from typing import Literal

from dgis.dimse.negotiation import UserIdentity

Policy = Literal["accept", "check", "require"]
"""What is done with a user identity: taken as a claim; a passcode that is sent must be right; one must be sent."""

_N, _R, _P = 16384, 8, 1  # about 40 ms and 16 MiB each


def hashed(passcode: bytes) -> str:
    """Return the form in which a passcode is kept."""
    salt = os.urandom(16)
    return f"scrypt${_N}${_R}${_P}${_text(salt)}${_text(_derive(passcode, salt, _N, _R, _P))}"


def matches(passcode: bytes, kept: str) -> bool:
    """Whether a passcode is the one that was hashed."""
    _, n, r, p, salt, digest = kept.split("$")
    try:
        found = _derive(passcode, base64.b64decode(salt), int(n), int(r), int(p))
    except ValueError:
        return False
    return hmac.compare_digest(found, base64.b64decode(digest))


def verified(user: UserIdentity | None, users: Mapping[str, str], policy: Policy) -> bool | None:
    """Say whether an identity was checked and is right; None when the association must be refused.

    `users` are hashed passcodes by name.
    """
    if policy == "accept":
        return False
    if user is None or user.kind != 2:  # tickets, assertions and tokens cannot be checked here
        return None if policy == "require" else False
    # An unknown name costs as much time as a wrong passcode.
    right = matches(user.secret, users.get(user.name, _NOBODY))
    return True if right and user.name in users else None


def _derive(passcode: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(passcode, salt=salt, n=n, r=r, p=p, dklen=32)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


_NOBODY = f"scrypt${_N}${_R}${_P}${_text(bytes(16))}${_text(bytes(32))}"
