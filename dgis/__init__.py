"""The DGIS: a DICOM application entity on the outside, a grid of catalogs and storage elements behind it.

The edge (`dimse`) turns associations into use cases (`ingest`, `search`, `retrieve`); the spool holds what is not yet
safe on storage elements and the worker empties it. `node` composes the processes, `cli` is the command. May import
the clients of `catalog` and `storage_provider`, and `certs`; must never know how those services keep what they are
given.
"""
