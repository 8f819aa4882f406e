"""Structured logs on stderr, without patient data.

Two rules are enforced here rather than hoped for: values are scalars only (no data set, record or certificate slips
into a line), and keys that name patient attributes or key material are dropped.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Literal, TextIO, cast

import structlog

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_PRIVATE_KEYS = frozenset(
    {
        "patient", "patientid", "patientname", "patientbirthdate", "patientsex", "patientage", "issuerofpatientid",
        "otherpatientids", "otherpatientnames", "accessionnumber", "studydescription", "seriesdescription",
        "referringphysicianname", "performingphysicianname", "operatorsname", "institutionname", "address",
        "dataset", "identifier", "header", "query", "matches", "key", "privatekey", "password", "token", "permit",
    }
)  # fmt: skip


class _Stderr:
    """Whatever sys.stderr is at the moment of writing."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def configure(service: str, level: Literal["debug", "info", "warning", "error"], fmt: Literal["text", "json"]) -> None:
    """Set up logging for a process: every line carries ``service``; call once, at the edge."""
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # a full connection pool is no news
    renderer = structlog.processors.JSONRenderer() if fmt == "json" else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _scalars_only,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _name_service(service),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(file=cast("TextIO", _Stderr())),
        cache_logger_on_first_use=False,
    )


def get_log() -> structlog.typing.FilteringBoundLogger:
    """Return the logger; bind it as ``log`` at module level, it picks up ``configure`` later.

    Until then warnings and errors go to stderr, so that a library call never writes into a command's output.
    """
    if not structlog.is_configured():
        configure("dgis", "warning", "text")
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger())


def _scalars_only(_logger: object, _method: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    kept: MutableMapping[str, object] = {}
    for name, value in event.items():
        plain = name.replace("_", "").lower()
        if name == "exc_info" and value:
            kept["error"] = _error_type(value)
        if plain in _PRIVATE_KEYS or name in ("exc_info", "stack_info"):
            continue
        kept[name] = value if isinstance(value, str | int | float | bool) or value is None else type(value).__name__
    return kept


def _name_service(service: str) -> structlog.typing.Processor:
    def add(_logger: object, _method: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
        event["service"] = service
        return event

    return add


def _error_type(exc_info: object) -> str:
    """Name the exception's type only: its text may quote what must not be logged."""
    error = exc_info if isinstance(exc_info, BaseException) else sys.exc_info()[1]
    return type(error).__name__
