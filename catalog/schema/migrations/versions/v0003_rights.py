"""The VO's policy, and what its scopes look at: sites and labels of studies, shares."""
from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add three tables; studies that are there have no site until an instance of theirs is registered again."""
    text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "study_facts",
        sa.Column("study_uid", text, nullable=False),
        sa.Column("kind", text, nullable=False),
        sa.Column("value", text, nullable=False),
        sa.PrimaryKeyConstraint("study_uid", "kind", "value", name="pk_study_facts"),
    )
    op.create_table(
        "shares",
        sa.Column("id", big, autoincrement=True, nullable=False),
        sa.Column("share_id", text, nullable=False),
        sa.Column("study_uid", text, nullable=False),
        sa.Column("kind", text, nullable=False),
        sa.Column("grantee", text, nullable=False),
        sa.Column("until", big, nullable=False),
        sa.Column("reason", text, nullable=False),
        sa.Column("made_at", big, nullable=False),
        sa.Column("made_by", text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_shares"),
        sa.UniqueConstraint("share_id", name="uq_shares_share_id"),
    )
    op.create_index("ix_shares_study_uid", "shares", ["study_uid", "kind", "grantee"])
    op.create_table(
        "policies",
        sa.Column("version", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("text", text, nullable=False),
        sa.Column("made_at", big, nullable=False),
        sa.Column("made_by", text, nullable=False),
        sa.PrimaryKeyConstraint("version", name="pk_policies"),
    )
