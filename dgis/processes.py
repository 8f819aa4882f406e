"""What the processes of a node share besides the spool's objects: a listening socket, and the table of who runs."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from dgis.config import NodeConfig
from dgis.errors import DgisError

BACKLOG = 1024


class NodeError(DgisError):
    """The node cannot start; the text says what is in the way."""


def listen(host: str, port: int, *, patience: float, given_up: Callable[[], bool]) -> socket.socket:
    """The listening socket that all receivers inherit.

    Waits ``patience`` seconds for an address still in use: receivers of a killed supervisor need a moment to end.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    deadline = time.monotonic() + patience
    while True:
        try:
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError as error:
            if given_up() or time.monotonic() >= deadline:
                listener.close()
                raise NodeError(
                    f"cannot listen on {host}:{port}: {error.strerror}; is another DGIS running?"
                ) from error
            time.sleep(0.1)
            continue
        listener.setblocking(False)
        return listener


def _process_table(node: NodeConfig) -> Path:
    return node.dgis.spool / "state" / "processes.json"


def write_process_table(node: NodeConfig, pids: Mapping[str, int | None]) -> None:
    """Tell the other processes who runs; written only when it changed."""
    if read_process_table(node) != pids:
        path = _process_table(node)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        staged = path.with_suffix(".new")
        staged.write_text(json.dumps(pids))
        staged.replace(path)


def read_process_table(node: NodeConfig) -> dict[str, int | None]:
    """Who runs, by name; empty when nobody wrote it yet."""
    try:
        table: dict[str, int | None] = json.loads(_process_table(node).read_text())
    except (OSError, ValueError):
        return {}
    return table
