"""Every artefact of every example site file, as it is kept here: a change of a renderer shows itself as a diff.

`make golden` writes them anew; look at the diff before you commit it. Seeds' ISO images are not kept: that they hold
the three files beside them is tested.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import pycdlib
import pytest

from dgis.deploy import check
from dgis.deploy.render import render

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).parent
EXAMPLES = sorted((ROOT / "vm-images" / "examples").glob("*.yml"))
REGENERATE = os.environ.get("DGIS_GOLDEN") == "write"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_rendered_as_kept(example: Path) -> None:
    made = {path: each.content for path, each in render(check.load(example)).items() if not path.endswith(".iso")}
    folder = KEPT / example.stem
    if REGENERATE:
        _write(folder, made)
    kept = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert sorted(made) == sorted(kept), "other files than kept: look, then make golden"
    for path, content in made.items():
        assert content.decode() == kept[path].decode(), f"{path} differs from the kept one: look, then make golden"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_seeds_hold_what_lies_beside_them(example: Path) -> None:
    made = render(check.load(example))
    for path in (path for path in made if path.endswith(".iso")):
        image = pycdlib.PyCdlib()
        image.open_fp(io.BytesIO(made[path].content))
        for name in ("user-data", "meta-data", "network-config"):
            held = io.BytesIO()
            image.get_file_from_iso_fp(held, rr_path=f"/{name}")
            assert held.getvalue() == made[f"{path.removesuffix('.iso')}/{name}"].content
        image.close()


def _write(folder: Path, made: dict[str, bytes]) -> None:
    for old in [path for path in folder.rglob("*") if path.is_file()]:
        old.unlink()
    for path, content in made.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
