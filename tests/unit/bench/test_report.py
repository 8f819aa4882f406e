"""The shared parts of the measurements: a failing cell costs its own figure only; medians, ratios, tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench import report
from bench.__main__ import MEASUREMENTS, main, verdict
from bench.report import NotMeasured, Options, Run, Table


@dataclass(frozen=True, slots=True)
class Sample:
    server: str
    seconds: float


def _run(tmp_path: Path) -> Run:
    return Run("example", Options(1, True, tmp_path))


def _fails(error: Exception) -> Callable[[], Sample]:
    def measure() -> Sample:
        raise error

    return measure


def test_a_failing_cell_costs_its_own_figure_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _run(tmp_path)
    assert not run.cell("a", _fails(RuntimeError("31 of 32\nimages found")))
    assert not run.cell("b", _fails(NotMeasured("Orthanc is not installed")))
    assert run.cell("c", lambda: Sample("dgis", 2.0))
    shown: list[str] = []
    assert run.finish(lambda samples: [shown.extend(s["server"] for s in samples)][:0]) == report.PARTLY
    assert shown == ["dgis"]
    document = json.loads((tmp_path / "example.json").read_text())
    assert document["samples"] == [{"server": "dgis", "seconds": 2.0}]
    assert document["failures"] == [
        {"cell": "a", "reason": "RuntimeError: 31 of 32 images found"},
        {"cell": "b", "reason": "Orthanc is not installed"},
    ]
    assert "not measured: a: RuntimeError" in capsys.readouterr().out


def test_the_exit_code_says_how_much_was_measured(tmp_path: Path) -> None:
    nothing, whole = _run(tmp_path), _run(tmp_path)
    nothing.cell("a", _fails(RuntimeError("no")))
    whole.cell("a", lambda: Sample("dgis", 1.0))
    assert nothing.finish(lambda _: []) == 1
    assert whole.finish(lambda _: []) == 0


@pytest.mark.parametrize(
    ("codes", "expected"), [([0, 0], 0), ([0, 3], 3), ([3, 3], 3), ([1, 0], 3), ([-1, 1], 1), ([1], 1)]
)
def test_the_verdict_over_all_measurements(codes: list[int], expected: int) -> None:
    assert verdict(codes) == expected


def test_an_unknown_measurement_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sotre"]) == 2
    assert "store" in capsys.readouterr().err


def test_every_measurement_has_a_module() -> None:
    folder = Path(report.__file__).parent
    assert [one.name for one in MEASUREMENTS if not (folder / f"{one.name}.py").exists()] == []


def test_quick_figures_never_lie_among_the_results() -> None:
    quick = Options.parse(["--quick"])
    quick.results.rmdir()
    assert quick.rounds == 1 and quick.results != report.RESULTS
    assert Options.parse(["--rounds", "5"]) == Options(5, False, report.RESULTS)


def test_medians_and_ratios_leave_out_what_is_missing() -> None:
    rows = [{"a": 1.0}, {"a": None}, {"a": 9.0}, {"a": 2.0}]
    assert report.median(rows, lambda s: s["a"]) == 2.0
    assert report.median([], lambda s: s["a"]) is None
    assert report.ratio(3.0, 2.0) == "1.50x" and report.ratio(3.0, None) == "" and report.number(None) == ""


def test_a_table_says_the_same_in_markdown() -> None:
    table = Table("Storing", ("Server", "images/s"), (("dgis", "500"), ("Orthanc", "490")))
    assert table.markdown().splitlines() == [
        "**Storing**",
        "",
        "| Server | images/s |",
        "| --- | ---: |",
        "| dgis | 500 |",
        "| Orthanc | 490 |",
    ]


def test_older_results_are_a_bare_list(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('[{"server": "dgis"}]')
    assert report.load(tmp_path / "old.json")["samples"] == [{"server": "dgis"}]
