"""When two door URLs lead to the same place: two storage elements may not share one, or two copies were one file."""
from __future__ import annotations

from urllib.parse import unquote, urlsplit

# IANA's; a door that names none is reached there
_PORTS = {"https": 443, "gsiftp": 2811, "sftp": 22}


def place_of(door: str) -> str:
    """Spell a door in one way: lower case, the port that counts, no user, no slash at the end, nothing after the path.

    What is no URL stands for itself. Two names of one host are two places here: only the door itself could tell.
    """
    try:
        parts = urlsplit(door)
        host, port = parts.hostname, parts.port
    except ValueError:
        return door
    if not host:
        return door
    scheme = parts.scheme.lower()
    path = "/".join(["", *filter(None, unquote(parts.path).split("/"))])
    return f"{scheme}://{host.rstrip('.')}:{port or _PORTS.get(scheme, 0)}{path}"
