"""The running front: what its maps say, change them without a reload, end the sessions that have no route any more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from dgis.deploy import routes
from dgis.deploy.errors import HostError
from dgis.deploy.machine import Machine
from dgis.deploy.plan import Front

# One connection a line, as HAProxy wants it; prints the answers as a JSON list
_ASK: Final = """\
import json, socket, sys
answers = []
for line in sys.stdin.read().splitlines():
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        link.connect(sys.argv[1])
        link.sendall(line.encode() + b"\\n")
        parts = []
        while part := link.recv(65536):
            parts.append(part)
    answers.append(b"".join(parts).decode())
print(json.dumps(answers))
"""
_BATCH: Final = 60  # map entries a line: HAProxy reads 16 KiB at most
_SESSION = re.compile(r"^(0x[0-9a-f]+): ", re.MULTILINE)
_SOURCE = re.compile(r"\bsource=(\d+\.\d+\.\d+\.\d+):\d+")
_SERVER = re.compile(r"\bserver=guest \(id=1\) addr=(\d+\.\d+\.\d+\.\d+):(\d+)")


@dataclass(frozen=True, slots=True)
class Session:
    """A connection through the front."""

    id: str
    source: IPv4Address
    target: str


class RunningFront:
    """A HAProxy that answers at its administration socket."""

    def __init__(self, machine: Machine, socket: str = routes.SOCKET) -> None:
        self._machine = machine
        self._socket = socket

    def answers(self) -> bool:
        """Whether it runs."""
        try:
            return "HAProxy" in self._ask(["show info"])[0]
        except HostError:
            return False

    def maps(self) -> dict[str, dict[str, str]]:
        """What its maps say now, by file name."""
        return {name: self._entries(name) for name in (routes.NETWORKS, routes.ROUTES)}

    def update(self, front: Front) -> bool:
        """Make the maps those of `front`; returns whether anything changed.

        Each map is replaced in one step. Between them old and new routes count both, so that nobody who may come before
        and after is refused meanwhile.
        """
        wanted, now = routes.maps(front), self.maps()
        if now == wanted:
            return False
        self._replace(routes.ROUTES, {**now[routes.ROUTES], **wanted[routes.ROUTES]})
        self._replace(routes.NETWORKS, wanted[routes.NETWORKS])
        self._replace(routes.ROUTES, wanted[routes.ROUTES])
        return True

    def sessions(self) -> Iterator[Session]:
        """The connections that have reached a guest."""
        text = self._ask(["show sess all"])[0]
        starts = [match.start() for match in _SESSION.finditer(text)] + [len(text)]
        for begin, end in zip(starts, starts[1:], strict=False):
            part = text[begin:end]
            found, source, server = _SESSION.match(part), _SOURCE.search(part), _SERVER.search(part)
            if found and source and server:
                yield Session(found[1], IPv4Address(source[1]), f"{server[1]}:{server[2]}")

    def cut(self, front: Front | None, *, dry_run: bool = False) -> int:
        """End every session whose client may not reach its guest by any name; returns how many."""
        allowed = front.routes if front is not None else ()
        ended = [
            session
            for session in self.sessions()
            if not any(
                session.target == f"{route.target}:{route.port}"
                and any(session.source in network for network in route.sources)
                for route in allowed
            )
        ]
        if ended and not dry_run:
            self._ask([f"shutdown session {session.id}" for session in ended])
        return len(ended)

    def _entries(self, name: str) -> dict[str, str]:
        text = self._ask([f"show map {name}"])[0]
        if text.startswith("Unknown map"):
            return {}
        return {parts[1]: parts[2] for line in text.splitlines() if len(parts := line.split(" ", 2)) == 3}

    def _replace(self, name: str, entries: dict[str, str]) -> None:
        said = self._ask([f"prepare map {name}"])[0]
        version = re.search(r"version created: (\d+)", said)
        if version is None:
            raise HostError(f"the front knows no map {name}: reload it with its new configuration ({said.strip()})")
        adds = [f"add map @{version[1]} {name} {key} {value}" for key, value in entries.items()]
        batches = ["; ".join(adds[first : first + _BATCH]) for first in range(0, len(adds), _BATCH)]
        complaints = [said for said in self._ask([*batches, f"commit map @{version[1]} {name}"]) if said.strip()]
        if complaints:
            raise HostError(f"the front did not take its map {name}: {complaints[0].strip()[:500]}")

    def _ask(self, lines: Sequence[str]) -> list[str]:
        said = self._machine.run(("python3", "-c", _ASK, self._socket), text="\n".join(lines) + "\n")
        answers: list[str] = json.loads(said)
        return answers
