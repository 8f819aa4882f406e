"""A place belongs to one storage element: two names for one directory would make two copies of one file."""

from __future__ import annotations

import pytest

from catalog.doors import place_of
from catalog.errors import CatalogRefused
from catalog.store import Store
from catalog.wire import StorageElement

DOOR = "https://h.example:9443/areas/main"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (DOOR, "HTTPS://H.Example:9443/areas/main/"),
        (DOOR, DOOR + "?x=1"),
        (DOOR, DOOR + "#x"),
        (DOOR, "https://someone@h.example.:9443//areas/main"),
        ("https://h/areas/main", "https://h:443/areas/main"),
        ("gsiftp://h/srv/dgis", "gsiftp://h:2811/srv/dgis/"),
        ("sftp://dgisstore@h/srv/dgis", "sftp://h:22/srv/%64gis"),
        ("gsiftp://[FE80::1]:2811/a", "gsiftp://[fe80::1]/a"),
    ],
)
def test_one_place_spelled_in_two_ways(one: str, other: str) -> None:
    assert place_of(one) == place_of(other)


@pytest.mark.parametrize(
    "other",
    [
        "https://h.example:9444/areas/main",
        "https://h2.example:9443/areas/main",
        "https://h.example:9443/areas/Main",
        "sftp://h.example:9443/areas/main",
        "https://h.example:9443/areas/main/deeper",
        "https://h.example:x/areas/main",
        "nonsense",
    ],
)
def test_other_places(other: str) -> None:
    assert place_of(DOOR) != place_of(other)


def test_a_door_of_another_element_is_refused_and_nothing_changes(store: Store) -> None:
    one = StorageElement(name="se1", site="a", doors=(DOOR, "sftp://h.example:2222/areas/main"))
    store.put_storage_element(one)
    before = store.changes(after=0, limit=100)
    for door in (DOOR, DOOR.replace("h.example", "H.EXAMPLE") + "/", "sftp://me@h.example:2222/areas/main"):
        with pytest.raises(CatalogRefused, match="se1"):
            store.put_storage_element(StorageElement(name="se9", site="a", doors=("gsiftp://x/y", door)))
    assert store.storage_elements() == [one] and store.changes(after=0, limit=100) == before


def test_an_element_keeps_changes_and_gives_up_its_own_doors(store: Store) -> None:
    one = StorageElement(name="se1", site="a", doors=(DOOR,))
    store.put_storage_element(one)
    store.put_storage_element(one.model_copy(update={"doors": (DOOR + "/", "gsiftp://h.example/areas/main")}))
    store.put_storage_element(one.model_copy(update={"doors": ("gsiftp://h.example/areas/main",)}))
    store.put_storage_element(StorageElement(name="se2", site="a", doors=(DOOR,)))
    store.remove_storage_element("se2")
    store.put_storage_element(StorageElement(name="se3", site="a", doors=(DOOR,)))
    assert [each.name for each in store.storage_elements()] == ["se1", "se3"]
