"""The guest image, booted under QEMU's emulator: built once, a seed, one card into a network namespace of the test.

    image = guest_image(folder)                          # builds, or takes what DGIS_IMAGE_DIR names
    guest = BootedGuest(image, folder / "guest")
    guest.start(netns="nl-...", tap="tap0", mac="52:54:00:...", disks=(root, data), seed=iso)
    guest.wait_for("cloud-init finished", seconds=180)
    guest.kill()                                         # a power cut; start() again boots the same disks

/dev/kvm is never used: it may open and then run no guest, and nothing falls back.
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pycdlib

BUILD = Path(__file__).parents[2] / "vm-images" / "build" / "build.sh"
QEMU = "qemu-system-x86_64"
MACHINE = ("-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2")
QUIET = ("-display", "none", "-no-reboot", "-nodefaults")
CMDLINE = "root=LABEL=dgisroot ro console=ttyS0 net.ifnames=0 quiet"
# Kernel and initramfs take 2 to 3 s on a free machine
PROBE_SECONDS = 20.0
ALIVE = "dgis-initramfs: alive"
_POLL = 0.1


class GuestError(Exception):
    """The image could not be built, or a guest did not do what was waited for; the text ends with what was said."""


@dataclass(frozen=True, slots=True)
class Image:
    """A directory made by ``build.sh``."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "disk.raw"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd.gz"

    @property
    def release(self) -> str:
        """The version of dgis in it."""
        return str(json.loads((self.folder / "manifest.json").read_text())["release"])


