"""node.toml: complete, strict, and its errors say what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from certs.errors import ConfigError
from dgis.config import load_node
from dgis.dimse.users import hashed
from dgis.node import dimse_settings

WHOLE = """
[dgis]
aet = "DGIS"
site = "brno"
spool = "spool"
copies = 3
spool_limit = "20 GB"
spool_reserve = "512 MiB"
[dimse]
port = 11112
[identity]
cert = "dgis.cert.pem"
key = "dgis.key.pem"
trust = "trust"
[catalog]
url = "https://127.0.0.1:8443"
[unknown_ae]
rights = ["echo", "find"]
networks = ["10.0.0.7/8"]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(text)
    return path


def test_a_whole_node(tmp_path: Path) -> None:
    node = load_node(write(tmp_path, WHOLE))
    assert node.dgis.spool == tmp_path / "spool"
    assert (node.dgis.spool_limit, node.dgis.spool_reserve) == (20 * 10**9, 512 * 2**20)
    assert node.dgis.default_issuer == "brno"
    assert node.unknown_ae.networks == ("10.0.0.0/8",)
    assert (node.dgis.accept, node.https.port, node.log.level) == ("spooled", 0, "info")


def test_a_tls_listener_shows_its_own_identity_or_the_node_s(tmp_path: Path) -> None:
    assert load_node(write(tmp_path, WHOLE)).dimse_tls is None  # off by default
    node = load_node(write(tmp_path, WHOLE + "[dimse_tls]\n"))
    assert node.dimse_tls is not None
    assert (node.dimse_tls.port, node.dimse_tls.client_certificate) == (2762, "required")
    assert node.dimse_tls.identity(node.identity).cert == tmp_path / "dgis.cert.pem"
    own = 'cert = "edge.cert.pem"\nkey = "edge.key.pem"\ntrust = "hospital"\n'
    node = load_node(write(tmp_path, WHOLE + "[dimse_tls]\n" + own))
    assert node.dimse_tls is not None
    shown = node.dimse_tls.identity(node.identity)
    assert (shown.cert, shown.key, shown.trust) == tuple(
        tmp_path / name for name in ("edge.cert.pem", "edge.key.pem", "hospital")
    )


def test_limits_timeouts_and_users_reach_the_dimse_edge(tmp_path: Path) -> None:
    limits = "[dimse_limits]\nassociations = 7\nper_ae = 3\nwaiting = 9\nartim = 2\nhandshake = 4\nnetwork = 60\n"
    user = f'[[user]]\nname = "reading room"\npasscode = "{hashed(b"open sesame")}"\n'
    switches = '[dimse]\nignore_title_case = true\nuser_identity = "check"\nmax_pdu = 65536\nalso_called = ["OLD"]\n'
    node = load_node(write(tmp_path, WHOLE.replace("[dimse]\n", switches) + limits + user))
    made = dimse_settings(node)
    assert (made.limits.total, made.limits.per_ae, made.limits.waiting) == (7, 3, 9)
    assert (made.limits.artim, made.limits.handshake, made.timeouts.idle) == (2, 4, 60)
    assert (made.ignore_title_case, made.user_identity, made.max_pdu) == (True, "check", 65536)
    assert made.also_called == ("OLD",) and list(made.users) == ["reading room"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("[dimse_tls]\nport = 11112", "different ports"),
        ('[dimse_tls]\ncert = "a.pem"', "belong together"),
        ('[dimse_tls]\nclient_certificate = "never"', "client_certificate"),
        ("[dimse_limits]\nartim = 0", "artim"),
        ("[transfer]\nports = [50199, 50000]", "lowest and the highest"),
        ("[transfer]\nsessions = 0", "sessions"),
        ('[[user]]\nname = "a"\npasscode = "in clear"', "passcode"),
    ],
)
def test_mistakes_in_what_is_optional(tmp_path: Path, more: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_node(write(tmp_path, WHOLE + more))
    assert told in str(refused.value) and "in clear" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('aet = "DGIS"', 'aet = "A TITLE THAT IS TOO LONG"'), "16 printable"),
        (('aet = "DGIS"', 'aet = "BACK\\\\SLASH"'), "backslash"),
        (("copies = 3", "copies = 0"), "copies"),
        (("copies = 3", "copys = 3"), "did you mean 'copies'"),
        (('"20 GB"', '"much"'), "20 GB"),
        (('"20 GB"', '"20 parsecs"'), "20 GB"),
        (("https://", "http://"), "url"),
        (('"10.0.0.7/8"', '"the lan"'), "192.168.1.0/24"),
        (('"find"]', '"destroy"]'), "rights"),
        (('spool = "spool"', ""), "spool"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_node(write(tmp_path, WHOLE.replace(*change)))
    assert told in str(refused.value)
    assert "node.toml" in str(refused.value)
