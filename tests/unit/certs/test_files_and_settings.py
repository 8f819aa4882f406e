"""Gridmap, configuration, credentials, policy and logs: what people write and read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certs.config import ConfigPath, IdentityConfig, ListenConfig, LogConfig, Table, load_toml
from certs.credential import Credential
from certs.dn import DN
from certs.errors import ConfigError, CredentialError
from certs.gridmap import Gridmap, map_dn, read_gridmap
from certs.https.problem import ProblemError, answered
from certs.peer import Peer
from certs.policy import ANY_ROLE, OPEN_TO_VERIFIED, Rule, decide, effective_actor
from tests.helpers.pki import SiteHome

JOE = DN.parse("/O=Grid/CN=joe")


class Area(Table):
    name: str
    quota: int = 5


class Settings(Table):
    server: ListenConfig = ListenConfig()
    identity: IdentityConfig
    log: LogConfig = LogConfig()
    area: tuple[Area, ...] = ()


GOOD = '[identity]\ncert = "me.pem"\nkey = "/abs/key.pem"\ntrust = "trust"\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "service.toml"
    path.write_text(text)
    return path


class TestConfig:
    def test_relative_paths_count_from_the_file(self, tmp_path: Path) -> None:
        identity = load_toml(write(tmp_path, GOOD), Settings).identity
        assert (identity.cert, identity.key) == (tmp_path / "me.pem", Path("/abs/key.pem"))
        assert identity.gridmap is None

    @pytest.mark.parametrize(
        ("text", "table", "key", "words"),
        [
            (GOOD + "gridmapp = 'x'\n", "identity", "gridmapp", "unknown key 'gridmapp'; did you mean 'gridmap'"),
            (GOOD + "[sevrer]\n", "", "sevrer", "top level: unknown key 'sevrer'; did you mean 'server'"),
            (GOOD + "[server]\nport = 70000\n", "server", "port", "table \\[server\\]: key 'port': .*65535"),
            (GOOD + "[log]\nlevel = 'loud'\n", "log", "level", "'debug', 'info', 'warning' or 'error'"),
            (GOOD + "[[area]]\nname='a'\n[[area]]\nname='b'\nquta=1\n", "area.2", "quta", "did you mean 'quota'"),
            ("[identity]\ncert='x'\nkey='x'\n", "identity", "trust", "table \\[identity\\]: key 'trust' is missing"),
        ],
    )
    def test_errors_name_file_table_and_key(self, tmp_path: Path, text: str, table: str, key: str, words: str) -> None:
        path = write(tmp_path, text)
        with pytest.raises(ConfigError, match=words) as caught:
            load_toml(path, Settings)
        assert str(caught.value).startswith(f"{path}: ")
        assert (caught.value.file, caught.value.table, caught.value.key) == (str(path), table, key)

    def test_values_are_not_repeated(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            load_toml(write(tmp_path, GOOD + "[server]\nport = 'hunter2'\n"), Settings)
        assert "hunter2" not in str(caught.value)

    def test_not_toml_and_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="not valid TOML"):
            load_toml(write(tmp_path, "[["), Settings)
        with pytest.raises(ConfigError, match=r"nowhere.toml: cannot be read: No such file"):
            load_toml(tmp_path / "nowhere.toml", Settings)

    def test_paths_without_a_file_stay(self) -> None:
        class One(Table):
            path: ConfigPath

        assert One(path=Path("a/b")).path == Path("a/b")


class TestGridmap:
    def test_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "gridmap"
        path.write_text('# people\n\n"/O=Grid/CN=joe" joe user,monitor\n"/O=Grid/CN=bare" bare\n')
        gridmap = Gridmap(path)
        entry, bare = gridmap.lookup(JOE), gridmap.lookup(DN.parse("/O=Grid/CN=bare"))
        assert entry is not None
        assert bare is not None
        assert (entry.account, entry.roles, bare.roles) == ("joe", {"user", "monitor"}, frozenset())
        assert gridmap.lookup(DN.parse("/O=Grid/CN=Joe")) is None
        assert Gridmap(None).lookup(JOE) is None

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("/O=Grid/CN=joe joe", "line 2: expected"),
            ('"/O=Grid/CN=joe" joe admin', "line 2: unknown role admin; roles are catalog, gateway"),
            ('"joe" joe user', "line 2: not a distinguished name"),
        ],
    )
    def test_errors_name_file_and_line(self, tmp_path: Path, line: str, words: str) -> None:
        path = tmp_path / "gridmap"
        path.write_text(f"# head\n{line}\n")
        with pytest.raises(ConfigError, match=words):
            read_gridmap(path)

    def test_mapping_replaces_one_line_and_keeps_the_rest(self, tmp_path: Path) -> None:
        path = tmp_path / "gridmap"
        path.write_text('# head\n"/O=Grid/CN=other" o storage\n"/O=Grid/CN=joe" old user\n')
        map_dn(path, JOE, account="joe", roles=frozenset({"operator"}))
        assert path.read_text() == '# head\n"/O=Grid/CN=other" o storage\n"/O=Grid/CN=joe" joe operator\n'
        with pytest.raises(ConfigError, match="unknown role"):
            map_dn(path, JOE, account="joe", roles=frozenset({"root"}))
        with pytest.raises(ConfigError, match="account"):
            map_dn(path, JOE, account="two words", roles=frozenset())

    def test_changes_are_followed_and_broken_ones_are_not(self, tmp_path: Path) -> None:
        path = tmp_path / "gridmap"
        path.write_text('"/O=Grid/CN=joe" joe user\n')
        gridmap = Gridmap(path)
        map_dn(path, JOE, account="new", roles=frozenset())
        assert [entry.account for entry in [gridmap.lookup(JOE)] if entry] == ["new"]
        path.write_text("broken\n")
        assert gridmap.lookup(JOE) is not None
        path.unlink()
        assert gridmap.lookup(JOE) is not None


class TestCredential:
    def test_a_good_one(self, site: SiteHome) -> None:
        identity = site.catalog()
        mine = Credential(identity.cert, identity.key)
        mine.check()
        assert str(mine.dn()) == "/O=Test Grid/OU=Hosts/CN=catalog"
        assert timedelta(days=89) < mine.not_after() - datetime.now(UTC) < timedelta(days=91)

    def test_a_proxys_dn_is_its_users(self, site: SiteHome) -> None:
        proxy = site.proxy_of(site.user("joe", "user"), "joe.proxy")
        assert Credential(proxy.cert, proxy.key).dn() == DN.parse("/O=Test Grid/OU=People/CN=joe")

    def test_each_fault_has_its_sentence(self, site: SiteHome, tmp_path: Path) -> None:
        mine, other = site.catalog(), site.storage()
        with pytest.raises(CredentialError, match="does not belong to"):
            Credential(mine.cert, other.key).check()
        open_key = tmp_path / "open.key.pem"
        shutil.copy(mine.key, open_key)
        open_key.chmod(0o644)
        with pytest.raises(CredentialError, match="mode 0644.*chmod 600"):
            Credential(mine.cert, open_key).check()
        with pytest.raises(CredentialError, match="cannot be read: No such file"):
            Credential(tmp_path / "none.pem", mine.key).check()
        with pytest.raises(CredentialError, match="holds no PEM certificate"):
            Credential(mine.key, mine.key).check()
        with pytest.raises(CredentialError, match="expired on"):
            Credential(mine.cert, mine.key).check(now=datetime.now(UTC) + timedelta(days=91))
        with pytest.raises(CredentialError, match="check this clock"):
            Credential(mine.cert, mine.key).check(now=datetime.now(UTC) - timedelta(days=1))


def peer(*roles: str, account: str | None = "joe") -> Peer:
    return Peer(dn=JOE, fingerprint="f", serial=1, account=account, roles=frozenset(roles))


class TestPolicy:
    def test_decisions(self) -> None:
        operate = Rule("operate", frozenset({"operator"}))
        assert decide(operate, peer("operator", "user")).allowed
        assert not decide(operate, peer("user")).allowed
        assert decide(OPEN_TO_VERIFIED, peer(account=None)).allowed
        assert not decide(ANY_ROLE, peer()).allowed
        assert "not in the gridmap" in decide(operate, peer(account=None)).reason
        assert decide(operate, peer("user")).reason == "operate needs the role operator; /O=Grid/CN=joe has user"
        assert not decide(Rule("closed", frozenset()), peer("operator")).allowed

    def test_a_rule_names_roles_that_exist(self) -> None:
        with pytest.raises(ValueError, match="unknown role admin"):
            Rule("x", frozenset({"admin"}))

    def test_only_gateways_act_for_others(self) -> None:
        assert effective_actor(peer("gateway"), "ae:CT@a") == "ae:CT@a"
        assert effective_actor(peer("operator", "catalog", "storage"), "ae:CT@a") is None
        assert effective_actor(peer("gateway"), None) is None


class TestProblem:
    def test_a_problem_comes_back_as_it_was_raised(self) -> None:
        raised = ProblemError(507, "no-space", "the area is full", extensions={"missing": ["0-5"]})
        assert json.loads(raised.to_json())["missing"] == ["0-5"]
        error = answered("se1:443", 507, "Insufficient Storage", raised.to_json())
        assert (error.problem_type, error.title, error.detail) == (
            "urn:dgis:problem:no-space", "No space", "the area is full",
        )  # fmt: skip
        assert not error.permanent

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"title": 5}', b"\xff"])
    def test_what_is_no_problem_document(self, body: bytes) -> None:
        error = answered("x:1", 502, "Bad Gateway", body)
        assert (error.title, error.problem_type, error.permanent) == ("Bad Gateway", "about:blank", False)

    @pytest.mark.parametrize(("status", "permanent"), [(400, True), (403, True), (404, True), (408, False),
                                                       (409, True), (425, False), (429, False), (500, False),
                                                       (503, False), (507, False), (302, True)])  # fmt: skip
    def test_which_answers_are_final(self, status: int, permanent: bool) -> None:
        assert answered("x:1", status, "r", b"").permanent is permanent


LOGGING = """
import sys
from certs.log import configure, get_log
log = get_log()
configure("svc", "info", "json")
log.debug("hidden")
log.info("kept", count=3, PatientName="Novak^Jan", patient_id="77", dataset={"a": 1}, listing=["Novak^Jan"], ok=True)
try:
    raise ValueError("Novak^Jan")
except ValueError:
    log.exception("failed")
"""


def test_logs_hold_scalars_and_no_patients() -> None:
    done = subprocess.run([sys.executable, "-c", LOGGING], capture_output=True, text=True, check=True)
    assert (done.stdout, "Novak" in done.stderr) == ("", False)
    kept, failed = (json.loads(line) for line in done.stderr.splitlines())
    assert (kept["event"], kept["service"], kept["count"], kept["listing"], kept["ok"]) == (
        "kept",
        "svc",
        3,
        "list",
        True,
    )
    assert {"PatientName", "patient_id", "dataset"}.isdisjoint(kept)
    assert (failed["event"], failed["error"]) == ("failed", "ValueError")
