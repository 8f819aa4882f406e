"""The loop of `dgis deploy watch`, look by look: what it takes for running, what it says, and how often."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dgis.deploy import apply, guests
from dgis.deploy.apply import Applied, Way
from dgis.deploy.errors import HostError
from dgis.deploy.plan import HostPlan
from dgis.deploy.topology import Host, Site
from dgis.deploy.watch import Watch, Watched

TEXT = (Path(__file__).parents[4] / "vm-images/examples/pilot-cesnet.yml").read_text()


class Stage:
    """What the hypervisor says, and what `apply` is told: each look has a line of `looks`."""

    def __init__(self, folder: Path, *, patience: int = 2) -> None:
        self.file = folder / "site.yml"
        self.file.write_text(TEXT)
        self.up: frozenset[str] | HostError = frozenset({"node", "wiki"})
        self.notes: tuple[str, ...] = ()
        self.failing: HostError | None = None
        self.plans: list[HostPlan] = []
        self.watch = Watch(Watched(self.file, "xen1", Way(), None, patience, every=True))

    def running(self, site: Site, host: Host, *_: object) -> frozenset[str]:
        assert host.name == "xen1"
        if isinstance(self.up, HostError):
            raise self.up
        return self.up & {guest.name for guest in site.guests}

    def apply(self, plan: HostPlan, way: Way, *, force: bool) -> Applied:
        if self.failing is not None:
            raise self.failing
        changed = () if self.plans and self.plans[-1] == plan else ("live rules",)
        self.plans.append(plan)
        return Applied(plan.host.name, changed, 0, self.notes)

    def look(self) -> list[str]:
        return list(self.watch.look())

    @property
    def doors(self) -> set[int]:
        """The ports that are open now."""
        return {each.ports.first for each in self.plans[-1].translations}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    made = Stage(tmp_path)
    monkeypatch.setattr(guests, "running", made.running)
    monkeypatch.setattr(apply, "apply", made.apply)
    yield made


def test_it_says_what_changes_and_nothing_else(stage: Stage) -> None:
    assert stage.look() == ["xen1: changed live rules; 0 connections ended; open are the doors of node, wiki"]
    assert stage.look() == [] == stage.look()
    assert {2811, 8080} <= stage.doors


def test_patience_counts_looks_in_a_row_that_miss_a_guest(stage: Stage) -> None:
    stage.look()
    stage.up = frozenset({"node"})
    assert stage.look() == [] and 8080 in stage.doors
    stage.up = frozenset({"node", "wiki"})
    assert stage.look() == []
    stage.up = frozenset({"node"})
    assert stage.look() == []
    assert stage.look() == ["xen1: changed live rules; 0 connections ended; open are the doors of node"]
    assert 8080 not in stage.doors and 2811 in stage.doors
    stage.up = frozenset()
    stage.look()
    assert stage.look() == ["xen1: changed live rules; 0 connections ended; open are the doors of no guest"]
    assert stage.doors == set() and stage.plans[-1].front is None
    stage.up = frozenset({"wiki"})
    assert stage.look() and stage.doors == {8080}


def test_patience_holds_from_the_first_look(stage: Stage) -> None:
    stage.up = frozenset({"node"})
    assert "node, wiki" in stage.look()[0] and 8080 in stage.doors
    assert "node" in stage.look()[0] and 8080 not in stage.doors


def test_one_look_is_enough_where_that_is_wanted(stage: Stage) -> None:
    stage.watch = Watch(Watched(stage.file, "xen1", Way(), "heartbeat", 1, every=True))
    stage.up = frozenset({"node"})
    assert stage.look() and 8080 not in stage.doors


def test_doors_of_guests_without_roles_are_their_projects_matter(stage: Stage) -> None:
    stage.watch = Watch(Watched(stage.file, "xen1", Way(), None, 1))
    stage.up = frozenset()
    assert stage.look() == ["xen1: changed live rules; 0 connections ended; open are the doors of wiki"]
    assert stage.doors == {8080} and stage.plans[-1].front is not None


def test_a_changed_file_is_taken_and_a_broken_one_is_not(stage: Stage) -> None:
    stage.look()
    stage.file.write_text(TEXT.replace("public: 8080", "public: 8081"))
    assert stage.look() and 8081 in stage.doors
    stage.file.write_text("site: [")
    (said,) = stage.look()
    assert said.startswith("the site file as it was before still counts: ") and "not valid YAML" in said
    assert stage.look() == [] and 8081 in stage.doors
    # guests are followed meanwhile
    stage.up = frozenset({"node"})
    assert stage.look() == [] and stage.look() != [] and 8081 not in stage.doors
    stage.file.unlink()
    assert stage.look()[0].startswith("the site file as it was before still counts: ")
    stage.file.write_text(TEXT)
    assert stage.look()[-1] == "all well again"


def test_a_broken_file_at_the_start_changes_nothing(stage: Stage) -> None:
    stage.file.write_text("site: x")
    assert stage.look()[0].startswith("not in step: ") and stage.plans == []
    assert stage.look() == []
    stage.file.write_text(TEXT)
    assert stage.look()[-1] == "all well again" and stage.doors


def test_a_host_that_is_no_longer_in_the_file(stage: Stage) -> None:
    stage.look()
    stage.file.write_text(TEXT.replace("name: xen1", "name: xen9").replace("host: xen1", "host: xen9"))
    assert stage.look() == [f"not in step: {stage.file} has no host xen1 any more"]


def test_a_hypervisor_that_cannot_be_asked_changes_nothing_and_is_said_once(stage: Stage) -> None:
    stage.look()
    stage.up = HostError("virsh list: failed to connect")
    assert stage.look() == ["not in step: virsh list: failed to connect"]
    assert stage.look() == [] and len(stage.plans) == 1
    stage.up = frozenset({"node", "wiki"})
    assert stage.look() == ["all well again"]


def test_an_apply_that_fails_is_tried_again(stage: Stage) -> None:
    stage.failing = HostError("nft -f -: no")
    assert stage.look() == ["not in step: nft -f -: no"] and stage.look() == []
    stage.failing = None
    assert stage.look() == [
        "xen1: changed live rules; 0 connections ended; open are the doors of node, wiki",
        "all well again",
    ]


def test_what_is_left_to_a_person_is_said_once(stage: Stage) -> None:
    stage.notes = ("start the front yourself",)
    assert stage.look()[1:] == ["start the front yourself"] and stage.look() == []


def test_it_looks_until_the_pause_says_no(stage: Stage) -> None:
    pauses = iter([True, True, False])
    assert len(list(stage.watch.looks(lambda: next(pauses)))) == 1 and len(stage.plans) == 3
