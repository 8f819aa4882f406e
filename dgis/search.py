"""Find patients, studies, series and instances: rows as they come, and honesty about what could not be asked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

from catalog.errors import CatalogError, CatalogForbidden, CatalogRefused
from catalog.wire import Query, Row
from certs.log import get_log
from dgis.errors import SearchForbidden, SearchIncomplete, SearchRefused
from dgis.metrics import Metrics

log = get_log()


class Rows(Iterator[Row], Protocol):
    """An answer as it arrives."""

    def close(self) -> None:
        """Give up the rest; harmless after the end."""


class QueryCatalog(Protocol):
    """The part of the catalog client that answers queries."""

    def query(self, query: Query, *, acting_for: str | None = None) -> Rows:
        """Stream one row per entity. Raises CatalogError before or between rows."""


class Search:
    """The C-FIND use case. Thread-safe."""

    def __init__(
        self,
        catalog: QueryCatalog,
        unreachable: Callable[[], tuple[str, ...]],
        metrics: Metrics,
        *,
        near: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        """`unreachable` names the storage elements that do not answer now (see `dgis.board.Unreachable`).

        `near` names the places at this site, none when all places are (see `dgis.elements.Near`).
        """
        self._catalog, self._unreachable, self._metrics, self._near = catalog, unreachable, metrics, near

    def find(self, query: Query, *, acting_for: str | None = None) -> Iterator[Row]:
        """Yield one row per entity as it arrives.

        Instances that lie on unreachable storage elements only are OFFLINE, at other sites only NEARLINE. Raises
        SearchIncomplete after the rows that came when a catalog did not answer to the end (unavailable is not empty),
        SearchRefused when it never will answer this query.
        """
        places = {"unreachable": tuple({*query.unreachable, *self._unreachable()}), "near": self._near()}
        asked = query.model_copy(update=places)
        try:
            with contextlib.closing(self._catalog.query(asked, acting_for=acting_for)) as rows:
                yield from rows
        except CatalogForbidden as error:
            raise SearchForbidden(str(error)) from error
        except CatalogRefused as error:
            raise SearchRefused(str(error)) from error
        except CatalogError as error:
            self._metrics.searches_incomplete.inc()
            log.warning("search incomplete", error=type(error).__name__)
            raise SearchIncomplete("a catalog did not answer to the end") from error
