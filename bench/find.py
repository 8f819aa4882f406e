"""C-FIND over 100,000 studies: time to the first answer and answers per second, dgis beside Orthanc on the same data.

One instance a study, made here. dgis' catalog (SQLite) is filled through its store before the grid starts, Orthanc
through its REST interface for at most `LOAD_SECONDS`: when that is not enough for all studies, both are measured with
what Orthanc took, and dgis once more with all of them. The client is one reader of raw PDUs for both servers; it asks
each query `ROUNDS` times over one association, after one round that does not count.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import socket
import statistics
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from catalog.header import extract
from catalog.prepare import prepare
from catalog.store import Store
from catalog.store.database import Database
from catalog.wire import InstanceRecord, RawHeader
from dgis import part10
from dgis.dimse import command as dimse
from dgis.dimse.answer import data_set
from dgis.dimse.ask import Key, encode, identifier, request
from dgis.dimse.command import Command, Field
from dgis.dimse.messages import Assembler, Message, Sink
from tests.helpers.grid import Grid
from tests.helpers.orthanc import PROGRAM as ORTHANC
from tests.helpers.orthanc import Orthanc
from tests.unit.dgis.dimse.raw import associate

STUDIES = int(os.environ.get("DGIS_BENCH_STUDIES", "100000"))
LOAD_SECONDS = 480.0
ROUNDS = 5
BATCH = 500
RESULTS = Path(__file__).parent / "results"
FIND, EXPLICIT, CT = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.1.2.1", "1.2.840.10008.5.1.4.1.1.2"
FAMILY = ("NOVAK", "DVORAK", "MUELLER", "GARCIA", "SMITH", "ROSSI", "KOVACS", "JANSEN", "PETROV", "YAMADA")
GIVEN = ("JAN", "ANNA", "PETER", "EVA", "OMAR", "MARIA", "LI", "ZOE", "MAX", "NINA")
LIST = ("StudyInstanceUID", "PatientName", "PatientID", "StudyDate", "StudyTime", "AccessionNumber", "StudyDescription")
COUNTS = ("ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances")


@dataclass(frozen=True, slots=True)
class Sample:
    """One query at one server: medians over the rounds."""

    server: str
    studies: int
    query: str
    answers: int
    first_ms: float
    total_ms: float
    answers_per_second: float


def instance(n: int) -> tuple[str, bytes]:
    """The nth study's one instance: its UID and its data set, without pixels."""
    draw = random.Random(n)
    day = f"{2014 + n % 10}{1 + n // 10 % 12:02d}{1 + n // 120 % 28:02d}"
    name = f"{draw.choice(FAMILY)}{n % 97:02d}^{draw.choice(GIVEN)}"
    root = f"1.2.826.0.1.3680043.9.9.{n}"
    values = {
        0x00080016: ("UI", CT), 0x00080018: ("UI", f"{root}.1.1"), 0x00080020: ("DA", day),
        0x00080030: ("TM", f"{n % 24:02d}{n % 60:02d}00"), 0x00080050: ("SH", f"ACC{n:08d}"), 0x00080060: ("CS", "CT"),
        0x00080090: ("PN", "DOC^REF"), 0x00081030: ("LO", f"STUDY {n % 999}"), 0x00100010: ("PN", name),
        0x00100020: ("LO", f"P{n:08d}"), 0x00100030: ("DA", f"{1930 + n % 80}0101"), 0x00100040: ("CS", "MF"[n % 2]),
        0x0020000D: ("UI", root), 0x0020000E: ("UI", f"{root}.1"), 0x00200010: ("SH", str(n)),
        0x00200011: ("IS", "1"), 0x00200013: ("IS", "1"),
    }  # fmt: skip
    return f"{root}.1.1", data_set({tag: (vr, text.encode()) for tag, (vr, text) in values.items()}, EXPLICIT)


