"""Which node a command speaks of: a local grid's (``--home``) or the one of a ``node.toml`` (``--config``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dgis.cli.output import home_option
from dgis.errors import DgisError

if TYPE_CHECKING:
    from dgis.ingest import Ingest

F = TypeVar("F", bound=Callable[..., Any])
