"""A guest's configuration as the real `xl` reads it, without Xen and without root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.xen.debs import Unavailable, XenTree

_INSIDE = Path(__file__).with_name("inside.py")
# Said of every file: that a host's settings are missing, and that it reads the file
_USUAL = ("Failed to read config file: /etc/xen/xl.conf", "Parsing config from ")


class XlRefused(Exception):
    """xl does not take the file; the text is xl's own."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk as xl understood it; ``access`` is ``rw`` or ``ro``."""

    target: str
    vdev: str
    format: str
    access: str


@dataclass(frozen=True, slots=True)
class Vif:
    """A network interface as xl understood it; empty where the file does not say."""

    mac: str
    bridge: str


@dataclass(frozen=True, slots=True)
class XlGuest:
    """A guest as xl understood it. ``memory`` in MiB, 0 where the file does not say."""

    name: str
    type: str
    uuid: str
    memory: int
    vcpus: int
    kernel: str
    ramdisk: str
    cmdline: str
    disks: tuple[Disk, ...]
    vifs: tuple[Vif, ...]
    on_poweroff: str
    on_reboot: str
    on_crash: str


def xl_dryrun(tree: XenTree, cfg_path: Path, *, strict: bool = False) -> dict[str, Any]:
    """Parse a file with `xl create -n` and give what xl would do, as its own JSON; compare it with the site file.

    Only syntax, type, disk formats, UUID and actions are refused by xl (status 1). The rest must be found by comparing:
    - an unknown key (`memroy`) is dropped without a word;
    - in `disk` all behind `target=` is the path, other parameters too: it must come last;
    - a second disk with the same vdev is taken;
    - two `memory` lines: the last holds; `cmdline` beside `extra`: `extra` is dropped.
    Some are grumbled about with status 0; ``strict`` refuses these, too: a MAC byte that is no number is read as 00, a
    MAC that is too short ends in whatever lay in memory, a memory that is no number is no memory at all, an unknown
    parameter of a vif is dropped.

    Raises `XlRefused` with xl's words, `Unavailable` where no private mount namespace can be had.
    """
    said = _run(tree, cfg_path)
    words = [line for line in said["err"].splitlines() if line.strip() and not line.startswith(_USUAL)]
    if said["status"] or (strict and words):
        raise XlRefused("\n".join(words) or f"xl ended with status {said['status']} without a word")
    parsed: dict[str, Any] = json.loads(said["out"])
    return parsed


def normalise(parsed: Mapping[str, Any]) -> XlGuest:
    """Pull out of xl's JSON what a site file decides. xl leaves out what has its default; it is filled in here."""
    create, build = parsed["c_info"], parsed["b_info"]
    return XlGuest(
        name=create["name"],
        type=create["type"],
        uuid=create["uuid"],  # xl draws one where the file has none
        memory=build.get("target_memkb", 0) // 1024,
        vcpus=build.get("max_vcpus", 1),
        kernel=build.get("kernel", ""),
        ramdisk=build.get("ramdisk", ""),
        cmdline=build.get("cmdline", ""),
        disks=tuple(map(_disk, parsed.get("disks", ()))),
        vifs=tuple(Vif(each.get("mac", ""), each.get("bridge", "")) for each in parsed.get("nics", ())),
        on_poweroff=parsed.get("on_poweroff", "destroy"),
        on_reboot=parsed.get("on_reboot", "destroy"),
        on_crash=parsed.get("on_crash", "destroy"),
    )


def _disk(raw: Mapping[str, Any]) -> Disk:
    access = "rw" if raw.get("readwrite") else "ro"
    return Disk(target=raw.get("pdev_path", ""), vdev=raw["vdev"], format=raw.get("format", ""), access=access)


def _run(tree: XenTree, cfg_path: Path) -> dict[str, Any]:
    # An ordinary user becomes root of a user namespace, which may mount
    flags = "-m" if os.getuid() == 0 else "-Urm"
    inner = [sys.executable, "-I", _INSIDE, tree.libraries, tree.shim, tree.xl, cfg_path.absolute()]
    done = subprocess.run(
        ["unshare", flags, *map(str, inner)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Unavailable(f"no private mount namespace for xl here: {done.stderr.strip()[-600:]}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said