def guest_image(folder: Path) -> Image:
    """Return the image: the one in DGIS_IMAGE_DIR (built there when it has none), else a new one below ``folder``.

    Raises GuestError with the end of the build's output.
    """
    image = Image(Path(os.environ.get("DGIS_IMAGE_DIR") or folder))
    if not (image.folder / "manifest.json").exists():
        environment = {**os.environ, "PYTHON": sys.executable}
        done = subprocess.run([BUILD, image.folder], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise GuestError(f"build.sh: exit {done.returncode}: {done.stderr[-3000:]}")
    return image


def missing_tools() -> str | None:
    """Say which programs an image and its guests need that are not here, None when all are."""
    needs = {"mmdebstrap": "mmdebstrap", QEMU: "qemu-system-x86", "mke2fs": "e2fsprogs", "ssh": "openssh-client"}
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [package for program, package in needs.items() if shutil.which(program, path=path) is None]
    return f"not installed (Debian packages): {', '.join(missing)}" if missing else None


@functools.cache
def probe_qemu(image: Image) -> str | None:
    """Say why no guest can be booted here, None when one can: boots kernel and initramfs to their first word."""
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed (Debian: qemu-system-x86)"
    command = [QEMU, *MACHINE, *QUIET, "-m", "256", "-serial", "stdio", *_boots(image)]
    try:
        done = subprocess.run(
            [*command, "-append", "console=ttyS0 panic=-1 quiet dgis.probe"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=PROBE_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{QEMU} did not boot a kernel within {PROBE_SECONDS:.0f} s: too slow here for a guest"
    return None if ALIVE in done.stdout else f"{QEMU} boots no kernel: {(done.stderr or done.stdout)[-300:].strip()}"


def _boots(image: Image) -> list[str]:
    return ["-kernel", os.fspath(image.kernel), "-initrd", os.fspath(image.initrd)]


def make_seed(path: Path, files: Mapping[str, str]) -> Path:
    """Write a NoCloud seed by hand: an ISO 9660 image with label cidata and these files (Joliet and Rock Ridge)."""
    iso = pycdlib.PyCdlib()
    iso.new(vol_ident="cidata", joliet=3, rock_ridge="1.09")
    for number, (name, text) in enumerate(files.items()):
        data = text.encode()
        iso.add_fp(io.BytesIO(data), len(data), f"/F{number}.;1", rr_name=name, joliet_path=f"/{name}")
    iso.write(os.fspath(path))
    iso.close()
    return path


def copy_disk(image: Image, path: Path) -> Path:
    """Copy the root disk for one guest; holes stay holes."""
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", image.disk, path], check=True)
    return path


def empty_disk(path: Path, size: int) -> Path:
    """Make a raw disk of ``size`` bytes without anything on it."""
    with path.open("wb") as disk:
        disk.truncate(size)
    return path


@dataclass(frozen=True, slots=True)
class Way:
    """How ssh reaches a guest: from a namespace, to an address, as root with a key (a private key's file)."""

    netns: str
    address: str
    key: Path

    def command(self, words: str) -> list[str]:
        """Return the command line that runs a shell command in the guest."""
        options = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        options += ["-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20", "-i", os.fspath(self.key)]
        return ["ip", "netns", "exec", self.netns, "ssh", *options, f"root@{self.address}", words]


class BootedGuest:
    """One emulated guest. Its disks and its console outlive its boots; ``way`` is needed for ``ssh`` only."""

    def __init__(self, image: Image, folder: Path, *, way: Way | None = None, memory: int = 768) -> None:
        """``memory`` in MiB."""
        folder.mkdir(parents=True, exist_ok=True)
        self.way = way
        self.log = folder / "console.log"
        self._image = image
        self._memory = memory
        self._qemu: subprocess.Popen[bytes] | None = None
        self._booted_at = 0
        self._began = 0.0

    def start(self, netns: str, tap: str, mac: str, disks: Sequence[Path], seed: Path | None = None) -> None:
        """Boot from the first of ``disks`` (raw, written to); the seed is the last disk. The TAP is there already.

        Returns when QEMU runs, long before the guest is up. ``console`` begins anew.
        """
        words = ["ip", "netns", "exec", netns, QEMU, *MACHINE, *QUIET, "-m", str(self._memory)]
        words += [*_boots(self._image), "-append", CMDLINE]
        words += ["-chardev", f"file,id=c0,path={self.log},append=on", "-serial", "chardev:c0"]
        for disk in disks:
            words += ["-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"]
        if seed is not None:
            words += ["-drive", f"file={seed},format=raw,if=virtio,readonly=on"]
        words += ["-netdev", f"tap,id=n0,ifname={tap},script=no,downscript=no"]
        words += ["-device", f"virtio-net-pci,netdev=n0,mac={mac},romfile=", "-device", "virtio-rng-pci"]
        self.log.touch()
        self._booted_at, self._began = self.log.stat().st_size, time.monotonic()
        with self.log.with_name("qemu.log").open("ab") as said:
            self._qemu = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said)

    @property
    def console(self) -> str:
        """What the guest wrote to its console since it was started."""
        with self.log.open("rb") as log:
            log.seek(self._booted_at)
            return log.read().decode(errors="replace").replace("\r", "")

    @property
    def seconds(self) -> float:
        """How long ago it was started."""
        return time.monotonic() - self._began

    def wait_for(self, text: str, *, seconds: float) -> float:
        """Return when the console shows ``text`` how long after the start that was. GuestError after ``seconds``."""
        until = time.monotonic() + seconds
        while text not in self.console:
            self._expect_alive(f"before {text!r}")
            if time.monotonic() > until:
                raise GuestError(f"no {text!r} on the console within {seconds:.0f} s: {self._tail()}")
            time.sleep(_POLL)
        return self.seconds

    def wait_ssh(self, *, seconds: float) -> float:
        """Return when a login works how long after the start that was. GuestError after ``seconds``."""
        until = time.monotonic() + seconds
        while self._ssh("true", 30).returncode:
            self._expect_alive("before it let anybody in")
            if time.monotonic() > until:
                raise GuestError(f"no login within {seconds:.0f} s: {self._tail()}")
            time.sleep(1)
        return self.seconds

    def ssh(self, command: str, *, seconds: float = 120, check: bool = True, stdin: bytes = b"") -> str:
        """Run a shell command in the guest as root and return what it wrote to stdout and stderr.

        ``check``: GuestError when it fails.
        """
        done = self._ssh(command, seconds, stdin)
        said = (done.stdout + done.stderr).decode(errors="replace")
        if check and done.returncode:
            raise GuestError(f"{command}: exit {done.returncode}: {said[-3000:]}")
        return said

    def put(self, file: Path, place: str) -> None:
        """Copy a file of this machine into the guest."""
        self.ssh(f"cat > '{place}'", stdin=file.read_bytes())

    def stop(self, *, seconds: float = 90) -> None:
        """Shut down as an operator would, and switch off what does not go. The guest may be off already."""
        if self._qemu is not None and self._qemu.poll() is None and self.way is not None:
            self.ssh("systemctl poweroff", check=False)
            try:
                self._qemu.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
                raise GuestError(f"it did not power off within {seconds:.0f} s: {self._tail()}") from None
        self.kill()

    def kill(self) -> None:
        """Cut its power."""
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait(30)
            self._qemu = None

    def _ssh(self, command: str, seconds: float, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        assert self.way is not None, "give BootedGuest a way"
        words = self.way.command(command)
        try:
            return subprocess.run(words, input=stdin, capture_output=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as error:
            raise GuestError(f"{command}: no end within {seconds:.0f} s: {self._tail()}") from error

    def _expect_alive(self, when: str) -> None:
        if self._qemu is None or self._qemu.poll() is not None:
            said = self.log.with_name("qemu.log").read_text(errors="replace")[-500:]
            raise GuestError(f"the guest is gone {when}: {said}{self._tail()}")

    def _tail(self) -> str:
        return f"the console ends with:\n{self.console[-3000:]}"


