"""The way in: AUTH GSSAPI, ADAT until both know each other, delegation, USER and PASS (RFC 2228, GFD.20 section 4)."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass

from certs.errors import CredentialError, TrustError
from certs.log import get_log
from certs.proxy import Delegation
from certs.tls import ReloadingContext, chain_of
from certs.trust import VerifiedChain
from storage_provider.gridftp.commands import Command, CommandError
from storage_provider.gridftp.gss import DELEGATION, Gss, GssError
from storage_provider.gridftp.replies import ReplyError, decode64
from storage_provider.gridftp.server.control import Control, SessionOver

log = get_log()


@dataclass(frozen=True, slots=True)
class Entrant:
    """Who has come in: the verified chain, and the proxy it delegated (PEM), if it did."""

    chain: VerifiedChain
    delegated: bytes | None


class Login:
    """One session's way in; `entrant` is set when it is through."""

    def __init__(self, control: Control, tls: ReloadingContext, *, delegation: Callable[[], Delegation]) -> None:
        self._control = control
        self._tls = tls
        self._make_delegation = delegation
        self._gss: Gss | None = None
        self._delegation: Delegation | None = None
        self._came = b""
        self._known: Entrant | None = None
        self.entrant: Entrant | None = None

    def handle(self, command: Command) -> None:
        """Answer one command of a party that is not in yet; raises CommandError, SessionOver."""
        if command.verb == "AUTH":
            self._auth(command.argument)
        elif command.verb == "ADAT":
            self._adat(command.argument)
        elif command.verb in ("USER", "PASS") and self._known is not None:
            self._name(command.verb)
        else:
            raise CommandError(530, "denied: AUTH GSSAPI first")

    def _auth(self, mechanism: str) -> None:
        if self._known is not None:
            raise CommandError(503, "refused: the session is protected already")
        if mechanism.strip().upper() != "GSSAPI":
            # Stock clients know no other; TLS records travel inside it
            raise CommandError(504, "unsupported: AUTH GSSAPI")
        self._tls.refresh()
        self._gss = Gss(self._tls.for_gsi(), server_side=True)
        self._delegation = None
        self._control.reply(334, "Using authentication type GSSAPI; ADAT must follow")

    def _adat(self, argument: str) -> None:
        if self._gss is None or self._known is not None:
            raise CommandError(503, "refused: AUTH GSSAPI first")
        try:
            token = decode64(argument.encode("utf-8"))
            self._step(self._gss, token)
        except ReplyError as error:
            raise CommandError(501, "refused: not base64") from error
        except (GssError, TrustError, CredentialError) as error:
            log.warning("gsiftp_refused", reason=str(error))
            alert = error.alert if isinstance(error, GssError) else b""
            self._control.reply(535, f"denied: authentication failed {_adat_text(alert) if alert else ''}".rstrip())
            raise SessionOver("refused") from error

    def _step(self, gss: Gss, token: bytes) -> None:
        if self._delegation is not None:
            self._through(gss, b"", self._delegation.accept(gss.unwrap(token), chain_of(gss.tls)))
            return
        if not gss.established:
            answer = gss.step(token)
            # What follows the handshake in the same token (TLS 1.3): the byte that says whether a proxy is delegated
            flag = gss.unwrap(b"") if gss.established else b""
            if not answer and not gss.established:
                raise GssError("the token is no flight of a handshake")
        else:
            answer, flag = b"", gss.unwrap(token)
        if flag[:1] == DELEGATION:
            self._delegation = self._make_delegation()
            answer += gss.wrap(self._delegation.request)
        elif flag:
            self._through(gss, answer, None)
            return
        self._control.reply(335, _adat_text(answer))

    def _through(self, gss: Gss, answer: bytes, delegated: bytes | None) -> None:
        chain = chain_of(gss.tls)
        refusal = self._tls.trust.refusal(chain)
        if refusal is not None:
            raise TrustError((refusal,))
        self._known = Entrant(chain, delegated)
        self._control.reply(235, _adat_text(answer) if answer else "GSSAPI authentication succeeded")
        self._control.gss = gss

    def _name(self, verb: str) -> None:
        """Take USER and PASS as a formality: who it is stands in the certificate."""
        if verb == "USER":
            self._control.reply(331, "Password required, any will do")
            return
        self.entrant = self._known


def _adat_text(token: bytes) -> str:
    return f"ADAT={base64.b64encode(token).decode()}"
