"""A rendered tree on disk: what is written, what is left alone, what is removed, and what is shown of a difference."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from dgis.deploy import tree
from dgis.deploy.errors import DeployError
from dgis.deploy.render import Artefact

KEY = "-----BEGIN PRIVATE KEY-----"
MADE = {
    "host/nat.nft": Artefact(b"table inet dgis\n"),
    "host/seed/node.iso": Artefact(b"CD001"),
    "host/seed/node/user-data": Artefact(f"key: {KEY}\n".encode(), secret=True),
    "site.svg": Artefact(b"<svg/>\n"),
}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} - {".rendered"}


def test_a_second_rendering_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    assert tree.write(MADE, out) == tree.Written(tuple(MADE), ())
    assert files(out) == set(MADE)
    inodes = {path: path.stat().st_ino for path in out.rglob("*")}
    assert len(inodes) > len(MADE)  # the list, too
    assert tree.write(MADE, out) == tree.Written((), ())
    assert inodes == {path: path.stat().st_ino for path in out.rglob("*")}


def test_secret_files_are_their_owners_only_and_become_so_again(tmp_path: Path) -> None:
    tree.write(MADE, tmp_path / "out")
    secret = tmp_path / "out/host/seed/node/user-data"
    assert mode(secret) == 0o600
    secret.chmod(0o644)
    assert tree.write(MADE, tmp_path / "out").changed == ("host/seed/node/user-data",)
    assert mode(secret) == 0o600


def test_what_is_no_longer_made_goes_and_what_others_put_there_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    tree.write(MADE, out)
    (out / "host" / "notes.txt").write_text("mine\n")
    left = {name: MADE[name] for name in ("site.svg",)}
    assert set(tree.write(left, out).removed) == MADE.keys() - left.keys()
    assert files(out) == {"site.svg", "host/notes.txt"} and not (out / "host/seed").exists()


def test_a_directory_with_something_else_in_it_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear\n")
    with pytest.raises(DeployError, match="has files that no rendering made: name a new or an empty directory"):
        tree.write(MADE, tmp_path)
    assert files(tmp_path) == {"letter.txt"}


def test_a_list_that_leads_elsewhere_removes_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("x")
    out = tmp_path / "out"
    tree.write(MADE, out)
    (out / ".rendered").write_text(f"../victim\n{tmp_path}/victim\nhost/../../victim\n")
    tree.write(MADE, out)
    assert (tmp_path / "victim").exists()


def test_an_interrupted_rendering_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, whole = tmp_path / "out", os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == "site.svg":
            raise OSError(28, "No space left on device", str(target))
        whole(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DeployError, match=f"{out}/site.svg: No space left on device: make room there, then run this"):
        tree.write(MADE, out)
    monkeypatch.undo()
    assert not list(out.rglob(".*.new"))
    # what was written is known: a smaller rendering removes it
    assert set(tree.write({"site.svg": MADE["site.svg"]}, out).removed) == MADE.keys() - {"site.svg"}
    assert files(out) == {"site.svg"}


def test_differences_are_a_diff_of_what_would_change(tmp_path: Path) -> None:
    tree.write(MADE, tmp_path)
    assert list(tree.differences(MADE, tmp_path)) == []
    new = {**MADE, "host/nat.nft": Artefact(b"table inet other\n"), "host/more.txt": Artefact(b"more\n")}
    del new["site.svg"]
    assert list(tree.differences(new, tmp_path)) == [
        f"--- {tmp_path}/host/more.txt", "+++ rendered/host/more.txt", "@@ -0,0 +1 @@", "+more",
        f"--- {tmp_path}/host/nat.nft", "+++ rendered/host/nat.nft", "@@ -1 +1 @@", "-table inet dgis",
        "+table inet other",
        f"--- {tmp_path}/site.svg", "+++ rendered/site.svg", "@@ -1 +0,0 @@", "-<svg/>",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"host/seed/node/user-data": Artefact(b"other\n", secret=True)}, "host/seed/node/user-data: differs"),
        # rendered without certificates: the old one on disk is secret still
        ({"host/seed/node/user-data": Artefact(b"other\n")}, "host/seed/node/user-data: differs"),
        ({"host/seed/node/user-data": None}, "host/seed/node/user-data: no longer made"),
        ({"host/key.pem": Artefact(KEY.encode(), secret=True)}, "host/key.pem: new"),
        ({"host/seed/node.iso": Artefact(b"CD001\x00")}, "host/seed/node.iso: differs"),
        ({"host/seed/ca/user-data": Artefact(b"  -----BEGIN CERTIFICATE-----\n")}, "host/seed/ca/user-data: new"),
        ({"host/trust/ca.pem": Artefact(b"-----BEGIN CERTIFICATE-----")}, "host/trust/ca.pem: new"),
        ({"host/trust/1a2b3c4d.0": Artefact(b"-----BEGIN CERTIFICATE-----")}, "host/trust/1a2b3c4d.0: new"),
        ({"host/trust/1a2b3c4d.r0": Artefact(b"-----BEGIN X509 CRL-----")}, "host/trust/1a2b3c4d.r0: new"),
        ({"site.svg": Artefact(b"<svg/>")}, "site.svg: differs in its line ends"),
        ({"empty": Artefact(b"")}, "empty: an empty file"),
    ],
)
def test_secret_and_binary_files_are_named_only(tmp_path: Path, change: dict[str, Artefact | None], says: str) -> None:
    tree.write(MADE, tmp_path)
    new = {name: artefact for name, artefact in {**MADE, **change}.items() if artefact is not None}
    assert list(tree.differences(new, tmp_path)) == [says]


def test_what_is_no_rendered_tree_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="is no rendered tree: name the --out of an earlier dgis deploy render"):
        list(tree.differences(MADE, tmp_path))


def test_replacing_keeps_the_mode_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "site.yml"
    path.write_text("old")
    path.chmod(0o664)
    tree.replace(path, b"new", mode=None)
    assert path.read_text() == "new" and mode(path) == 0o664
    assert os.listdir(tmp_path) == ["site.yml"]


def _link(path: Path, target: Path) -> None:
    target.mkdir()
    shutil.copytree(path, target, dirs_exist_ok=True) if path.is_dir() else None
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(target if target.is_dir() and "." not in path.name else target / "file")


def _file(path: Path, _: Path) -> None:
    shutil.rmtree(path)
    path.write_text("in the way")


def _directory(path: Path, _: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        ("host", _link, "out/host is a symbolic link, and what is rendered stays in .*/out: remove it"),
        ("host/seed", _link, "out/host/seed is a symbolic link"),
        ("site.svg", _link, "out/site.svg is a symbolic link"),
        ("old.txt", _link, "out/old.txt is a symbolic link"),
        (".rendered", lambda path, _: path.symlink_to(path.rename(path.with_name("other"))), "rendered is a symbolic"),
        ("host/seed", _file, "out/host/seed is in the way, a directory of that name is rendered: move it away"),
        ("site.svg", _directory, "out/site.svg is in the way, a file of that name is rendered: move it away"),
        (".rendered", lambda path, _: path.write_bytes(b"site.svg\n\xff\n"), "is not what a rendering wrote: name a n"),
        (".rendered", lambda path, _: path.write_text("x" * 300), "File name too long"),
    ],
)
def test_what_stands_in_the_way_is_told_before_anything_is_written(
    name: str, spoil: Callable[[Path, Path], object], says: str, tmp_path: Path
) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    tree.write({**MADE, "old.txt": Artefact(b"old\n")}, out)
    spoil(out / name, elsewhere)
    new = {path: Artefact(b"new\n", artefact.secret) for path, artefact in MADE.items()}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for ask in (lambda: tree.write(new, out), lambda: list(tree.differences(new, out))):
        with pytest.raises(DeployError, match=says):
            ask()
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_tree_behind_a_link_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert tree.write(MADE, tmp_path / "link").changed == tuple(MADE)
    assert files(tmp_path / "real") == set(MADE)


@pytest.mark.parametrize(
    ("call", "number", "says"),
    [
        ("open", errno.EROFS, "Read-only file system: make it writable, or name another directory"),
        ("fsync", errno.ENOSPC, "No space left on device: make room there, then run this again"),
        ("replace", errno.EACCES, "Permission denied: run this as its owner, or name another directory"),
        ("replace", errno.EIO, "Input/output error: see to that, then run this again"),
    ],
)
def test_a_disk_that_takes_nothing_is_one_line_with_the_real_path(
    call: str, number: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "site.yml"
    path.write_text("old")
    monkeypatch.setattr(os, call, fails)
    with pytest.raises(DeployError) as caught:
        tree.replace(path, b"new")
    monkeypatch.undo()
    assert str(caught.value) == f"{path}: {says}"
    assert os.listdir(tmp_path) == ["site.yml"] and path.read_text() == "old"


def test_a_file_above_the_tree_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DeployError, match="file/out: Not a directory: move the file away that is in the way of a dire"):
        tree.write(MADE, tmp_path / "file" / "out")
