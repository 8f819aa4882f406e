"""The sessions of a channel: kept while they are in order, opened anew otherwise."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from storage_provider.errors import Unreachable
from storage_provider.gridftp.client.link import DataIdentity
from storage_provider.gridftp.client.session import Opening, Session

# A kept connection that was closed while idle shows it at once; what takes longer is the far side's trouble
STALE_SECONDS = 1.0


class Sessions:
    """Lends sessions; keeps at most `opening.data.sessions` idle ones. More in use at once are opened and closed."""

    def __init__(self, opening: Opening, identity: DataIdentity) -> None:
        self.opening = opening
        self._identity = identity
        self._lock = threading.Lock()
        self._idle: list[Session] = []
        self._closed = False

    @contextmanager
    def lent(self, *, up: bool | None = None, fresh: bool = False) -> Iterator[Session]:
        """Lend a session, preferably one with a data connection of that direction; it comes back when in order."""
        session = self.take(up=up, fresh=fresh)
        try:
            yield session
        finally:
            self.give_back(session)

    def take(self, *, up: bool | None = None, fresh: bool = False) -> Session:
        """Return an idle session that is still good, or a new one; `fresh` takes no chances."""
        while not fresh and (session := self._kept(up)) is not None:
            if session.usable():
                session.reused = True
                return session
            session.close()
        return Session(self.opening, self._identity.current())

    def give_back(self, session: Session) -> None:
        """Keep it for the next, unless it is broken, owes replies or was left in the middle of a transfer."""
        if session.moving:
            session.drop_link()
            session.moving = False
        in_order = not session.control.broken and not session.control.owed
        with self._lock:
            if in_order and not self._closed and len(self._idle) < self.opening.data.sessions:
                self._idle.append(session)
                return
        session.close()

    def close(self) -> None:
        """Close what is idle; what is lent is closed when it comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def _kept(self, up: bool | None) -> Session | None:
        with self._lock:
            if self._closed:
                raise Unreachable("the channel is closed", door=self.opening.door.url)
            for at, session in enumerate(self._idle):
                if up is not None and session.linked(up=up):
                    return self._idle.pop(at)
            return self._idle.pop() if self._idle else None
