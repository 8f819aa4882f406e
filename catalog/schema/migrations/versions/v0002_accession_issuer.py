"""The universal entity ID of an accession number's issuer; `dgis-catalog reindex` fills it for what is there."""
from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two columns to the studies."""
    kind = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.add_column("studies", sa.Column("accession_universal_id", kind))
    op.add_column("studies", sa.Column("accession_universal_type", kind))
