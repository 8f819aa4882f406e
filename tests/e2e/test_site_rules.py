"""Rendered rules in real namespaces: from everywhere, what a site file declares is open, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings

from tests.helpers import sitefiles
from tests.helpers.netlab import Lab, require_netlab
from tests.helpers.sitefacts import Facts
from tests.helpers.siterig import Rig, require_front

EXAMPLES = {path.stem: path for path in sorted((Path(__file__).parents[2] / "vm-images/examples").glob("*.yml"))}


@pytest.fixture
def lab() -> Iterator[Lab]:
    require_netlab()
    require_front()
    with Lab("rules") as made:
        yield made


def document(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(EXAMPLES[name].read_text(encoding="utf-8"))
    return loaded


def mistakes(rig: Rig) -> list[str]:
    """What is wrong with either kind of rules: guests look, too, where the kernel shows bridged frames to them."""
    found = []
    for kind in ("nft", "iptables"):
        for bridged in (False, True):
            rig.enforce(kind, bridged=bridged)
            found += [f"{kind}, bridged {bridged}: {text}" for text in rig.mistakes(only="guest" if bridged else "")]
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_opens_what_it_declares_and_nothing_else(lab: Lab, name: str) -> None:
    assert mistakes(Rig.of(lab, document(name))) == []


def test_what_is_wrong_is_seen(lab: Lab) -> None:
    rig = Rig.of(lab, document("pilot-lf1"))
    rig.enforce("nft", bridged=False)
    host = rig.node("xen1")
    host.nft("insert rule inet dgis forward ip daddr 10.77.0.11 accept")
    host.nft("delete element inet dgis doors { 203.0.113.20 . tcp . 2811 }")
    told = rig.mistakes(only="beyond")
    assert any(text.startswith("a neighbour outside to 10.77.0.11 tcp 9443: Greeting(") for text in told), "leads in"
    assert any(text.startswith("client 198.51.100.10 to 203.0.113.20 tcp 2811: None") for text in told), "is shut"
    assert any(text.startswith("a stranger to 203.0.113.20 tcp 50000: Greeting(") for text in told), "asks nobody who"
    assert not any(" to 203.0.113.20 tcp 22:" in text for text in told), "what is as it should be"


def sampled(count: int, *, of: int) -> list[dict[str, Any]]:
    """Valid documents that nobody wrote: those with the most doors and hosts of some."""
    found: list[dict[str, Any]] = []

    @settings(max_examples=of, database=None, phases=(Phase.generate,), suppress_health_check=list(HealthCheck))
    @given(sitefiles.documents(guests=4))
    def collect(document: dict[str, Any]) -> None:
        found.append(document)

    collect()
    return sorted(found, key=worth)[-count:]


def worth(document: dict[str, Any]) -> int:
    facts = Facts.read(document)
    return 10 * len(facts.hosts) + sum(len(guest.table) for guest in facts.guests.values())


def test_sites_that_nobody_wrote_open_what_they_declare_and_nothing_else() -> None:
    require_netlab()
    require_front()
    for made in sampled(2, of=15):
        with Lab("rules") as lab:
            found = mistakes(Rig.of(lab, made))
        assert not found, "\n".join([*found, sitefiles.text(made)])


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_same_for_many() -> None:
    require_netlab()
    require_front()
    for made in sampled(40, of=80):
        with Lab("rules") as lab:
            found = mistakes(Rig.of(lab, made))
        assert not found, "\n".join([*found, sitefiles.text(made)])
