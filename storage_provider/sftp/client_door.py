"""SFTP door URLs, and where things lie behind them. Pure.

sftp://[USER@]HOST[:PORT]/areas/NAME      an area of our own storage element
sftp://USER@HOST[:PORT]/any/other/path    a directory of any SFTP server: objects/v1/ab/cd/<sha256> and stage/
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from storage_provider.errors import DoorURL
from storage_provider.keys import parse_key

SSH_PORT = 22
DEFAULT_USER = "dgis"
_OWN = re.compile(r"/areas/[a-z0-9][a-z0-9_-]{0,62}", re.A)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}", re.A)
_FORM = "an SFTP door looks like sftp://HOST:PORT/areas/NAME, or sftp://USER@HOST:PORT/DIR for a foreign server"


@dataclass(frozen=True, slots=True)
class Door:
    """A parsed door; `own` when the far side is a dgis storage element."""

    url: str
    host: str
    port: int
    user: str
    root: str
    own: bool

    @classmethod
    def parse(cls, url: str) -> Door:
        """Take a door URL apart; raises DoorURL."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise DoorURL(_FORM, door=url) from error
        root, user = unquote(parts.path), unquote(parts.username or DEFAULT_USER)
        if parts.scheme != "sftp" or not host or port == 0 or parts.query or parts.fragment:
            raise DoorURL(_FORM, door=url)
        if parts.password is not None:
            raise DoorURL("a door holds no password; keys alone log in", door=_bare(url))
        if _USER.fullmatch(user) is None or not _plain(root):
            raise DoorURL(_FORM, door=url)
        return cls(url, host, port or SSH_PORT, user, root, _OWN.fullmatch(root) is not None)

    @property
    def objects(self) -> str:
        """The directory of the objects; a key below it is a path."""
        return f"{self.root}/objects"

    @property
    def stage(self) -> str:
        """The directory of what is not verified yet."""
        return f"{self.root}/stage"

    def object(self, key: str) -> str:
        """Return the path of an object; Refused for what is no key."""
        parse_key(key)
        return f"{self.objects}/{key}"

    def folders(self, key: str) -> tuple[str, ...]:
        """Return the directories above an object, outermost first."""
        names = self.object(key)[len(self.root) + 1 :].split("/")[:-1]
        return tuple("/".join((self.root, *names[:count])) for count in range(1, len(names) + 1))


def _plain(path: str) -> bool:
    first, *names = path.split("/")
    return not first and bool(names) and all(name not in ("", ".", "..") and name.isprintable() for name in names)


def _bare(url: str) -> str:
    """Return a URL without its user part, for an error text."""
    return re.sub(r"//[^/]*@", "//", url)
