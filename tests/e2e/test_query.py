"""C-FIND through a whole grid: the character-set matrix, and every key of every level, returned and matched.

What is stored went in by a real C-STORE, what is asked is encoded by pydicom, what is answered is read by pydicom and
by DCMTK: neither shares code with our own codec.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pynetdicom import AE
from pynetdicom.association import Association

from tests.helpers import dcmtk
from tests.helpers.dicomfiles import synth
from tests.helpers.grid import Grid
from tests.helpers.synth import WHO

PATIENT_ROOT, STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.1.1", "1.2.840.10008.5.1.4.1.2.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
ROUNDS = max(len(people) for _, people, _, _ in WHO.values())

# Specific Character Set of a client -> the Python codecs that hold its repertoire, and whether DCMTK here reads it.
CLIENTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "": (("ascii",), False),
    "ISO_IR 100": (("latin_1",), True),
    "ISO_IR 101": (("iso8859_2",), True),
    "ISO_IR 109": (("iso8859_3",), True),
    "ISO_IR 110": (("iso8859_4",), True),
    "ISO_IR 144": (("iso8859_5",), True),
    "ISO_IR 126": (("iso8859_7",), True),
    "ISO_IR 138": (("iso8859_8",), True),
    "ISO_IR 148": (("iso8859_9",), True),
    "ISO_IR 166": (("tis_620",), True),
    "ISO_IR 192": (("utf-8",), True),
    "GB18030": (("gb18030",), True),
    "GBK": (("gbk",), True),
    "\\ISO 2022 IR 87": (("iso2022_jp",), False),
    "ISO_IR 13\\ISO 2022 IR 87": (("iso2022_jp",), False),
    "\\ISO 2022 IR 149": (("euc_kr",), True),
    "\\ISO 2022 IR 58": (("gb2312",), True),
    "ISO 2022 IR 6\\ISO 2022 IR 100\\ISO 2022 IR 144": (("latin_1", "iso8859_5"), True),
    "\\ISO 2022 IR 101\\ISO 2022 IR 126\\ISO 2022 IR 87": (("iso8859_2", "iso8859_7", "iso2022_jp"), False),
}
TEXTS = ("PatientName", "ReferringPhysicianName", "InstitutionName", "StudyDescription")
REPLACING = "LATIN_ONLY"


@dataclass
class Loaded:
    """A grid with one study of every name, and the rich one."""

    grid: Grid
    studies: dict[str, Dataset]

    def associate(self, *, title: str = "VIEWER", options: bytes = b"") -> Association:
        ae = AE(title)
        for model in (STUDY_ROOT, PATIENT_ROOT):
            ae.add_requested_context(model, ["1.2.840.10008.1.2.1"])
        negotiation = []
        if options:
            from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation

            item = SOPClassExtendedNegotiation()
            item.sop_class_uid, item.service_class_application_information = STUDY_ROOT, options
            negotiation.append(item)
        association = ae.associate("127.0.0.1", self.grid.port, ae_title="DGIS", ext_neg=negotiation)
        assert association.is_established
        return association


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    if not (dcmtk.PLACE / "storescu").exists():
        pytest.skip("DCMTK is not installed (Debian: dcmtk)")
    place = tmp_path_factory.mktemp("query")
    folder = synth(
        place / "images", "--studies", str(len(WHO) * ROUNDS), "--instances", "1", "--rows", "8", "--cols", "8"
    )
    rich().save_as(folder / "rich.dcm", enforce_file_format=True)
    files = [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]
    with Grid(place / "grid", providers=1, workers=1) as grid:
        grid.cli("ae", "add", REPLACING, "--charset", "ISO_IR 100", "--find-limit", "3")
        sent = dcmtk.run("storescu", *dcmtk.storescu_args(folder, grid.port))
        assert sent.returncode == 0, sent.stderr
        yield Loaded(grid, {str(one.StudyInstanceUID): one for one in files})


def find(association: Association, query: Dataset, *, model: str = STUDY_ROOT) -> list[tuple[int, Dataset | None]]:
    return [(status.Status, answer) for status, answer in association.send_c_find(query, model)]


def keys(level: str, charset: str = "", **values: Any) -> Dataset:
    query = Dataset()
    if charset:
        query.SpecificCharacterSet = charset.split("\\")
    query.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(query, keyword, value)
    return query


# --- character sets --------------------------------------------------------------------------------------------------


def holds(codecs: tuple[str, ...], text: str) -> bool:
    """Whether each character is in one of the repertoires."""

    def one(char: str) -> bool:
        for codec in codecs:
            try:
                char.encode(codec)
            except UnicodeError:
                continue
            return True
        return False

    return all(map(one, text))


def the_set(data_set: Dataset) -> str:
    value = data_set.SpecificCharacterSet
    return value if isinstance(value, str) else "\\".join(value)


def test_the_matrix_has_every_set_and_every_name(loaded: Loaded) -> None:
    stored = {str(one.PatientName) for one in loaded.studies.values()}
    assert {name for _, people, _, _ in WHO.values() for name, _ in people} <= stored
    assert len({the_set(one) if "SpecificCharacterSet" in one else "" for one in loaded.studies.values()}) == 11


@pytest.mark.parametrize("charset", CLIENTS)
def test_every_stored_text_is_answered_in_a_set_that_the_client_reads(loaded: Loaded, charset: str) -> None:
    codecs, _ = CLIENTS[charset]
    association = loaded.associate()
    answers = find(association, keys("STUDY", charset, StudyInstanceUID="", **dict.fromkeys(TEXTS, "")))
    association.release()
    assert [status for status, _ in answers] == [0xFF00] * len(loaded.studies) + [0]
    for _, answer in answers[:-1]:
        assert answer is not None
        stored = loaded.studies[answer.StudyInstanceUID]
        wanted = {keyword: str(stored.get(keyword, "")) for keyword in TEXTS}
        # pydicom leaves the escape sequence of GB 2312 in the text; DCMTK reads the same bytes without it below
        got = {keyword: str(answer[keyword].value).replace("\x1b$)A", "") for keyword in TEXTS}
        assert got == wanted
        own = all(holds(codecs, text) for text in wanted.values())
        assert the_set(answer) == ((charset or "ISO_IR 100") if own else "ISO_IR 192"), wanted


@pytest.mark.parametrize("charset", [charset for charset in CLIENTS if charset])
def test_every_name_is_found_when_asked_in_the_clients_set(loaded: Loaded, charset: str) -> None:
    codecs, _ = CLIENTS[charset]
    by_name: dict[str, set[str]] = {}
    for uid, one in loaded.studies.items():
        by_name.setdefault(str(one.PatientName), set()).add(uid)
    association = loaded.associate()
    asked = 0
    for name, uids in by_name.items():
        last = name.split("=")[-1]
        for text in (name, last, last[:2] + "*", "*" + last[-2:]):
            if holds(codecs, text):
                asked += 1
                answers = find(association, keys("STUDY", charset, StudyInstanceUID="", PatientName=text))
                got = {answer.StudyInstanceUID for status, answer in answers[:-1] if answer is not None}
                assert got == uids if "*" not in text else got >= uids, (charset, text)
    association.release()
    assert asked >= 12


@pytest.mark.parametrize("charset", [charset for charset, (_, readable) in CLIENTS.items() if readable])
def test_dcmtk_reads_the_same_names(loaded: Loaded, charset: str, tmp_path: Path) -> None:
    found = dcmtk.run(
        "findscu", "-S", "-X", "-od", tmp_path, "-aec", "DGIS", "-k", "QueryRetrieveLevel=STUDY", "-k", "PatientName",
        "-k", f"SpecificCharacterSet={charset}", "127.0.0.1", str(loaded.grid.port),
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    answers = sorted(tmp_path.glob("rsp*.dcm"))
    assert len(answers) == len(loaded.studies)
    dump = subprocess.run(
        ["/usr/bin/dcmdump", "-q", "+U8", "+P", "PatientName", *answers], capture_output=True, check=True
    ).stdout.decode()
    names = {line.split("[", 1)[1].split("]")[0] for line in dump.splitlines() if "[" in line}
    assert names == {str(one.PatientName) for one in loaded.studies.values()}


def test_a_set_fixed_for_an_ae_replaces_and_says_so(loaded: Loaded) -> None:
    association = loaded.associate(title=REPLACING)
    query = keys("STUDY", "ISO_IR 192", PatientName="Łukasiewicz*")
    [(status, answer), (final, _)] = find(association, query)
    assert (status, final) == (0xFF00, 0) and answer is not None
    assert the_set(answer) == "ISO_IR 100" and str(answer.PatientName) == "?ukasiewicz^Gra?yna"
    answers = find(association, keys("STUDY", PatientName=""))
    assert [status for status, _ in answers] == [0xFF00] * 3 + [0xA700], "the AE's own limit"
    association.release()
    log = "".join(path.read_text() for path in (loaded.grid.home / "log").glob("*.log"))
    assert "characters replaced in answers" in log and "ukasiewicz" not in log


# --- keys ------------------------------------------------------------------------------------------------------------


def item(**values: Any) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


# level -> keyword -> (stored value, a value to match by, one that must not match); None: not matched
KEYS: dict[str, dict[str, tuple[Any, Any, Any]]] = {
    "PATIENT": {
        "PatientName": ("Rich^Äda^Q", "RICH^ada*", "Rich^Bob"),
        "PatientID": ("RICH-1", "RICH-?", "RICH"),
        "IssuerOfPatientID": ("HOSPITAL", "HOSPITAL", "HOSPITAL2"),
        "PatientBirthDate": ("19700102", "19700101-19700131", "19700103-"),
        "PatientSex": ("F", "F", "M"),
        "OtherPatientIDs": (["OLD1", "OLD2"], "OLD2", "OLD"),
    },
    "STUDY": {
        "StudyDate": ("20230405", "-20230405", "20230406-"),
        "StudyTime": ("101530.5", "1015-1016", "-1014"),
        "AccessionNumber": ("ACC-RICH", "ACC-R*", "acc-r*"),
        "StudyID": ("RS1", "RS1", "RS2"),
        "StudyDescription": ("Rich study", "Rich*", "rich*"),
        "ReferringPhysicianName": ("Doc^Rêf", "doc^ref", "Doc^Bob"),
        "PatientAge": ("053Y", "053Y", "054Y"),
        "InstitutionName": ("Rich Hospital", "Rich H*", "Poor*"),
        "PerformingPhysicianName": ("Perf^Ann", "perf*", "Doc*"),
        "ModalitiesInStudy": ("CT", ["MR", "CT"], ["MR", "US"]),
        "Modality": ("CT", ["MR", "CT"], "MR"),
        "SOPClassesInStudy": (CT, CT, "1.2.3"),
        "NumberOfStudyRelatedSeries": (1, 1, 2),
        "NumberOfStudyRelatedInstances": (1, 1, 2),
        "StudyComments": ("a comment", "*comment", "none"),
        "InterpretationStatusID": ("REPORTED", "REPORTED", "NONE"),
        "BodyPartExamined": ("HEAD", "HEAD", "CHEST"),
        "StationName": ("RICHST", "RICHST", "OTHER"),
    },
    "SERIES": {
        "SeriesInstanceUID": ("1.2.99.1.1", "1.2.99.1.1", "1.2.99.1"),
        "SeriesNumber": (7, 7, 8),
        "SeriesDescription": ("Rich series", "*series", "*SERIES"),
        "SeriesDate": ("20230405", "20230405", "20230404"),
        "SeriesTime": ("1016", "101600", "1017"),
        "ProtocolName": ("Prot 1", "Prot ?", "Prot"),
        "Rows": (16, 16, 17),
        "Columns": (32, 32, 33),
        "NumberOfSeriesRelatedInstances": (1, 1, 2),
    },
    "IMAGE": {
        "SOPInstanceUID": ("1.2.99.1.1.1", "1.2.99.1.1.1", "1.2.99"),
        "SOPClassUID": (CT, CT, "1.2.3"),
        "InstanceNumber": (12, 12, 1),
        "NumberOfFrames": (1, 1, 2),
        "ContentDate": ("20230406", "20230406-", "-20230405"),
        "ContentTime": ("235959", "2359-", "-2358"),
        "AvailableTransferSyntaxUID": ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"),
    },
}
SEQUENCES: dict[str, dict[str, dict[str, tuple[str, str, str]]]] = {
    "PATIENT": {
        "IssuerOfPatientIDQualifiersSequence": {
            "UniversalEntityID": ("1.2.77", "1.2.77", "1.2.78"),
            "UniversalEntityIDType": ("ISO", "ISO", "DNS"),
        },
    },
    "STUDY": {
        "IssuerOfAccessionNumberSequence": {
            "LocalNamespaceEntityID": ("LAB", "LA?", "LAB2"),
            "UniversalEntityID": ("1.2.88", "1.2.88", "1.2.89"),
        },
    },
    "SERIES": {
        "RequestAttributesSequence": {
            "RequestedProcedureID": ("RP1", "RP*", "RP2"),
            "ScheduledProcedureStepID": ("SPS1", "SPS1", "SPS2"),
        },
    },
    "IMAGE": {},
}
LEVELS = tuple(KEYS)
DERIVED = ("ModalitiesInStudy", "SOPClassesInStudy", "NumberOf", "AvailableTransferSyntaxUID")


def rich() -> Dataset:
    """One instance that has a value for every key."""
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 100"
    made.StudyInstanceUID = "1.2.99.1"
    for level in LEVELS:
        for keyword, (stored, _, _) in KEYS[level].items():
            if not keyword.startswith(DERIVED):
                setattr(made, keyword, stored)
        for keyword, inside in SEQUENCES[level].items():
            setattr(made, keyword, [item(**{name: stored for name, (stored, _, _) in inside.items()})])
    made.NumberOfFrames = 1
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = made.SOPClassUID, made.SOPInstanceUID
    made.file_meta = meta
    return made


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, pydicom.multival.MultiValue) else str(value)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("model", [STUDY_ROOT, PATIENT_ROOT], ids=["study-root", "patient-root"])
def test_every_key_of_its_level_and_above_is_returned(loaded: Loaded, level: str, model: str) -> None:
    wanted = {k: v[0] for upper in LEVELS[: LEVELS.index(level) + 1] for k, v in KEYS[upper].items()}
    nested = {k: v for upper in LEVELS[: LEVELS.index(level) + 1] for k, v in SEQUENCES[upper].items()}
    query = keys(level, "ISO_IR 100", **{**dict.fromkeys(wanted), "PatientID": "RICH-1"})
    for number, (keyword, inside) in enumerate(nested.items()):
        setattr(query, keyword, [item(**dict.fromkeys(inside, ""))] if number % 2 else [])
    query.StorageMediaFileSetID = query.TimezoneOffsetFromUTC = query.StorageMediaFileSetUID = ""
    if level == "PATIENT":
        for what in ("Studies", "Series", "Instances"):
            wanted[f"NumberOfPatientRelated{what}"] = 1
            setattr(query, f"NumberOfPatientRelated{what}", None)
    association = loaded.associate()
    [(status, answer), (final, _)] = find(association, query, model=model)
    association.release()
    assert (status, final) == (0xFF00, 0) and answer is not None
    assert {k: plain(answer[k].value) for k in wanted} == {
        k: v if isinstance(v, list) else str(v) for k, v in wanted.items()
    }
    for keyword, inside in nested.items():
        [inner] = answer[keyword].value
        for name, (stored, _, _) in inside.items():
            assert inner[name].value == stored
    assert answer.QueryRetrieveLevel == level and answer.RetrieveAETitle == "DGIS"
    assert answer.InstanceAvailability == "ONLINE" and answer.SpecificCharacterSet == "ISO_IR 100"
    assert answer.StorageMediaFileSetID == answer.TimezoneOffsetFromUTC == answer.StorageMediaFileSetUID == ""


@pytest.mark.parametrize("level", LEVELS)
def test_every_key_is_matched_at_its_level_and_below(loaded: Loaded, level: str) -> None:
    association = loaded.associate()
    failures = []
    for upper in LEVELS[: LEVELS.index(level) + 1]:
        for keyword, (_, right, wrong) in KEYS[upper].items():
            for value, count in ((right, 1), (wrong, 0)):
                query = keys(level, "ISO_IR 100", StudyInstanceUID="1.2.99.1", **{keyword: value})
                answers = find(association, query)
                if [status for status, _ in answers] != [0xFF00] * count + [0]:
                    failures.append((keyword, value, [hex(status) for status, _ in answers]))
        for keyword, inside in SEQUENCES[upper].items():
            for name, (_, right, wrong) in inside.items():
                for value, count in ((right, 1), (wrong, 0)):
                    query = keys(level, StudyInstanceUID="1.2.99.1", **{keyword: [item(**{name: value})]})
                    answers = find(association, query)
                    if [status for status, _ in answers] != [0xFF00] * count + [0]:
                        failures.append((keyword, name, [hex(status) for status, _ in answers]))
    association.release()
    assert failures == []


def test_findscu_matches_inside_sequences(loaded: Loaded) -> None:
    for step, count in (("SPS1", 1), ("SPS2", 0)):
        found = dcmtk.run(
            "findscu", "-S", "-v", "-aec", "DGIS", "-k", "QueryRetrieveLevel=SERIES", "-k", "StudyInstanceUID=1.2.99.1",
            "-k", f"RequestAttributesSequence[0].ScheduledProcedureStepID={step}", "127.0.0.1", str(loaded.grid.port),
        )  # fmt: skip
        assert found.returncode == 0 and (found.stderr + found.stdout).count("Find Response: ") == count, found.stdout


def test_combined_date_time_only_when_negotiated(loaded: Loaded) -> None:
    """20230404 1200 to 20230405 1100: as one moment it holds 10:15 of the 5th, apart the time range is empty."""
    query = keys("STUDY", StudyInstanceUID="1.2.99.1", StudyDate="20230404-20230405", StudyTime="1200-1100")
    for options, count in ((b"", 0), (b"\1\1\1\1", 1)):
        association = loaded.associate(options=options)
        answered = association.acceptor.sop_class_extended.get(STUDY_ROOT)
        assert answered == (b"\1\1\0\0" if options else None), "fuzzy matching and time zones are not offered"
        assert len(find(association, query)) == count + 1
        association.release()


def test_one_answer_per_entity_and_counts(loaded: Loaded) -> None:
    association = loaded.associate()
    for level in LEVELS:
        answers = find(association, keys(level, PatientID="", NumberOfStudyRelatedInstances=None))
        assert len(answers) == len(loaded.studies) + 1, level
    association.release()


def test_replaced_characters_are_counted(loaded: Loaded) -> None:
    association = loaded.associate(title=REPLACING)
    find(association, keys("STUDY", "ISO_IR 192", PatientName="Łukasiewicz*"))
    association.release()
    client, url = loaded.grid.ready["client"], loaded.grid.ready["dgis"]["url"]
    text = subprocess.run(
        ["curl", "-s", "--cacert", client["ca"], "--cert", client["cert"], "--key", client["key"], url + "/metrics"],
        capture_output=True, text=True, check=True, env={**os.environ, "NO_PROXY": "*"},
    ).stdout  # fmt: skip
    line = next((line for line in text.splitlines() if line.startswith("dgis_replaced_characters_total")), "")
    assert float(line.split()[-1]) >= 2, json.dumps(line)


def test_cancel_while_the_catalog_hangs(loaded: Loaded) -> None:
    """FE00 within a second, and the association is released at once: it does not wait for the catalog."""
    [catalog] = loaded.grid.processes()["catalog"]
    association = loaded.associate()
    catalog.suspend()
    try:
        cancel = threading.Timer(0.3, association.send_c_cancel, (7,), {"query_model": STUDY_ROOT})
        cancel.start()
        began = time.monotonic()
        answers = list(association.send_c_find(keys("STUDY", StudyInstanceUID=""), STUDY_ROOT, msg_id=7))
        assert [status.Status for status, _ in answers] == [0xFE00]
        assert time.monotonic() - began < 1.3
        association.release()
        assert association.is_released and time.monotonic() - began < 1.6
    finally:
        catalog.resume()
    association = loaded.associate()
    assert len(find(association, keys("STUDY", StudyInstanceUID=""))) == len(loaded.studies) + 1
    association.release()
