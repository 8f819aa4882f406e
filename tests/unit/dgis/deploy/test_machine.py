"""Running commands on this machine and behind a prefix: what is said when something is missing, hangs or refuses."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dgis.deploy.errors import HostError, Unreachable
from dgis.deploy.machine import Machine, digest_of


@pytest.fixture
def fake_ssh(tmp_path: Path) -> str:
    """A program called ssh that does what ssh does: drops its options and gives one word to a shell."""
    path = tmp_path / "bin" / "ssh"
    path.parent.mkdir()
    path.write_text(
        '#!/bin/sh\n[ "$1" = nowhere ] && { echo "ssh: connect to host nowhere port 22: Refused" >&2; exit 255; }\n'
        'shift\nexec sh -c "$*"\n'
    )
    path.chmod(0o755)
    return str(path)


def test_runs_here_and_says_what_the_tool_said() -> None:
    assert Machine().run(("tr", "a", "b"), text="aaa") == "bbb"
    with pytest.raises(HostError, match=r"^sh \.\.\. one two: wrong; very wrong$"):
        Machine().run(("sh", "-c", "printf 'wrong\\n\\n  very wrong\\n' >&2; exit 1", "sh", "one", "two", "three"))
    with pytest.raises(HostError, match="^false: exit code 1$"):
        Machine().run(("false",))


def test_a_missing_program_is_named_here_and_behind_every_prefix(fake_ssh: str) -> None:
    with pytest.raises(HostError, match="^no-such-tool is not installed here$"):
        Machine().run(("no-such-tool",))
    for prefix in (("env",), ("sh", "-c", 'exec "$@"', "sh"), (fake_ssh, "me@there")):
        with pytest.raises(HostError, match="^no-such-tool is not installed there "):
            Machine.behind(prefix).run(("no-such-tool", "--flag"))
    # A tool's own complaint about a file is no missing tool
    with pytest.raises(HostError, match="^cat /none: .*No such file"):
        Machine.behind(("env",)).run(("cat", "/none"))


def test_a_missing_program_of_ours_is_named_with_its_package() -> None:
    script = "PATH=/none; unset -f nft; nft -j list || exit 1"
    with pytest.raises(HostError, match=r"^nft is not installed here \(Debian: nftables\)$"):
        Machine().run(("sh", "-c", script))
    with pytest.raises(HostError, match=r"^haproxy is not installed there \(env PATH=/none\) \(Debian: haproxy\)$"):
        Machine.behind(("env", "PATH=/none")).run(("haproxy", "-v"))


def test_a_command_is_kept_while_the_block_lasts(tmp_path: Path, fake_ssh: str) -> None:
    mark = tmp_path / "mark"
    script = 'touch "$1"; echo stands; cat; rm "$1"'
    for machine in (Machine(), Machine.behind((fake_ssh, "me@there"))):
        with machine.holding(("sh", "-c", script, "sh", str(mark))):
            assert mark.exists()
        assert not mark.exists()
    with (
        pytest.raises(HostError, match="^sh ...: no, not now$"),
        Machine().holding(("sh", "-c", "echo no, not now >&2")),
    ):
        pytest.fail("it does not stand")
    slow = Machine().holding(("sleep", "30"), timeout=0.1)
    with pytest.raises(HostError, match=r"^sleep 30: no answer within 0.1 s$"), slow:
        pytest.fail("it does not stand")
    with pytest.raises(Unreachable), Machine.behind((fake_ssh, "nowhere")).holding(("cat",)):
        pytest.fail("it does not stand")


def test_two_writers_never_mix(tmp_path: Path) -> None:
    path, texts = tmp_path / "file", [letter * 300_000 for letter in "abcd"]
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(Machine().write, str(path), text) for text in texts * 3]:
            done.result()
    assert path.read_text() in texts and os.listdir(tmp_path) == ["file"]


def test_behind_ssh_every_argument_arrives_as_it_is(fake_ssh: str) -> None:
    words = ("printf", "%s|", "a b", "$HOME", "'", '"', "*", ";", "")
    for prefix in ((fake_ssh, "me@there"), ("env", fake_ssh, "me@there")):
        there = Machine.behind(prefix)
        assert there.quoted
        assert there.run(words) == "a b|$HOME|'|\"|*|;||"
    assert Machine.behind(("env", "A=b")).run(words) == "a b|$HOME|'|\"|*|;||"


def test_ssh_that_does_not_get_through_is_told_from_a_command_that_fails(fake_ssh: str) -> None:
    with pytest.raises(Unreachable, match="ssh nowhere does not get through: ssh: connect to host nowhere"):
        Machine.behind((fake_ssh, "nowhere")).run(("true",))
    assert Machine.behind((fake_ssh, "me@there")).attempt(("sh", "-c", "exit 3")).returncode == 3


def test_over_ssh_a_target_is_never_an_option() -> None:
    assert Machine.over_ssh("-oProxyCommand=x", port=2200).prefix[-4:] == ("-p", "2200", "--", "-oProxyCommand=x")


def test_a_command_that_hangs_is_given_up() -> None:
    with pytest.raises(HostError, match="^sleep 30: no answer within 0.2 s$"):
        Machine().run(("sleep", "30"), timeout=0.2)


def test_files_are_replaced_by_rename_with_their_mode_and_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "new directory" / "it's a file"
    machine = Machine()
    assert machine.read(str(path)) is None
    machine.write(str(path), "one\r\nžluť\n", mode="0600")
    assert machine.read(str(path)) == "one\r\nžluť\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = path.stat().st_ino
    machine.write(str(path), "two")
    assert path.stat().st_ino != first and stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == [path.name]
    path.write_bytes(b"\xff\xfe no text")
    assert "no text" in (machine.read(str(path)) or "")


def test_a_file_that_cannot_be_read_is_not_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot be read: .*[Ii]s a directory"):
        Machine().read(str(tmp_path))
    with pytest.raises(HostError, match="^sh ... .* 0644: "):
        (tmp_path / "file").touch()
        Machine().write(str(tmp_path / "file" / "below"), "")


def test_digests_tell_which_files_are_as_they_should_be(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("one", "new\nline", "back\\slash", "none")]
    for path in paths[:3]:
        Path(path).write_text("text\n")
    found = Machine().digests(paths)
    assert found == dict.fromkeys(paths[:3], digest_of("text\n"))
    assert Machine().digests(()) == {}
    with pytest.raises(HostError, match="sha256sum"):
        Machine.behind(("sh", "-c", "exit 9", "sh")).digests(paths)


def test_errors_name_helper_scripts_by_their_arguments_only() -> None:
    with pytest.raises(HostError) as caught:
        Machine().run(("sh", "-c", "# a long script\nexit 1", "sh", "argument"))
    assert str(caught.value) == "sh ... argument: exit code 1"
