"""What the far side says about one transfer: that it begins, markers, and how it ended (RFC 959 section 5.4)."""

from __future__ import annotations

from storage_provider.errors import Faulty
from storage_provider.gridftp.client.control import Control
from storage_provider.gridftp.replies import Reply

# GFD.20: restart marker and performance marker
_MARKERS = frozenset({111, 112})


class Hearing:
    """Takes the replies of one transfer; call it whenever replies may have come. Raises what a no stands for."""

    def __init__(self, control: Control, key: str, *, sending: bool) -> None:
        self._control = control
        self._key = key
        self._sending = sending
        self._begun = False
        self._ended: Reply | None = None

    @property
    def ended(self) -> bool:
        """Whether the final reply has come."""
        return self._ended is not None

    def __call__(self) -> None:
        """Take what has come, up to the transfer's end; replies to later commands are left."""
        while self._ended is None and self._control.ready():
            self._take(self._control.reply())

    def begin(self) -> None:
        """Wait until the far side has begun."""
        while not self._begun and self._ended is None:
            self._take(self._control.reply())

    def end(self, patience: float | None = None) -> Reply:
        """Wait for the final reply, a yes."""
        self._sending = False
        while self._ended is None:
            self._take(self._control.reply(patience))
        return self._ended

    def _take(self, reply: Reply) -> None:
        if reply.kind == 1:
            self._begun = self._begun or reply.code not in _MARKERS
            return
        self._ended = reply
        self._control.checked(reply, self._key)
        if self._sending:
            raise Faulty("the far side ended the transfer before its end", door=self._control.door.url, key=self._key)
