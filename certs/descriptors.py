"""File descriptors: as many as the system gives, and quiet, rare words when they run out."""

from __future__ import annotations

import asyncio
import errno
import resource
import time
from collections.abc import Callable
from typing import Any

from certs.log import get_log

log = get_log()

MOST_DESCRIPTORS = 65_536
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_SAY_EVERY = 5.0


def descriptor_limit() -> int:
    """Return how many descriptors this process may have now, at most `MOST_DESCRIPTORS`."""
    return _capped(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def raise_descriptor_limit() -> int:
    """Raise the soft limit (1024 by custom) to the hard one, at most `MOST_DESCRIPTORS`; returns what holds then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _capped(soft) < _capped(hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (_capped(hard), hard))
        except (OSError, ValueError) as error:
            log.warning("descriptor_limit_kept", limit=soft, reason=str(error))
    return descriptor_limit()


def _capped(limit: int) -> int:
    return MOST_DESCRIPTORS if limit == resource.RLIM_INFINITY else min(limit, MOST_DESCRIPTORS)


class Tally:
    """A warning about what strangers can cause at any rate: said at once, then once in some seconds, with a count."""

    def __init__(self, event: str, *, every: float = _SAY_EVERY) -> None:
        self._event = event
        self._every = every
        self._count = 0
        self._said = float("-inf")

    def note(self, reason: str, address: str = "") -> None:
        """Count one; `reason` and `address` of the last one are logged."""
        self._count += 1
        now = time.monotonic()
        if now - self._said >= self._every:
            log.warning(self._event, count=self._count, reason=reason, address=address)
            self._said, self._count = now, 0


def quiet_when_scarce(event: str) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Make an event loop's exception handler that has no traceback for descriptors running out, but counts."""
    tally = Tally(event)

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _SCARCE:
            tally.note(str(error.strerror))
        else:
            loop.default_exception_handler(context)

    return handle
