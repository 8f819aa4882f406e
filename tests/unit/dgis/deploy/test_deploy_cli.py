"""`dgis deploy`: exit codes, one teaching line for every error, an example in every help, forms for scripts."""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from dgis.cli import cli, main
from dgis.cli.deploy import command as group

ROOT = Path(__file__).parents[4]
EXAMPLES = ROOT / "vm-images/examples"
CESNET, LF1, UVN = (EXAMPLES / f"pilot-{name}.yml" for name in ("cesnet", "lf1", "uvn"))


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["deploy", *map(str, words)])


@dataclass(frozen=True, slots=True)
class Process:
    """The whole command, where errors of ours become a line and an exit code; `path` comes first on PATH."""

    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]

    def __call__(self, *words: str | Path, path: Path | None = None) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["dgis", "deploy", *map(str, words)])
        if path is not None:
            self.monkeypatch.setenv("PATH", str(path), prepend=os.pathsep)
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *self.capfd.readouterr()


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Process:
    return Process(monkeypatch, capfd)


@pytest.fixture
def lf1(tmp_path: Path) -> Path:
    path = tmp_path / "lf1.yml"
    path.write_text(LF1.read_text())
    return path


@pytest.mark.parametrize("name", sorted(group.commands))
def test_every_command_has_an_example(name: str) -> None:
    shown = run(name, "--help").output
    assert f"Example: dgis deploy {name} " in " ".join(shown.split())


