"""``dgis status``: everything an operator wants to see at a glance."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from catalog.client import CatalogClient
from catalog.errors import CatalogError
from catalog.wire import StorageElement
from certs.credential import Credential
from certs.errors import Answered, CertsError, ServiceError
from certs.https.session import GridSession
from certs.trust import Trust
from dgis.board import Board, read_board
from dgis.cli.nodes import node_options, operator_identity, operator_session, read_node
from dgis.cli.output import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_PARTLY,
    Format,
    console,
    duration,
    format_option,
    print_json,
    size,
    table,
)
from dgis.commit_store import CommitmentStore
from dgis.config import NodeConfig
from dgis.spool import Spool

SOON_DAYS = 7
SOON_HOURS = 12
Rows = list[dict[str, Any]]


@dataclass(slots=True)
class _Status:
    """What was found; ``troubles`` are sentences, worst first read."""

    services: Rows = field(default_factory=list)
    certificates: Rows = field(default_factory=list)
    spool: dict[str, Any] = field(default_factory=dict)
    commitment: dict[str, Any] = field(default_factory=dict)
    storage_elements: Rows = field(default_factory=list)
    errors: Rows = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": not self.troubles,
            "troubles": self.troubles,
            "services": self.services,
            "certificates": self.certificates,
            "spool": self.spool,
            "commitment": self.commitment,
            "storage_elements": self.storage_elements,
            "errors": self.errors,
        }


@click.command("status", epilog="Example: dgis status --home grid --format json")
@node_options
@format_option
def command(*, home: Path, config: Path | None, fmt: Format) -> None:
    """Show services, certificates and their expiry, the spool, storage elements and the last errors.

    Exit code 0 when all is well, 3 when something needs a look, 1 when nothing answers.
    """
    node = read_node(home, config)
    status = _collect(node, home, config)
    if fmt == "json":
        print_json(status.as_json())
    else:
        _print(status)
    dead = not any(service["ok"] for service in status.services)
    sys.exit(EXIT_FAILED if dead else EXIT_PARTLY if status.troubles else EXIT_OK)


def _collect(node: NodeConfig, home: Path, config: Path | None) -> _Status:
    status = _Status()
    session = operator_session(home, config)
    elements = _elements(session, node)
    targets = {"catalog": node.catalog.url, "dgis": f"https://{node.https.host}:{node.https.port}"}
    for element in elements:
        own = next((door for door in element.doors if door.startswith("https:")), None)
        if own is not None:  # a foreign server has no health to ask; its doors show it
            targets[element.name] = _base_url(own)
    for name, url in targets.items():
        _add_service(status, session, name, url)
    identity = operator_identity(home, config)
    credentials = {"dgis": Credential(node.identity.cert, node.identity.key)}
    if config is None:
        credentials |= {"operator": Credential(identity.cert, identity.key)}
        found = sorted(home.glob("*/*.cert.pem"))
        credentials |= {p.parent.name: Credential(p, p.with_name(p.parent.name + ".key.pem")) for p in found}
    trusts = {"CRLs": node.identity.trust}
    if node.dimse_tls is not None and node.dimse_tls.cert is not None:
        edge = node.dimse_tls.identity(node.identity)
        credentials |= {"DICOM TLS": Credential(edge.cert, edge.key)}
    if node.dimse_tls is not None and node.dimse_tls.trust is not None:
        trusts["CRLs of DICOM TLS"] = node.dimse_tls.trust
    _add_certificates(status, credentials)
    for name, trust in trusts.items():
        _add_crls(status, name, trust)
    _add_spool(status, node)
    _add_commitment(status, node)
    board = read_board(node.dgis.spool)
    _add_board(status, board, elements)
    if board is not None:
        _add_waiting(status, board, copies=node.dgis.copies)
    return status


def _elements(session: GridSession, node: NodeConfig) -> tuple[StorageElement, ...]:
    try:
        return tuple(CatalogClient(session, node.catalog.url).storage_elements())
    except CatalogError:
        return ()


def _base_url(door: str) -> str:
    parts = urlsplit(door)
    return f"{parts.scheme}://{parts.netloc}"


def _add_service(status: _Status, session: GridSession, name: str, url: str) -> None:
    try:
        health = session.json("GET", f"{url}/health")
        unwell = [f"{check}: {r['detail']}" for check, r in health["checks"].items() if not r["ok"]]
        ok, detail = not unwell, "; ".join(unwell) or "well"
    except Answered as error:
        ok, detail = False, f"unwell ({error.http_status}); see its log"
    except ServiceError as error:
        ok, detail = False, str(error)
    status.services.append({"name": name, "url": url, "ok": ok, "detail": detail})
    if not ok:
        status.troubles.append(f"{name}: {detail}")


def _add_certificates(status: _Status, credentials: dict[str, Credential]) -> None:
    now = datetime.now(UTC)
    for name, credential in sorted(credentials.items()):
        try:
            end = credential.not_after()
            row = {"name": name, "dn": str(credential.dn()), "expires": end.isoformat(timespec="minutes")}
        except CertsError as error:
            status.certificates.append({"name": name, "dn": "", "expires": "", "left": "", "trouble": str(error)})
            status.troubles.append(str(error))
            continue
        left = (end - now).total_seconds()
        status.certificates.append({**row, "left": _left(left)})
        if left < SOON_DAYS * 86400:
            status.troubles.append(f"the certificate of {name} ends in {_left(left)}: renew it (dgis-certs issue)")


def _add_crls(status: _Status, name: str, trust: Path) -> None:
    try:
        end = Trust(trust).crl_expiry()
    except CertsError as error:
        status.troubles.append(str(error))
        return
    left = (end - datetime.now(UTC)).total_seconds()
    row = {
        "name": name,
        "dn": "the first of the trust directory to end",
        "expires": end.isoformat(timespec="minutes"),
    }
    status.certificates.append({**row, "left": _left(left)})
    if left < SOON_HOURS * 3600:
        status.troubles.append(f"a CRL ends in {_left(left)}; then everybody is refused: re-issue it (dgis-certs crl)")


def _left(seconds: float) -> str:
    return duration(seconds) if seconds > 0 else "ended"


def _add_spool(status: _Status, node: NodeConfig) -> None:
    spool = Spool(node.dgis.spool, limit_bytes=node.dgis.spool_limit, reserve_bytes=node.dgis.spool_reserve)
    backlog = spool.backlog()
    rejected, damaged = spool.rejected(), spool.damaged()
    status.spool = {
        "backlog": backlog.count,
        "bytes": backlog.bytes,
        "oldest_seconds": round(backlog.oldest_seconds, 1),
        "not_in_catalog": backlog.unregistered,
        "rejected": [{"name": name, "reason": reason} for name, reason in rejected],
        "damaged": list(damaged),
    }
    full = spool.full()
    status.spool["full"] = full
    if full:
        status.troubles.append(f"the spool takes nothing more ({full}): C-STORE answers A700 until there is room")
    if rejected:
        status.troubles.append(f"{len(rejected)} objects refused by the catalog lie in {spool.root / 'rejected'}")
    if damaged:
        status.troubles.append(f"{len(damaged)} unreadable files lie in {spool.root / 'damaged'}")


def _add_waiting(status: _Status, board: Board, *, copies: int) -> None:
    """Say how many objects cannot get all their copies now: they stay in the spool, perhaps with all else well."""
    # The board may be a second older than the spool
    waiting = min(board.backlog.waiting_for_storage, status.spool["backlog"])
    status.spool["waiting_for_storage"] = waiting
    if waiting:
        usable = sum(element.usable for element in board.elements)
        status.troubles.append(
            f"{waiting} objects wait for a further storage element: each is to have {copies} verified copies, "
            f"and {usable} of {len(board.elements)} elements take new ones now (dgis se list)"
        )


def _add_commitment(status: _Status, node: NodeConfig) -> None:
    store = CommitmentStore(node.dgis.spool)
    waiting, closed = store.open(), store.closed()
    given_up = sum(one.state == "given_up" for one in closed)
    status.commitment = {
        "pending": sum(one.state == "pending" for one in waiting),
        "unreported": sum(one.state == "judged" for one in waiting),
        "oldest_seconds": round(max((one.age for one in waiting), default=0.0), 1),
        "reported": len(closed) - given_up,
        "given_up": given_up,
    }
    if given_up:
        status.troubles.append(f"{given_up} storage commitment reports were given up: dgis commit list, retry, forget")


def _add_board(status: _Status, board: Board | None, elements: tuple[StorageElement, ...]) -> None:
    seen = {element.name: element for element in board.elements} if board else {}
    for element in elements:
        known = seen.get(element.name)
        status.storage_elements.append(
            {
                "name": element.name,
                "site": element.site,
                "state": element.state,
                "reachable": known.reachable if known else None,
                "free_bytes": known.free_bytes if known else None,
                "total_bytes": known.total_bytes if known else None,
                "doors": list(element.doors),
                "door_in_use": known.door_in_use if known else None,
                "door_errors": {door.url: door.last_error for door in known.doors if not door.reachable}
                if known
                else {},
                "last_error": known.last_error if known else None,
            }
        )
        if known and not known.reachable:
            status.troubles.append(f"{element.name} cannot be reached: {known.last_error}")
        elif known:
            status.troubles += [
                f"{element.name}: {door.url} does not answer: {door.last_error}"
                for door in known.doors
                if not door.reachable
            ]
    if board is None:
        status.troubles.append("no worker has run yet")
        return
    status.errors = [error.model_dump(mode="json") for error in reversed(board.errors)]
    if not board.catalog_reachable:
        status.troubles.append(f"the worker cannot reach the catalog: {board.catalog_error}")


def _print(status: _Status) -> None:
    out = console()
    rows = [[s["name"], s["url"], _word(s["ok"]), s["detail"]] for s in status.services]
    out.print(table("Services", ("Service", "URL", "State", "Detail"), rows))
    rows = [[c["name"], c["dn"], c["expires"], c["left"]] for c in status.certificates]
    out.print(table("Certificates", ("Of", "DN", "Expires (UTC)", "In"), rows, right=("In",)))
    rows = [_element_row(element) for element in status.storage_elements]
    columns = ("Element", "Site", "Mode", "State", "Free of", "Doors", "Last error")
    out.print(table("Storage elements", columns, rows, right=("Free of",)))
    if status.errors:
        rows = [[e["at"][:19], e["where"], str(e["count"]), e["text"]] for e in status.errors[:8]]
        out.print(table("Last errors", ("At (UTC)", "Where", "Times", "What"), rows, right=("Times",)))
    spool = status.spool
    waiting = f"{spool['backlog']} objects waiting ({size(spool['bytes'])}), oldest {duration(spool['oldest_seconds'])}"
    out.print(f"Spool: {waiting if spool['backlog'] else 'empty'}")
    commitment = status.commitment
    if commitment["pending"] or commitment["unreported"]:
        out.print(
            f"Storage commitment: {commitment['pending']} not decided, {commitment['unreported']} not reported, "
            f"oldest {duration(commitment['oldest_seconds'])}"
        )
    for trouble in status.troubles:
        out.print(f"[red]![/red] {trouble}", highlight=False)
    if not status.troubles:
        out.print("[green]All is well.[/green]")


def _word(state: bool | None) -> str:
    return {True: "[green]ok[/green]", False: "[red]down[/red]", None: "unknown"}[state]


def _element_row(element: dict[str, Any]) -> list[str]:
    state, doors = _word(element["reachable"]), "\n".join(_door(element, url) for url in element["doors"])
    return [
        element["name"], element["site"], element["state"], state, _space(element), doors, element["last_error"] or "",
    ]  # fmt: skip


def _door(element: dict[str, Any], url: str) -> str:
    if url in element["door_errors"]:
        return f"{url} [red]down[/red]"
    return f"{url} [green]in use[/green]" if url == element["door_in_use"] else url


def _space(element: dict[str, Any]) -> str:
    if element["free_bytes"] is None or element["total_bytes"] is None:
        return ""
    return f"{size(element['free_bytes'])} / {size(element['total_bytes'])}"
