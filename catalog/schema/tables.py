"""The tables (SQLAlchemy Core). A change here needs a migration beside it; a test compares the two.

Text compares bytewise on both databases (collation "C"), so that a name prefix is a range of the plain index.
Moments are microseconds since 1970 UTC. No integer key ever leaves the database.
"""
from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeEngine

from catalog.keys import IMAGE_KEYS, PATIENT_KEYS, SERIES_KEYS, STUDY_KEYS, Key

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def text() -> TypeEngine[str]:
    """Make the text type: bytewise comparison everywhere."""
    return Text().with_variant(Text(collation="C"), "postgresql")


def big() -> TypeEngine[int]:
    """Make the integer type of keys and counts (SQLite needs plain INTEGER for its rowid)."""
    return BigInteger().with_variant(Integer(), "sqlite")


def _id() -> Column[int]:
    return Column("id", big(), primary_key=True, autoincrement=True)


def _ref(name: str, target: str, *, primary_key: bool = False) -> Column[int]:
    return Column(name, big(), ForeignKey(target), primary_key=primary_key, nullable=False)


def _count(name: str) -> Column[int]:
    return Column(name, big(), nullable=False, default=0)


def key_columns(keys: tuple[Key, ...], *, required: frozenset[str] = frozenset()) -> list[Column[str] | Column[int]]:
    """Make the typed columns of one level; a name gets a second column to match by."""
    columns: list[Column[str] | Column[int]] = []
    for key in keys:
        if key.kind == "count":
            columns.append(Column(key.column, big()))
            continue
        columns.append(Column(key.column, text(), nullable=key.column not in required))
        if key.kind == "name":
            columns.append(Column(key.column + "_key", text()))
    return columns


