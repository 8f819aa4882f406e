"""Distinguished names, parsed once and compared by structure.

The slash form (``/O=Grid/CN=x``, as Globus writes it) is the wire form. Unlike Globus it is unambiguous: a slash inside
a value that would read as the start of the next attribute is written ``\\/``, so two different names never print alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID, ObjectIdentifier

from certs.errors import CredentialError

_NAMES: dict[str, ObjectIdentifier] = {
    "C": NameOID.COUNTRY_NAME,
    "ST": NameOID.STATE_OR_PROVINCE_NAME,
    "L": NameOID.LOCALITY_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "CN": NameOID.COMMON_NAME,
    "DC": NameOID.DOMAIN_COMPONENT,
    "UID": NameOID.USER_ID,
    "emailAddress": NameOID.EMAIL_ADDRESS,
    "serialNumber": NameOID.SERIAL_NUMBER,
    "SN": NameOID.SURNAME,
    "GN": NameOID.GIVEN_NAME,
    "title": NameOID.TITLE,
    "street": NameOID.STREET_ADDRESS,
}
_BY_OID = {oid.dotted_string: name for name, oid in _NAMES.items()}
_BY_LOWER = {name.lower(): name for name in _NAMES} | {"e": "emailAddress", "email": "emailAddress"}
_START = re.compile(r"/([A-Za-z][A-Za-z0-9-]*|\d+(?:\.\d+)+)=")
_MAX_CHARS = 2048


@dataclass(frozen=True, slots=True)
class DN:
    """A distinguished name: (attribute, value) pairs from the most general to the most specific."""

    parts: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> DN:
        """Parse the slash form, or RFC 4514 (``CN=x,O=Grid``) when there is no leading slash.

        Raises CredentialError for anything else; the text is not repeated beyond 80 characters.
        """
        if not text or len(text) > _MAX_CHARS:
            raise CredentialError(f"a distinguished name has 1 to {_MAX_CHARS} characters, this has {len(text)}")
        return cls(_parse_slash(text)) if text.startswith("/") else cls.from_name(_parse_rfc4514(text))

    @classmethod
    def from_name(cls, name: x509.Name) -> DN:
        """Take the name of a certificate; multi-valued RDNs are refused (no grid CA issues them)."""
        parts = []
        for rdn in name.rdns:
            attributes = list(rdn)
            if len(attributes) != 1:
                raise CredentialError("a distinguished name with a multi-valued RDN cannot be a grid identity")
            value = attributes[0].value
            text = value if isinstance(value, str) else value.hex()
            oid = attributes[0].oid.dotted_string
            parts.append((_BY_OID.get(oid, oid), text))
        if not parts:
            raise CredentialError("an empty distinguished name cannot be a grid identity")
        return cls(tuple(parts))

    def __str__(self) -> str:
        return "".join(f"/{name}={_escape(value)}" for name, value in self.parts)

    @property
    def common_name(self) -> str:
        """Return the last CN, or "" when there is none (for display and default account names only)."""
        return next((value for name, value in reversed(self.parts) if name == "CN"), "")


def _escape(value: str) -> str:
    out = value.replace("\\", "\\\\")
    out = _START.sub(lambda found: "\\" + found.group(0), out)
    return "".join(f"\\x{ord(c):02X}" if c == '"' or ord(c) < 0x20 or ord(c) == 0x7F else c for c in out)


def _starts(text: str) -> list[re.Match[str]]:
    found = []
    for match in _START.finditer(text):
        slashes = len(text[: match.start()]) - len(text[: match.start()].rstrip("\\"))
        if slashes % 2 == 0:
            found.append(match)
    return found


def _parse_slash(text: str) -> tuple[tuple[str, str], ...]:
    starts = _starts(text)
    if not starts or starts[0].start() != 0:
        raise CredentialError(f"not a distinguished name like /O=Grid/CN=name: {text[:80]!r}")
    ends = [match.start() for match in starts[1:]] + [len(text)]
    return tuple(
        (_canonical(match.group(1)), _unescape(text[match.end() : end]))
        for match, end in zip(starts, ends, strict=True)
    )


def _canonical(attribute: str) -> str:
    if attribute[0].isdigit():
        return _BY_OID.get(attribute, attribute)
    known = _BY_LOWER.get(attribute.lower())
    if known is None:
        raise CredentialError(f"unknown attribute {attribute!r} in a distinguished name; write it as a dotted OID")
    return known


def _unescape(value: str) -> str:
    """Undo the escapes; ``\\xHH`` are UTF-8 bytes, as OpenSSL prints them."""
    raw = re.sub(
        rb"\\(x[0-9A-Fa-f]{2}|.)",
        lambda m: bytes([int(m.group(1)[1:], 16)]) if len(m.group(1)) == 3 else m.group(1),
        value.encode(),
        flags=re.DOTALL,
    )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise CredentialError("a distinguished name is not valid UTF-8") from error


def _parse_rfc4514(text: str) -> x509.Name:
    try:
        return x509.Name.from_rfc4514_string(text, {"emailAddress": NameOID.EMAIL_ADDRESS, "UID": NameOID.USER_ID})
    except ValueError as error:
        raise CredentialError(f"not a distinguished name (RFC 4514): {text[:80]!r}") from error
