"""The gridmap's lines: accounts, roles, and from where a certificate may come."""

from __future__ import annotations

from pathlib import Path

import pytest

from certs.dn import DN
from certs.errors import ConfigError
from certs.gridmap import Gridmap, map_dn, read_gridmap

HOST = DN.parse("/O=Grid/OU=Hosts/CN=dgis b")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gridmap"


@pytest.mark.parametrize("roles", ["", " gateway", " gateway,operator"])
def test_from_is_the_last_word(path: Path, roles: str) -> None:
    path.write_text(f'# comment\n"{HOST}" dgis-b{roles} from=192.0.2.0/24,2001:db8::/32,198.51.100.7\n')
    entry = read_gridmap(path)[HOST]
    assert entry.account == "dgis-b" and entry.roles == frozenset(roles.strip().split(",") if roles else ())
    for inside in ("192.0.2.9", "::ffff:192.0.2.9", "2001:db8::1", "198.51.100.7"):
        assert entry.admits(inside)
    for outside in ("192.0.3.1", "2001:db9::1", "198.51.100.8", "", "localhost", "::ffff:10.0.0.1"):
        assert not entry.admits(outside)


def test_without_from_anywhere(path: Path) -> None:
    path.write_text(f'"{HOST}" dgis-b gateway\n')
    assert read_gridmap(path)[HOST].admits("") and Gridmap(path).misplaced(HOST, "10.1.2.3") is None
    assert Gridmap(path).misplaced(DN.parse("/CN=nobody"), "10.1.2.3") is None


def test_why_not(path: Path) -> None:
    path.write_text(f'"{HOST}" dgis-b gateway from=192.0.2.0/24\n')
    reason = Gridmap(path).misplaced(HOST, "10.1.2.3")
    assert reason is not None and "10.1.2.3" in reason and "from=" in reason


@pytest.mark.parametrize(
    "end", ["from=", "from=192.0.2.0/33", "from=all", "gateway from=192.0.2.0/24 more", "from=192.0.2.1 gateway"]
)
def test_a_line_that_is_wrong_is_told(path: Path, end: str) -> None:
    path.write_text(f'"{HOST}" dgis-b {end}\n')
    with pytest.raises(ConfigError, match="line 1"):
        read_gridmap(path)


def test_issuing_again_keeps_it(path: Path) -> None:
    path.write_text(f'# ours\n"{HOST}" old user from=192.0.2.0/24\n"/CN=other" x\n')
    map_dn(path, HOST, account="new", roles=frozenset({"gateway"}))
    assert path.read_text() == f'# ours\n"/CN=other" x\n"{HOST}" new gateway from=192.0.2.0/24\n'
    map_dn(path, HOST, account="new", roles=frozenset())
    assert path.read_text().endswith(f'"{HOST}" new from=192.0.2.0/24\n')
