"""Put objects into a spool the way an association does."""

from __future__ import annotations

from pathlib import Path

from dgis.spool import Arrival, Spool, SpoolEntry
from tests.helpers.objects import CT, EXPLICIT, data_set


def arrival(
    instance: str = "1.2.3.4.1", *, association: str = "as1", sender: str = "MOD", syntax: str = EXPLICIT
) -> Arrival:
    """The command side of one C-STORE."""
    return Arrival(
        sop_class_uid=CT,
        instance_uid=instance,
        transfer_syntax=syntax,
        calling_ae=sender,
        called_ae="DGIS",
        issuer="site-a",
        acting_for=f"ae:{sender}@a",
        association_id=association,
    )


def store(
    spool: Spool, instance: str = "1.2.3.4.1", *, data: bytes | None = None, step: int = 4096, **command: str
) -> SpoolEntry:
    """Commit one object; `data` defaults to a small CT with that instance UID."""
    data = data_set(instance) if data is None else data
    incoming = spool.begin(arrival(instance, **command))
    for start in range(0, len(data), step):
        incoming.write(data[start : start + step])
    return incoming.commit()


def everything_below(root: Path) -> list[Path]:
    """All regular files that are objects or parts of objects (locks and state left out)."""
    return [p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".") and p.parent.name != "state"]
