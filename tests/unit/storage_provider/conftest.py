"""A real storage element over mutual TLS for the tests of this package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.rigs import HttpsRig, https_rig
from tests.helpers.pki import SiteHome, fresh_site, site

__all__ = ["fresh_site", "site"]


@pytest.fixture
def rig(site: SiteHome, tmp_path: Path) -> Iterator[HttpsRig]:
    with https_rig(site, tmp_path) as ready:
        yield ready
