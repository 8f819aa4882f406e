"""The query keys: which DICOM attribute is which column at which level (pure data, PS3.4 C.6.1.1, C.6.2.1)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["PATIENT", "STUDY", "SERIES", "IMAGE"]
Kind = Literal["text", "name", "uid", "number", "count"]
LEVELS: tuple[Level, ...] = ("PATIENT", "STUDY", "SERIES", "IMAGE")


@dataclass(frozen=True, slots=True)
class Key:
    """One attribute with a column of its own.

    `path` holds the tags that lead to it; more than one means "in the first item of that sequence", and the keyword
    is then SEQUENCE.ATTRIBUTE. A `multiple`
    value is kept as one string with backslashes. `name` columns have a second column, `<column>_key`, to match by.
    """

    keyword: str
    path: tuple[int, ...]
    level: Level
    column: str
    kind: Kind = "text"
    multiple: bool = False


def _keys(level: Level, *rows: tuple[str, int | tuple[int, ...], str, Kind, bool]) -> tuple[Key, ...]:
    return tuple(
        Key(keyword, tag if isinstance(tag, tuple) else (tag,), level, column, kind, multiple)
        for keyword, tag, column, kind, multiple in rows
    )


PATIENT_KEYS = _keys(
    "PATIENT",
    ("PatientName", 0x00100010, "patient_name", "name", False),
    ("PatientID", 0x00100020, "patient_id", "text", False),
    ("IssuerOfPatientID", 0x00100021, "issuer", "text", False),
    ("TypeOfPatientID", 0x00100022, "type_of_patient_id", "text", False),
    ("IssuerOfPatientIDQualifiersSequence.UniversalEntityID", (0x00100024, 0x00400032), "issuer_universal_id", "text",
     False),
    ("IssuerOfPatientIDQualifiersSequence.UniversalEntityIDType", (0x00100024, 0x00400033), "issuer_universal_type",
     "text", False),
    ("PatientBirthDate", 0x00100030, "birth_date", "text", False),
    ("PatientBirthTime", 0x00100032, "birth_time", "text", False),
    ("PatientSex", 0x00100040, "sex", "text", False),
    ("OtherPatientIDs", 0x00101000, "other_ids", "text", True),
    ("OtherPatientNames", 0x00101001, "other_names", "name", True),
    ("EthnicGroup", 0x00102160, "ethnic_group", "text", False),
    ("PatientComments", 0x00104000, "patient_comments", "text", False),
)

STUDY_KEYS = _keys(
    "STUDY",
    ("StudyInstanceUID", 0x0020000D, "study_uid", "uid", False),
    ("StudyDate", 0x00080020, "study_date", "text", False),
    ("StudyTime", 0x00080030, "study_time", "text", False),
    ("AccessionNumber", 0x00080050, "accession_number", "text", False),
    ("IssuerOfAccessionNumberSequence.LocalNamespaceEntityID", (0x00080051, 0x00400031), "accession_issuer", "text",
     False),
    ("IssuerOfAccessionNumberSequence.UniversalEntityID", (0x00080051, 0x00400032), "accession_universal_id", "text",
     False),
    ("IssuerOfAccessionNumberSequence.UniversalEntityIDType", (0x00080051, 0x00400033), "accession_universal_type",
     "text", False),
    ("StudyID", 0x00200010, "study_id", "text", False),
    ("StudyDescription", 0x00081030, "study_description", "text", False),
    ("ReferringPhysicianName", 0x00080090, "referring_physician", "name", False),
    ("NameOfPhysiciansReadingStudy", 0x00081060, "reading_physicians", "name", True),
    ("RequestingPhysician", 0x00321032, "requesting_physician", "name", False),
    ("RequestedProcedureDescription", 0x00321060, "requested_procedure", "text", False),
    ("PatientAge", 0x00101010, "patient_age", "text", False),
    ("PatientSize", 0x00101020, "patient_size", "text", False),
    ("PatientWeight", 0x00101030, "patient_weight", "text", False),
    ("Occupation", 0x00102180, "occupation", "text", False),
    ("AdditionalPatientHistory", 0x001021B0, "patient_history", "text", False),
    ("AdmittingDiagnosesDescription", 0x00081080, "admitting_diagnoses", "text", True),
    ("StudyComments", 0x00324000, "study_comments", "text", False),
    ("StudyStatusID", 0x0032000A, "study_status", "text", False),
    ("InterpretationStatusID", 0x40080212, "interpretation_status", "text", False),
    ("TimezoneOffsetFromUTC", 0x00080201, "timezone", "text", False),
)

SERIES_KEYS = _keys(
    "SERIES",
    ("SeriesInstanceUID", 0x0020000E, "series_uid", "uid", False),
    ("SeriesNumber", 0x00200011, "series_number", "number", False),
    ("Modality", 0x00080060, "modality", "text", False),
    ("SeriesDescription", 0x0008103E, "series_description", "text", False),
    ("SeriesDate", 0x00080021, "series_date", "text", False),
    ("SeriesTime", 0x00080031, "series_time", "text", False),
    ("BodyPartExamined", 0x00180015, "body_part", "text", False),
    ("ProtocolName", 0x00181030, "protocol", "text", False),
    ("StationName", 0x00081010, "station", "text", False),
    ("InstitutionName", 0x00080080, "institution", "text", False),
    ("InstitutionalDepartmentName", 0x00081040, "department", "text", False),
    ("PerformingPhysicianName", 0x00081050, "performing_physicians", "name", True),
    ("OperatorsName", 0x00081070, "operators", "name", True),
    ("Laterality", 0x00200060, "laterality", "text", False),
    ("PatientPosition", 0x00185100, "patient_position", "text", False),
    ("Manufacturer", 0x00080070, "manufacturer", "text", False),
    ("ManufacturerModelName", 0x00081090, "model", "text", False),
    ("DeviceSerialNumber", 0x00181000, "device_serial", "text", False),
    ("FrameOfReferenceUID", 0x00200052, "frame_of_reference", "uid", False),
    ("PerformedProcedureStepStartDate", 0x00400244, "step_date", "text", False),
    ("PerformedProcedureStepStartTime", 0x00400245, "step_time", "text", False),
    ("PerformedProcedureStepID", 0x00400253, "step_id", "text", False),
    ("PerformedProcedureStepDescription", 0x00400254, "step_description", "text", False),
    ("RequestAttributesSequence.RequestedProcedureID", (0x00400275, 0x00401001), "requested_procedure_id", "text",
     False),
    ("RequestAttributesSequence.ScheduledProcedureStepID", (0x00400275, 0x00400009), "scheduled_step_id", "text",
     False),
)

IMAGE_KEYS = _keys(
    "IMAGE",
    ("SOPInstanceUID", 0x00080018, "instance_uid", "uid", False),
    ("SOPClassUID", 0x00080016, "sop_class_uid", "uid", False),
    ("InstanceNumber", 0x00200013, "instance_number", "number", False),
    ("NumberOfFrames", 0x00280008, "frames", "count", False),
    ("Rows", 0x00280010, "rows", "count", False),
    ("Columns", 0x00280011, "columns", "count", False),
    ("BitsAllocated", 0x00280100, "bits_allocated", "count", False),
    ("ContentDate", 0x00080023, "content_date", "text", False),
    ("ContentTime", 0x00080033, "content_time", "text", False),
    ("AcquisitionNumber", 0x00200012, "acquisition_number", "number", False),
    ("AcquisitionDate", 0x00080022, "acquisition_date", "text", False),
    ("AcquisitionTime", 0x00080032, "acquisition_time", "text", False),
    ("AcquisitionDateTime", 0x0008002A, "acquisition_datetime", "text", False),
    ("InstanceCreationDate", 0x00080012, "creation_date", "text", False),
    ("InstanceCreationTime", 0x00080013, "creation_time", "text", False),
    ("ImageType", 0x00080008, "image_type", "text", True),
    ("SliceLocation", 0x00201041, "slice_location", "text", False),
    ("ImageComments", 0x00204000, "image_comments", "text", False),
    ("ContentLabel", 0x00700080, "content_label", "text", False),
    ("ContentDescription", 0x00700081, "content_description", "text", False),
    ("ContentCreatorName", 0x00700084, "content_creator", "name", False),
    ("PresentationCreationDate", 0x00700082, "presentation_date", "text", False),
    ("PresentationCreationTime", 0x00700083, "presentation_time", "text", False),
    ("DocumentTitle", 0x00420010, "document_title", "text", False),
    ("CompletionFlag", 0x0040A491, "completion_flag", "text", False),
    ("VerificationFlag", 0x0040A493, "verification_flag", "text", False),
)

HEADER_KEYS: tuple[Key, ...] = PATIENT_KEYS + STUDY_KEYS + SERIES_KEYS + IMAGE_KEYS

# Answered from counts, summaries and replica states, not from one attribute of a header.
DERIVED: dict[str, frozenset[Level]] = {
    "NumberOfPatientRelatedStudies": frozenset({"PATIENT", "STUDY", "SERIES", "IMAGE"}),
    "NumberOfPatientRelatedSeries": frozenset({"PATIENT", "STUDY", "SERIES", "IMAGE"}),
    "NumberOfPatientRelatedInstances": frozenset({"PATIENT", "STUDY", "SERIES", "IMAGE"}),
    "NumberOfStudyRelatedSeries": frozenset({"STUDY", "SERIES", "IMAGE"}),
    "NumberOfStudyRelatedInstances": frozenset({"STUDY", "SERIES", "IMAGE"}),
    "NumberOfSeriesRelatedInstances": frozenset({"SERIES", "IMAGE"}),
    "ModalitiesInStudy": frozenset({"STUDY", "SERIES", "IMAGE"}),
    "SOPClassesInStudy": frozenset({"STUDY", "SERIES", "IMAGE"}),
    "AvailableTransferSyntaxUID": frozenset({"IMAGE"}),
    "InstanceAvailability": frozenset({"PATIENT", "STUDY", "SERIES", "IMAGE"}),
}
# Attributes of one series that viewers also ask and match at the study; Modality there means ModalitiesInStudy.
STUDY_FROM_SERIES = frozenset(
    {"Modality", "BodyPartExamined", "InstitutionName", "PerformingPhysicianName", "StationName"}
)
SERIES_FROM_IMAGE = frozenset({"Rows", "Columns"})  # answered where every instance has the same value

# A date and the time that belongs to it, matched as one moment where combined date-time matching was negotiated
# (PS3.4 C.5.1.1): the keyword to match is "StudyDate+StudyTime", its values are dates followed by times.
MOMENTS: dict[str, tuple[str, str]] = {
    f"{name}Date+{name}Time": (f"{name}Date", f"{name}Time")
    for name in ("PatientBirth", "Study", "Series", "PerformedProcedureStepStart", "Content", "Acquisition",
                 "InstanceCreation", "PresentationCreation")
}

BY_KEYWORD: dict[str, Key] = {key.keyword: key for key in HEADER_KEYS}


def supported(level: Level) -> frozenset[str]:
    """Name every keyword that a query at `level` may ask back or match.

    Keys of upper levels are included (PS3.4 C.4.1.2.2.1 and relational queries); at STUDY and SERIES also
    the unique keys of the levels below, to match by only.
    """
    depth = LEVELS.index(level)
    names = {key.keyword for key in HEADER_KEYS if LEVELS.index(key.level) <= depth}
    names |= {keyword for keyword, levels in DERIVED.items() if level in levels}
    if level == "STUDY":
        names |= STUDY_FROM_SERIES
    if level == "SERIES":
        names |= SERIES_FROM_IMAGE
    return frozenset(names | {"SeriesInstanceUID", "SOPInstanceUID", "StudyInstanceUID"})
