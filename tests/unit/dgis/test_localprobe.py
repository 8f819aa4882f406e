"""What `dgis up` tells the catalog of its storage elements."""

from __future__ import annotations

from pathlib import Path

import pytest

from catalog.doors import place_of
from catalog.errors import CatalogRefused
from catalog.wire import Site, StorageElement
from dgis import localprobe
from dgis.localgrid import GridOptions, Paths, doors, prepare


class OnePlaceOneName:
    """The catalog's part that counts here: no door of two elements."""

    def __init__(self) -> None:
        self.known: dict[str, StorageElement] = {}

    def put_site(self, site: Site) -> None: ...

    def storage_elements(self) -> list[StorageElement]:
        return list(self.known.values())

    def put_storage_element(self, element: StorageElement) -> None:
        for other in self.known.values():
            if other.name != element.name and {*map(place_of, other.doors)} & {*map(place_of, element.doors)}:
                raise CatalogRefused("a door of another")
        self.known[element.name] = element


def test_elements_whose_ports_were_exchanged_are_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = OnePlaceOneName()
    monkeypatch.setattr(localprobe, "CatalogClient", lambda session, url: catalog)
    options = GridOptions(tmp_path / "grid")
    ports = prepare(options)
    far = StorageElement(name="far", site="b", doors=("https://far/areas/main",))
    catalog.put_storage_element(far)
    probe = localprobe.Probe(Paths(options.home), deadline=0, given_up=lambda: None)
    probe.register_elements(options, ports)
    moved = {**ports, **{name: ports[name.translate(str.maketrans("12", "21"))] for name in ports if "se" in name}}
    assert doors(moved, "se1") == doors(ports, "se2")
    probe.register_elements(options, moved)
    assert {name: one.doors for name, one in catalog.known.items()} == {
        "far": far.doors,
        **{name: doors(moved, name) for name in ("se1", "se2")},
    }
