"""The database schema of the catalog: the tables, and the migrations that bring any older database to them.

May import: SQLAlchemy, alembic, `catalog.keys`. Must never know: HTTP, requests, policies.
"""
