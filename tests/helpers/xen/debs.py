"""Debian's Xen packages, unpacked below a folder: nothing is installed and no service starts."""

from __future__ import annotations

import fcntl
import functools
import gzip
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

XEN = "4.17"
# What xl and the xenstore need, 2.7 MB; busybox-static because Debian's plain busybox needs libraries
TOOLSTACK = (
    f"xen-utils-{XEN}", "xen-utils-common", f"libxenmisc{XEN}", "libxencall1", "libxendevicemodel1", "libxenevtchn1",
    "libxenforeignmemory1", "libxengnttab1", "libxenhypfs1", "libxenstore4", "libxentoolcore1", "libxentoollog1",
    "libyajl2",
)  # fmt: skip
# The cloud kernel is what our guest image has, but XEN_DOM0 is off in it: dom0 needs the other one (97 MB in all)
BOOT = (f"xen-hypervisor-{XEN}-amd64", "xenstore-utils", "busybox-static")
DOM0_KERNEL, GUEST_KERNEL = "linux-image-amd64", "linux-image-cloud-amd64"
# crc32c_generic: nf_tables asks for a crc32c and is refused without it. nft_objref: `counter name` in a rule
DOM0_MODULES = (
    "crc32c_generic", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-privcmd", "xenfs", "xen-netback", "xen-blkback",
    "loop", "bridge", "tun", "virtio_pci", "virtio_net", "virtio_console", "nf_tables", "nft_chain_nat", "nft_nat",
    "nft_masq", "nft_redir", "nft_ct", "nft_limit", "nft_log", "nft_fib_inet", "nft_reject_inet", "nft_objref",
    "nf_log_syslog", "nf_conntrack_netlink",
)  # fmt: skip
GUEST_MODULES = ("xen-netfront", "xen-blkfront")
_APT = {
    "Acquire::Retries": "1",
    "Acquire::http::Timeout": "20",
    "Acquire::https::Timeout": "20",
    "APT::Update::Error-Mode": "any",  # else an unreachable mirror is a warning with status 0
}
_PACKAGES = {"cc": "gcc, libc6-dev", "depmod": "kmod", "modprobe": "kmod", "ip": "iproute2"}
_SHIM = Path(__file__).with_name("shim.c")


class Unavailable(Exception):
    """This machine cannot do it; the text says why and what would help. A test skips with it."""


@dataclass(frozen=True, slots=True)
class XenTree:
    """The unpacked packages below ``root``; ``packages`` are the .deb files' names, versions in them."""

    root: Path
    packages: tuple[str, ...]

    @property
    def libraries(self) -> Path:
        return next(self.root.glob("usr/lib/*-linux-gnu"))

    @property
    def programs(self) -> Path:
        """Where xl, xenstored and the others lie; compiled into them, so the same path holds in dom0."""
        return self.root / f"usr/lib/xen-{XEN}/bin"

    @property
    def xl(self) -> Path:
        return self.programs / "xl"

    @property
    def shim(self) -> Path:
        return self.root / "shim.so"

    @property
    def hypervisor(self) -> Path:
        return self.root / "boot/xen"

    @property
    def dom0_kernel(self) -> Path:
        return self.root / "boot/dom0-vmlinuz"

    @property
    def guest_kernel(self) -> Path:
        return self.root / "boot/guest-vmlinuz"

    @property
    def dom0_modules(self) -> Path:
        """A tree with lib/modules/VERSION of dom0's kernel, as modprobe reads it."""
        return self.root / "dom0-modules"

    @property
    def guest_modules(self) -> Path:
        return self.root / "guest-modules"

    @property
    def busybox(self) -> Path:
        return self.root / "bin/busybox"


