"""The in-memory systems: a guest's (busybox that answers who it is) and dom0's (busybox, xl, xenstored, ip, nft)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.xen.debs import DOM0_MODULES, GUEST_MODULES, Unavailable, XenTree, run

_HERE = Path(__file__).parent
# losetup and flock are called by the block hotplug script with options that busybox' do not have
_HOST_PROGRAMS = ("bash", "ip", "bridge", "nft", "flock", "losetup", "conntrack")
_XEN_PROGRAMS = ("xl", "xenstored", "xenconsoled", "xenconsole", "xen-init-dom0", "libxl-save-helper")
_XENSTORE_NAMES = ("read", "write", "rm", "list", "exists", "ls", "chmod")


@dataclass(frozen=True, slots=True)
class Lease:
    """What a test guest calls its own when it sees its MAC; ``address`` as ADDRESS/PREFIX, HTTP on every port.

    On ``raw`` ports it lets the caller speak first, whatever that is, and then says the same as in HTTP: for what a
    front passes on untouched.
    """

    mac: str
    name: str
    address: str
    gateway: str
    ports: tuple[int, ...] = (80,)
    raw: tuple[int, ...] = ()

    def line(self) -> str:
        listed = " ".join(",".join(map(str, ports)) for ports in (self.ports, self.raw))
        return f"{self.mac.lower()} {self.name} {self.address} {self.gateway} {listed}\n"


def guest_initrd(tree: XenTree, leases: Iterable[Lease], folder: Path) -> bytes:
    """The test guest's initrd, the same for every guest; ``folder`` must not exist yet.

    A guest whose MAC has no lease reads `dgisname= dgisip=ADDRESS/PREFIX dgisgw= dgisports=80,443` from its kernel's
    command line. Each port answers GET / in JSON with name, address, port, peer, mac, type (PV | PVH), uuid, kernel,
    vcpus, disks, and GET /cmdline with the command line as it is.
    """
    _make_folders(folder, ("bin", "dev", "proc", "sys", "modules"))
    shutil.copy(tree.busybox, folder / "bin/busybox")
    (folder / "bin/sh").symlink_to("busybox")
    for number, path in enumerate(_modules(tree.guest_modules, GUEST_MODULES)):
        shutil.copy(path, folder / f"modules/{number:02}-{path.name}")
    _script("guest.sh", folder / "init")
    _script("who.cgi", folder / "who.cgi")
    (folder / "leases").write_text("".join(lease.line() for lease in leases))
    return pack(folder)


def dom0_initrd(tree: XenTree, files: Iterable[tuple[str, bytes]], programs: Sequence[str], folder: Path) -> bytes:
    """dom0's initrd with ``files`` (absolute path there, content) and more ``programs`` of this machine."""
    _make_folders(folder, ("dev", "proc", "sys", "run", "tmp", "etc/xen", "lib", "lib64", "usr/bin", "usr/sbin"))
    _make_folders(folder, ("var/lib/xen", "var/log/xen"))
    for link, target in (("var/run", "/run"), ("var/lock", "/run/lock"), ("bin", "usr/bin"), ("sbin", "usr/sbin")):
        (folder / link).symlink_to(target)
    _put_busybox(tree, folder)
    _put_programs(tree, programs, folder)
    shutil.copytree(tree.root / "etc/xen/scripts", folder / "etc/xen/scripts")
    (folder / "etc/xen/xl.conf").touch()
    shutil.copytree(tree.dom0_modules / "lib/modules", folder / "lib/modules")
    (folder / "etc/dgis-modules").write_text("".join(f"{each}\n" for each in DOM0_MODULES))
    _script("dom0.sh", folder / "init")
    for path, content in files:
        place = folder / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return pack(folder)


def pack(folder: Path) -> bytes:
    """A newc archive of a folder. Not compressed: to unpack it costs the emulated processor more than to load it."""
    names = sorted(os.fspath(path.relative_to(folder)) for path in folder.rglob("*"))
    try:
        done = subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"],
            cwd=folder, input="\n".join(names).encode(), capture_output=True, timeout=60, check=True,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise Unavailable("cpio is not installed") from error
    return done.stdout


def _make_folders(root: Path, names: Iterable[str]) -> None:
    for name in names:
        (root / name).mkdir(parents=True)


def _script(name: str, place: Path) -> None:
    shutil.copy(_HERE / name, place)
    place.chmod(0o755)


def _modules(root: Path, wanted: Sequence[str]) -> list[Path]:
    """The module files, each after those that it needs."""
    version = next((root / "lib/modules").iterdir()).name
    found: dict[Path, None] = {}
    for module in wanted:
        said = run(["modprobe", "--ignore-install", "-d", root, "-S", version, "--show-depends", module])
        for line in said.splitlines():
            kind, _, path = line.strip().partition(" ")
            if kind == "insmod":
                found[Path(path.split()[0])] = None
    return list(found)


def _put_busybox(tree: XenTree, folder: Path) -> None:
    shutil.copy(tree.busybox, folder / "bin/busybox")
    for name in run([tree.busybox, "--list"]).split():
        if name != "busybox":
            (folder / "bin" / name).symlink_to("busybox")
    # The kernel loads modules by this path
    (folder / "usr/sbin/modprobe").symlink_to("/bin/busybox")


def _put_programs(tree: XenTree, programs: Sequence[str], folder: Path) -> None:
    for name in (*_HOST_PROGRAMS, *programs):
        found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if found is None:
            raise Unavailable(f"{name} is not installed; dom0 takes it from this machine")
        _put(tree, Path(found), folder / "usr/bin", folder)
    xen = folder / tree.programs.relative_to(tree.root)
    for name in _XEN_PROGRAMS:
        _put(tree, tree.programs / name, xen, folder)
    _put(tree, tree.root / "usr/bin/xenstore", folder / "usr/bin", folder)  # one program that goes by its name
    for name in _XENSTORE_NAMES:
        (folder / f"usr/bin/xenstore-{name}").symlink_to("xenstore")
    # Loaded when a thread is cancelled: without it xl dies *after* it has created the guest, and ldd does not list it
    for place in ("/lib/x86_64-linux-gnu/libgcc_s.so.1", "/usr/lib64/libgcc_s.so.1"):
        if Path(place).exists():
            shutil.copy(place, folder / "lib")


def _put(tree: XenTree, program: Path, place: Path, folder: Path) -> None:
    """Copy a program over busybox' link of that name, and the libraries it needs."""
    place.mkdir(parents=True, exist_ok=True)
    (place / program.name).unlink(missing_ok=True)
    shutil.copy(program, place / program.name)
    said = run(["env", f"LD_LIBRARY_PATH={tree.libraries}", "ldd", program])
    for line in said.splitlines():
        words = line.split()
        if "=>" in words and words[2].startswith("/"):
            shutil.copy(words[2], folder / "lib")
        elif words[0].startswith("/"):  # the loader, by the path that is compiled into every program
            shutil.copy(words[0], folder / words[0].lstrip("/"))
