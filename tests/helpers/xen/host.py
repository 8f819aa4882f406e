"""A Xen host under QEMU's TCG: real hypervisor, real xl, one network card into a namespace of the test."""

from __future__ import annotations

import base64
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.xen.debs import Unavailable, XenTree, run
from tests.helpers.xen.dryrun import XlGuest, normalise, xl_dryrun
from tests.helpers.xen.initramfs import Lease, dom0_initrd, guest_initrd

QEMU = "qemu-system-x86_64"
# Never `-accel kvm:tcg`: /dev/kvm may open and then not run a guest, and nothing falls back (see probe.py).
# Never `-cpu max`: the PV dom0 dies at once of a page fault (SMAP, SMEP, PKU). EPYC-v1 resets. SVM with nested pages is
# emulated, which PVH guests need.
MACHINE = ("-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "qemu64,+svm,+npt", "-smp", "2")
QUIET = ("-display", "none", "-no-reboot", "-nodefaults")
DOM0_MIB = 640
# One processor for dom0: with two it takes four times as long on a busy machine (each spins waiting for the other)
DOM0 = f"dom0_mem={DOM0_MIB}M,max:{DOM0_MIB}M dom0_max_vcpus=1"
SPARE_MIB = 400  # Xen itself, the second-level page tables of PVH guests, xl's slack
DISK_BYTES = 1 << 20
READY_SECONDS = 60.0  # 10 on a free machine


class BootFailed(Exception):
    """The host did not come up, or is gone; the text ends with its console."""


@dataclass(frozen=True, slots=True)
class Uplink:
    """A card of dom0: ``device`` is its name there, ``tap`` the far end, made in ``netns`` and up with ``outside``.

    Addresses as ADDRESS/PREFIX; ``outside`` may be empty where the caller puts the tap on a bridge. Only one card of a
    host has a ``gateway``.
    """

    netns: str
    tap: str
    outside: str
    device: str
    address: str
    gateway: str = ""


@dataclass(frozen=True, slots=True)
class Site:
    """What the host is given: guests' configurations by name, bridges and dom0's address on each, the rule set.

    Kernel, initrd and disks lie in dom0 where the configurations say; disks are empty, 1 MiB. A guest finds its address
    in ``leases``. ``programs`` of this machine and ``files`` come into dom0, too.
    """

    uplinks: tuple[Uplink, ...]
    bridges: Mapping[str, str]
    configs: Mapping[str, str]
    leases: tuple[Lease, ...] = ()
    nft: str = ""
    programs: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """How a script in dom0 ended; status 143 when its time ran out."""

    status: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Domain:
    """A line of `xl list`; memory in MiB."""

    name: str
    id: int
    memory: int
    vcpus: int
    state: str


class XenHost:
    """One boot of the host; use `xen_host`, which tries again when a boot fails."""

    def __init__(self, tree: XenTree, folder: Path, site: Site) -> None:
        self.site = site
        self.folder = folder
        self._tree = tree
        self._qemu: subprocess.Popen[bytes] | None = None
        self._agent, self._far = socket.socketpair()
        self._heard = b""

    def boot(self) -> None:
        """Build, start, wait until dom0 answers, set up its network. Raises `BootFailed`, `Unavailable`."""
        try:
            self._start()
            self._set_up()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Switch it off; nothing of it stays but its console."""
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait(30)
            self._qemu = None
        for link in self.site.uplinks:
            subprocess.run(["ip", "-n", link.netns, "link", "del", link.tap], capture_output=True, check=False)
        for each in (self._agent, self._far):
            each.close()

    @property
    def console(self) -> str:
        """What hypervisor and dom0 wrote so far."""
        path = self.folder / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def run(self, script: str, *, timeout: int = 30, check: bool = True) -> Call:
        """Run a bash script in dom0, as root; with ``check`` a status other than 0 fails with its words.

        There are busybox' programs, iproute2, nft, conntrack, xl, xenstore-*. (busybox' `wget -T` crashes there: ask
        with `: < /dev/tcp/ADDRESS/PORT`.)
        """
        words = base64.b64encode(script.encode()).decode()
        self._agent.settimeout(timeout + 30)
        self._agent.sendall(f"{timeout} {words}\n".encode())
        status, out, err = self._line(timeout + 30).split(" ")
        call = Call(int(status), *(base64.b64decode(each).decode(errors="replace") for each in (out, err)))
        assert not check or call.status == 0, f"{script}: status {call.status}\n{call.out}{call.err}"
        return call

    def write(self, path: str, text: str) -> None:
        """Put a file into dom0."""
        encoded = base64.b64encode(text.encode()).decode()
        self.run(f"mkdir -p $(dirname {path}) && base64 -d > {path} <<< {encoded}")

    def create(self, name: str, *, timeout: int = 300) -> None:
        """`xl create` a guest of the site; it boots on while this returns. Fails with xl's words."""
        # The console's log goes on where the last guest of that name left it: its GUEST-READY would be believed
        self.run(f"rm -f {_log(name)}; xl create /etc/xen/{name}.cfg", timeout=timeout)

    def wait(self, name: str, *, timeout: int = 400) -> None:
        """Wait until a guest that was created answers on its ports; fails with the end of its console."""
        ready = f"until grep -qs GUEST-READY {_log(name)}; do usleep 50000; done"
        done = self.run(ready, timeout=timeout, check=False)
        assert done.status == 0, f"{name} was created and said in {timeout} s:\n{self.guest_console(name)[-3000:]}"

    def destroy(self, name: str) -> None:
        """`xl destroy` a guest: gone at once, its interface and disks given back."""
        self.run(f"xl destroy {name}")

    def crash(self, name: str) -> None:
        """Make a guest's kernel panic; what becomes of it is for `panic=` and `on_crash` to say."""
        self.run(f"rm -f {_log(name)}; xl sysrq {name} c")

    def domains(self) -> dict[str, Domain]:
        """`xl list` without dom0, by name."""
        rows = [line.split() for line in self.run("xl list").out.splitlines()[1:]]
        return {name: Domain(name, int(id_), int(mem), int(cpus), state) for name, id_, mem, cpus, state, _ in rows[1:]}

    def guest_console(self, name: str) -> str:
        """What a guest wrote since its creation; to be read when it is gone, too."""
        return self.run(f"cat {_log(name)}", check=False).out

    def _start(self) -> None:
        if shutil.which(QEMU) is None:
            raise Unavailable(f"{QEMU} is not installed (Debian: qemu-system-x86)")
        self.folder.mkdir(parents=True)
        guests = {name: self._read(name, text) for name, text in self.site.configs.items()}
        initrd = self._build(guests)
        for link in self.site.uplinks:
            run(["ip", "-n", link.netns, "tuntap", "add", "dev", link.tap, "mode", "tap"])
            if link.outside:
                run(["ip", "-n", link.netns, "addr", "add", link.outside, "dev", link.tap])
            run(["ip", "-n", link.netns, "link", "set", link.tap, "up"])
        memory = DOM0_MIB + SPARE_MIB + sum(guest.memory for guest in guests.values())
        # When this process dies the far end of the agent's line closes, upon which dom0 powers off: no orphan stays
        with self._far, (self.folder / "qemu.log").open("wb") as log:
            self._qemu = subprocess.Popen(
                ["ip", "netns", "exec", self.site.uplinks[0].netns, QEMU, *self._options(initrd, memory)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(self._far.fileno(),),
            )
        hello = self._line(READY_SECONDS)
        assert hello.startswith("ready "), hello

    def _read(self, name: str, text: str) -> XlGuest:
        path = self.folder / f"{name}.cfg"
        path.write_text(text)
        return normalise(xl_dryrun(self._tree, path))

    def _build(self, guests: Mapping[str, XlGuest]) -> Path:
        """Write dom0's initrd; the guests' kernel, initrd and disks lie in it at the places that xl reads."""
        initrd = guest_initrd(self._tree, self.site.leases, self.folder / "guest")
        kernel = self._tree.guest_kernel.read_bytes()
        files = {"/etc/dgis.nft": self.site.nft.encode()}
        for name, guest in guests.items():
            files |= {f"/etc/xen/{name}.cfg": self.site.configs[name].encode()}
            files |= {guest.kernel: kernel, guest.ramdisk: initrd}
            files |= {disk.target: bytes(DISK_BYTES) for disk in guest.disks}
        files |= self.site.files
        path = self.folder / "dom0.cpio"
        path.write_bytes(dom0_initrd(self._tree, files.items(), self.site.programs, self.folder / "dom0"))
        for done in ("guest", "dom0"):
            shutil.rmtree(self.folder / done)
        return path

    def _options(self, initrd: Path, memory: int) -> Sequence[str]:
        return (
            *MACHINE, *QUIET, "-m", str(memory),
            "-serial", f"file:{self.folder / 'console.log'}",
            "-kernel", os.fspath(self._tree.hypervisor),
            # bootscrub=0: to wipe memory that nobody used costs seconds and makes QEMU's memory real
            "-append", f"console=com1 com1=115200,8n1 {DOM0} bootscrub=0",
            "-initrd", f"{self._tree.dom0_kernel} console=hvc0 panic=-1 quiet,{initrd}",
            *(word for number, link in enumerate(self.site.uplinks) for word in _card(number, link)),
            "-chardev", f"socket,id=agent,fd={self._far.fileno()}",
            "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=dgis.agent",
        )  # fmt: skip

    def _set_up(self) -> None:
        lines = ["set -e"]
        for number, link in enumerate(self.site.uplinks):
            if link.device != f"eth{number}":
                lines.append(f"ip link set eth{number} name {link.device}")
            lines += [f"ip addr add {link.address} dev {link.device}", f"ip link set {link.device} up"]
            if link.gateway:
                lines.append(f"ip route add default via {link.gateway}")
        for bridge, address in self.site.bridges.items():
            lines += [f"ip link add {bridge} type bridge", f"ip addr add {address} dev {bridge}"]
            lines.append(f"ip link set {bridge} up")
        self.run("\n".join([*lines, "nft -f /etc/dgis.nft"]))

    def _line(self, seconds: float) -> str:
        until = time.monotonic() + seconds
        while b"\n" not in self._heard:
            self._agent.settimeout(max(0.01, until - time.monotonic()))
            try:
                got = self._agent.recv(65536)
            except TimeoutError:
                raise BootFailed(f"dom0 said nothing for {seconds:.0f} s\n{self._trouble()}") from None
            if not got:
                raise BootFailed(f"the host is gone\n{self._trouble()}")
            self._heard += got
        line, self._heard = self._heard.split(b"\n", 1)
        return line.decode()

    def _trouble(self) -> str:
        said = (self.folder / "qemu.log").read_text(errors="replace")
        return said + re.sub(r"\x1b\[[0-9;]*\w", "", self.console)[-3000:]


def _card(number: int, link: Uplink) -> tuple[str, ...]:
    backend = f"tap,id=up{number},ifname={link.tap},script=no,downscript=no"
    device = f"virtio-net-pci,netdev=up{number},mac=52:54:00:d6:15:{number:02x},romfile="
    return ("-netdev", backend, "-device", device)


def _log(name: str) -> str:
    return f"/var/log/xen/guest-{name}.log"


@contextmanager
def xen_host(tree: XenTree, folder: Path, site: Site, *, tries: int = 2) -> Iterator[XenHost]:
    """Boot the host and switch it off; a boot that fails is tried again: a busy machine starves an emulated one."""
    host = _booted(tree, folder, site, tries)
    try:
        yield host
    finally:
        host.close()


def _booted(tree: XenTree, folder: Path, site: Site, tries: int) -> XenHost:
    for number in range(1, tries + 1):
        host = XenHost(tree, folder / f"boot-{number}", site)
        try:
            host.boot()
        except BootFailed:
            if number == tries:
                raise
        else:
            return host
    raise ValueError("tries must be at least 1")
