"""The metacatalog: which studies exist, where their verified copies lie, and in what order things changed.

What for: one service that registers, finds and locates instances and keeps the change feed; its wire models,
its client and the reading of DICOM headers live here too, below the server rooms.
May import: `certs`, pydicom, pydantic, zstandard; SQLAlchemy and alembic in `store*`, `schema` and `node` only; FastAPI
in `app` and `node` only. `errors`, `keys`, `elements`, `header`, `wire`, `client` need neither.
Must never know: DIMSE, spools, how bytes travel, or anything of `dgis` and `storage_provider`.
"""