catalog_state = Table(
    "catalog_state",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("catalog_id", text(), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("last_seq", big(), nullable=False),
    Column("reindex_after", big()),  # where an interrupted reindex goes on; NULL: none is under way
)
sites = Table("sites", metadata, Column("name", text(), primary_key=True), Column("title", text(), nullable=False))
storage_elements = Table(
    "storage_elements",
    metadata,
    Column("name", text(), primary_key=True),
    Column("site", text(), nullable=False),
    Column("doors", text(), nullable=False),  # a JSON list, best first
    Column("state", text(), nullable=False),
)

patients = Table(
    "patients",
    metadata,
    _id(),
    # SHA-256 of (issuer, PatientID): an id of any length is unique without an index row of that length.
    Column("identity", text(), nullable=False, unique=True),
    *key_columns(PATIENT_KEYS, required=frozenset({"issuer", "patient_id"})),
    _count("n_studies"),
    _count("n_series"),
    _count("n_instances"),
    Index("ix_patients_patient_id", "patient_id"),
    Index("ix_patients_birth_date", "birth_date"),
)
# One row per component group of a name (PS3.5 6.2.1.1), so that each is found by its own beginning.
patient_names = Table(
    "patient_names",
    metadata,
    _ref("patient_fk", "patients.id", primary_key=True),
    Column("place", Integer, primary_key=True),
    Column("name", text(), nullable=False),
    Column("name_key", text(), nullable=False),
    Index("ix_patient_names_name", "name"),
    Index("ix_patient_names_name_key", "name_key"),
)
studies = Table(
    "studies",
    metadata,
    _id(),
    _ref("patient_fk", "patients.id"),
    *key_columns(STUDY_KEYS, required=frozenset({"study_uid"})),
    Column("modalities", text(), nullable=False, default=""),
    Column("sop_classes", text(), nullable=False, default=""),
    _count("n_series"),
    _count("n_instances"),
    Index("uq_studies_study_uid", "study_uid", unique=True),
    Index("ix_studies_patient_fk", "patient_fk"),
    Index("ix_studies_study_date", "study_date"),
    Index("ix_studies_accession_number", "accession_number"),
    Index("ix_studies_study_id", "study_id"),
)
study_modalities = Table(
    "study_modalities",
    metadata,
    _ref("study_fk", "studies.id", primary_key=True),
    Column("modality", text(), primary_key=True),
    _count("n_instances"),
    Index("ix_study_modalities_modality", "modality", "study_fk"),
)
study_sop_classes = Table(
    "study_sop_classes",
    metadata,
    _ref("study_fk", "studies.id", primary_key=True),
    Column("sop_class_uid", text(), primary_key=True),
    _count("n_instances"),
    Index("ix_study_sop_classes_sop_class_uid", "sop_class_uid", "study_fk"),
)
# What scopes of the VO's policy look at and no header holds: kind is site (whose DGIS received it) or label.
# By UID: they outlast a study that is filed anew when a conflict is settled or the catalog is reindexed.
study_facts = Table(
    "study_facts",
    metadata,
    Column("study_uid", text(), primary_key=True),
    Column("kind", text(), primary_key=True),
    Column("value", text(), primary_key=True),
)
shares = Table(
    "shares",
    metadata,
    _id(),
    Column("share_id", text(), nullable=False, unique=True),
    Column("study_uid", text(), nullable=False),
    Column("kind", text(), nullable=False),  # share | break_glass
    Column("grantee", text(), nullable=False),  # an actor, or group:NAME
    Column("until", big(), nullable=False),
    Column("reason", text(), nullable=False),
    Column("made_at", big(), nullable=False),
    Column("made_by", text(), nullable=False),
    Index("ix_shares_study_uid", "study_uid", "kind", "grantee"),
)
policies = Table(
    "policies",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("text", text(), nullable=False),
    Column("made_at", big(), nullable=False),
    Column("made_by", text(), nullable=False),
)
series = Table(
    "series",
    metadata,
    _id(),
    _ref("study_fk", "studies.id"),
    *key_columns(SERIES_KEYS, required=frozenset({"series_uid"})),
    _count("n_instances"),
    # A Series Instance UID that a sender used in two studies is a series of each.
    UniqueConstraint("study_fk", "series_uid"),
    Index("ix_series_series_uid", "series_uid"),
    Index("ix_series_series_date", "series_date"),
    Index("ix_series_modality", "modality"),
    Index("ix_series_step_date", "step_date"),
)

placements = Table(
    "placements",
    metadata,
    _id(),
    Column("locations", text(), nullable=False, unique=True),  # sorted names with a good copy, one a line
)
objects = Table(
    "objects",
    metadata,
    _id(),
    Column("object_key", text(), nullable=False, unique=True),
    Column("instance_uid", text(), nullable=False),
    Column("role", text(), nullable=False),  # current | quarantined | retired
    Column("sop_class_uid", text(), nullable=False),
    Column("transfer_syntax_uid", text(), nullable=False),
    Column("data_sha256", text(), nullable=False),
    Column("sha256", text(), nullable=False),
    Column("size", big(), nullable=False),
    Column("chunks", text(), nullable=False),  # hex digests joined by spaces
    Column("pixel_offset", big()),
    Column("received_at", big(), nullable=False),
    Column("source_ae", text(), nullable=False),
    Column("called_ae", text(), nullable=False),
    Column("issuer", text(), nullable=False),
    Column("spooled_at", text(), nullable=False),
    _ref("placement_fk", "placements.id"),
    Index("ix_objects_instance_uid", "instance_uid"),
)
headers = Table(
    "headers",
    metadata,
    _ref("object_fk", "objects.id", primary_key=True),
    Column("syntax", text(), nullable=False),
    Column("complete", Boolean, nullable=False),
    Column("zstd", LargeBinary, nullable=False),
)
instances = Table(
    "instances",
    metadata,
    _id(),
    _ref("series_fk", "series.id"),
    _ref("object_fk", "objects.id"),
    *key_columns(IMAGE_KEYS, required=frozenset({"instance_uid", "sop_class_uid"})),
    Column("transfer_syntax_uid", text(), nullable=False),
    Column("modality", text(), nullable=False),
    Index("uq_instances_instance_uid", "instance_uid", unique=True),
    Index("uq_instances_object_fk", "object_fk", unique=True),
    Index("ix_instances_series_fk", "series_fk"),
)
replicas = Table(
    "replicas",
    metadata,
    _id(),
    _ref("object_fk", "objects.id"),
    Column("location", text(), nullable=False),
    Column("kind", text(), nullable=False),
    Column("state", text(), nullable=False),
    Column("size", big(), nullable=False),
    Column("sha256", text(), nullable=False),
    Column("verified_at", big()),
    UniqueConstraint("object_fk", "location", "kind"),
    Index("ix_replicas_location", "location", "state"),
)
# How many instances of a series lie at which set of places: availability is answered without reading replicas.
series_placements = Table(
    "series_placements",
    metadata,
    _ref("series_fk", "series.id", primary_key=True),
    _ref("placement_fk", "placements.id", primary_key=True),
    _count("n_instances"),
)
conflicts = Table(
    "conflicts",
    metadata,
    _id(),
    Column("conflict_id", text(), nullable=False, unique=True),
    Column("instance_uid", text(), nullable=False),
    Column("kind", text(), nullable=False),
    Column("state", text(), nullable=False),
    Column("kept_fk", big(), ForeignKey("objects.id")),
    Column("object_fk", big(), ForeignKey("objects.id")),
    Column("study_uid", text()),  # of a second patient's report, with that patient's identity
    Column("identity", text()),
    Column("opened_at", big(), nullable=False),
    Column("resolved_at", big()),
    Column("resolved_by", text()),
    Column("source_ae", text(), nullable=False),
    Index("ix_conflicts_instance_uid", "instance_uid"),
    Index("ix_conflicts_state", "state"),
    Index("ix_conflicts_study_uid", "study_uid"),
)
changes = Table(
    "changes",
    metadata,
    Column("seq", big(), primary_key=True, autoincrement=False),
    Column("catalog_id", text(), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("origin_site", text(), nullable=False),
    Column("kind", text(), nullable=False),
    Column("tombstone", Boolean, nullable=False),
    Column("subject", text(), nullable=False),
    Column("at", big(), nullable=False),
    Column("payload", text(), nullable=False),
)
