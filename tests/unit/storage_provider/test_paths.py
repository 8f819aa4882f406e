"""The grammar of the doors that know paths: what is a place, and that nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_provider.errors import NotFound
from storage_provider.paths import Place, parse_path, resolve

SHA = "ab" * 32
KEY = f"v1/ab/ab/{SHA}"


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/", Place("root")),
        ("/areas", Place("areas")),
        ("/areas/main", Place("area", "main")),
        ("/areas/main/objects", Place("objects", "main")),
        ("/areas/main/objects/v1/ab", Place("folder", "main", inside="v1/ab")),
        (f"/areas/main/objects/{KEY}", Place("object", "main", KEY)),
        ("/areas/main/stage", Place("stage", "main")),
        ("/areas/main/stage/up.part", Place("part", "main", inside="up.part")),
        (f"/areas/m/stage/{SHA}.0f.part", Place("part", "m", KEY, f"{SHA}.0f.part")),
        (f"/areas/m/stage/{SHA}.part", Place("part", "m", KEY, f"{SHA}.part")),
    ],
)
def test_places(path: str, place: Place) -> None:
    assert parse_path(path) == place


@pytest.mark.parametrize(
    "path",
    [
        "",
        "areas",
        "//",
        "/etc/passwd",
        "/areas/",
        "/areas/..",
        "/areas/Main",
        "/areas/main/uploads",
        "/areas/main/objects/v2",
        "/areas/main/objects/v1/AB",
        "/areas/main/objects/v1/ab/ab/x",
        f"/areas/main/objects/v1/ff/ab/{SHA}",
        f"/areas/main/objects/{KEY}/",
        f"/areas/main/objects/{KEY}\n",
        f"/areas/main/objects/{KEY}\0",
        "/areas/main/stage/up",
        "/areas/main/stage/.part",
        "/areas/main/stage/a/b.part",
        "/areas/main/stage/Doe^John.part",
        f"/areas/main/stage/{SHA}..part",
    ],
)
def test_no_places(path: str) -> None:
    with pytest.raises(NotFound):
        parse_path(path)


@given(st.text(alphabet="/.a\0%é", max_size=40), st.text(alphabet="/.b", max_size=40))
def test_resolving_never_leaves_the_tree(base: str, path: str) -> None:
    found = resolve("/" + base, path)
    assert found.startswith("/") and not {"", ".", ".."} & set(found[1:].split("/")) - {""}
    assert found == "/" or not found.endswith("/")
    assert resolve("/", found) == found


@given(st.text(max_size=120))
def test_whatever_comes_is_a_place_or_not_found(path: str) -> None:
    try:
        place = parse_path("/areas/" + path)
    except NotFound:
        return
    assert place.area or place.kind == "areas"
