"""Run in network and mount namespaces of its own: systemd-networkd and sysctl make a host of rendered files.

    unshare --net --mount python hostreader.py OUT/HOST

The wires that the files name are made first; bridges are networkd's to make. Ends with 0 when every address, route and
setting of the files is there and nothing was ignored, else says on stderr what is wrong, or "missing: ..." where this
machine cannot do it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

NETWORKD = Path("/lib/systemd/systemd-networkd")
FILES = Path("/run/systemd/network")
LOG = Path("/run/networkd.log")
SECONDS = 30.0


def run(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def prepare(files: Path) -> None:
    """A /run of its own, and a /sys that cannot be written: networkd then waits for no udev, as in a container."""
    run("mount", "-t", "tmpfs", "none", "/run")
    run("mount", "-t", "sysfs", "-o", "ro", "none", "/sys")
    shutil.copytree(files, FILES)
    for name in ("links", "leases", "lldp"):
        Path("/run/systemd/netif", name).mkdir(parents=True)
    run("chown", "-R", "systemd-network", "/run/systemd/netif")
    run("ip", "link", "set", "lo", "up")


def make_wires(files: Path) -> None:
    made = {value for path in files.glob("*.netdev") for value in values(path, "Name")}
    for path in files.glob("*.network"):
        for name in values(path, "Name"):
            if name not in made:
                run("ip", "link", "add", name, "type", "veth", "peer", "name", f"p-{name}"[:15])
                run("ip", "link", "set", f"p-{name}"[:15], "up")


def values(path: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.+)$", path.read_text(), re.MULTILINE)


def wanted(files: Path) -> set[str]:
    """Addresses and routes as `present` says them."""
    found = set()
    for path in files.glob("*.network"):
        (device,) = values(path, "Name")
        found |= {f"{device} has {address}" for address in values(path, "Address")}
        ways = zip(values(path, "Destination"), values(path, "Gateway"), strict=False)
        found |= {f"{device} leads to {there} by {hop}" for there, hop in ways}
    return found


def present() -> set[str]:
    found = set()
    for link in json.loads(run("ip", "-j", "-4", "address")):
        found |= {f"{link['ifname']} has {each['local']}/{each['prefixlen']}" for each in link["addr_info"]}
    for route in json.loads(run("ip", "-j", "-4", "route")):
        there = route["dst"].replace("default", "0.0.0.0/0")
        found.add(f"{route['dev']} leads to {there} by {route.get('gateway')}")
    return found


def networkd(files: Path) -> None:
    environment = {**os.environ, "SYSTEMD_LOG_TARGET": "console", "SYSTEMD_LOG_COLOR": "0"}
    until = time.monotonic() + SECONDS
    with LOG.open("wb") as log, subprocess.Popen([NETWORKD], stdout=log, stderr=log, env=environment) as child:
        try:
            while lacking := wanted(files) - present():
                if (ended := child.poll() is not None) or ignored() or time.monotonic() > until:
                    words = f"systemd-networkd {'ended' if ended else 'did not do it'}: {'; '.join(sorted(lacking))}"
                    raise SystemExit(f"{words}; {ignored() or LOG.read_text()[-1500:]}")
                time.sleep(0.05)
        finally:
            child.kill()
    if ignored():
        raise SystemExit(ignored())


def ignored() -> str:
    """What networkd read and did not take."""
    lines = LOG.read_text().splitlines()
    return "\n".join(line for line in lines if "ignoring" in line or "Failed to parse" in line)


def sysctl(file: Path) -> None:
    """Load the file, and find every value as it says; what begins with a dash may be missing in this kernel."""
    run("sysctl", "-e", "-q", "-p", file)  # -e: what a leading dash says to systemd-sysctl
    for line in file.read_text().splitlines():
        name, equals, value = line.partition(" = ")
        if equals and not name.startswith(("#", "-")) and (now := run("sysctl", "-n", name).strip()) != value:
            raise SystemExit(f"{name} is {now}, not {value}")


def main(host: Path) -> None:
    if os.geteuid():
        raise SystemExit("missing: systemd-networkd gives up root for its own user, which takes root")
    if not NETWORKD.exists():
        raise SystemExit(f"missing: {NETWORKD} (Debian: systemd)")
    files = host / "networkd"
    prepare(files)
    make_wires(files)
    networkd(files)
    sysctl(host / "sysctl.conf")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
