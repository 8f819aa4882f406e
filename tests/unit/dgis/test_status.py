"""`dgis status`: what it says of objects that cannot get all their copies."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dgis.board import Board, BoardBacklog, BoardElement
from dgis.cli.status import _add_waiting, _Status


def board(waiting: int, *usable: bool) -> Board:
    elements = tuple(
        BoardElement(name=f"se{n}", site="a", state="active" if use else "draining", reachable=True, usable=use)
        for n, use in enumerate(usable)
    )
    now = datetime.now(UTC)
    backlog = BoardBacklog(waiting_for_storage=waiting)
    return Board(at=now, pid=1, started_at=now, elements=elements, backlog=backlog)


def test_objects_that_wait_for_a_further_element_are_a_trouble() -> None:
    status = _Status(spool={"backlog": 300})
    _add_waiting(status, board(300, True, False), copies=2)
    (trouble,) = status.troubles
    assert "300 objects wait for a further storage element" in trouble
    assert "2 verified copies" in trouble and "1 of 2 elements" in trouble
    told = status.as_json()
    assert told["ok"] is False and told["spool"]["waiting_for_storage"] == 300


@pytest.mark.parametrize(("waiting", "backlog"), [(0, 300), (300, 0)], ids=["none waits", "the board is older"])
def test_a_backlog_that_moves_is_none(waiting: int, backlog: int) -> None:
    status = _Status(spool={"backlog": backlog})
    _add_waiting(status, board(waiting, True, True), copies=2)
    assert status.troubles == [] and status.spool["waiting_for_storage"] == 0
