"""A rendered tree on disk: what is written, what is left alone, what is removed, and what is shown of a difference."""

from __future__ import annotations

import os
import stat
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
    inodes = {name: (out / name).stat().st_ino for name in MADE}
    assert tree.write(MADE, out) == tree.Written((), ())
    assert inodes == {name: (out / name).stat().st_ino for name in MADE}


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
    with pytest.raises(OSError, match="No space"):
        tree.write(MADE, out)
    monkeypatch.undo()
    # what was written is known: a smaller rendering removes it
    assert set(tree.write({"site.svg": MADE["site.svg"]}, out).removed) == MADE.keys() - {"site.svg"}
    assert files(out) == {"site.svg"} | ({".site.svg.new"} & files(out))


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
