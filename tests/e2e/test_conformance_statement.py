"""What the Conformance Statement of a running node says is what its negotiation, its queries and its statuses do.

The claims are read from the Markdown that `dgis conformance` prints; the other side is stock pynetdicom for
negotiation, and bare DIMSE messages for the operations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom._uid_dict import UID_dictionary
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pynetdicom import AE
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation, SOPClassExtendedNegotiation
from pynetdicom.presentation import build_context

from dgis import part10
from dgis.dimse import ask
from dgis.dimse import command as dimse
from dgis.dimse.ask import Key
from dgis.dimse.command import Field
from dgis.dimse.get_scu import FolderUser
from dgis.dimse.limits import PeerAddress, Timeouts
from dgis.dimse.negotiation import EXPLICIT_LE, IMPLICIT_LE
from dgis.dimse.query_scu import Asking, open_asking
from dgis.dimse.runtime.entity import GridAE, Proposal
from dgis.dimse.scu import NobodyServed
from tests.helpers.grid import Grid, free_port

pytestmark = pytest.mark.xdist_group("conformance-statement")
CT, PRIVATE = "1.2.840.10008.5.1.4.1.1.2", "1.3.6.1.4.1.99999.7.1"
FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{n}" for n in (1, 2, 3))
N_GET = 0x0110  # a command field that nothing here serves
COMMITMENT = "1.2.840.10008.1.20.1"
TIMEOUTS = Timeouts(connect=5, acse=10, dimse=20, send=20, close=1)
Table = list[list[str]]


# --- the claims ----------------------------------------------------------------------------------------------------


@dataclass
class Claims:
    """The statement as a reader sees it: tables by heading, then by the text of their first header."""

    text: str

    def section(self, title: str) -> str:
        found = re.search(rf"(?ms)^#+ [\d.]+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", self.text)
        assert found, title
        return found[1]

    def tables(self, text: str) -> list[Table]:
        blocks = re.findall(r"(?m)(?:^\|.*\n?)+", text)
        rows = [[self._cells(line) for line in block.splitlines()] for block in blocks]
        return [[block[0], *block[2:]] for block in rows]

    @staticmethod
    def _cells(line: str) -> list[str]:
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        return [re.sub(r"\\(.)", r"\1", cell).strip().replace("&gt;", ">") for cell in cells]

    def statuses(self, title: str, number: int = -1) -> set[int]:
        found = [table for table in self.tables(self.section(title)) if table[0][0] == "Status"]
        return {int(row[0], 16) for row in found[number][1:]}

    def keys(self, level: str) -> Table:
        after = self.section("Query").split(f"**{level} level**")[1]
        return self.tables(after)[0][1:]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    nobody = free_port()
    with Grid(tmp_path_factory.mktemp("statement") / "g", peers=(f"ABSENT:127.0.0.1:{nobody}",)) as running:
        running.cli("ae", "add", "ECHOONLY", "--rights", "echo")
        running.cli("ae", "add", "ALL", "--rights", "echo,store,find,move,get,commit")
        yield running


@pytest.fixture(scope="module")
def claims(grid: Grid) -> Claims:
    return Claims(grid.cli("conformance").stdout)


# --- negotiation ---------------------------------------------------------------------------------------------------


def associate(grid: Grid, contexts: Sequence[Any], items: Sequence[Any] = ()) -> Any:
    ae = AE("ALL")
    ae.requested_contexts = list(contexts)
    association = ae.associate("127.0.0.1", grid.port, ae_title=grid.aet, ext_neg=list(items))
    if association.is_established:
        association.release()
    return association


def verdicts(grid: Grid, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """The result of each (SOP class, transfer syntax), each proposed in a context of its own."""
    found: dict[tuple[str, str], int] = {}
    for start in range(0, len(pairs), 128):
        association = associate(grid, [build_context(uid, syntax) for uid, syntax in pairs[start : start + 128]])
        for context in (*association.accepted_contexts, *association.rejected_contexts):
            found[str(context.abstract_syntax), str(context.transfer_syntax[0])] = context.result
    assert set(found) == set(pairs)
    return found


def claimed_classes(claims: Claims) -> tuple[list[str], list[str], list[str], list[str]]:
    """(services, their transfer syntaxes, storage SOP classes, their transfer syntaxes)."""
    syntaxes, services = claims.tables(claims.section("Presentation contexts"))
    storage = claims.tables(claims.section("Storage SOP classes"))[0]
    stored = claims.tables(claims.section("Transfer syntaxes of stored instances"))[0]
    return tuple([row[1] for row in table[1:]] for table in (services, syntaxes, storage, stored))  # type: ignore[return-value]


def test_every_context_that_is_named_is_accepted(grid: Grid, claims: Claims) -> None:
    services, syntaxes, storage, stored = claimed_classes(claims)
    assert len(services) >= 7 and len(syntaxes) >= 3 and len(storage) > 180 and len(stored) > 40
    pairs = [(uid, syntax) for uid in services for syntax in syntaxes]
    pairs += [(uid, stored[number % len(stored)]) for number, uid in enumerate(storage)]
    pairs += [(uid, syntax) for uid in (CT, PRIVATE) for syntax in stored] + [(PRIVATE, "1.3.6.1.4.1.99999.7.2")]
    refused = {pair: result for pair, result in verdicts(grid, list(dict.fromkeys(pairs))).items() if result != 0}
    assert not refused


def test_no_context_that_is_not_named_is_accepted(grid: Grid, claims: Claims) -> None:
    services, syntaxes, storage, stored = claimed_classes(claims)
    named = {*services, *storage}
    others = [uid for uid, entry in UID_dictionary.items() if "SOP Class" in entry[1] and uid not in named]
    assert len(others) > 50
    answers = verdicts(grid, [(uid, IMPLICIT_LE) for uid in others])
    assert set(answers.values()) == {0x03}, "abstract syntax not supported (PS3.8 table 9-18)"
    unnamed = [syntax for syntax in stored if syntax not in syntaxes]
    answers = verdicts(grid, [(uid, syntax) for uid in services for syntax in unnamed[::6]])
    assert set(answers.values()) == {0x04}, "transfer syntaxes not supported"


def test_roles_are_answered_as_the_table_says(grid: Grid, claims: Claims) -> None:
    table = next(t for t in claims.tables(claims.section("Associations")) if t[0][0] == "Service")
    uids = {"Verification": "1.2.840.10008.1.1", "Storage": CT, "Query (C-FIND)": FIND, "Retrieve (C-MOVE)": MOVE}
    uids |= {"Retrieve (C-GET)": GET, "Storage Commitment": COMMITMENT}
    assert {row[0] for row in table[1:]} == set(uids)
    for column, (scu, scp) in enumerate(((True, False), (False, True), (True, True)), 1):
        items = []
        for uid in uids.values():
            item = SCP_SCU_RoleSelectionNegotiation()
            item.sop_class_uid, item.scu_role, item.scp_role = uid, scu, scp
            items.append(item)
        association = associate(grid, [build_context(uid) for uid in uids.values()], items)
        assert not association.rejected_contexts
        answers = {
            str(uid): (item.scu_role, item.scp_role) for uid, item in association.acceptor.role_selection.items()
        }
        for row in table[1:]:
            said = (bool(re.search("SCU", row[column])), bool(re.search("SCP", row[column])))
            assert answers.get(uids[row[0]], (False, False)) == said, (row[0], column)
            assert (uids[row[0]] in answers) == ("no answer" not in row[column])


def test_extended_negotiation_is_answered_as_the_table_says(grid: Grid, claims: Claims) -> None:
    table = next(t for t in claims.tables(claims.section("Query")) if t[0][0].startswith("Extended"))
    items = []
    for uid in (FIND, MOVE, GET, CT):
        item = SOPClassExtendedNegotiation()
        item.sop_class_uid, item.service_class_application_information = uid, b"\x01" * 4 if uid == FIND else b"\x01"
        items.append(item)
    association = associate(grid, [build_context(uid) for uid in (FIND, MOVE, GET, CT)], items)
    answers = association.acceptor.sop_class_extended
    for column, uid in enumerate((FIND, MOVE, GET), 1):
        said = [row[column] == "Yes" for row in table[1:] if row[column] != "n/a"]
        assert [bool(byte) for byte in answers[uid]] == said, uid
    level = re.search(r"level (\d) \(full\) and digital signature level (\d)", claims.text)
    assert level and (answers[CT][0], answers[CT][2]) == (int(level[1]), int(level[2]))


def test_the_numbers_of_associations(grid: Grid, claims: Claims) -> None:
    rows = {row[0]: row[1] for row in claims.tables(claims.section("Associations"))[0]}
    association = associate(grid, [build_context(FIND)])
    assert rows["Maximum PDU length"].startswith(f"{association.acceptor.maximum_length} bytes")
    assert rows["Implementation class UID"] == association.acceptor.implementation_class_uid
    assert rows["Implementation version name"] == association.acceptor.implementation_version_name
    ports = {row[0]: row[2] for row in claims.tables(claims.section("Network interfaces"))[0]}
    assert ports["DICOM, plain"] == str(grid.port)
    remotes = claims.tables(claims.section("Configuration"))[0]
    assert {row[0] for row in remotes[1:]} == {"ABSENT", "ECHOONLY", "ALL"}


# --- query keys ----------------------------------------------------------------------------------------------------

VALUES = {
    "DA": "20240315", "TM": "101530", "DT": "20240315101530", "AS": "042Y", "CS": "XVALUE", "SH": "xvalue",
    "LO": "xvalue one", "LT": "xvalue text", "ST": "xvalue text", "UT": "xvalue text", "UC": "xvalue",
    "PN": "Xname^Given", "IS": "7", "DS": "7.5", "US": 7, "UI": "1.2.3.4.5", "AE": "XVALUE",
}  # fmt: skip
OTHER = VALUES | {
    "DA": "19990101", "TM": "235959", "DT": "19990101101010", "AS": "001D", "IS": "9", "DS": "9.5", "US": 9,
    "UI": "9.9.9", "PN": "Zzz^Zz",
}  # fmt: skip
UIDS = {
    "SOPClassUID": CT,
    "SOPInstanceUID": "1.2.99.1.1.1",
    "StudyInstanceUID": "1.2.99.1",
    "SeriesInstanceUID": "1.2.99.1.1",
}
FIXED = {"TimezoneOffsetFromUTC": "+0100", "PatientSex": "O", "BitsAllocated": 16, "Modality": "CT", "Laterality": "L"}


def rich_instance(keys: Table) -> Dataset:
    """An instance with a value for every attribute that the statement lists at IMAGE level."""
    ds = Dataset()
    for row in keys:
        path = row[0].replace(" (unique key)", "").split(" > ")
        vr = dictionary_VR(path[-1])[:2]
        if path[0].startswith(("NumberOfPatient", "NumberOfStudy", "NumberOfSeries")) or "InStudy" in path[0]:
            continue
        if path[0] in ("InstanceAvailability", "AvailableTransferSyntaxUID"):
            continue
        item = ds
        for name in path[:-1]:
            if name not in item:
                setattr(item, name, DicomSequence([Dataset()]))
            item = item[name].value[0]
        setattr(item, path[-1], UIDS.get(path[0], FIXED.get(path[0], VALUES[vr])))
    ds.PixelData = bytes(98)
    ds.PixelRepresentation = 0
    return ds


def store(grid: Grid, data: bytes, instance: str, *, ae: str = "ALL", sop_class: str = CT) -> int:
    association = GridAE(ae, timeouts=TIMEOUTS).open(
        PeerAddress(grid.aet, "127.0.0.1", grid.port), [Proposal(sop_class, (EXPLICIT_LE,))], user=NobodyServed()
    )
    try:
        association.send_message(1, dimse.store_request(1, sop_class, instance, None), data)
        _, message = association.inbox.get(timeout=20)
        assert message is not None
        return message.command.status
    finally:
        association.release()


@pytest.fixture(scope="module")
def stored(grid: Grid, claims: Claims) -> Dataset:
    ds = rich_instance(claims.keys("IMAGE"))
    assert store(grid, ask.encode(ds, EXPLICIT_LE), UIDS["SOPInstanceUID"]) == 0
    return ds


def asking(grid: Grid) -> Asking:
    peer = PeerAddress(grid.aet, "127.0.0.1", grid.port)
    return open_asking(GridAE("ALL", timeouts=TIMEOUTS), peer, model="study", service="find")


def found(one: Asking, level: str, *keys: tuple[str, str]) -> list[dict[str, Any]]:
    asked = [Key.parse(f"{name.replace(' > ', '.')}={value}") for name, value in keys]
    rows = [row or {} for _, row in one.run(ask.identifier(level, asked), stop=lambda: False)]
    assert one.ending is not None and one.ending.ok, (keys, one.ending)
    return rows


def value_in(row: dict[str, Any], name: str) -> Any:
    value: Any = row
    for part in name.split(" > "):
        value = (value[0] if isinstance(value, list) else value).get(part)
        if value in (None, []):
            return None
    return value


@pytest.mark.parametrize("level", ["PATIENT", "STUDY", "SERIES", "IMAGE"])
def test_keys_are_returned_and_matched_as_the_table_says(
    grid: Grid, claims: Claims, stored: Dataset, level: str
) -> None:
    keys = [(row[0].replace(" (unique key)", ""), row[3].split(", "), row[4] == "Yes") for row in claims.keys(level)]
    filtered = ("StudyInstanceUID", UIDS["StudyInstanceUID"])
    with asking(grid) as one:
        names = [name for name, _, returned in keys if returned]
        (row,) = found(one, level, *((name, "") for name in names), filtered)
        always = {"QueryRetrieveLevel", "RetrieveAETitle", "InstanceAvailability", "SpecificCharacterSet"}
        assert always <= set(found(one, level, filtered)[0])
        missing = [name for name in names if value_in(row, name) is None]
        assert not missing, f"{level}: said to be returned"
        checked = 0
        for name, matching, returned in keys:
            value = value_in(row, name) if returned else UIDS[name]
            for kind, hit, miss in probes(name, value):
                claimed = kind in matching
                if not claimed and kind != "single value":
                    continue
                checked += 1
                assert found(one, level, filtered, (name, hit)) or name == "StudyInstanceUID", (level, name, hit)
                if name != "StudyInstanceUID":
                    narrowed = not found(one, level, filtered, (name, miss))
                    assert narrowed == claimed, (level, name, kind, miss)
        assert checked > 15


def probes(name: str, value: Any) -> Iterator[tuple[str, str, str]]:
    """(kind of matching, a value of it that the instance has, one that it has not)."""
    vr = dictionary_VR(tag_for_keyword(name.split(" > ")[-1]) or 0)[:2]
    own, other = str(value[0] if isinstance(value, list) else value), str(OTHER[vr])
    other = "ZZZ" if other == str(VALUES[vr]) else other
    yield "single value", own, other
    yield "list", f"{other}\\{own}", f"{other}\\{other}1" if vr != "DS" else f"{other}\\8.25"
    if vr in ("DA", "DT"):
        yield "range", f"{own}-{own}", "19000101-19010101"
    if vr == "TM":
        yield "range", f"{own}-{own}", "010101-010102"
    yield "wildcard", f"{own[:-1]}*", "Zq?*"


def test_a_key_that_is_not_listed_is_said_to_be_unsupported(grid: Grid, claims: Claims, stored: Dataset) -> None:
    listed = {row[0].replace(" (unique key)", "") for row in claims.keys("STUDY")}
    assert "PatientMotherBirthName" not in listed
    said = operation(grid, FIND, Field.C_FIND, ("StudyInstanceUID", ""), ("PatientMotherBirthName", ""))
    assert said[0] == 0xFF01 and said[-1] == 0x0000
    assert operation(grid, FIND, Field.C_FIND, ("StudyInstanceUID", ""))[0] == 0xFF00


def test_every_character_set_that_is_named_is_spoken(grid: Grid, claims: Claims, stored: Dataset) -> None:
    terms = re.findall(r"`([^`]+)`", claims.section("Support of character sets").split("\n\n")[1])
    assert len(terms) > 30
    with asking(grid) as one:
        for term in terms:
            (row,) = found(one, "STUDY", ("StudyInstanceUID", UIDS["StudyInstanceUID"]), ("SpecificCharacterSet", term))
            assert row["SpecificCharacterSet"] == term
        (row,) = found(one, "STUDY", ("StudyInstanceUID", UIDS["StudyInstanceUID"]))
        assert row["SpecificCharacterSet"] == "ISO_IR 100"
        (row,) = found(one, "STUDY", ("StudyInstanceUID", UIDS["StudyInstanceUID"]), ("SpecificCharacterSet", "NO_SET"))
        assert row["SpecificCharacterSet"] == "ISO_IR 100", "a term that is not named is not understood"


# --- statuses ------------------------------------------------------------------------------------------------------


def operation(
    grid: Grid,
    sop_class: str,
    field: int,
    *keys: tuple[str, str],
    level: str = "STUDY",
    ae: str = "ALL",
    destination: str = "",
    raw: bytes | None = None,
    as_class: str = "",
    cancel: bool = False,
    storage: Sequence[Proposal] = (),
    folder: Path = Path("/nowhere"),
) -> list[int]:
    """The statuses of one operation."""
    user = FolderUser(folder, told=lambda _: None)
    association = GridAE(ae, timeouts=TIMEOUTS).open(
        PeerAddress(grid.aet, "127.0.0.1", grid.port), [Proposal(sop_class, (EXPLICIT_LE,)), *storage], user=user
    )
    assert association.is_established
    data = raw
    if raw is None:
        identifier = ask.identifier(level, [Key.parse(f"{name}={value}") for name, value in keys])
        data = ask.encode(identifier, EXPLICIT_LE)
    association.send_message(
        1,
        ask.request(
            field,
            1,  # type: ignore[arg-type]
            as_class or sop_class,
            destination=destination,
        ),
        data,
    )
    if cancel:
        association.send_message(1, ask.cancel(1))
    statuses: list[int] = []
    while not statuses or statuses[-1] in (0xFF00, 0xFF01):
        _, message = association.inbox.get(timeout=20)
        assert message is not None
        statuses.append(message.command.status)
    association.release()
    return statuses


def test_store_statuses(grid: Grid, claims: Claims, stored: Dataset) -> None:
    said = claims.statuses("Storage")
    good = ask.encode(stored, EXPLICIT_LE)
    got = {
        0x0000: store(grid, good, UIDS["SOPInstanceUID"]),
        0xA900: store(grid, good, "1.2.99.7"),
        0xC000: store(grid, b"no data set at all, only text", "1.2.99.8"),
        0x0124: store(grid, good, UIDS["SOPInstanceUID"], ae="ECHOONLY"),
    }
    assert {code: code for code in got} == got and set(got) <= said


def test_find_statuses(grid: Grid, claims: Claims, stored: Dataset) -> None:
    said = claims.statuses("Query")
    uid = ("StudyInstanceUID", "")
    ask_for = (grid, FIND, Field.C_FIND)
    got = {
        0x0000: operation(*ask_for, uid),
        0xA900: operation(*ask_for, ("StudyInstanceUID", "1.2\x013")),
        0xC000: operation(*ask_for, raw=b"\x08\x00\x52\x00CS\xff\xff"),
        0x0124: operation(*ask_for, uid, ae="ECHOONLY"),
        0x0122: operation(grid, FIND, Field.C_MOVE, uid, destination="ABSENT"),
        0x0211: operation(grid, FIND, N_GET, uid),
    }
    assert {code: code for code in got} == {code: statuses[-1] for code, statuses in got.items()}
    assert {status for statuses in got.values() for status in statuses} <= said
    assert operation(*ask_for, uid, level="NONSENSE")[-1] == 0xA900


def test_retrieve_statuses(grid: Grid, claims: Claims, stored: Dataset, tmp_path: Path) -> None:
    move, get = claims.statuses("Retrieve", 0), claims.statuses("Retrieve", 1)
    study, nothing = ("StudyInstanceUID", UIDS["StudyInstanceUID"]), ("StudyInstanceUID", "1.2.98")
    into = (grid, MOVE, Field.C_MOVE)
    moves = {
        0xA801: operation(*into, study, destination="UNKNOWN"),
        0xA702: operation(*into, study, destination="ABSENT"),
        0x0000: operation(*into, nothing, destination="ABSENT"),
        0xA900: operation(*into, ("StudyInstanceUID", ""), destination="ABSENT"),
        0xC000: operation(*into, raw=b"\x08\x00\x52\x00CS\xff\xff", destination="ABSENT"),
        0x0124: operation(*into, study, destination="ABSENT", ae="ECHOONLY"),
    }
    gets = {
        0xA702: operation(grid, GET, Field.C_GET, study),
        0x0000: operation(
            grid, GET, Field.C_GET, study, storage=[Proposal(CT, (EXPLICIT_LE,), scp_role=True)], folder=tmp_path
        ),
        0xA900: operation(grid, GET, Field.C_GET, ("StudyInstanceUID", "")),
        0x0124: operation(grid, GET, Field.C_GET, study, ae="ECHOONLY"),
    }
    for got, said in ((moves, move), (gets, get)):
        assert {code: code for code in got} == {code: statuses[-1] for code, statuses in got.items()}
        assert {status for statuses in got.values() for status in statuses} <= said
    assert (tmp_path / f"{UIDS['SOPInstanceUID']}.dcm").read_bytes() == part10.file_meta(
        CT, UIDS["SOPInstanceUID"], EXPLICIT_LE
    ) + ask.encode(stored, EXPLICIT_LE)


def test_commitment_statuses(grid: Grid, claims: Claims) -> None:
    said = claims.statuses("Storage Commitment")
    assert n_action(grid, instance="1.2.3") == 0x0112
    assert n_action(grid, action=7) == 0x0123
    assert n_action(grid, data=b"") == 0x0115
    assert n_action(grid, ae="ECHOONLY") == 0x0124
    assert {0x0112, 0x0123, 0x0115, 0x0124, 0x0000} <= said


def n_action(
    grid: Grid, *, instance: str = "1.2.840.10008.1.20.1.1", action: int = 1, data: bytes | None = None, ae: str = "ALL"
) -> int:
    association = GridAE(ae, timeouts=TIMEOUTS).open(
        PeerAddress(grid.aet, "127.0.0.1", grid.port), [Proposal(COMMITMENT, (EXPLICIT_LE,))], user=NobodyServed()
    )
    values = {
        0x0003: dimse.uid(COMMITMENT),
        0x0100: dimse.short(0x0130),
        0x0110: dimse.short(1),
        0x0800: dimse.short(1),
        0x1001: dimse.uid(instance),
        0x1008: dimse.short(action),
    }
    empty = Dataset()
    empty.TransactionUID = ""
    association.send_message(1, dimse.encode(values), data or ask.encode(empty, EXPLICIT_LE))
    _, message = association.inbox.get(timeout=20)
    association.release()
    assert message is not None
    return message.command.status


def test_an_unreachable_catalog_is_c001_and_a_cancel_fe00(grid: Grid, claims: Claims, stored: Dataset) -> None:
    """Last: it stops the catalog."""
    catalog = grid.processes()["catalog"][0]
    catalog.suspend()
    try:
        cancelled = operation(grid, FIND, Field.C_FIND, ("StudyInstanceUID", ""), cancel=True)
        assert cancelled[-1] == 0xFE00
    finally:
        catalog.resume()
    catalog.kill()
    study = ("StudyInstanceUID", UIDS["StudyInstanceUID"])
    assert operation(grid, FIND, Field.C_FIND, study)[-1] == 0xC001
    assert operation(grid, MOVE, Field.C_MOVE, study, destination="ABSENT")[-1] == 0xC001
    assert {0xC001, 0xFE00} <= claims.statuses("Query") & claims.statuses("Retrieve", 0)
