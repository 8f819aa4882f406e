"""ProxyCertInfo (RFC 3820 section 3.8): what a proxy certificate hands on of its owner's rights, read and written.

Three policies are understood: everything (id-ppl-inheritAll), Globus' "limited", and our own, which lets its holder
read the studies that it names and nothing else. Whoever does not know a policy must refuse the proxy (section 3.8.2),
so every other language is refused here, id-ppl-independent as well: it hands on no rights at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from certs.errors import CredentialError

Kind = Literal["full", "limited", "studies"]

INHERIT_ALL = "1.3.6.1.5.5.7.21.1"
GLOBUS_LIMITED = "1.3.6.1.4.1.3536.1.1.1.9"
# Ours, from a UUID (ITU-T X.667): its policy is the Study Instance UIDs in ASCII, one a line
READ_STUDIES = "2.25.36018601221408923677343708177765761312"

MOST_STUDIES = 64
# PS3.5 section 9.1
_UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True, slots=True)
class ProxyPolicy:
    """What is handed on: ``full``, ``limited`` (transfers, but no administration), or reading ``studies`` only."""

    kind: Kind = "full"
    studies: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if (self.kind != "studies") and self.studies:
            raise CredentialError("only a proxy for named studies names studies")

    def within(self, outer: ProxyPolicy) -> ProxyPolicy:
        """Return what is left of this policy below a proxy with the policy ``outer``: never more than either."""
        if self.kind == "studies" and outer.kind == "studies":
            return ProxyPolicy("studies", self.studies & outer.studies)
        return max(self, outer, key=lambda policy: _STRICTNESS[policy.kind])

    def reaches(self, needed: Kind) -> bool:
        """Say whether a proxy of this policy may do what takes one of at least ``needed``."""
        return _STRICTNESS[self.kind] <= _STRICTNESS[needed]


_STRICTNESS: dict[Kind, int] = {"full": 0, "limited": 1, "studies": 2}
FULL = ProxyPolicy()
LIMITED = ProxyPolicy("limited")


def reading(studies: frozenset[str]) -> ProxyPolicy:
    """Make the policy that lets read the named studies; raises CredentialError for none, too many or no UIDs."""
    if not 1 <= len(studies) <= MOST_STUDIES:
        raise CredentialError(f"a proxy for named studies names 1 to {MOST_STUDIES} of them")
    if not all(_UID.fullmatch(uid) for uid in studies):
        raise CredentialError("a study is named by its Study Instance UID: digits and dots, 64 at most")
    return ProxyPolicy("studies", studies)


@dataclass(frozen=True, slots=True)
class ProxyCertInfo:
    """The extension's content; ``path_length`` bounds how many proxies may follow below, None: no bound."""

    policy: ProxyPolicy
    path_length: int | None = None


def parse(der: bytes) -> ProxyCertInfo:
    """Read the extension's value; raises CredentialError for what is broken or not understood."""
    outer = _only(der, 0x30)
    length: int | None = None
    if outer[:1] == b"\x02":
        value, outer = _take(outer, 0x02)
        if not value or value[0] & 0x80:
            raise CredentialError("the proxy's path length is no number of proxies")
        length = int.from_bytes(value, "big")
    language, policy = _take(_only(outer, 0x30), 0x06)
    return ProxyCertInfo(_policy(_dotted(language), _only(policy, 0x04) if policy else None), length)


def build(info: ProxyCertInfo) -> bytes:
    """Write the extension's value in DER."""
    length = b"" if info.path_length is None else _element(0x02, bytes([info.path_length]))
    language = {"full": INHERIT_ALL, "limited": GLOBUS_LIMITED, "studies": READ_STUDIES}[info.policy.kind]
    body = _element(0x06, _encoded(language))
    if info.policy.kind == "studies":
        body += _element(0x04, "\n".join(sorted(info.policy.studies)).encode("ascii"))
    return _element(0x30, length + _element(0x30, body))


def _policy(language: str, policy: bytes | None) -> ProxyPolicy:
    if language == READ_STUDIES and policy is not None:
        return reading(frozenset(policy.decode("ascii", "replace").split("\n")))
    # RFC 3820 section 3.8.2: the policy field is absent for the languages that say all by themselves
    if policy is None and language == INHERIT_ALL:
        return FULL
    if policy is None and language == GLOBUS_LIMITED:
        return LIMITED
    raise CredentialError(
        "the proxy hands on not all rights: it restricts its rights in a way that is not understood here; make another"
    )


def _take(der: bytes, tag: int) -> tuple[bytes, bytes]:
    """Split the first element of this tag (X.690 section 8.1) into its content and what follows."""
    if len(der) < 2 or der[0] != tag:
        raise CredentialError("the proxy's ProxyCertInfo cannot be read")
    size, start = der[1], 2
    if size & 0x80:
        count = size & 0x7F
        start, size = 2 + count, int.from_bytes(der[2 : 2 + count], "big")
        if not 1 <= count <= 2 or size < 0x80:
            raise CredentialError("the proxy's ProxyCertInfo cannot be read")
    if len(der) < start + size:
        raise CredentialError("the proxy's ProxyCertInfo cannot be read")
    return der[start : start + size], der[start + size :]


def _only(der: bytes, tag: int) -> bytes:
    content, rest = _take(der, tag)
    if rest:
        raise CredentialError("the proxy's ProxyCertInfo cannot be read")
    return content


def _element(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def _dotted(content: bytes) -> str:
    """Read an object identifier (X.690 section 8.19)."""
    arcs, value = [], 0
    for octet in content:
        value = value << 7 | octet & 0x7F
        if not octet & 0x80:
            arcs.append(value)
            value = 0
    if not arcs or content[-1] & 0x80:
        raise CredentialError("the proxy's ProxyCertInfo cannot be read")
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))


def _encoded(dotted: str) -> bytes:
    first, second, *others = (int(arc) for arc in dotted.split("."))
    out = bytearray()
    for arc in (40 * first + second, *others):
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(arc & 0x7F | 0x80)
        out += bytes(reversed(septets))
    return bytes(out)
