"""Is the site what its file says? File, kept files, live rules, running front and reality, held against one another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files as resources
from ipaddress import IPv4Address
from typing import Literal

from dgis.deploy import apply, hostfiles, live, probes, routes
from dgis.deploy.apply import Way
from dgis.deploy.errors import HostError
from dgis.deploy.flows import Flows
from dgis.deploy.machine import Machine, digest_of
from dgis.deploy.plan import HostPlan
from dgis.deploy.probes import Try
from dgis.deploy.topology import Site

State = Literal["as written", "drift", "not tried"]
PATIENCE = 3.0  # seconds for an answer, over slow lines too


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report.

    `check` is what was held against the site file: a kept file, the live rules, a kernel setting, the running front, or
    a way that was tried.
    """

    check: str
    host: str
    subject: str
    expected: str
    found: str
    state: State


@dataclass(frozen=True, slots=True)
class Vantage:
    """A place from which connections are tried: `host`, `outside`, `lan`, the name of a guest, or of a peer's site.

    `seen` is the address that the site sees of it, where that is not its own (NAT on the way).
    """

    name: str
    machine: Machine
    seen: IPv4Address | None = None


def report(
    site: Site, flows: Flows, plan: HostPlan, way: Way, vantages: Iterable[Vantage], *, patience: float = PATIENCE
) -> tuple[Row, ...]:
    """Everything of one host. A vantage point that cannot be asked is a row, the host itself a HostError."""
    rows = list(of_host(plan, way))
    for vantage in (Vantage("host", way.machine), *vantages):
        try:
            rows += from_vantage(site, flows, plan, vantage, patience=patience)
        except HostError as error:
            rows.append(Row("way", plan.host.name, f"from {vantage.name}", "an answer", str(error), "not tried"))
    return tuple(rows)


def of_host(plan: HostPlan, way: Way) -> Iterator[Row]:
    """What can be seen on the host itself: its files, its live rules, its settings, its front."""
    yield from _kept(plan, way)
    yield from _rules(plan, way)
    yield from _settings(plan, way)
    yield from _front(plan, way)


def from_vantage(
    site: Site, flows: Flows, plan: HostPlan, vantage: Vantage, *, patience: float = PATIENCE
) -> Iterator[Row]:
    """What can be reached from a place, and what must not be."""
    tries = _tries(site, flows, plan, vantage)
    if not tries:
        yield Row("way", plan.host.name, f"from {vantage.name}", "", "nothing here is reached from there", "not tried")
        return
    for one, (result, detail) in zip(tries, attempt(vantage.machine, tries, patience=patience), strict=True):
        yield _row(plan.host.name, vantage, one, result, detail)


def _tries(site: Site, flows: Flows, plan: HostPlan, vantage: Vantage) -> tuple[Try, ...]:
    guest = next((each for each in site.guests if each.name == vantage.name), None)
    if guest is not None:
        return probes.of_guest(plan, flows, guest, site.guests)
    inside = vantage.name in ("host", "lan")
    targets = {door.address if inside else door.public for door in flows.doors if door.host == plan.host.name}
    if not targets:
        return ()
    peers = (peer.public for peer in site.peers if peer.site == vantage.name)
    seen = vantage.seen or next(peers, None) or source_address(vantage.machine, min(targets))
    return probes.of_doors(plan, flows, seen, inside=inside)


def source_address(machine: Machine, target: IPv4Address) -> IPv4Address:
    """The address that a machine shows to another one, as its own routing says."""
    said = json.loads(machine.run(("ip", "-j", "-4", "route", "get", str(target))))
    return IPv4Address(said[0]["prefsrc"])


