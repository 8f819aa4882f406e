"""Store 1300 CT images of 512 KiB from one and from four storescu: dgis beside Orthanc, in one run, interleaved.

For dgis two times count: until the last association was released (received, durable and findable) and until every
image is verified on two storage elements. Orthanc keeps one unverified copy and is measured to the release. `STUDIES`
studies of 260 images go to every server in each round; the client is DCMTK's storescu, with TCP_NODELAY=1 in its
environment except in the rows "as installed".
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dgis.demo.viewer import Viewer
from tests.helpers import dcmtk
from tests.helpers.dicomfiles import synth
from tests.helpers.grid import Grid
from tests.helpers.orthanc import PROGRAM as ORTHANC
from tests.helpers.orthanc import Orthanc

ROUNDS = 3
STUDIES = 5
PER_STUDY = 260
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Sample:
    """One server, one round."""

    server: str
    senders: int
    images: int
    store_seconds: float
    replicated_seconds: float | None
    found: int
    cpu_ms_per_image: float
    cpu_by_process: dict[str, float]
    peak_rss_mib: dict[str, float]


def main() -> None:
    """Measure, print, write bench/results/main_job.json."""
    with tempfile.TemporaryDirectory(prefix="dgis-bench-") as place:
        folder = synth(
            Path(place) / "images",
            "--studies",
            str(STUDIES),
            "--series",
            "2",
            "--instances",
            "130",
            "--rows",
            "512",
            "--cols",
            "512",
        )
        samples = [
            sample
            for round_number in range(ROUNDS)
            for senders in (1, 4)
            for sample in _round(Path(place), folder, round_number, senders)
        ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "main_job.json").write_text(json.dumps([asdict(s) for s in samples], indent=1) + "\n")
    Console(width=160).print(_table(samples))


def _round(place: Path, folder: Path, number: int, senders: int) -> list[Sample]:
    out = [_dgis(place / f"dgis-{number}-{senders}", folder, senders)]
    if ORTHANC.exists():
        for nodelay in (True, False):
            if nodelay or number == 0:  # as installed it takes a minute, and 44 ms an object vary little: once
                out.append(_orthanc(place / f"orthanc-{number}-{senders}-{nodelay}", folder, senders, nodelay=nodelay))
    return out


def _send(folder: Path, port: int, called: str, senders: int, *, nodelay: bool) -> float:
    """Send all studies from ``senders`` processes at once; seconds until the last one released."""
    studies = sorted(path for path in folder.iterdir() if path.is_dir())
    shares: Sequence[list[Path]] = [studies[n::senders] for n in range(senders)]
    if senders > 1:  # five studies on four senders: spread by series, so that all have the same to do
        series = sorted(path for study in studies for path in study.glob("*/*"))
        shares = [series[n::senders] for n in range(senders)]
    started = time.monotonic()
    processes = [_storescu(share, port, called, nodelay=nodelay) for share in shares]
    for process in processes:
        assert process.wait(1200) == 0, "storescu failed"
    return time.monotonic() - started


def _storescu(folders: Sequence[Path], port: int, called: str, *, nodelay: bool) -> subprocess.Popen[bytes]:
    return dcmtk.start("storescu", "-aec", called, "+sd", "+r", "127.0.0.1", str(port), *folders, nodelay=nodelay)


def _dgis(home: Path, folder: Path, senders: int) -> Sample:
    with Grid(home) as grid:
        before = grid.cpu_seconds()
        started = time.monotonic()
        seconds = _send(folder, grid.port, "DGIS", senders, nodelay=True)
        found = _found(Viewer(title="BENCH", called="DGIS", host="127.0.0.1", port=grid.port))
        grid.wait_drained(600)
        replicated = time.monotonic() - started
        cpu = {role: (used - before.get(role, 0.0)) * 1000 / found for role, used in grid.cpu_seconds().items()}
        return Sample(
            "dgis",
            senders,
            STUDIES * PER_STUDY,
            seconds,
            replicated,
            found,
            sum(cpu.values()),
            cpu,
            grid.peak_rss_mib(),
        )


def _found(viewer: Viewer) -> int:
    matches = viewer.find("STUDY", StudyInstanceUID="", NumberOfStudyRelatedInstances="")
    return sum(int(match.NumberOfStudyRelatedInstances) for match in matches)


def _orthanc(home: Path, folder: Path, senders: int, *, nodelay: bool) -> Sample:
    with Orthanc(home, nodelay=nodelay) as peer:
        before = peer.cpu_seconds()
        seconds = _send(folder, peer.port, "ORTHANC", senders, nodelay=nodelay)
        statistics_ = peer.rest("/statistics")
        assert isinstance(statistics_, dict)
        found = int(statistics_["CountInstances"])
        cpu = (peer.cpu_seconds() - before) * 1000 / found
        name = "Orthanc, NODELAY" if nodelay else "Orthanc, as installed"
        return Sample(
            name,
            senders,
            STUDIES * PER_STUDY,
            seconds,
            None,
            found,
            cpu,
            {"Orthanc": cpu},
            {"Orthanc": peer.peak_rss_mib()},
        )


def _table(samples: Sequence[Sample]) -> Table:
    table = Table(
        title=f"{STUDIES * PER_STUDY} CT of 512 KiB by C-STORE, medians of {ROUNDS} rounds", title_justify="left"
    )
    for column in (
        "Server",
        "Senders",
        "Found",
        "Stored s",
        "images/s",
        "On two SEs s",
        "images/s",
        "CPU ms/image",
        "Peak RSS MiB",
    ):
        table.add_column(column, justify="left" if column in ("Server", "Peak RSS MiB") else "right", overflow="fold")
    for senders in (1, 4):
        for server in dict.fromkeys(s.server for s in samples):
            group = [s for s in samples if (s.server, s.senders) == (server, senders)]
            if group:
                table.add_row(*_row(group))
    return table


def _row(group: Sequence[Sample]) -> list[str]:
    first = group[0]
    stored = _median(group, lambda s: s.store_seconds)
    replicated = None if first.replicated_seconds is None else _median(group, lambda s: s.replicated_seconds or 0.0)
    rss = {name: max(s.peak_rss_mib.get(name, 0.0) for s in group) for name in first.peak_rss_mib}
    return [
        first.server,
        str(first.senders),
        str(min(s.found for s in group)),
        f"{stored:.1f}",
        f"{first.images / stored:.0f}",
        "" if replicated is None else f"{replicated:.1f}",
        "" if replicated is None else f"{first.images / replicated:.0f}",
        f"{_median(group, lambda s: s.cpu_ms_per_image):.1f}",
        ", ".join(f"{n} {v:.0f}" for n, v in rss.items()),
    ]


def _median(group: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    return statistics.median(value(sample) for sample in group)