def queries(studies: int) -> list[tuple[str, tuple[str, ...]]]:
    """What is asked: a label, and keys as operators write them."""
    middle = studies // 2
    return [
        ("exact PatientID", (f"PatientID=P{middle:08d}",)),
        ("exact AccessionNumber", (f"AccessionNumber=ACC{middle:08d}",)),
        ("wildcard PatientName NOVAK*", ("PatientName=NOVAK*",)),
        ("wildcard PatientName *9^EVA", ("PatientName=*9^EVA",)),
        ("one month of StudyDate", ("StudyDate=20180301-20180331",)),
        ("one month, with counts", ("StudyDate=20180301-20180331", *COUNTS)),
        ("one year of StudyDate", ("StudyDate=20180101-20181231",)),
    ]


# --- filling ---------------------------------------------------------------------------------------------------------


def fill_dgis(home: Path, first: int, last: int) -> float:
    """Register studies in the stopped grid's own catalog; seconds."""
    began = time.monotonic()
    store = Store(Database(f"sqlite:///{(home / 'catalog' / 'catalog.sqlite').resolve()}"), site="local")
    for start in range(first, last, 1000):
        store.register([prepare(_record(n)) for n in range(start, min(start + 1000, last))])
    store.close()
    return time.monotonic() - began


def _record(n: int) -> InstanceRecord:
    uid, raw = instance(n)
    found = extract(io.BytesIO(raw), EXPLICIT)
    sha = hashlib.sha256(raw).hexdigest()
    return InstanceRecord(
        instance_uid=uid, sop_class_uid=CT, transfer_syntax_uid=EXPLICIT, data_sha256=sha, sha256=sha, size=len(raw),
        object_key=f"v1/{sha[:2]}/{sha[2:4]}/{sha}", received_at=datetime.now(UTC), issuer="local", spooled_at="dgis",
        header=RawHeader.pack(found.raw, syntax=found.syntax, complete=found.complete),
    )  # fmt: skip


def fill_orthanc(peer: Orthanc) -> tuple[int, float]:
    """Post archives of `BATCH` instances until all are in or the time is up; studies it holds, seconds."""
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, STUDIES, 4 * BATCH):
            list(pool.map(lambda at: _post(peer, at), range(start, min(start + 4 * BATCH, STUDIES), BATCH)))
            if time.monotonic() - began > LOAD_SECONDS:
                break
    found = peer.rest("/statistics")
    assert isinstance(found, dict)
    return int(found["CountStudies"]), time.monotonic() - began


def _post(peer: Orthanc, start: int) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        for n in range(start, min(start + BATCH, STUDIES)):
            uid, raw = instance(n)
            out.writestr(f"{n}.dcm", part10.file_meta(CT, uid, EXPLICIT) + raw)
    url = f"http://127.0.0.1:{peer.http}/instances"
    with urllib.request.urlopen(url, data=archive.getvalue(), timeout=300) as reply:
        reply.read()


# --- asking ----------------------------------------------------------------------------------------------------------


class Client:
    """One association that asks C-FINDs and reads raw PDUs."""

    def __init__(self, port: int, called: str) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        associate(self._sock, [(FIND, EXPLICIT)], called=called, max_pdu=131072)
        self._stream = self._sock.makefile("rb", buffering=1 << 18)
        self._messages: list[Message] = []
        self._assembler = Assembler(self, max_data=1 << 20)

    def ask(self, keys: tuple[str, ...]) -> tuple[int, float, float]:
        """Ask one query; number of answers, seconds to the first response, seconds to the final one."""
        wanted = {name: Key.parse(name) for name in LIST} | {key.partition("=")[0]: Key.parse(key) for key in keys}
        data = encode(identifier("STUDY", wanted.values()), EXPLICIT)
        out = b"".join(dimse.p_data(1, request(Field.C_FIND, 1, FIND), is_command=True, max_pdu=16384))
        out += b"".join(dimse.p_data(1, data, is_command=False, max_pdu=16384))
        began = time.perf_counter()
        self._sock.sendall(out)
        answers, first = 0, 0.0
        for message in self._received():
            first = first or time.perf_counter() - began
            if message.command.status not in (0xFF00, 0xFF01):
                assert message.command.status == 0, hex(message.command.status)
                break
            answers += 1
        return answers, first, time.perf_counter() - began

    def _received(self) -> Iterator[Message]:
        while True:
            head = self._stream.read(6)
            assert len(head) == 6 and head[0] == 4, "the association ended"
            self._assembler.feed(memoryview(self._stream.read(int.from_bytes(head[2:], "big"))))
            taken, self._messages = self._messages, []
            yield from taken

    def accepted(self, context_id: int) -> bool:
        return context_id == 1

    def open_sink(self, context_id: int, command: Command) -> Sink | None:
        return None

    def received(self, message: Message) -> None:
        self._messages.append(message)

    def close(self) -> None:
        self._stream.close()
        self._sock.close()


