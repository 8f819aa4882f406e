"""`dgis deploy verify` as a process: silent where all is as the file says, a readable row for each drift."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dgis.deploy import verify
from tests.helpers.netlab import require_netlab
from tests.helpers.netssh import SSHD
from tests.helpers.sitescene import FORWARDS, IPTABLES, PUBLIC, Scene, scene

WIKI = "wiki.cesnet.example"
QUICK = ("--patience", "0.8")
WIKI_AT, GUEST = "10.78.0.20", "10.77.0.11"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    require_netlab()
    with scene(tmp_path_factory.mktemp("verify"), prefix="verify") as made:
        yield made


def outside(stage: Scene) -> str:
    return f"outside={shlex.join(stage.outside.command([]))}"


def peer(stage: Scene) -> str:
    return f"lf1={shlex.join(stage.peers['lf1'].command([]))}"


def drift(stage: Scene, *options: str) -> list[tuple[str, str, str, str]]:
    """Check, subject, what was expected and found, of every row that drifted."""
    done = stage.run("verify", "--format", "json", *QUICK, *options)
    rows = json.loads(done.stdout)
    found = [(row["check"], row["subject"], row["expected"], row["found"]) for row in rows if row["state"] == "drift"]
    assert done.returncode == (3 if found else 0), done.stderr
    assert all(row["host"] == stage.host for row in rows)
    return found


def test_a_site_that_is_as_written_has_no_drift(stage: Scene) -> None:
    done = stage.run("verify", "--vantage", outside(stage), "--vantage", peer(stage), *QUICK)
    assert done.returncode == 0, done.stdout
    assert done.stdout == "" and re.fullmatch(r"xen1: \d{3} checks, no drift", done.stderr.strip())
    everything = stage.run("verify", "--all", "--format", "json", *QUICK, "--vantage", peer(stage))
    rows = json.loads(everything.stdout)
    assert {row["check"] for row in rows} == {"file", "rules", "setting", "front", "way"}
    assert {row["state"] for row in rows} == {"as written"}
    assert {tuple(row) for row in rows} == {("check", "host", "subject", "expected", "found", "state")}
    tried = {row["subject"]: row["found"] for row in rows if row["check"] == "way"}
    assert tried[f"lf1 -> {PUBLIC}:443 (catalog.node.cesnet.example): HTTPS of catalog.node.cesnet.example"] == "open"
    assert tried[f"lf1 -> {PUBLIC}:50000: GridFTP data of node, towards it"] == "open"
    assert tried[f"lf1 -> {PUBLIC}:5432: nobody declared it"] == "silent"


# What somebody does to the host by hand, and the row that says so
BY_HAND: dict[str, tuple[str, tuple[str, str, str, str]]] = {
    "element added": (
        "nft add element inet dgis outer '{ \"lo\" }'",
        ("rules", "set outer", "nothing", "lo"),
    ),
    "element removed": (
        f"nft delete element inet dgis doors '{{ {PUBLIC} . tcp . 2811 }}'",
        ("rules", "map doors", f"{PUBLIC} . tcp . 2811 : {GUEST} . 2811", "missing"),
    ),
    "rule added": (
        "nft insert rule inet dgis forward tcp dport 22 counter accept",
        ("rules", "chain forward", "nothing", "tcp dport 22 counter accept"),
    ),
    "rule deleted": (
        "nft flush chain inet dgis output",
        ("rules", "chain output", 'oifname "lo" jump translate', "missing"),
    ),
    "table deleted": ("nft delete table inet dgis", ("rules", "all", "loaded", "not loaded")),
    "kept file edited": ("echo >> {root}/nat.nft", ("file", "nat.nft", "as rendered", "differs")),
    "kept file removed": ("rm {root}/sysctl.conf", ("file", "sysctl.conf", "as rendered", "missing")),
    "setting": ("sysctl -qw net.ipv4.ip_forward=0", ("setting", "net.ipv4.ip_forward", "1", "0")),
}


def test_every_change_by_hand_is_a_row_and_apply_puts_it_right(stage: Scene) -> None:
    together = [name for name in BY_HAND if name != "table deleted"]
    for names in (together, ["table deleted"]):
        for name in names:
            stage.machine.run(["sh", "-c", BY_HAND[name][0].replace("{root}", stage.way.root)])
        # the kernel takes accept_redirects along with ip_forward
        assert {BY_HAND[name][1] for name in names} == {row for row in seen_on_host(stage) if "redirects" not in row[1]}
        stage.apply()
        assert seen_on_host(stage) == []


def seen_on_host(stage: Scene) -> list[tuple[str, str, str, str]]:
    rows = verify.of_host(stage.world.plan(stage.site, stage.host), stage.way)
    return [(row.check, row.subject, row.expected, row.found) for row in rows if row.state == "drift"]


# The worker ends with its master: at once, but not in the same instant
WORKER_GONE = 'n=0; while ss -xl | grep -q "$1" && [ $n -lt 500 ]; do n=$((n+1)); sleep 0.02; done'


def test_the_front_is_held_against_the_file_too(stage: Scene) -> None:
    ask: Callable[[str], object] = lambda command: stage.way.front._ask([(stage.way.socket, command)])  # noqa: E731
    ask(f"del map front-routes.map 0.0.0.0/0|{WIKI}")
    ask("add map front-routes.map 0.0.0.0/0|evil.example 10.77.0.11:22")
    assert seen_on_host(stage) == [
        ("front", "front-routes.map: 0.0.0.0/0|evil.example", "nothing", "10.77.0.11:22"),
        ("front", f"front-routes.map: 0.0.0.0/0|{WIKI}", f"{WIKI_AT}:8443", "nothing"),
    ]
    assert stage.apply().changed == ("front maps",) and seen_on_host(stage) == []
    config = Path(stage.way.root) / "haproxy.cfg"
    good = config.read_text()
    config.write_text(good.replace("setenv DGIS_FRONT ", "setenv DGIS_FRONT 0"))
    stage.way.machine.run(stage.way.reload)
    wanted = ("front", "configuration", "as rendered", "another one")
    for _ in range(100):
        if wanted in seen_on_host(stage):
            break
    assert set(seen_on_host(stage)) == {wanted, ("file", "haproxy.cfg", "as rendered", "differs")}
    assert stage.apply().changed == ("haproxy.cfg", "front reloaded") and seen_on_host(stage) == []
    pid = Path(stage.way.root) / "pid"
    os.kill(int(pid.read_text()), signal.SIGKILL)
    pid.unlink()  # nobody may be there to bury it, and its number would look alive
    stage.machine.run(["sh", "-c", WORKER_GONE, "sh", stage.way.socket])
    assert seen_on_host(stage) == [("front", "HAProxy", "running", f"no answer at {stage.way.socket}")]
    assert stage.apply().changed == ("front reloaded",) and seen_on_host(stage) == []


def test_a_site_file_that_was_not_applied_is_drift(stage: Scene) -> None:
    before = stage.text
    stage.edit(("    forwards:\n", "    forwards:\n      - {public: 8090, guest: 80, from: [any], purpose: more}\n"))
    found = drift(stage, "--vantage", outside(stage))
    assert ("rules", "map doors", f"{PUBLIC} . tcp . 8090 : {WIKI_AT} . 80", "missing") in found
    assert ("file", "nat.nft", "as rendered", "differs") in found
    assert ("way", f"outside -> {PUBLIC}:8090: more (wiki)", "open", "silent") in found
    stage.edit((stage.text, before))
    assert drift(stage) == []


def test_what_is_not_as_it_should_be_outside_is_found_from_there(stage: Scene) -> None:
    """A guest that is dead, a port that somebody else opened, a certificate of somebody else: all in one report."""
    node = stage.guest("node")
    stage.machine.nft(
        "table ip evil { chain c { type nat hook prerouting priority -110; tcp dport 8000 dnat to 10.78.0.20:80; }\n}"
    )
    node.ip("link set eth0 down")
    stage.serve_wiki("somebody.example")
    found = drift(stage, "--vantage", outside(stage), "--vantage", peer(stage))
    stage.serve_wiki(WIKI)
    node.ip("link set eth0 up", "route add default via 10.77.0.1")
    stage.machine.run(["nft", "delete", "table", "ip", "evil"])
    other = "other: the certificate of somebody.example is shown"
    assert ("way", f"outside -> {PUBLIC}:443 ({WIKI}): HTTPS of {WIKI}", "open", other) in found
    assert ("way", f"outside -> {PUBLIC}:8000: nobody declared it", "closed", "open") in found
    # or the host says that it finds nobody there
    silent = {row[1] for row in found if row[2] == "open" and row[3] in ("silent", "silent: No route to host")}
    assert f"lf1 -> {PUBLIC}:2811: GridFTP control of node" in silent
    assert f"lf1 -> {PUBLIC}:50000: GridFTP data of node, towards it" in silent
    assert {row[0] for row in found} == {"way"}


def test_a_service_that_does_not_listen_is_drift_and_a_data_port_is_not(stage: Scene) -> None:
    """Ports of a data range listen during a transfer only; what refuses there shows that the way is open."""
    before = stage.text
    stage.edit(("{data: 50000-50099}\n    sftp", "{data: 50000-50098}\n    sftp"))
    stage.apply(("    forwards:\n", "    forwards:\n      - {public: 8090, guest: 81, from: [any], purpose: dead}\n"))
    rows = json.loads(
        stage.run("verify", "--format", "json", *QUICK, "--vantage", outside(stage), "--vantage", peer(stage)).stdout
    )
    found = {row["subject"]: (row["found"], row["state"]) for row in rows}
    assert found[f"outside -> {PUBLIC}:8090: dead (wiki)"] == ("refused", "drift")
    data = found[f"lf1 -> {PUBLIC}:50098: GridFTP data of node, towards it"]
    assert data == ("open, nothing listens now", "as written")
    stage.apply((stage.text, before))


def test_from_a_guest_what_it_may_and_what_it_may_not(stage: Scene) -> None:
    node = f"node={shlex.join(stage.guest('node').command([]))}"
    found = drift(stage, "--vantage", node)
    # nothing answers here as resolver, as viewer and at some ports of the peers: those ways are not open
    assert {row[2] for row in found} == {"open"}
    stage.machine.run(["nft", "insert", "rule", "inet", "dgis", "forward", "accept"])
    found = drift(stage, "--vantage", node)
    assert ("way", f"node -> {PUBLIC}:11112: nobody declared it", "closed", "open") in found
    stage.apply()


def test_the_table_is_read_by_people(stage: Scene) -> None:
    for name in ("element added", "rule added"):
        stage.machine.run(["sh", "-c", BY_HAND[name][0]])
    for columns in (80, 160):
        done = stage.run("verify", *QUICK, columns=columns)
        lines = done.stdout.splitlines()
        assert done.returncode == 3 and max(map(len, lines)) <= columns
        assert re.fullmatch(r"xen1: 2 of \d+ drifted", lines[0].strip())
        assert re.split(r"[┃\s]+", lines[2].strip("┃ ")) == ["check", "subject", "expected", "found"]
        rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
        assert ["rules", "set outer", "nothing", "lo"] in rows
        assert "tcp dport 22 counter accept" in " ".join(row[3] for row in rows)
    stage.apply()


def test_apply_says_what_it_does(stage: Scene) -> None:
    before = stage.text
    flowing = stage.stream(stage.outside, PUBLIC, 8080)
    stage.edit(FORWARDS)
    changed = ["nat.nft", "live rules"]
    would = stage.run("apply", "--dry-run", "--format", "json")
    assert json.loads(would.stdout) == {"host": "xen1", "changed": changed, "cut": 1, "notes": []}
    would = stage.run("apply", "--dry-run")
    assert would.stdout.splitlines() == ["xen1: would change nat.nft, live rules", "xen1: would cut 1 connection"]
    assert flowing.still_flows()
    done = stage.run("apply")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["xen1: changed nat.nft, live rules", "xen1: cut 1 connection"]
    assert flowing.end(within=3)[0] == "reset"
    assert stage.run("apply").stdout == "xen1: changed nothing\n"
    stage.apply((stage.text, before))


@pytest.mark.skipif(not SSHD.exists(), reason="sshd is not installed (Debian: openssh-server)")
def test_a_vantage_point_by_ssh_and_one_that_cannot_be_asked(stage: Scene) -> None:
    stage.outside.sshd(2200)
    over = shlex.join(["ssh", *stage.outside.shared.ssh.options(), "-p", "2200", "root@100.64.0.10"])
    rows = json.loads(stage.run("verify", "--format", "json", *QUICK, "--vantage", f"outside={over}").stdout)
    tried = [row for row in rows if row["subject"].startswith("outside -> ")]
    assert len(tried) > 20 and {row["state"] for row in tried} == {"as written"}
    nobody = shlex.join(["ssh", *stage.outside.shared.ssh.options(), "-p", "2201", "root@100.64.0.10"])
    done = stage.run("verify", "--format", "json", *QUICK, "--vantage", f"outside={nobody}")
    last = json.loads(done.stdout)[-1]
    assert done.returncode == 0 and (last["subject"], last["state"]) == ("from outside", "not tried")
    assert "does not get through" in last["found"] and "Connection refused" in last["found"]


def test_iptables_rules_that_are_gone_or_were_added_are_rows(tmp_path: Path) -> None:
    require_netlab()
    with scene(tmp_path, IPTABLES, prefix="verify") as stage:
        assert drift(stage, "--vantage", outside(stage)) == []
        door = (
            "-A DGIS-TRANSLATE -d 198.51.100.10/32 -p tcp -m tcp --dport 2811 -j DNAT --to-destination 10.77.0.11:2811"
        )
        stage.machine.run(["iptables", "-t", "nat", *door.replace("-A", "-D", 1).split()])
        stage.machine.run(["iptables", "-A", "DGIS-FORWARD", "-p", "tcp", "--dport", "25", "-j", "ACCEPT"])
        stage.machine.run(["iptables", "-D", "INPUT", "-j", "DGIS-INPUT"])
        found = seen_on_host(stage)
        assert ("rules", "nat DGIS-TRANSLATE", door, "missing") in found
        added = "-A DGIS-FORWARD -p tcp -m tcp --dport 25 -j ACCEPT"
        assert ("rules", "filter DGIS-FORWARD", "nothing", added) in found
        assert ("rules", "filter INPUT", "-A INPUT -j DGIS-INPUT", "missing") in found
        stage.apply()
        assert seen_on_host(stage) == []
