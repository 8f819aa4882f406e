"""Run migrations on the connection that `catalog.schema.migrate` hands over; there is no offline mode."""
from __future__ import annotations

from alembic import context

from catalog.schema.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
