"""Is the site what its file says? File, kept files, live rules, running front and reality, held against one another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files as resources
from ipaddress import IPv4Address
from typing import Any, Literal

from dgis.deploy import apply, hostfiles, live, probes, routes
from dgis.deploy.apply import Way
from dgis.deploy.errors import HostError
from dgis.deploy.flows import Flows
from dgis.deploy.machine import Machine
from dgis.deploy.plan import HostPlan
from dgis.deploy.probes import Try
from dgis.deploy.topology import Guest, Site

State = Literal["as written", "drift", "not tried"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report. `check` is what was held against the file: kept file, live rule, front, setting, way."""

    check: str
    host: str
    subject: str
    expected: str
    found: str
    state: State


@dataclass(frozen=True, slots=True)
class Vantage:
    """A place from which connections are tried: `host`, `outside`, `lan`, or the name of a guest.

    `seen` is the address that the site sees of it, where that is not its own (NAT on the way).
    """

    name: str
    machine: Machine
    seen: IPv4Address | None = None


def of_host(plan: HostPlan, way: Way) -> Iterator[Row]:
    """What can be seen on the host itself: its files, its live rules, its settings, its front."""
    yield from _kept(plan, way)
    yield from _rules(plan, way)
    yield from _settings(plan, way)
    yield from _front(plan, way)


def from_vantage(site: Site, flows: Flows, plan: HostPlan, vantage: Vantage) -> Iterator[Row]:
    """What can be reached from a place, and what must not be."""
    guest = next((each for each in site.guests if each.name == vantage.name), None)
    tries = probes.of_exits(flows, guest) if guest is not None else _from(plan, flows, vantage)
    if not tries:
        yield Row("way", plan.host.name, f"from {vantage.name}", "", "nothing here is reached from there", "not tried")
        return
    for one, (result, detail) in zip(tries, attempt(vantage.machine, tries), strict=True):
        yield _row(plan.host.name, vantage, one, result, detail)


def _from(plan: HostPlan, flows: Flows, vantage: Vantage) -> tuple[Try, ...]:
    inside = vantage.name in ("host", "lan")
    targets = {door.address if inside else door.public for door in flows.doors if door.host == plan.host.name}
    if not targets:
        return ()
    seen = vantage.seen or source_address(vantage.machine, min(targets))
    return probes.of_doors(plan, flows, seen, inside=inside)


def source_address(machine: Machine, target: IPv4Address) -> IPv4Address:
    """The address that a machine shows to another one, as its own routing says."""
    said = json.loads(machine.run(("ip", "-j", "-4", "route", "get", str(target))))
    return IPv4Address(said[0]["prefsrc"])


def attempt(machine: Machine, tries: tuple[Try, ...]) -> list[tuple[str, str]]:
    """Try them from a machine that needs no more than Python 3."""
    script = resources("dgis.deploy").joinpath("prober.py").read_text(encoding="utf-8")
    asked = [[one.kind, str(one.address), one.port, one.name] for one in tries]
    said: list[tuple[str, str]] = json.loads(
        machine.run(("python3", "-c", script), text=json.dumps(asked), timeout=20 + len(tries))
    )
    return said


def _row(host: str, vantage: Vantage, one: Try, result: str, detail: str) -> Row:
    name = f" ({one.name})" if one.name else ""
    subject = f"{vantage.name} -> {one.address}:{one.port}{name}: {one.what}"
    found = f"{result}: {detail}" if detail and result != "open" else result
    if one.expected == "open":
        # A guest that refuses shows that the way is open; a data port has a listener during a transfer only
        well = result == "open" or (result == "refused" and one.kind == "tcp")
        found = "open, nothing listens now" if result == "refused" and well else found
    else:
        well = result in ("silent", "refused")
    return Row("way", host, subject, one.expected, found, "as written" if well else "drift")


def _kept(plan: HostPlan, way: Way) -> Iterator[Row]:
    for name, text in apply.files(plan, way).items():
        kept = way.machine.read(way.path(name))
        found = "missing" if kept is None else "as rendered" if kept == text else "differs"
        yield _said("kept file", plan, name, "as rendered", found)


def _rules(plan: HostPlan, way: Way) -> Iterator[Row]:
    rules = live.firewall(plan, way.machine)
    expected, listed = rules.expected(rules.text(plan)), rules.listed()
    if not listed:
        yield _said("live rules", plan, "all", "loaded", "not loaded")
        return
    for name in sorted(expected | listed):
        yield from _compared(plan, name, expected.get(name, []), listed.get(name, []))


def _compared(plan: HostPlan, name: str, expected: list[str], listed: list[str]) -> Iterator[Row]:
    missing = [entry for entry in expected if entry not in listed]
    extra = [entry for entry in listed if entry not in expected]
    for entry in missing:
        yield _said("live rules", plan, name, _readable(entry), "missing")
    for entry in extra:
        yield _said("live rules", plan, name, "nothing", _readable(entry))
    if not missing and not extra:
        found = f"{len(listed)} entries" if listed == expected else "another order"
        yield _said("live rules", plan, name, f"{len(expected)} entries", found)


def _readable(entry: str) -> str:
    """An element of nft's JSON as a person writes it."""
    try:
        return _flat(json.loads(entry))
    except ValueError:
        return entry


def _flat(value: Any) -> str:
    if isinstance(value, dict) and "concat" in value:
        return " . ".join(map(_flat, value["concat"]))
    if isinstance(value, dict) and "range" in value:
        return "-".join(map(_flat, value["range"]))
    if isinstance(value, dict) and "prefix" in value:
        return f"{value['prefix']['addr']}/{value['prefix']['len']}"
    if isinstance(value, list) and len(value) == 2 and not isinstance(value[0], list):
        return " : ".join(map(_flat, value))
    return value if isinstance(value, str) else json.dumps(value)


def _settings(plan: HostPlan, way: Way) -> Iterator[Row]:
    for name, wanted in hostfiles.sysctl(plan.host).items():
        done = way.machine.attempt(("sysctl", "-n", name))
        if done.returncode == 0:
            yield _said("setting", plan, name, wanted, done.stdout.strip())


def _front(plan: HostPlan, way: Way) -> Iterator[Row]:
    if plan.front is None:
        return
    if plan.front.guest is not None:
        text = f"runs in the guest {plan.front.guest}"
        yield Row("front", plan.host.name, "maps", text, "asked from outside only", "not tried")
        return
    running = way.front
    if not running.answers():
        yield _said("front", plan, "HAProxy", "running", f"no answer at {way.socket}")
        return
    now, wanted = running.maps(), routes.maps(plan.front)
    for name in (routes.NETWORKS, routes.ROUTES):
        for key in sorted(wanted[name].keys() | now[name].keys()):
            expected, found = wanted[name].get(key, "nothing"), now[name].get(key, "nothing")
            if expected != found:
                yield _said("front", plan, f"{name}: {key}", expected, found)
        if wanted[name] == now[name]:
            yield _said("front", plan, name, f"{len(wanted[name])} entries", f"{len(now[name])} entries")


def _said(check: str, plan: HostPlan, subject: str, expected: str, found: str) -> Row:
    return Row(check, plan.host.name, subject, expected, found, "as written" if expected == found else "drift")


def guests_reached(site: Site, vantages: Mapping[str, Vantage]) -> tuple[Guest, ...]:
    """The guests from which something can be tried."""
    return tuple(guest for guest in site.guests if guest.name in vantages)


def unreachable(host: str, vantage: Vantage, error: HostError) -> Row:
    """A place that could not be asked."""
    return Row("way", host, f"from {vantage.name}", "an answer", str(error), "not tried")