def test_commands_that_work_on_machines_share_their_options() -> None:
    wanted = {"host", "ssh", "root", "socket", "reload"}
    for name in ("apply", "verify", "watch"):
        command = group.commands[name]
        assert wanted <= {parameter.name for parameter in command.params}
        assert command.help and command.help.count("\n") < 8
        (where,) = (each for each in command.params if each.name == "root")
        assert isinstance(where, click.Option) and where.default == "/etc/dgis/deploy"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("apply", CESNET), "the site file has no host "),
        (("apply", CESNET, "--host", "xen9"), "the site file has no host xen9; say by --host which: xen1"),
        (("apply", "none.yml", "--host", "xen1"), "File 'none.yml' does not exist"),
        (("watch", LF1, "--host", "xen1", "--every", "0"), "0.0 is not in the range"),
        (("watch", LF1, "--host", "xen1", "--guests", "magic"), "is not one of"),
        (("verify", CESNET, "--host", "xen1", "--vantage", "outside"), "'outside' is not NAME=COMMAND, like outside="),
        (("verify", CESNET, "--host", "xen1", "--vantage", "outside="), "is not NAME=COMMAND"),
        (("verify", CESNET, "--host", "xen1", "--vantage", "=true"), "is not NAME=COMMAND"),
        (
            ("verify", CESNET, "--host", "xen1", "--vantage", "somewhere=true"),
            "somewhere is no place of this site; write one of outside, lan, node, wiki, lf1, uvn",
        ),
        (("verify", CESNET, "--host", "xen1", "--vantage", "lan@x=true"), "x after @ is no IPv4 address"),
        (("verify", CESNET, "--host", "xen1", "--vantage", "lan@=true"), "nothing after @ is no IPv4 address"),
        (("move", LF1, "node", "xen2", "--address", "x"), "write an IPv4 address like 10.77.1.11"),
        (("diff", CESNET, "--against", "none"), "Directory 'none' does not exist"),
        (("verify", CESNET, "--host", "xen1", "--vantage", "lan='"), "No closing quotation"),
        (("apply", CESNET, "--host", "xen1", "--reload", "'"), "No closing quotation"),
    ],
)
def test_wrong_use_is_told_and_ends_with_two(words: tuple[str | Path, ...], says: str) -> None:
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert says in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_what_a_file_says_wrong_is_a_line_each_with_its_place(tmp_path: Path, process: Process) -> None:
    path = tmp_path / "site.yml"
    path.write_text(CESNET.read_text().replace("10.77.0.11", "10.99.0.11").replace("network: projects", "network: x"))
    for words in (("check", path), ("apply", path, "--host", "xen1"), ("move", path, "node", "xen2")):
        code, said, told = process(*words)
        assert (code, said) == (1, ""), told
        assert f"{path}:" in told and "write" in told and "Traceback" not in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("move", "{lf1}", "nod", "xen2"), "no guest nod; there are node"),
        (("move", "{lf1}", "node", "xen3"), "no host xen3; there are xen1, xen2"),
        (("diff", "{lf1}", "--against", "{folder}"), "is no rendered tree: name the --out of an earlier"),
        (("render", "{lf1}", "--out", "{folder}"), "has files that no rendering made"),
        (("apply", "{lf1}", "--host", "xen1", "--ssh", "root@x"), "ssh -o BatchMode=yes -o ConnectTimeout=10 -p 22"),
        (("verify", "{lf1}", "--host", "xen1", "--ssh", "root@x"), "does not get through: ssh: no route"),
        (("watch", "{binary}", "--host", "xen1"), "is not UTF-8 text"),
        (("move", "{binary}", "node", "xen2"), "is not UTF-8 text"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_ends_with_one(
    lf1: Path, tmp_path: Path, process: Process, words: tuple[str, ...], says: str
) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\necho 'ssh: no route' >&2\necho 'to host' >&2\nexit 255\n")
    ssh.chmod(0o755)
    binary = tmp_path / "binary.yml"
    binary.write_bytes(b"site: \xff\n")
    places = {"lf1": lf1, "folder": tmp_path, "binary": binary}
    code, said, told = process(*(word.format(**places) for word in words), path=tmp_path)
    assert (code, said) == (1, ""), told
    assert told.startswith("dgis: ") and says in told and told.count("\n") == 1


def test_over_ssh_the_hosts_own_port_is_meant_and_every_word_arrives(tmp_path: Path, process: Process) -> None:
    asked = tmp_path / "asked"
    (tmp_path / "ssh").write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {asked}\nexit 255\n')
    (tmp_path / "ssh").chmod(0o755)
    site = tmp_path / "site.yml"
    site.write_text(CESNET.read_text().replace("  - name: xen1\n", "  - name: xen1\n    ssh: 2200\n"))
    code, _, _ = process("apply", site, "--ssh", "root@xen1.example", "--root", "/a b", path=tmp_path)  # the only host
    assert code == 1
    said = asked.read_text()
    assert "-p 2200 -- root@xen1.example sh -c" in said and " sh '/a b/.lock' 20" in said


def test_check_counts_and_contradictions_end_with_three(tmp_path: Path) -> None:
    done = run("check", CESNET, LF1, UVN, "--format", "json")
    assert done.exit_code == 0
    assert [(row["site"], row["hosts"]) for row in json.loads(done.output)] == [("cesnet", 1), ("lf1", 2), ("uvn", 1)]
    other = tmp_path / "lf1.yml"
    other.write_text(LF1.read_text().replace("address: 203.0.113.20/25", "address: 203.0.113.21/25"))
    done = run("check", CESNET, other)
    assert done.exit_code == 3 and "its own file has the public address 203.0.113.21" in done.output


def test_the_schema_is_json() -> None:
    assert "guests" in json.loads(run("schema").output)["properties"]


def test_diff_shows_what_rendering_would_change_and_ends_with_three(lf1: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run("render", lf1, "--out", out, "--format", "json")
    assert first.exit_code == 0 and "xen1/nat.nft" in json.loads(first.output)["files"]
    assert json.loads(first.output)["changed"] == json.loads(first.output)["files"]
    done = run("diff", lf1, "--against", out)
    assert (done.exit_code, done.output) == (0, "")
    lf1.write_text(
        lf1.read_text().replace("gridftp: {data: 50000-50099}\n    sftp", "gridftp: {data: 50000-50049}\n    sftp")
    )
    done = run("diff", lf1, "--against", out)
    assert done.exit_code == 3
    assert f"--- {out}/xen1/nat.nft" in done.output and "+++ rendered/xen1/nat.nft" in done.output
    assert any(line.startswith("-") and "50000-50099" in line for line in done.output.splitlines())
    assert run("render", lf1, "--out", out).exit_code == 0 and run("diff", lf1, "--against", out).exit_code == 0


def test_move_writes_the_change_that_it_shows(lf1: Path) -> None:
    before = lf1.read_bytes()
    lf1.chmod(0o664)
    done = run("move", lf1, "node", "xen2", "--dry-run")
    assert done.exit_code == 0 and lf1.read_bytes() == before
    assert [line for line in done.output.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")] == [
        "-    host: xen1", "-    address: 10.77.0.11", "+    host: xen2", "+    address: 10.77.1.11",
    ]  # fmt: skip
    done = run("move", lf1, "node", "xen2", "--format", "json")
    said = {"guest": "node", "host": "xen2", "address": "10.77.1.11", "written": True}
    assert done.exit_code == 0 and json.loads(done.output) == said
    assert "host: xen2" in lf1.read_text() and stat.S_IMODE(lf1.stat().st_mode) == 0o664
    again = run("move", lf1, "node", "xen1")
    assert "dgis deploy apply on both hosts" in again.output and lf1.read_bytes() == before


def test_a_site_file_behind_a_link_stays_behind_it(lf1: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.yml"
    link.symlink_to(lf1)
    assert run("move", link, "node", "xen2").exit_code == 0
    assert link.is_symlink() and "host: xen2" in lf1.read_text()
