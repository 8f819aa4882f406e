"""The local end of a fetch: a temporary file beside the target, verified as a whole, then renamed over it."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from types import TracebackType

from storage_provider.checksum import CHUNK_BYTES, blocks
from storage_provider.disk import create, disk_errors, write_at


class Landing:
    """Receives pieces at their offsets from several threads; `advance` hashes what is whole, from one thread."""

    def __init__(self, target: Path, key: str) -> None:
        self._target = target
        self._key = key
        self._temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
        self._digest = hashlib.sha256()
        self._hashed = 0
        with disk_errors(key):
            self._fd = create(self._temporary)

    def __enter__(self) -> Landing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        self._temporary.unlink(missing_ok=True)

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes at their place; NoSpace or LocalFault when the local disk will not."""
        with disk_errors(self._key):
            write_at(self._fd, data, offset)

    def advance(self, upto: int) -> bool:
        """Hash at most one more chunk of the gapless beginning; tell whether there is more to hash now."""
        length = min(upto - self._hashed, CHUNK_BYTES)
        if length > 0:
            with disk_errors(self._key):
                for data in blocks(self._fd, offset=self._hashed, length=length):
                    self._digest.update(data)
            self._hashed += length
        return self._hashed < upto

    @property
    def sha256(self) -> str:
        """The digest of what was hashed so far."""
        return self._digest.hexdigest()

    def publish(self) -> None:
        """Rename the verified file to the target."""
        with disk_errors(self._key):
            os.replace(self._temporary, self._target)
