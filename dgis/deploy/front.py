"""The running front: what its maps say, change them without a reload, end the sessions that have no route any more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from dgis.deploy import routes
from dgis.deploy.errors import HostError
from dgis.deploy.machine import Machine
from dgis.deploy.plan import Front

# Reads a JSON list of [socket, command], prints a JSON list of answers: null where nobody listens. One connection a
# command, its sending side closed, or the master would wait for another.
_ASK: Final = """\
import json, socket, sys
answers = []
for path, command in json.loads(sys.stdin.read()):
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        try:
            link.connect(path)
            link.sendall(command.encode() + b"\\n")
            link.shutdown(socket.SHUT_WR)
            parts = []
            while part := link.recv(65536):
                parts.append(part)
        except (FileNotFoundError, ConnectionRefusedError):
            answers.append(None)
        except OSError as error:
            sys.exit(f"{path}: {error.strerror or error}")
        else:
            answers.append(b"".join(parts).decode(errors="replace"))
print(json.dumps(answers))
"""
_LONGEST: Final = 12_000  # bytes of commands in one go: HAProxy reads 16 KiB at most
_SESSION = re.compile(r"^(0x[0-9a-f]+): ", re.MULTILINE)
_SOURCE = re.compile(r"\bsource=(\d+\.\d+\.\d+\.\d+):\d+")
_SERVER = re.compile(r"\bserver=guest \(id=1\) addr=(\d+\.\d+\.\d+\.\d+):(\d+)")
_OLD_WORKERS = re.compile(r"^# old workers$(.*?)^#", re.MULTILINE | re.DOTALL)
_WORKER = re.compile(r"^(\d+)\s+worker\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Session:
    """A connection through the front; `worker` is the process that has it since before a reload, 0 the present one."""

    id: str
    source: IPv4Address
    target: str
    worker: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """The front as it runs: the mark of its configuration (`routes.digest`), its maps by file name, who is in it."""

    config: str
    maps: dict[str, dict[str, str]]
    sessions: tuple[Session, ...]


class RunningFront:
    """A HAProxy that answers at its administration socket, and maybe at its master's."""

    def __init__(self, machine: Machine, socket: str = routes.SOCKET, master: str = routes.MASTER) -> None:
        self._machine = machine
        self._socket = socket
        self._master = master

    def look(self) -> Look | None:
        """How it runs now, None when it does not. Raises HostError when it may not be asked."""
        asked = [f"show env {routes.MARKER}", *(f"show map {name}" for name in routes.maps(None)), "show sess all"]
        config, *maps, present, processes = self._ask([*((self._socket, line) for line in asked), self._old()])
        if config is None or present is None:
            return None
        return Look(
            config=config.strip().removeprefix(f"{routes.MARKER}="),
            maps={name: _entries(text or "") for name, text in zip(routes.maps(None), maps, strict=True)},
            sessions=(*_sessions(present, 0), *self._older(processes or "")),
        )

    def update(self, now: Mapping[str, Mapping[str, str]], wanted: Mapping[str, Mapping[str, str]]) -> bool:
        """Make the maps, which are `now`, what is `wanted`; returns whether anything had to change.

        Each map is replaced in one step. Between them old and new routes count both, so that nobody who may come before
        and after is refused meanwhile.
        """
        if now == wanted:
            return False
        both = {**now[routes.ROUTES], **wanted[routes.ROUTES]}
        self._replace(
            (routes.ROUTES, both), (routes.NETWORKS, wanted[routes.NETWORKS]), (routes.ROUTES, wanted[routes.ROUTES])
        )
        return True

    def end(self, sessions: Sequence[Session]) -> None:
        """End sessions, in older workers, too; both sides see it at once."""
        if sessions:
            self._ask([self._shutdown(session) for session in sessions])

    def _shutdown(self, session: Session) -> tuple[str, str]:
        command = f"shutdown session {session.id}"
        return (self._master, f"@!{session.worker} {command}") if session.worker else (self._socket, command)

    def _old(self) -> tuple[str, str]:
        return self._master, "show proc"

    def _older(self, processes: str) -> Iterator[Session]:
        """The sessions that a reload left with the process that had them."""
        found = _OLD_WORKERS.search(processes)
        workers = [int(number) for number in _WORKER.findall(found[1])] if found is not None else []
        answers = self._ask([(self._master, f"@!{worker} show sess all") for worker in workers])
        for worker, text in zip(workers, answers, strict=True):
            yield from _sessions(text or "", worker)

    def _replace(self, *steps: tuple[str, Mapping[str, str]]) -> None:
        """Make new versions of maps, then put them in force one after the other."""
        said = self._ask([(self._socket, f"prepare map {name}") for name, _ in steps])
        commands: list[tuple[str, str]] = []
        for (name, entries), answer in zip(steps, said, strict=True):
            version = re.search(r"version created: (\d+)", answer or "")
            if version is None:
                complaint = (answer or "no answer").strip()
                raise HostError(f"the front knows no map {name}: reload it with its new configuration ({complaint})")
            adds = (f"add map @{version[1]} {name} {key} {value}" for key, value in entries.items())
            commands += [(name, line) for line in (*_batches(adds), f"commit map @{version[1]} {name}")]
        answers = self._ask([(self._socket, line) for _, line in commands])
        for (name, _), answer in zip(commands, answers, strict=True):
            if answer is None or answer.strip():
                raise HostError(f"the front did not take its map {name}: {(answer or 'no answer').strip()[:500]}")

    def _ask(self, asked: Sequence[tuple[str, str]]) -> list[str | None]:
        if not asked:
            return []
        said = self._machine.run(("python3", "-I", "-S", "-c", _ASK), text=json.dumps(asked))
        answers: list[str | None] = json.loads(said)
        return answers


def without_route(sessions: Sequence[Session], front: Front | None) -> tuple[Session, ...]:
    """The sessions whose client may not reach its guest by any name."""
    allowed = front.routes if front is not None else ()
    return tuple(
        session
        for session in sessions
        if not any(
            session.target == f"{route.target}:{route.port}"
            and any(session.source in network for network in route.sources)
            for route in allowed
        )
    )


def _entries(text: str) -> dict[str, str]:
    """`0x55d... KEY VALUE` a line; an unknown map is an empty one, and `update` says what is wrong."""
    if text.startswith("Unknown map"):
        return {}
    return {parts[1]: parts[2] for line in text.splitlines() if len(parts := line.split(" ", 2)) == 3}


def _sessions(text: str, worker: int) -> Iterator[Session]:
    """The connections of `show sess all` that have reached a guest."""
    starts = [match.start() for match in _SESSION.finditer(text)] + [len(text)]
    for begin, end in zip(starts, starts[1:], strict=False):
        part = text[begin:end]
        found, source, server = _SESSION.match(part), _SOURCE.search(part), _SERVER.search(part)
        if found and source and server:
            yield Session(found[1], IPv4Address(source[1]), f"{server[1]}:{server[2]}", worker)


def _batches(commands: Iterator[str]) -> Iterator[str]:
    """As many commands a line as HAProxy reads."""
    batch = ""
    for command in commands:
        if batch and len(batch) + len(command) > _LONGEST:
            yield batch
            batch = ""
        batch += f"; {command}" if batch else command
    if batch:
        yield batch
