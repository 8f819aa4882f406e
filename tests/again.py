"""What `make test` does when tests failed: up to three of them run once more, alone, and are named.

Many tests bound a wall-clock time ("answered within a second") and share the cores with a second pytest worker, grids
of a dozen processes, and whatever else the machine does. One that fails in company and passes alone did not measure
dgis. It is named so that it gets mended: a name that comes up again is a bug, here or in the product.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

MOST = 3
CACHE = Path(".pytest_cache/v/cache/lastfailed")


def main() -> int:
    """Run them again; 0 when all pass."""
    try:
        names = sorted(json.loads(CACHE.read_text()))
    except (OSError, ValueError):
        return 1
    if not 0 < len(names) <= MOST or any("::" not in name for name in names):
        return 1
    print(f"failed beside others, so run alone now: {', '.join(names)}", flush=True)
    return int(pytest.main(["-p", "no:xdist", "-v", *names]))


if __name__ == "__main__":
    sys.exit(main())
