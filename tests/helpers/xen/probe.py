"""Whether this machine can run the emulated host, found out by doing a small part of it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.helpers.xen.debs import Unavailable, XenTree, run
from tests.helpers.xen.host import MACHINE, QEMU, QUIET
from tests.helpers.xen.initramfs import pack

# 3 s on a free machine; more than ten times that means a host that takes minutes
PROBE_SECONDS = 40.0
_INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox grep -q ' svm ' /proc/cpuinfo && echo PROBE-SVM > /dev/console
/bin/busybox poweroff -f
"""


@functools.cache
def probe_xen(tree: XenTree) -> str | None:
    """Say why `xen_host` cannot work here, None when it can (3 s). ``tree`` from `fetch_xen(..., boot=True)`.

    Boots a guest kernel under TCG and makes a tap in a namespace. What it does not ask: whether /dev/kvm is there. That
    opens on machines where it then runs no guest, so it is never used.
    """
    try:
        return _no_tap() or _no_machine(tree)
    except Unavailable as error:
        return str(error)


def _no_tap() -> str | None:
    if os.getuid():
        return "needs root: namespaces and a tap for the emulated host"
    name = f"dgisp{os.getpid()}"
    run(["ip", "netns", "add", name])
    try:
        run(["ip", "-n", name, "tuntap", "add", "dev", "tap0", "mode", "tap"])
    finally:
        run(["ip", "netns", "del", name])
    return None


def _no_machine(tree: XenTree) -> str | None:
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed (Debian: qemu-system-x86)"
    with tempfile.TemporaryDirectory() as place:
        initrd = _initrd(tree, Path(place))
        kernel = ("-kernel", os.fspath(tree.guest_kernel), "-initrd", os.fspath(initrd))
        command = [QEMU, *MACHINE, *QUIET, "-m", "256", "-serial", "stdio", *kernel]
        try:
            done = subprocess.run(
                [*command, "-append", "console=ttyS0 panic=-1 quiet"],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=PROBE_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"{QEMU} did not boot a kernel within {PROBE_SECONDS:.0f} s: too slow here for a Xen host"
    if "PROBE-SVM" not in done.stdout:
        return f"{QEMU} boots no kernel that sees SVM: {(done.stderr or done.stdout)[-300:].strip()}"
    return None


def _initrd(tree: XenTree, place: Path) -> Path:
    root = place / "root"
    for name in ("bin", "dev", "proc"):
        (root / name).mkdir(parents=True)
    shutil.copy(tree.busybox, root / "bin/busybox")
    (root / "init").write_text(_INIT)
    (root / "init").chmod(0o755)
    initrd = place / "initrd"
    initrd.write_bytes(pack(root))
    return initrd