def measure(server: str, port: int, called: str, studies: int) -> Iterator[Sample]:
    """Ask every query; the medians."""
    with closing(Client(port, called)) as client:
        for label, keys in queries(studies):
            rounds = [client.ask(keys) for _ in range(ROUNDS + 1)][1:]
            answers = {count for count, _, _ in rounds}
            assert len(answers) == 1, f"{server}: {label}: {answers}"
            first, total = (statistics.median(one[n] for one in rounds) for n in (1, 2))
            count = answers.pop()
            yield Sample(server, studies, label, count, first * 1000, total * 1000, count / total)


# --- the whole -------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure, print, write bench/results/find.json."""
    samples: list[Sample] = []
    loading: list[str] = []
    with tempfile.TemporaryDirectory(prefix="dgis-bench-") as place:
        held = STUDIES
        if ORTHANC.exists():
            with Orthanc(Path(place) / "orthanc", nodelay=True) as peer:
                held, seconds = fill_orthanc(peer)
                loading.append(f"Orthanc: {held} studies through REST in {seconds:.0f} s")
                samples += measure("Orthanc, NODELAY", peer.port, "ORTHANC", held)
            with Orthanc(Path(place) / "orthanc") as peer:  # the same data, without TCP_NODELAY in its environment
                samples += measure("Orthanc, as installed", peer.port, "ORTHANC", held)
        grid = Grid(Path(place) / "grid", providers=1, workers=1)
        grid.start()
        grid.stop()
        filled = 0
        for studies in sorted({held, STUDIES}):
            seconds = fill_dgis(grid.home, filled, studies)
            loading.append(f"dgis: {studies - filled} studies into the catalog's store in {seconds:.0f} s")
            filled = studies
            with grid:
                samples += measure("dgis", grid.port, "DGIS", studies)
    _check(samples)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "find.json").write_text(json.dumps([asdict(s) for s in samples], indent=1) + "\n")
    Console(width=140).print(_table(samples))
    print("\n".join(loading))


def _check(samples: list[Sample]) -> None:
    """Both servers must have found the same."""
    found: dict[tuple[int, str], int] = {}
    for sample in samples:
        known = found.setdefault((sample.studies, sample.query), sample.answers)
        if known != sample.answers:
            print(f"warning: {sample.query} at {sample.studies}: {known} or {sample.answers} answers")


def _table(samples: list[Sample]) -> Table:
    table = Table(title=f"C-FIND at STUDY level, medians of {ROUNDS}", title_justify="left")
    for column in ("Query", "Server", "Studies", "Answers", "First ms", "Total ms", "answers/s"):
        table.add_column(column, justify="left" if column in ("Query", "Server") else "right")
    for label in dict.fromkeys(sample.query for sample in samples):
        for one in (sample for sample in samples if sample.query == label):
            table.add_row(
                label, one.server, str(one.studies), str(one.answers), f"{one.first_ms:.1f}", f"{one.total_ms:.1f}",
                f"{one.answers_per_second:.0f}",
            )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
