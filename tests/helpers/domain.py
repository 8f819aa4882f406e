"""A rendered libvirt domain as an emulated guest: QEMU is told what the XML says, and nothing else.

    guest = DomainGuest(image, folder, xml, way=Operator(host.namespace, "10.77.0.11", key))
    guest.boot(host.namespace, "tap0")

Only KVM becomes emulation, a disk's way past the page cache becomes one through it (an emulated guest flushes slowly),
and the console becomes a file. An element or attribute that is not translated is an error: it would not be tested.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lxml import etree

from tests.helpers.guestimage import QEMU, BootedGuest, Image, Way

# What says how a host treats the guest, and what every QEMU guest of this kind has
_OF_THE_HOST = {"name", "uuid", "title", "description", "memballoon", "console", "clock", "cpu", "features"}
_ACTIONS = {"on_poweroff": "destroy", "on_reboot": "restart", "on_crash": "restart"}


class DomainGuest(BootedGuest):
    """A `BootedGuest` that is started from its domain's XML."""

    def __init__(self, image: Image, folder: Path, *, way: Way) -> None:
        super().__init__(image, folder, way=way)
        self.domain = b""

    def boot(self, netns: str, tap: str) -> None:
        """Start it as `domain` says; `tap` is the card's other end, on the bridge already."""
        words = [*qemu(self.domain, tap), "-display", "none", "-nodefaults"]
        words += ["-chardev", f"file,id=console,path={self.log},append=on", "-serial", "chardev:console"]
        self.log.touch()
        self._booted_at, self._began = self.log.stat().st_size, time.monotonic()
        with self.log.with_name("qemu.log").open("ab") as said:
            self._qemu = subprocess.Popen(
                ["ip", "netns", "exec", netns, *words], stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )

    def restarted(self) -> None:
        """Have `console` and `wait_for` begin here: the guest goes down, and what it says from now on counts."""
        self._booted_at, self._began = self.log.stat().st_size, time.monotonic()


@dataclass(frozen=True, slots=True)
class Operator(Way):
    """The way of the site's operators: a login by key, root by sudo."""

    def command(self, words: str) -> list[str]:
        *before, target, _ = Way.command(self, "")
        return [*before, target.replace("root@", "operator@"), "sudo", "-n", "sh", "-c", _quoted(words)]


def _quoted(words: str) -> str:
    return "'" + words.replace("'", "'\\''") + "'"


def qemu(domain: bytes, tap: str) -> list[str]:
    """QEMU's command line for a domain, with one card that is `tap`."""
    root = etree.fromstring(domain)
    _expect(root.get("type") == "kvm", "a domain of type kvm")
    words = [QEMU, "-accel", "tcg,thread=multi", "-cpu", "max"]
    for element in root:
        if element.tag in _OF_THE_HOST:
            continue
        words += _top(element, tap)
    return words


def _top(element: etree._Element, tap: str) -> Iterator[str]:
    text = element.text or ""
    if element.tag == "memory":
        _expect(element.get("unit") == "MiB", "memory in MiB")
        yield from ("-m", text)
    elif element.tag == "vcpu":
        yield from ("-smp", text)
    elif element.tag in _ACTIONS:
        _expect(text == _ACTIONS[element.tag], f"{element.tag} {_ACTIONS[element.tag]}")  # QEMU's own ways
    elif element.tag == "os":
        for part in element:
            yield from _os(part)
    elif element.tag == "devices":
        for part in element:
            if part.tag not in _OF_THE_HOST:
                yield from _device(part, tap)
    else:
        raise AssertionError(f"<{element.tag}> is not translated to QEMU")


def _os(part: etree._Element) -> tuple[str, str]:
    text = part.text or ""
    if part.tag == "type":
        _expect((part.get("arch"), text) == ("x86_64", "hvm"), "a hvm for x86_64")
        return "-M", str(part.get("machine"))
    return {"kernel": "-kernel", "initrd": "-initrd", "cmdline": "-append"}[part.tag], text


def _device(part: etree._Element, tap: str) -> Iterator[str]:
    if part.tag == "disk":
        name = _only(part, "serial").text or ""
        mode = "readonly=on" if part.find("readonly") is not None else "cache=unsafe,discard=unmap"
        kind = _only(part, "driver").get("type")
        yield from ("-drive", f"file={_only(part, 'source').get('file')},format={kind},if=none,id={name},{mode}")
        # vda is the first: the order of the devices is that of the letters
        _expect(_only(part, "target").get("bus") == "virtio", "a virtio disk")
        slot = 8 + "abc".index(str(_only(part, "target").get("dev"))[-1])
        yield from ("-device", f"virtio-blk-pci,drive={name},serial={name},addr={slot:#x}")
    elif part.tag == "interface":
        model, mac = _only(part, "model").get("type"), _only(part, "mac").get("address")
        yield from ("-netdev", f"tap,id=card,ifname={tap},script=no,downscript=no")
        yield from ("-device", f"{model}-net-pci,netdev=card,mac={mac},romfile=")
    elif part.tag == "rng":
        yield from ("-object", f"rng-random,id=rng,filename={_only(part, 'backend').text}")
        yield from ("-device", f"{part.get('model')}-rng-pci,rng=rng")
    else:
        _expect(part.tag == "serial" and _only(part, "target").get("port") == "0", f"a translation of <{part.tag}>")


def bridge(domain: bytes) -> str:
    """The bridge that a domain's card is on."""
    (name,) = etree.fromstring(domain).xpath("devices/interface[@type='bridge']/source/@bridge")
    return str(name)


def files(domain: bytes) -> list[Path]:
    """Kernel, initrd and disks, in this order, as the host has to have them."""
    root = etree.fromstring(domain)
    return [Path(str(text)) for text in root.xpath("os/kernel/text() | os/initrd/text() | devices/disk/source/@file")]


def _only(part: etree._Element, tag: str) -> etree._Element:
    (found,) = part.findall(tag)
    return found


def _expect(right: bool, what: str) -> None:
    if not right:
        raise AssertionError(f"expected {what}: translate it here, or it is not tested")


def place_on(folder: Path, image: Image, domain: bytes, seed: bytes, *, size: int) -> None:
    """Put what a domain names where it says: kernel and initrd, a copy of the root disk, an empty data disk, the seed.

    Disks that are there already stay: they are the guest's.
    """
    kernel, initrd, root, *data, iso = files(domain)
    for target in (kernel, initrd, root, *data, iso):
        _expect(folder in target.parents, f"{target} below {folder}")
        target.parent.mkdir(parents=True, exist_ok=True)
    for source, target in ((image.kernel, kernel), (image.initrd, initrd), (image.disk, root)):
        if not target.exists():
            subprocess.run(["cp", "--sparse=always", "--reflink=auto", os.fspath(source), target], check=True)
    for target in data:
        if not target.exists():
            target.touch()
            os.truncate(target, size)
    iso.write_bytes(seed)
