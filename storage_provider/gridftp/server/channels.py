"""Verbs that set up data channels and transfers; clear ones are refused with 534 when data would flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from certs.errors import CredentialError
from storage_provider.gridftp import dcsc
from storage_provider.gridftp.addresses import (
    epsv_line,
    is_ipv4,
    parse_eprt,
    parse_port,
    parse_spor,
    pasv_line,
    spas_lines,
)
from storage_provider.gridftp.commands import CommandError, parse_allo, parse_options, parse_parallelism, parse_rest
from storage_provider.gridftp.replies import ReplyError
from storage_provider.gridftp.server.datapath import DataIdentity

if TYPE_CHECKING:
    from storage_provider.gridftp.server.session import Session

Handler = Callable[["Session", str], None]
_CLEAR = CommandError(534, "denied: data channels are private here; send PROT P and DCAU A")


def require_private(session: Session) -> None:
    """Refuse to let data flow in clear."""
    if not (session.state.private and session.state.authenticated):
        raise CommandError(_CLEAR.code, _CLEAR.text)


def _type(session: Session, argument: str) -> None:
    words = argument.upper().split()
    if not words or words[0] not in ("I", "A", "L"):
        raise CommandError(504, "unsupported: TYPE I")
    session.state.image = words[0] != "A"
    session.control.reply(200, "OK")


def _mode(session: Session, argument: str) -> None:
    mode = argument.strip().upper()
    if mode not in ("S", "E"):
        raise CommandError(504, "unsupported: MODE S and MODE E")
    if mode != session.state.mode:
        session.data.reset()
    session.state.mode = "E" if mode == "E" else "S"
    session.control.reply(200, f"Mode {mode}")


def _stru(session: Session, argument: str) -> None:
    if argument.strip().upper() != "F":
        raise CommandError(504, "unsupported: STRU F")
    session.control.reply(200, "OK")


def _pbsz(session: Session, argument: str) -> None:
    if not argument.isascii() or not argument.isdigit():
        raise CommandError(501, "refused: PBSZ SIZE")
    session.control.reply(200, f"PBSZ={argument}")


def _sbuf(session: Session, _argument: str) -> None:
    session.control.reply(200, "OK, the kernel sees to it")


def _prot(session: Session, argument: str) -> None:
    level = argument.strip().upper()
    if level not in ("C", "S", "E", "P"):
        raise CommandError(504, "unsupported: PROT P")
    session.state.private = level == "P"
    if level != "P":
        session.data.reset()
    # Stock clients begin with PROT C or S; only data that would flow so is refused
    session.control.reply(200, f"Protection level {level}")


def _dcau(session: Session, argument: str) -> None:
    kind = argument.strip().upper()[:1]
    if kind not in ("A", "N"):
        raise CommandError(504, "unsupported: DCAU A")
    session.state.authenticated = kind == "A"
    if kind != "A":
        session.data.reset()
    session.control.reply(200, f"DCAU {kind}")


def _dcsc(session: Session, argument: str) -> None:
    kind, _, blob = argument.strip().partition(" ")
    if kind.upper() == "D":
        session.data.identify_by(session.delegated)
    elif kind.upper() == "P":
        try:
            session.data.identify_by(DataIdentity("pinned", dcsc.parse(blob.strip()).pem))
        except (ReplyError, CredentialError) as error:
            raise CommandError(501, "refused: not a credential (a certificate, its key, and its chain)") from error
    else:
        raise CommandError(504, "unsupported: DCSC P and DCSC D")
    session.control.reply(250, "OK")


def _pasv(session: Session, _argument: str) -> None:
    require_private(session)
    host, port = session.data.listen()
    if not is_ipv4(host):
        session.data.reset()
        raise CommandError(522, "refused: this session is over IPv6; send EPSV")
    session.control.reply(227, pasv_line((host, port)))


def _epsv(session: Session, argument: str) -> None:
    if argument.strip().upper() == "ALL":
        session.control.reply(200, "OK")
        return
    require_private(session)
    session.control.reply(229, epsv_line(session.data.listen()[1]))


def _spas(session: Session, _argument: str) -> None:
    require_private(session)
    session.control.reply(229, *spas_lines([session.data.listen()]))


def _port(session: Session, argument: str) -> None:
    require_private(session)
    session.data.aim((parse_port(argument),))
    session.control.reply(200, "OK")


def _eprt(session: Session, argument: str) -> None:
    require_private(session)
    session.data.aim((parse_eprt(argument),))
    session.control.reply(200, "OK")


def _spor(session: Session, argument: str) -> None:
    require_private(session)
    session.data.aim(parse_spor(argument))
    session.control.reply(200, "OK")


def _allo(session: Session, argument: str) -> None:
    session.state.size = parse_allo(argument)
    session.control.reply(200, "OK")


def _rest(session: Session, argument: str) -> None:
    session.state.restart = parse_rest(argument)
    session.control.reply(350, "Restarting there")


def _opts(session: Session, argument: str) -> None:
    verb, _, rest = argument.strip().partition(" ")
    if verb.upper() not in ("RETR", "STOR", "MLST", "UTF8", "PASV"):
        raise CommandError(504, "unsupported: OPTS RETR, STOR, MLST, UTF8")
    if verb.upper() in ("RETR", "STOR"):
        options = parse_options(rest)
        if "parallelism" in options:
            session.state.parallel = min(parse_parallelism(options["parallelism"]), session.settings.streams)
        if verb.upper() == "STOR" and "ahead" in options:
            session.state.sent_ahead = session.control.join_replies = options["ahead"] == "1"
    session.control.reply(200, "OK")


VERBS: dict[str, Handler] = {
    "TYPE": _type,
    "MODE": _mode,
    "STRU": _stru,
    "PBSZ": _pbsz,
    "SBUF": _sbuf,
    "PROT": _prot,
    "DCAU": _dcau,
    "DCSC": _dcsc,
    "PASV": _pasv,
    "EPSV": _epsv,
    "SPAS": _spas,
    "PORT": _port,
    "EPRT": _eprt,
    "SPOR": _spor,
    "ALLO": _allo,
    "REST": _rest,
    "OPTS": _opts,
}
