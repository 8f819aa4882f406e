"""Listing the objects behind a door, folder by folder, in key order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice

from storage_provider.channel import Stat
from storage_provider.errors import Faulty, Refused
from storage_provider.keys import parse_key
from storage_provider.sftp import client_packets as packets
from storage_provider.sftp.client_errors import Failed
from storage_provider.sftp.client_get import regular
from storage_provider.sftp.client_replies import Attrs
from storage_provider.sftp.client_session import TAKE, Steps, ask, checked
from storage_provider.sftp.numbers import Code

# Folders that are read at once; each holds 1/65536 of the objects
_AT_ONCE = 24
_DEPTH = 3  # v1/ab/cd
# More names than any folder of a store has; a server that goes on for ever is left
_MOST_NAMES = 1_000_000

Entries = tuple[tuple[str, Attrs], ...]
Fetch = Callable[[Sequence[str]], Sequence[Entries]]
"""Gives the entries of some folders below `objects`, in the order asked."""


def entries(path: str) -> Steps[Entries]:
    """Return what a directory holds, nothing when it is not there."""
    found: list[tuple[str, Attrs]] = []
    try:
        handle = (yield from ask(packets.opendir(path))).handle
    except Failed as failed:
        if failed.absent:
            return ()
        raise
    yield packets.readdir(handle)
    trouble: Failed | None = None
    while trouble is None and len(found) < _MOST_NAMES:
        yield packets.readdir(handle)  # one ahead: most folders end with the second
        try:
            found += checked((yield TAKE)).names
        except Failed as failed:
            trouble = failed
    yield TAKE
    yield from ask(packets.close(handle))
    if trouble is None:
        raise Faulty("the server's listing does not end")
    if trouble.status.code != Code.EOF:
        raise trouble
    return tuple(found)


def listed(prefix: str, fetch: Fetch) -> Iterator[Stat]:
    """Yield the objects whose key begins with `prefix`."""
    return _below([""], prefix, fetch, _DEPTH)


def _below(folders: Sequence[str], prefix: str, fetch: Fetch, depth: int) -> Iterator[Stat]:
    waiting = iter(folders)
    while some := list(islice(waiting, _AT_ONCE)):
        inner: list[str] = []
        for folder, found in zip(some, fetch(some), strict=True):
            paths = {f"{folder}/{name}".lstrip("/"): attrs for name, attrs in found if "/" not in name}
            if depth:
                inner += [path for path in sorted(paths) if _leads_to(path, prefix)]
                continue
            stats = (_stat(path, paths[path]) for path in sorted(paths) if path.startswith(prefix))
            yield from (stat for stat in stats if stat is not None)
        if inner:
            yield from _below(inner, prefix, fetch, depth - 1)


def _leads_to(folder: str, prefix: str) -> bool:
    # "." and "..", and whatever else lies about, is no part of a key
    names = folder.split("/")
    layout = names[0] == "v1" and all(len(name) == 2 and name.isalnum() for name in names[1:])
    return layout and (folder.startswith(prefix) or prefix.startswith(f"{folder}/"))


def _stat(path: str, attrs: Attrs) -> Stat | None:
    size = regular(attrs)
    try:
        parse_key(path)
    except Refused:
        return None
    return None if size is None else Stat(path, size, datetime.fromtimestamp(attrs.modified or 0, UTC))
