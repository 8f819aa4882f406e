from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from certs.dn import DN
from certs.errors import CredentialError

ATTRIBUTES = st.sampled_from(["O", "OU", "CN", "DC", "UID", "emailAddress", "1.2.3.4"])
AWKWARD = st.lists(st.sampled_from(["/CN=", "\\", "/", "a", "'", '"', "č", "\n"])).map("".join)
VALUES = st.one_of(st.text(max_size=20), AWKWARD)


@given(st.lists(st.tuples(ATTRIBUTES, VALUES), min_size=1, max_size=6))
def test_what_is_printed_parses_to_the_same_name(parts: list[tuple[str, str]]) -> None:
    dn = DN(tuple((name, value.encode("utf-8", "replace").decode()) for name, value in parts))
    assert DN.parse(str(dn)) == dn


def test_two_names_never_print_alike() -> None:
    joined = DN((("O", "Grid/CN=admin"),))
    split = DN((("O", "Grid"), ("CN", "admin")))
    assert joined != split
    assert str(joined) != str(split)


def test_globus_forms_are_read() -> None:
    assert DN.parse("/O=Grid/CN=host/se1.example.org").parts == (("O", "Grid"), ("CN", "host/se1.example.org"))
    assert DN.parse("/O=Grid/CN=\\xC4\\x8Dapek/Email=a@b").parts[1:] == (("CN", "čapek"), ("emailAddress", "a@b"))
    assert DN.parse("/DC=org/dc=grid/cn=x") == DN.parse("CN=x,DC=grid,DC=org")
    assert str(DN.parse("CN=x,O=Grid")) == "/O=Grid/CN=x"
    assert DN.parse("/O=Grid/CN=x").common_name == "x"


@pytest.mark.parametrize("text", ["", "nobody", "/", "/O", "/FOO=x", "x/O=Grid", "/O=" + "x" * 3000, "/CN=\\xFF"])
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(CredentialError):
        DN.parse(text)


def test_names_of_certificates() -> None:
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Grid")
    common = x509.NameAttribute(NameOID.COMMON_NAME, "x")
    assert DN.from_name(x509.Name([organisation, common])) == DN.parse("/O=Grid/CN=x")
    with pytest.raises(CredentialError, match="multi-valued"):
        DN.from_name(x509.Name([x509.RelativeDistinguishedName([organisation, common])]))
    with pytest.raises(CredentialError, match="empty"):
        DN.from_name(x509.Name([]))
