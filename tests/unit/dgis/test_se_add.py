"""`dgis se add`: a door is asked whose it is before the catalog hears of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from catalog.errors import CatalogRefused
from catalog.wire import Site, StorageElement
from dgis.cli import se
from storage_provider.channel import Channel
from storage_provider.errors import Denied, DoorURL, StorageError, Unreachable
from tests.conformance.memory_channel import MemoryChannel, MemoryProvider

DOOR = "https://h:9443/areas/main"


class FakeCatalog:
    """Takes sites and elements, or refuses these."""

    def __init__(self) -> None:
        self.taken: list[StorageElement] = []
        self.refuse = ""

    def sites(self) -> list[Site]:
        return []

    def put_site(self, site: Site) -> None: ...

    def put_storage_element(self, element: StorageElement) -> None:
        if self.refuse:
            raise CatalogRefused(self.refuse)
        self.taken.append(element)


class Saying(MemoryChannel):
    """A door that says a name, or fails when it is asked for it."""

    def __init__(self, said: str | None | StorageError) -> None:
        super().__init__(MemoryProvider("a"))
        self.said = said
        self.closed = False

    def element(self) -> str | None:
        if isinstance(self.said, StorageError):
            raise self.said
        return self.said

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def catalog(monkeypatch: pytest.MonkeyPatch) -> FakeCatalog:
    made = FakeCatalog()

    @contextlib.contextmanager
    def opened(home: Path, config: Path | None) -> Iterator[FakeCatalog]:
        try:
            yield made
        except CatalogRefused as error:
            raise se.click.ClickException(str(error)) from error

    monkeypatch.setattr(se, "_catalog", opened)
    monkeypatch.setattr(se, "read_node", lambda home, config: None)
    return made


Add = Callable[..., Result]


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Add:
    def run(*channels: Channel) -> Result:
        known = {f"https://h:{number}/areas/main": channel for number, channel in enumerate(channels, 1)}
        monkeypatch.setattr(se, "_opener", lambda node: known.__getitem__)
        doors = [part for door in known for part in ("--door", door)]
        return CliRunner().invoke(se.command, ["add", "se1", "--site", "a", *doors])

    return run


@pytest.mark.parametrize("said", ["se1", None], ids=["own name", "older or foreign"])
def test_its_own_doors_are_registered(catalog: FakeCatalog, add: Add, said: str | None) -> None:
    door = Saying(said)
    done = add(door, MemoryChannel(MemoryProvider("a")))
    assert done.exit_code == 0, done.output
    assert [one.name for one in catalog.taken] == ["se1"] and len(catalog.taken[0].doors) == 2
    assert door.closed and "!" not in done.output


def test_the_door_of_another_element_is_refused_by_what_it_says(catalog: FakeCatalog, add: Add) -> None:
    done = add(Saying("se1"), Saying("se2"))
    assert done.exit_code == 1 and "https://h:2/areas/main" in done.output
    assert "se2" in done.output and "not se1" in done.output
    assert catalog.taken == []


@pytest.mark.parametrize("error", [Unreachable("cannot connect"), Denied("you [x] may not")])
def test_a_door_that_does_not_say_gets_a_warning(catalog: FakeCatalog, add: Add, error: StorageError) -> None:
    done = add(Saying("se1"), Saying(error))
    assert done.exit_code == 0 and len(catalog.taken) == 1
    assert "https://h:2/areas/main does not say" in done.output.replace("\n", " ") and error.detail in done.output


def test_another_kind_of_server_is_refused(catalog: FakeCatalog, add: Add) -> None:
    done = add(Saying(DoorURL("this server is not one of ours")))
    assert done.exit_code == 2 and "not one of ours" in done.output and catalog.taken == []


def test_what_the_catalog_refuses_is_said(catalog: FakeCatalog, add: Add) -> None:
    catalog.refuse = "the door is one of se2"
    done = add(Saying("se1"))
    assert done.exit_code == 1 and "one of se2" in done.output
