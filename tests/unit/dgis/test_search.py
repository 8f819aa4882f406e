"""Search: unavailable is not empty."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from catalog.errors import UnsupportedQuery
from catalog.wire import Query, Row, StorageElement
from dgis.board import Board, BoardWriter, Unreachable, board_path, read_board
from dgis.elements import Elements, Near
from dgis.errors import SearchIncomplete, SearchRefused
from dgis.metrics import make_metrics
from dgis.search import Search
from tests.helpers.doubles import MemoryCatalog

ROWS: list[Row] = [{"StudyInstanceUID": f"1.{n}"} for n in range(5)]


def search(catalog: MemoryCatalog, *unreachable: str, registry: CollectorRegistry | None = None) -> Search:
    return Search(catalog, lambda: unreachable, make_metrics(registry or CollectorRegistry()))


def test_rows_stream_and_the_unreachable_elements_are_passed_on() -> None:
    catalog = MemoryCatalog()
    catalog.rows = ROWS
    found = search(catalog, "se2").find(Query(level="STUDY", unreachable=("se9",)))
    assert next(found) == ROWS[0]
    assert set(catalog.queries[0].unreachable) == {"se2", "se9"}
    assert list(found) == ROWS[1:]


def test_a_catalog_that_does_not_answer_is_not_an_empty_answer() -> None:
    catalog, registry = MemoryCatalog(), CollectorRegistry()
    catalog.down = True
    with pytest.raises(SearchIncomplete):
        list(search(catalog, registry=registry).find(Query(level="STUDY")))
    assert registry.get_sample_value("dgis_searches_incomplete_total") == 1


def test_a_catalog_that_stops_in_the_middle_gives_the_rows_so_far_first() -> None:
    catalog = MemoryCatalog()
    catalog.rows, catalog.cut_after = ROWS, 3
    rows: list[Row] = []
    with pytest.raises(SearchIncomplete):
        for row in search(catalog).find(Query(level="STUDY")):
            rows.append(row)
    assert rows == ROWS[:3]


def test_a_query_that_will_never_be_answered_is_refused_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = MemoryCatalog()

    def refuses(*_: object, **__: object) -> None:
        raise UnsupportedQuery("no such column")

    monkeypatch.setattr(catalog, "query", refuses)
    with pytest.raises(SearchRefused):
        list(search(catalog).find(Query(level="STUDY")))


def test_the_unreachable_elements_come_from_the_board_while_it_is_fresh(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    writer = BoardWriter(tmp_path)
    assert Unreachable(tmp_path)() == ()
    assert writer.write(writer.blank().model_copy(update={"unreachable": ("se2",)}))
    assert not writer.write(writer.blank().model_copy(update={"unreachable": ("se2",)})), "nothing new"
    assert Unreachable(tmp_path)() == ("se2",)
    assert Unreachable(tmp_path, trusted_seconds=-1.0)() == ()
    board_path(tmp_path).write_text('{"half": ')
    assert Unreachable(tmp_path)() == ()
    assert read_board(tmp_path) is None


def test_a_board_of_a_newer_version_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    writer = BoardWriter(tmp_path)
    text = writer.blank().model_dump_json()
    board_path(tmp_path).write_text(text[:-1] + ', "novelty": {"a": 1}}')
    board = read_board(tmp_path)
    assert isinstance(board, Board) and board.pid == os.getpid()


def test_what_lies_at_other_sites_only_is_told_apart() -> None:
    catalog = MemoryCatalog()
    catalog.elements = [StorageElement(name="se1", site="a"), StorageElement(name="se2", site="a")]
    elements = Elements(catalog)
    near = Near(elements, site="a", node="dgis")
    assert near() == (), "one site: nothing is far"
    catalog.elements.append(StorageElement(name="se9", site="b"))
    elements.refresh()
    assert near() == ("dgis", "se1", "se2")
    catalog.down = True
    assert Near(Elements(catalog), site="a", node="dgis")() == ()
    catalog.down = False
    list(Search(catalog, tuple, make_metrics(CollectorRegistry()), near=near).find(Query(level="STUDY")))
    assert catalog.queries[-1].near == ("dgis", "se1", "se2")
