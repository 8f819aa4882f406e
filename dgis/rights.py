"""The VO's policy as a node knows it: the worker keeps a copy of the catalog's, every process of the node reads it.

The catalog decides what a query shows and what may be retrieved; here it is decided who may store, and requests that
can have no answer are refused without asking. The copy lies in the spool's `state/`, so that it outlasts a catalog
that is away: a node that knew a policy goes on by it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from catalog.wire import PolicyText
from certs.errors import ConfigError
from certs.files import write_atomically
from certs.log import get_log
from certs.vo.explain import explain
from certs.vo.file import parse_policy
from certs.vo.policy import Action, Policy

log = get_log()

_LOOK_SECONDS = 0.5
_MOST_ANSWERS = 4096
_NOTHING = Policy("a VO whose policy this node does not understand", {}, ())
_UNKNOWN = "the policy of the VO is not known here yet"


class PolicyCatalog(Protocol):
    """The part of the catalog client that gives the policy."""

    def policy(self, version: int | None = None) -> PolicyText | None:
        """Read the policy in force; None when there is none. Raises CatalogError."""


def policy_file(spool: Path) -> Path:
    """Where a node keeps its copy."""
    return spool / "state" / "policy.json"


class PolicyCopy:
    """Keeps the node's copy like the catalog's policy; for one thread of the worker."""

    def __init__(self, catalog: PolicyCatalog, path: Path) -> None:
        self._catalog, self._path = catalog, path
        self._version: int | None = None

    def refresh(self) -> None:
        """Take over the policy in force. Raises CatalogError, and leaves the copy as it is, when it cannot be had."""
        found = self._catalog.policy()
        version = 0 if found is None else found.version
        if version == self._version and self._path.exists():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = "" if found is None else found.text
        write_atomically(self._path, json.dumps({"version": version, "text": text}).encode(), mode=0o600)
        if self._version is not None or version:
            log.info("policy known", version=version)
        self._version = version


class Rights:
    """Answers from the node's copy, as it is now. Thread-safe.

    With `required`, nobody may do anything while no policy is known; else whatever the AE table allows.
    """

    def __init__(self, path: Path, *, required: bool = False) -> None:
        self._path, self._required = path, required
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._stamp: tuple[int, int] | None = None
        self._policy: Policy | None = None
        self._answers: dict[tuple[str, Action], str] = {}

    def refusal(self, actor: str, action: Action) -> str:
        """Say why an actor may not do something with any study; empty when there may be one."""
        policy = self._current()
        if policy is None:
            return _UNKNOWN if self._required else ""
        known = self._answers.get((actor, action))
        if known is None:
            allowed = policy.rights_of(actor).may_ever(action)
            known = "" if allowed else explain(policy, actor, action, None).text
            with self._lock:
                if policy is self._policy:
                    if len(self._answers) >= _MOST_ANSWERS:
                        self._answers = {}
                    self._answers[actor, action] = known
        return known

    def _current(self) -> Policy | None:
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return self._policy
        with self._lock:
            self._looked = now
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._stamp, self._policy, self._answers = stamp, _read(self._path), {}
            return self._policy


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _read(path: Path) -> Policy | None:
    """Read the copy; None when no policy is in force. What cannot be understood grants nothing."""
    try:
        copy: dict[str, Any] = json.loads(path.read_bytes())
        return parse_policy(str(copy["text"])) if int(copy["version"]) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        log.error("policy not understood", error=type(error).__name__)
        return _NOTHING
