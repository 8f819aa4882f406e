"""Verbs about names: where one is, what is there, digests, renames, and the SITE verbs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import unquote

from storage_provider.errors import NotFound
from storage_provider.gridftp.commands import CommandError, parse_cksm, parse_size, parse_two
from storage_provider.gridftp.facts import Entry, format_entry, format_time
from storage_provider.gridftp.markers import MOST_SPANS, format_spans
from storage_provider.gridftp.server.features import features, help_lines
from storage_provider.tree import Node

if TYPE_CHECKING:
    from storage_provider.gridftp.server.session import Session

_LONGEST_ACTOR = 2048
Handler = Callable[["Session", str], None]


def entry_of(node: Node, *, name: str, kind: str | None = None) -> str:
    """Spell a node as a line of facts."""
    return format_entry(Entry(name, kind or node.kind, node.size, node.modified), unique=node.path)


def _pwd(session: Session, _argument: str) -> None:
    session.control.reply(257, f'"{session.state.folder}" is the current folder')


def _cwd(session: Session, argument: str) -> None:
    path = session.path(argument or "/")
    if session.tree.stat(path).kind != "dir":
        raise NotFound("not a folder")
    session.state.folder = path
    session.control.reply(250, "Folder changed")


def _cdup(session: Session, _argument: str) -> None:
    _cwd(session, "..")


def _size(session: Session, argument: str) -> None:
    session.control.reply(213, str(_file(session, argument).size))


def _mdtm(session: Session, argument: str) -> None:
    session.control.reply(213, format_time(_file(session, argument).modified))


def _file(session: Session, argument: str) -> Node:
    node = session.tree.stat(session.path(argument))
    if node.kind != "file":
        raise NotFound("not a file")
    return node


def _mlst(session: Session, argument: str) -> None:
    node = session.tree.stat(session.path(argument))
    session.control.reply(250, "Listing", entry_of(node, name=node.path), "End")


def _mlsc(session: Session, argument: str) -> None:
    entries = session.tree.entries(session.path(argument))
    lines = (entry_of(node, name=node.name) for node in entries)
    session.control.reply_listing(250, "Listing", lines, "End")


def _stat(session: Session, argument: str) -> None:
    if not argument:
        session.control.reply(211, "dgis GridFTP server, data channels private")
        return
    _mlst(session, argument)


def _cksm(session: Session, argument: str) -> None:
    asked = parse_cksm(argument)
    digest = session.tree.checksum(
        session.path(asked.part.path),
        offset=asked.part.offset,
        length=asked.part.length,
        algorithm=asked.algorithm,
        stop=session.stopped,
    )
    session.control.reply(213, digest)


def _dele(session: Session, argument: str) -> None:
    session.tree.delete(session.path(argument))
    session.control.reply(250, "Deleted")


def _mkd(session: Session, argument: str) -> None:
    path = session.path(argument)
    session.tree.mkdir(path)
    # RFC 959 appendix II; every folder of the layout is always there
    session.control.reply(257, f'"{path}" is there')


def _rnfr(session: Session, argument: str) -> None:
    path = session.path(argument)
    session.tree.check(path, "write")
    session.state.rename_from = path
    session.control.reply(350, "RNTO must follow")


def _rnto(session: Session, argument: str) -> None:
    source, session.state.rename_from = session.state.rename_from, None
    if source is None:
        raise CommandError(503, "refused: RNFR first")
    session.tree.rename(source, session.path(argument))
    session.control.reply(250, "Verified and committed")


def _feat(session: Session, _argument: str) -> None:
    session.control.reply(211, "Extensions supported", *features(session.tree.element), "End")


def _help(session: Session, _argument: str) -> None:
    session.control.reply(214, *help_lines(session.verbs()))


def _site(session: Session, argument: str) -> None:
    verb, _, rest = argument.strip().partition(" ")
    handler = _SITE.get(verb.upper())
    if handler is None:
        raise CommandError(504, "unsupported: SITE " + ", ".join(sorted(_SITE)))
    handler(session, rest.strip())


def _site_info(session: Session, _argument: str) -> None:
    session.control.reply(250, "OK")


def _site_permit(session: Session, argument: str) -> None:
    session.caller.show(argument or None)
    session.control.reply(250, "The permit holds" if argument else "No permit")


def _site_acting_for(session: Session, argument: str) -> None:
    actor = unquote(argument, errors="replace")
    if len(actor) > _LONGEST_ACTOR or not actor.isprintable():
        raise CommandError(501, "refused: a DN or ae:TITLE@SITE was expected")
    session.caller.acting_for = actor or None
    session.control.reply(250, "OK")


def _site_space(session: Session, argument: str) -> None:
    space = session.tree.space(session.path(argument))
    session.control.reply(250, f"total={space.total} free={space.free} used={space.used}")


def _site_missing(session: Session, argument: str) -> None:
    size, path = parse_two(argument, "SITE MISSING SIZE PATH")
    spans = session.tree.missing(session.path(path), parse_size(size))
    if len(spans) > MOST_SPANS:
        # One line has no room for more: what lies between the last ones is asked for again
        spans = (*spans[: MOST_SPANS - 1], (spans[MOST_SPANS - 1][0], spans[-1][1]))
    session.control.reply(250, format_spans(spans))


_SITE: dict[str, Handler] = {
    "HELP": _help,
    "CLIENTINFO": _site_info,
    "PERMIT": _site_permit,
    "ACTINGFOR": _site_acting_for,
    "SPACE": _site_space,
    "MISSING": _site_missing,
}
VERBS: dict[str, Handler] = {
    "PWD": _pwd,
    "CWD": _cwd,
    "CDUP": _cdup,
    "SIZE": _size,
    "MDTM": _mdtm,
    "MLST": _mlst,
    "MLSC": _mlsc,
    "STAT": _stat,
    "CKSM": _cksm,
    "DELE": _dele,
    "MKD": _mkd,
    "RNFR": _rnfr,
    "RNTO": _rnto,
    "FEAT": _feat,
    "HELP": _help,
    "SITE": _site,
}