def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DGIS_TEST_CACHE, which outlives the run, or a folder that all xdist workers of this run share."""
    if wanted := os.environ.get("DGIS_TEST_CACHE"):
        return Path(wanted)
    base = tmp_path_factory.getbasetemp()
    return (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "cache"


def fetch_xen(cache: Path, *, boot: bool = False) -> XenTree:
    """Give the toolstack (2.7 MB, for `xl_dryrun`), or with ``boot`` everything that `xen_host` needs (100 MB).

    Idempotent, safe for processes side by side. Raises `Unavailable` where apt cannot give the packages.
    """
    got = _fetch(cache.absolute(), boot)
    if isinstance(got, Unavailable):
        raise got
    return got


@functools.cache  # the failure, too: a mirror that cannot be reached costs its time-out once in a process
def _fetch(cache: Path, boot: bool) -> XenTree | Unavailable:
    name, fill = ("xen-boot", _fill_boot) if boot else ("xen-xl", _fill_xl)
    place = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{name}.lock"):
        if not place.exists():
            try:
                _make(place, fill)
            except Unavailable as error:
                return error
    return XenTree(place, tuple((place / "packages").read_text().split()))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _make(place: Path, fill: Callable[[Path, Apt], Sequence[str]]) -> None:
    """Fill a folder beside ``place`` and rename it: a run that is killed leaves nothing half-made under the name."""
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f"{place.name}.") as folder:
        root = Path(folder) / "root"
        root.mkdir()
        names = fill(root, Apt(Path(folder)))
        (root / "packages").write_text("".join(f"{each}\n" for each in names))
        root.rename(place)


class Apt:
    """apt with the machine's sources and lists of its own: those of the machine may be stale, missing or locked."""

    def __init__(self, folder: Path) -> None:
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        own = {"Dir::State::Lists": f"{folder}/lists", "Dir::Cache": f"{folder}/cache"}
        self._options = [word for key, value in (_APT | own).items() for word in ("-o", f"{key}={value}")]
        run(["apt-get", "-qq", *self._options, "update"])

    def unpack(self, packages: Sequence[str], root: Path) -> list[str]:
        """Download packages, lay their files below ``root``, give the files' names."""
        with tempfile.TemporaryDirectory(dir=root) as folder:
            # As root apt warns that its own account cannot write here, and downloads all the same
            run(["apt-get", "-qq", *self._options, "download", *packages], cwd=Path(folder))
            debs = sorted(Path(folder).glob("*.deb"))
            for deb in debs:
                run(["dpkg", "-x", deb, root])
            return [deb.name for deb in debs]

    def kernel(self, meta: str) -> str:
        """The package that a kernel's meta package stands for; its name changes with each ABI."""
        for line in run(["apt-cache", *self._options, "depends", meta]).splitlines():
            kind, _, name = line.strip().partition(": ")
            if kind == "Depends" and name.startswith("linux-image-"):
                return name
        raise Unavailable(f"apt knows no kernel behind {meta}: add Debian's main to its sources")


def _fill_xl(root: Path, apt: Apt) -> list[str]:
    names = apt.unpack(TOOLSTACK, root)
    run(["cc", "-shared", "-fPIC", "-o", root / "shim.so", _SHIM])
    return names


def _fill_boot(root: Path, apt: Apt) -> list[str]:
    names = [*_fill_xl(root, apt), *apt.unpack(BOOT, root)]
    # QEMU's multiboot loader takes an ELF file, not the .gz that GRUB takes
    (root / "boot/xen").write_bytes(gzip.decompress((root / f"boot/xen-{XEN}-amd64.gz").read_bytes()))
    for meta, wanted, role in ((DOM0_KERNEL, DOM0_MODULES, "dom0"), (GUEST_KERNEL, GUEST_MODULES, "guest")):
        # 510 MB unpacked, of which 20 are wanted
        with tempfile.TemporaryDirectory(dir=root) as folder:
            package = apt.kernel(meta)
            names += apt.unpack((package,), Path(folder))
            _take_kernel(Path(folder), package.removeprefix("linux-image-"), wanted, root, role)
    return names


def _take_kernel(source: Path, version: str, wanted: Sequence[str], root: Path, role: str) -> None:
    shutil.copy(source / f"boot/vmlinuz-{version}", root / f"boot/{role}-vmlinuz")
    run(["depmod", "-b", source, version])
    target = root / f"{role}-modules"
    for name in ("modules.builtin", "modules.order", "modules.builtin.modinfo"):
        _copy_below(source, target, source / "lib/modules" / version / name)
    for module in wanted:
        # --ignore-install: without it a modprobe.d of this machine, say a hardening's, would have its word
        said = run(["modprobe", "--ignore-install", "-d", source, "-S", version, "--show-depends", module])
        for line in said.splitlines():
            kind, _, path = line.strip().partition(" ")
            if kind == "insmod":  # the other kind is `builtin`
                _copy_below(source, target, Path(path.split()[0]))
    run(["depmod", "-b", target, version])


def _copy_below(source: Path, target: Path, path: Path) -> None:
    place = target / path.relative_to(source)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, place)


def run(argv: Sequence[str | Path], *, cwd: Path | None = None, timeout: float = 300) -> str:
    """Run a tool of the machine and give its output; `Unavailable` with its words when it is missing or fails."""
    command = [os.fspath(each) for each in argv]
    # depmod and modprobe lie where an ordinary user's PATH does not look
    env = dict(os.environ, LC_ALL="C", PATH=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    try:
        done = subprocess.run(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )
    except FileNotFoundError as error:
        package = _PACKAGES.get(command[0])
        raise Unavailable(f"{command[0]} is not installed" + (f" (Debian: {package})" if package else "")) from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} did not end within {timeout:.0f} s") from error
    if done.returncode:
        words = done.stderr.splitlines()
        said = "; ".join([line for line in words if line.startswith("E: ")] or words)[-600:]
        raise Unavailable(f"{command[0]} failed ({done.returncode}): {said}")
    return done.stdout
