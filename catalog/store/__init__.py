"""The catalog's database room: every SQL statement of the catalog, one transaction per method.

May import: SQLAlchemy, `catalog.schema`, and the pure rooms. Must never know: HTTP, policies, who is asking.
"""
from __future__ import annotations

from catalog.store.store import Store as Store
