"""Door URLs of this channel, and where things lie behind them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from certs.dn import DN
from storage_provider.errors import DoorURL
from storage_provider.keys import parse_key

# IANA: gsiftp 2811/tcp
DEFAULT_PORT = 2811
_OWN = re.compile(r"/areas/[^/]+")
_PATH = re.compile(r"(/[A-Za-z0-9._~+=@,-]+)+")


@dataclass(frozen=True, slots=True)
class Door:
    """`gsiftp://HOST:PORT/PATH`. A path of exactly /areas/NAME is a storage element of ours, any other a foreign one.

    On a foreign server `PATH/objects` holds the objects and `PATH/stage` what is not yet complete.
    """

    url: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Door:
        """Read a door URL; raises DoorURL with the form that is expected."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise DoorURL("not a URL", door=url) from error
        plain = not (parts.query or parts.fragment or parts.username or parts.password)
        path = parts.path.rstrip("/")
        sound = _PATH.fullmatch(path) is not None and not {".", ".."} & set(path.split("/"))
        if parts.scheme != "gsiftp" or not host or not plain or not sound or port == 0:
            teach = "a gsiftp door looks like gsiftp://HOST:PORT/areas/NAME, or gsiftp://HOST:PORT/ABSOLUTE/PATH"
            raise DoorURL(teach, door=url)
        return cls(url, host, port or DEFAULT_PORT, path)

    @property
    def own(self) -> bool:
        """Whether a storage element of ours is behind it."""
        return _OWN.fullmatch(self.path) is not None

    @property
    def objects(self) -> str:
        """The folder of all objects."""
        return f"{self.path}/objects"

    @property
    def stage(self) -> str:
        """The folder of what is not yet complete (foreign servers)."""
        return f"{self.path}/stage"

    def object(self, key: str) -> str:
        """Where the object with this key lies; raises Refused for what is no key."""
        parse_key(key)
        return f"{self.path}/objects/{key}"

    def part(self, key: str, who: DN) -> str:
        """Where this party's upload of an object lies until it is verified (foreign servers)."""
        return f"{self.stage}/{parse_key(key)}{part_suffix(who)}"


def part_suffix(who: DN) -> str:
    """Return what a party's parts end with, so that two parties never write into one another's."""
    return f".{hashlib.sha256(str(who).encode()).hexdigest()[:16]}.part"