def attempt(machine: Machine, tries: tuple[Try, ...], *, patience: float = PATIENCE) -> list[tuple[str, str]]:
    """Try them from a machine that needs no more than Python 3."""
    script = resources("dgis.deploy").joinpath("prober.py").read_text(encoding="utf-8")
    asked = json.dumps([[one.kind, str(one.address), one.port, one.name] for one in tries])
    limit = 20 + 2 * patience * (1 + len(tries) / 100)
    said: list[tuple[str, str]] = json.loads(
        machine.run(("python3", "-I", "-S", "-c", script, str(patience)), text=asked, timeout=limit)
    )
    return said


def _row(host: str, vantage: Vantage, one: Try, result: str, detail: str) -> Row:
    name = f" ({one.name})" if one.name else ""
    subject = f"{vantage.name} -> {one.address}:{one.port}{name}: {one.what}"
    found = f"{result}: {detail}" if detail and result != "open" and result not in detail else result
    if one.expected == "open":
        # Who refuses shows that the way is open
        well = result == "open" or (result == "refused" and one.idle)
        found = "open, nothing listens now" if result == "refused" and well else found
    else:
        well = result in ("silent", "refused")
    return Row("way", host, subject, one.expected, found, "as written" if well else "drift")


def _kept(plan: HostPlan, way: Way) -> Iterator[Row]:
    wanted = apply.files(plan, way)
    kept = way.machine.digests([way.path(name) for name in wanted])
    for name, text in wanted.items():
        digest = kept.get(way.path(name))
        found = "missing" if digest is None else "as rendered" if digest == digest_of(text) else "differs"
        yield _said("file", plan, name, "as rendered", found)


def _rules(plan: HostPlan, way: Way) -> Iterator[Row]:
    rules = live.firewall(plan, way.machine)
    expected, listed = rules.expected(rules.text(plan)), rules.listed()
    if not listed:
        yield _said("rules", plan, "all", "loaded", "not loaded")
        return
    for name in sorted(expected | listed):
        yield from _compared(plan, name, expected.get(name, []), listed.get(name, []))


def _compared(plan: HostPlan, name: str, expected: list[str], listed: list[str]) -> Iterator[Row]:
    missing = [entry for entry in expected if entry not in listed]
    extra = [entry for entry in listed if entry not in expected]
    for entry in missing:
        yield _said("rules", plan, name, entry, "missing")
    for entry in extra:
        yield _said("rules", plan, name, "nothing", entry)
    if not missing and not extra:
        same = listed == expected
        found = _entries(len(listed)) if same or len(listed) != len(expected) else "another order"
        yield _said("rules", plan, name, _entries(len(expected)), found)


def _settings(plan: HostPlan, way: Way) -> Iterator[Row]:
    now = apply.settings(plan, way.machine)
    for name, wanted in hostfiles.sysctl(plan.host).items():
        if name in now:
            yield _said("setting", plan, name, wanted, now[name])


def _front(plan: HostPlan, way: Way) -> Iterator[Row]:
    front = plan.front
    if front is not None and front.guest is not None:
        text = f"runs in the guest {front.guest}"
        yield Row("front", plan.host.name, "maps", text, "asked from outside only", "not tried")
        return
    look = way.front.look()
    if look is None:
        if front is not None:
            yield _said("front", plan, "HAProxy", "running", f"no answer at {way.socket}")
        return
    if front is not None:
        found = "as rendered" if look.config == routes.digest(front, socket=way.socket) else "another one"
        yield _said("front", plan, "configuration", "as rendered", found)
    for name, wanted in routes.maps(front).items():
        now = look.maps[name]
        for key in sorted(wanted.keys() | now.keys()):
            expected, found = wanted.get(key, "nothing"), now.get(key, "nothing")
            if expected != found:
                yield _said("front", plan, f"{name}: {key}", expected, found)
        if wanted == now:
            yield _said("front", plan, name, _entries(len(wanted)), _entries(len(now)))


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"


def _said(check: str, plan: HostPlan, subject: str, expected: str, found: str) -> Row:
    return Row(check, plan.host.name, subject, expected, found, "as written" if expected == found else "drift")
