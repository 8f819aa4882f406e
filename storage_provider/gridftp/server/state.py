"""What a session's commands have set for those to come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from storage_provider.gridftp.commands import Restart


@dataclass(slots=True)
class State:
    """The parameters of transfers (RFC 959 section 4.1.2, GFD.20); `private` after PROT P.

    ``size`` (ALLO) and ``restart`` (REST) count for the next transfer only.
    """

    folder: str = "/"
    mode: Literal["S", "E"] = "S"
    image: bool = True
    private: bool = False
    authenticated: bool = True
    size: int | None = None
    restart: Restart | None = None
    parallel: int = 1
    sent_ahead: bool = False
    rename_from: str | None = None
