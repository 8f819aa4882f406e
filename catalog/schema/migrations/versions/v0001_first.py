"""The first schema."""
from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def text() -> TypeEngine[str]:
    """Text that compares bytewise."""
    return sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def big() -> TypeEngine[int]:
    """64-bit integers; plain INTEGER on SQLite, for its rowid."""
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make every table."""
    _catalog_state()
    _changes()
    _patients()
    _placements()
    _sites()
    _storage_elements()
    _objects()
    _patient_names()
    _studies()
    _conflicts()
    _headers()
    _replicas()
    _series()
    _study_modalities()
    _study_sop_classes()
    _instances()
    _series_placements()


def _catalog_state() -> None:
    op.create_table("catalog_state",
        sa.Column("id", sa.Integer(), nullable=False), sa.Column("catalog_id", text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False), sa.Column("last_seq", big(), nullable=False),
        sa.Column("reindex_after", big(), nullable=True), sa.PrimaryKeyConstraint("id", name="pk_catalog_state")
    )


def _changes() -> None:
    op.create_table("changes",
        sa.Column("seq", big(), autoincrement=False, nullable=False), sa.Column("catalog_id", text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False), sa.Column("origin_site", text(), nullable=False),
        sa.Column("kind", text(), nullable=False), sa.Column("tombstone", sa.Boolean(), nullable=False),
        sa.Column("subject", text(), nullable=False), sa.Column("at", big(), nullable=False),
        sa.Column("payload", text(), nullable=False), sa.PrimaryKeyConstraint("seq", name="pk_changes")
    )


def _patients() -> None:
    op.create_table("patients",
        sa.Column("id", big(), autoincrement=True, nullable=False), sa.Column("identity", text(), nullable=False),
        sa.Column("patient_name", text(), nullable=True), sa.Column("patient_name_key", text(), nullable=True),
        sa.Column("patient_id", text(), nullable=False), sa.Column("issuer", text(), nullable=False),
        sa.Column("type_of_patient_id", text(), nullable=True),
        sa.Column("issuer_universal_id", text(), nullable=True),
        sa.Column("issuer_universal_type", text(), nullable=True), sa.Column("birth_date", text(), nullable=True),
        sa.Column("birth_time", text(), nullable=True), sa.Column("sex", text(), nullable=True),
        sa.Column("other_ids", text(), nullable=True), sa.Column("other_names", text(), nullable=True),
        sa.Column("other_names_key", text(), nullable=True), sa.Column("ethnic_group", text(), nullable=True),
        sa.Column("patient_comments", text(), nullable=True), sa.Column("n_studies", big(), nullable=False),
        sa.Column("n_series", big(), nullable=False), sa.Column("n_instances", big(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_patients"),
        sa.UniqueConstraint("identity", name="uq_patients_identity")
    )
    op.create_index("ix_patients_birth_date", "patients", ["birth_date"])
    op.create_index("ix_patients_patient_id", "patients", ["patient_id"])


def _placements() -> None:
    op.create_table("placements",
        sa.Column("id", big(), autoincrement=True, nullable=False), sa.Column("locations", text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_placements"),
        sa.UniqueConstraint("locations", name="uq_placements_locations")
    )


def _sites() -> None:
    op.create_table("sites",
        sa.Column("name", text(), nullable=False), sa.Column("title", text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_sites")
    )


def _storage_elements() -> None:
    op.create_table("storage_elements",
        sa.Column("name", text(), nullable=False), sa.Column("site", text(), nullable=False),
        sa.Column("doors", text(), nullable=False), sa.Column("state", text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_storage_elements")
    )


def _objects() -> None:
    op.create_table("objects",
        sa.Column("id", big(), autoincrement=True, nullable=False), sa.Column("object_key", text(), nullable=False),
        sa.Column("instance_uid", text(), nullable=False), sa.Column("role", text(), nullable=False),
        sa.Column("sop_class_uid", text(), nullable=False), sa.Column("transfer_syntax_uid", text(), nullable=False),
        sa.Column("data_sha256", text(), nullable=False), sa.Column("sha256", text(), nullable=False),
        sa.Column("size", big(), nullable=False), sa.Column("chunks", text(), nullable=False),
        sa.Column("pixel_offset", big(), nullable=True), sa.Column("received_at", big(), nullable=False),
        sa.Column("source_ae", text(), nullable=False), sa.Column("called_ae", text(), nullable=False),
        sa.Column("issuer", text(), nullable=False), sa.Column("spooled_at", text(), nullable=False),
        sa.Column("placement_fk", big(), nullable=False),
        sa.ForeignKeyConstraint(["placement_fk"], ["placements.id"], name="fk_objects_placement_fk"),
        sa.PrimaryKeyConstraint("id", name="pk_objects"),
        sa.UniqueConstraint("object_key", name="uq_objects_object_key")
    )
    op.create_index("ix_objects_instance_uid", "objects", ["instance_uid"])


def _patient_names() -> None:
    op.create_table("patient_names",
        sa.Column("patient_fk", big(), nullable=False), sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("name", text(), nullable=False), sa.Column("name_key", text(), nullable=False),
        sa.ForeignKeyConstraint(["patient_fk"], ["patients.id"], name="fk_patient_names_patient_fk"),
        sa.PrimaryKeyConstraint("patient_fk", "place", name="pk_patient_names")
    )
    op.create_index("ix_patient_names_name", "patient_names", ["name"])
    op.create_index("ix_patient_names_name_key", "patient_names", ["name_key"])


def _studies() -> None:
    op.create_table("studies",
        sa.Column("id", big(), autoincrement=True, nullable=False), sa.Column("patient_fk", big(), nullable=False),
        sa.Column("study_uid", text(), nullable=False), sa.Column("study_date", text(), nullable=True),
        sa.Column("study_time", text(), nullable=True), sa.Column("accession_number", text(), nullable=True),
        sa.Column("accession_issuer", text(), nullable=True), sa.Column("study_id", text(), nullable=True),
        sa.Column("study_description", text(), nullable=True),
        sa.Column("referring_physician", text(), nullable=True),
        sa.Column("referring_physician_key", text(), nullable=True),
        sa.Column("reading_physicians", text(), nullable=True),
        sa.Column("reading_physicians_key", text(), nullable=True),
        sa.Column("requesting_physician", text(), nullable=True),
        sa.Column("requesting_physician_key", text(), nullable=True),
        sa.Column("requested_procedure", text(), nullable=True), sa.Column("patient_age", text(), nullable=True),
        sa.Column("patient_size", text(), nullable=True), sa.Column("patient_weight", text(), nullable=True),
        sa.Column("occupation", text(), nullable=True), sa.Column("patient_history", text(), nullable=True),
        sa.Column("admitting_diagnoses", text(), nullable=True), sa.Column("study_comments", text(), nullable=True),
        sa.Column("study_status", text(), nullable=True), sa.Column("interpretation_status", text(), nullable=True),
        sa.Column("timezone", text(), nullable=True), sa.Column("modalities", text(), nullable=False),
        sa.Column("sop_classes", text(), nullable=False), sa.Column("n_series", big(), nullable=False),
        sa.Column("n_instances", big(), nullable=False),
        sa.ForeignKeyConstraint(["patient_fk"], ["patients.id"], name="fk_studies_patient_fk"),
        sa.PrimaryKeyConstraint("id", name="pk_studies")
    )
    op.create_index("ix_studies_accession_number", "studies", ["accession_number"])
    op.create_index("ix_studies_patient_fk", "studies", ["patient_fk"])
    op.create_index("ix_studies_study_date", "studies", ["study_date"])
    op.create_index("ix_studies_study_id", "studies", ["study_id"])
    op.create_index("uq_studies_study_uid", "studies", ["study_uid"], unique=True)


def _conflicts() -> None:
    op.create_table("conflicts",
        sa.Column("id", big(), autoincrement=True, nullable=False), sa.Column("conflict_id", text(), nullable=False),
        sa.Column("instance_uid", text(), nullable=False), sa.Column("kind", text(), nullable=False),
        sa.Column("state", text(), nullable=False), sa.Column("kept_fk", big(), nullable=True),
        sa.Column("object_fk", big(), nullable=True), sa.Column("study_uid", text(), nullable=True),
        sa.Column("identity", text(), nullable=True), sa.Column("opened_at", big(), nullable=False),
        sa.Column("resolved_at", big(), nullable=True), sa.Column("resolved_by", text(), nullable=True),
        sa.Column("source_ae", text(), nullable=False),
        sa.ForeignKeyConstraint(["kept_fk"], ["objects.id"], name="fk_conflicts_kept_fk"),
        sa.ForeignKeyConstraint(["object_fk"], ["objects.id"], name="fk_conflicts_object_fk"),
        sa.PrimaryKeyConstraint("id", name="pk_conflicts"),
        sa.UniqueConstraint("conflict_id", name="uq_conflicts_conflict_id")
    )
    op.create_index("ix_conflicts_instance_uid", "conflicts", ["instance_uid"])
    op.create_index("ix_conflicts_state", "conflicts", ["state"])
    op.create_index("ix_conflicts_study_uid", "conflicts", ["study_uid"])


def _headers() -> None:
    op.create_table("headers",
        sa.Column("object_fk", big(), nullable=False), sa.Column("syntax", text(), nullable=False),
        sa.Column("complete", sa.Boolean(), nullable=False), sa.Column("zstd", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["object_fk"], ["objects.id"], name="fk_headers_object_fk"),
        sa.PrimaryKeyConstraint("object_fk", name="pk_headers")
    )


def _replicas() -> None:
    op.create_table("replicas",
        sa.Column("id", big(), autoincrement=True, nullable=False), sa.Column("object_fk", big(), nullable=False),
        sa.Column("location", text(), nullable=False), sa.Column("kind", text(), nullable=False),
        sa.Column("state", text(), nullable=False), sa.Column("size", big(), nullable=False),
        sa.Column("sha256", text(), nullable=False), sa.Column("verified_at", big(), nullable=True),
        sa.ForeignKeyConstraint(["object_fk"], ["objects.id"], name="fk_replicas_object_fk"),
        sa.PrimaryKeyConstraint("id", name="pk_replicas"),
        sa.UniqueConstraint("object_fk", "location", "kind", name="uq_replicas_object_fk_location_kind")
    )
    op.create_index("ix_replicas_location", "replicas", ["location", "state"])


def _series() -> None:
    op.create_table("series",
        sa.Column("id", big(), autoincrement=True, nullable=False), sa.Column("study_fk", big(), nullable=False),
        sa.Column("series_uid", text(), nullable=False), sa.Column("series_number", text(), nullable=True),
        sa.Column("modality", text(), nullable=True), sa.Column("series_description", text(), nullable=True),
        sa.Column("series_date", text(), nullable=True), sa.Column("series_time", text(), nullable=True),
        sa.Column("body_part", text(), nullable=True), sa.Column("protocol", text(), nullable=True),
        sa.Column("station", text(), nullable=True), sa.Column("institution", text(), nullable=True),
        sa.Column("department", text(), nullable=True), sa.Column("performing_physicians", text(), nullable=True),
        sa.Column("performing_physicians_key", text(), nullable=True), sa.Column("operators", text(), nullable=True),
        sa.Column("operators_key", text(), nullable=True), sa.Column("laterality", text(), nullable=True),
        sa.Column("patient_position", text(), nullable=True), sa.Column("manufacturer", text(), nullable=True),
        sa.Column("model", text(), nullable=True), sa.Column("device_serial", text(), nullable=True),
        sa.Column("frame_of_reference", text(), nullable=True), sa.Column("step_date", text(), nullable=True),
        sa.Column("step_time", text(), nullable=True), sa.Column("step_id", text(), nullable=True),
        sa.Column("step_description", text(), nullable=True),
        sa.Column("requested_procedure_id", text(), nullable=True),
        sa.Column("scheduled_step_id", text(), nullable=True), sa.Column("n_instances", big(), nullable=False),
        sa.ForeignKeyConstraint(["study_fk"], ["studies.id"], name="fk_series_study_fk"),
        sa.PrimaryKeyConstraint("id", name="pk_series"),
        sa.UniqueConstraint("study_fk", "series_uid", name="uq_series_study_fk_series_uid")
    )
    op.create_index("ix_series_modality", "series", ["modality"])
    op.create_index("ix_series_series_date", "series", ["series_date"])
    op.create_index("ix_series_series_uid", "series", ["series_uid"])
    op.create_index("ix_series_step_date", "series", ["step_date"])


def _study_modalities() -> None:
    op.create_table("study_modalities",
        sa.Column("study_fk", big(), nullable=False), sa.Column("modality", text(), nullable=False),
        sa.Column("n_instances", big(), nullable=False),
        sa.ForeignKeyConstraint(["study_fk"], ["studies.id"], name="fk_study_modalities_study_fk"),
        sa.PrimaryKeyConstraint("study_fk", "modality", name="pk_study_modalities")
    )
    op.create_index("ix_study_modalities_modality", "study_modalities", ["modality", "study_fk"])


def _study_sop_classes() -> None:
    op.create_table("study_sop_classes",
        sa.Column("study_fk", big(), nullable=False), sa.Column("sop_class_uid", text(), nullable=False),
        sa.Column("n_instances", big(), nullable=False),
        sa.ForeignKeyConstraint(["study_fk"], ["studies.id"], name="fk_study_sop_classes_study_fk"),
        sa.PrimaryKeyConstraint("study_fk", "sop_class_uid", name="pk_study_sop_classes")
    )
    op.create_index("ix_study_sop_classes_sop_class_uid", "study_sop_classes", ["sop_class_uid", "study_fk"])


def _instances() -> None:
    op.create_table("instances",
        sa.Column("id", big(), autoincrement=True, nullable=False), sa.Column("series_fk", big(), nullable=False),
        sa.Column("object_fk", big(), nullable=False), sa.Column("instance_uid", text(), nullable=False),
        sa.Column("sop_class_uid", text(), nullable=False), sa.Column("instance_number", text(), nullable=True),
        sa.Column("frames", big(), nullable=True), sa.Column("rows", big(), nullable=True),
        sa.Column("columns", big(), nullable=True), sa.Column("bits_allocated", big(), nullable=True),
        sa.Column("content_date", text(), nullable=True), sa.Column("content_time", text(), nullable=True),
        sa.Column("acquisition_number", text(), nullable=True), sa.Column("acquisition_date", text(), nullable=True),
        sa.Column("acquisition_time", text(), nullable=True),
        sa.Column("acquisition_datetime", text(), nullable=True), sa.Column("creation_date", text(), nullable=True),
        sa.Column("creation_time", text(), nullable=True), sa.Column("image_type", text(), nullable=True),
        sa.Column("slice_location", text(), nullable=True), sa.Column("image_comments", text(), nullable=True),
        sa.Column("content_label", text(), nullable=True), sa.Column("content_description", text(), nullable=True),
        sa.Column("content_creator", text(), nullable=True), sa.Column("content_creator_key", text(), nullable=True),
        sa.Column("presentation_date", text(), nullable=True), sa.Column("presentation_time", text(), nullable=True),
        sa.Column("document_title", text(), nullable=True), sa.Column("completion_flag", text(), nullable=True),
        sa.Column("verification_flag", text(), nullable=True),
        sa.Column("transfer_syntax_uid", text(), nullable=False), sa.Column("modality", text(), nullable=False),
        sa.ForeignKeyConstraint(["object_fk"], ["objects.id"], name="fk_instances_object_fk"),
        sa.ForeignKeyConstraint(["series_fk"], ["series.id"], name="fk_instances_series_fk"),
        sa.PrimaryKeyConstraint("id", name="pk_instances")
    )
    op.create_index("ix_instances_series_fk", "instances", ["series_fk"])
    op.create_index("uq_instances_instance_uid", "instances", ["instance_uid"], unique=True)
    op.create_index("uq_instances_object_fk", "instances", ["object_fk"], unique=True)


def _series_placements() -> None:
    op.create_table("series_placements",
        sa.Column("series_fk", big(), nullable=False), sa.Column("placement_fk", big(), nullable=False),
        sa.Column("n_instances", big(), nullable=False),
        sa.ForeignKeyConstraint(["placement_fk"], ["placements.id"], name="fk_series_placements_placement_fk"),
        sa.ForeignKeyConstraint(["series_fk"], ["series.id"], name="fk_series_placements_series_fk"),
        sa.PrimaryKeyConstraint("series_fk", "placement_fk", name="pk_series_placements")
    )
