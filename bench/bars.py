"""The bars of the data path, each with what the latest results say: met, missed, or not measured.

A bar is a ratio to a peer measured in the same run, or a bound that stands by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench import ingest, store, summaries
from bench.images import KIB
from bench.report import Row, Table, median

Results = Mapping[str, Sequence[Row]]
"""Samples by the name of the measurement; one that was not made is missing."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What is wanted, and how to find what was measured; ``least`` or ``most`` is the bound."""

    text: str
    measured: Callable[[Results], float | None]
    least: float | None = None
    most: float | None = None
    unit: str = "x"

    def row(self, results: Results) -> tuple[str, str, str, str]:
        """Text, bound, figure, verdict."""
        bound = f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"
        try:
            value = self.measured(results)
        except KeyError:
            value = None
        if value is None:
            return self.text, f"{bound} {self.unit}", "", "not measured"
        met = value >= self.least if self.least is not None else value <= (self.most or 0.0)
        places = 2 if value < 100 else 0
        return self.text, f"{bound} {self.unit}", f"{value:.{places}f} {self.unit}", "met" if met else "missed"


def table(results: Results) -> Table:
    """All bars."""
    return Table("Bars", ("Question", "Bar", "Measured", ""), tuple(bar.row(results) for bar in BARS), words=4)


def _quotient(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours and theirs else None


def _stored(size: int, senders: int, server: str) -> Callable[[Results], float | None]:
    return lambda results: store.rate(
        [
            s
            for s in results["store"]
            if (s["size"], s["senders"], s["server"], s["tls"]) == (size, senders, server, False)
        ]
    )


def _store_ratio(size: int, senders: int, ours: str, theirs: str) -> Callable[[Results], float | None]:
    return lambda results: _quotient(_stored(size, senders, ours)(results), _stored(size, senders, theirs)(results))


def _small_ratio(results: Results) -> float | None:
    """The smallest of 1, 4 and 16 senders: unmodified clients at dgis by unmodified clients at Orthanc."""
    ratios = [
        _store_ratio(4 * KIB, senders, store.DGIS_PLAIN, store.STOCK)(results) for senders in store.SENDERS
    ]
    found = [one for one in ratios if one is not None]
    return min(found) if found else None


def _sixteen(results: Results) -> float | None:
    return _quotient(_stored(512 * KIB, 16, store.DGIS)(results), _stored(512 * KIB, 4, store.DGIS)(results))


def _replicated(server: str) -> Callable[[Results], float | None]:
    def found(results: Results) -> float | None:
        group = [s for s in results["ingest"] if s["senders"] == 4]
        ours = ingest.replicated([s for s in group if s["server"] == server])
        return _quotient(ours, ingest.received([s for s in group if s["server"] == ingest.ORTHANC]))

    return found


def _lane(server: str) -> Callable[[Results], float | None]:
    def found(results: Results) -> float | None:
        group = [s for s in results["lane"] if s["size"] == "512 KiB" and not s["tls"]]
        ours, theirs = (
            median([s for s in group if s["server"] == name], lambda s: s["cpu_ms_per_image"])
            for name in (server, summaries.STORESCP)
        )
        return _quotient(ours, theirs)

    return found


def _retrieved(server: str, verb: str) -> Callable[[Results], float | None]:
    """Of the many images in several studies, the first set measured."""

    def found(results: Results) -> float | None:
        samples = results["retrieve"]
        group = [s for s in samples if (s["set"], s["verb"]) == (samples[0]["set"], verb)]
        ours = summaries.retrieve_rate([s for s in group if s["server"] == server])
        return _quotient(ours, summaries.retrieve_rate([s for s in group if s["server"] == summaries.ORTHANC]))

    return found


def _first_image(results: Results) -> float | None:
    """The slowest median of all ways of dgis to a first image of 512 KiB, milliseconds."""
    samples = [s for s in results["retrieve"] if s["server"] != summaries.ORTHANC and s["images"] > 1]
    ways = {(s["server"], s["verb"], s["set"]) for s in samples}
    found = [
        median([s for s in samples if (s["server"], s["verb"], s["set"]) == way], lambda s: s["first_ms"])
        for way in ways
    ]
    return max((one for one in found if one is not None), default=None)


def _find(key: str, choose: Callable[[Sequence[float]], float], queries: Sequence[str], answers: int = 0) -> Callable[
    [Results], float | None
]:
    def found(results: Results) -> float | None:
        values = [
            s[key]
            for s in results["find"]
            if s["server"] == store.DGIS and s["answers"] >= answers and any(q in s["query"] for q in queries)
        ]
        return choose(values) if values else None

    return found


def _idle(results: Results) -> float | None:
    """Of a core, percent, with at least 1,000 associations admitted."""
    found = [s["percent_of_a_core"] for s in results["idle"] if s["server"] == store.DGIS and s["admitted"] >= 1000]
    return max(found, default=None)


def _growth(results: Results) -> float | None:
    """The dearest operation on either database."""
    found = [value for values in summaries.growths(results["growth"]).values() for value in values.values() if value]
    return max(found, default=None)


NAMED = ("exact", "NOVAK*", "one year")
BARS = (
    Bar("store 512 KiB, 4 senders, to Orthanc NODELAY",
        _store_ratio(512 * KIB, 4, store.DGIS, store.ORTHANC), least=1.5),
    Bar("store 512 KiB, 4 senders, to Orthanc as installed",
        _store_ratio(512 * KIB, 4, store.DGIS, store.STOCK), least=10),
    Bar("until two verified copies over gsiftp, 4 senders, to what Orthanc NODELAY received",
        _replicated(ingest.GSIFTP), least=0.8),
    Bar("the same over https alone", _replicated(ingest.HTTPS), least=0.6),
    Bar("store 4 KiB, unmodified clients, to Orthanc as installed (worst of 1, 4, 16 senders)", _small_ratio, least=5),
    Bar("16 senders, to 4 senders, 512 KiB", _sixteen, least=0.9),
    Bar("1,000 idle associations, half of them TLS, of a core", _idle, most=5, unit="%"),
    Bar("CPU of the lane alone, 512 KiB, to storescp", _lane("dgis, write"), most=1.6),
    Bar("CPU of the lane durable and hashed, 512 KiB, to storescp", _lane("dgis, durable"), most=3.0),
    Bar("C-MOVE from the spool, to Orthanc NODELAY", _retrieved("dgis, in the spool", "move"), least=1.0),
    Bar("C-GET from the spool, to Orthanc NODELAY", _retrieved("dgis, in the spool", "get"), least=1.0),
    Bar("C-MOVE from two SEs over gsiftp, to Orthanc NODELAY", _retrieved("dgis, two SEs, gsiftp", "move"), least=0.7),
    Bar("C-GET from two SEs over gsiftp, to Orthanc NODELAY", _retrieved("dgis, two SEs, gsiftp", "get"), least=0.7),
    Bar("time to the first image, slowest way", _first_image, most=100, unit="ms"),
    Bar("first answer: exact, NOVAK*, one year (slowest)", _find("first_ms", max, NAMED), most=10, unit="ms"),
    Bar("answers a second (slowest query of 5,000 and more)",
        _find("answers_per_second", min, ("",), 5000), least=5000, unit="/s"),
    Bar("cost at the most instances by that at the fewest, dearest operation and database", _growth, most=1.3),
)  # fmt: skip
