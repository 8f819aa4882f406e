"""One running grid for all attacks on doors: every kind of listener that there is, DICOM TLS among them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.grid import Grid, free_port


@pytest.fixture(scope="session")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """A grid with one storage provider; revoke nobody in it whom others use."""
    options = ("--tls-port", str(free_port()))
    with Grid(tmp_path_factory.mktemp("attacked") / "grid", options=options, providers=1, workers=1) as grid:
        yield grid
