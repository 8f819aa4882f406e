"""Run in a mount namespace of its own: make what `xl create -n` looks for, run it, say as JSON what it did.

Arguments: library folder, shim, xl, configuration. Prints {"status", "out", "err"}; ends non-zero only where the
namespace could not be made ready.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path


def mount(*args: str | Path) -> None:
    subprocess.run(["mount", *map(str, args)], check=True)


def make_run() -> socket.socket:
    """An empty /run with a xenstored that accepts and never answers: a dry run opens it and asks nothing of it."""
    mount("-t", "tmpfs", "none", "/run")
    for name in ("xen", "lock", "xenstored", "dev", "dev/xen"):
        Path("/run", name).mkdir()
    store = socket.socket(socket.AF_UNIX)
    store.bind("/run/xenstored/socket")
    store.listen(64)
    return store


def make_dev() -> None:
    """Lay a small /dev over the real one: a /dev/xen made in that would show on the whole machine, and race."""
    for name in ("null", "xen/privcmd", "xen/xenbus"):
        Path("/run/dev", name).touch()
        # Not mknod: a device node on a tmpfs of a user namespace cannot be opened, a bind mount can
        mount("--bind", "/dev/null", Path("/run/dev", name))
    mount("--rbind", "/run/dev", "/dev")


def main(libraries: str, shim: str, xl: str, config: str) -> None:
    text = Path(config).read_bytes()  # before the mounts, which may cover it
    with make_run():
        make_dev()
        seen = Path("/run", Path(config).name)
        seen.write_bytes(text)
        done = subprocess.run(
            [xl, "-N", "create", "-n", str(seen)],
            env={"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": libraries, "LD_PRELOAD": shim, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            check=False,
        )
    print(json.dumps({"status": done.returncode, "out": done.stdout, "err": done.stderr}))


if __name__ == "__main__":
    main(*sys.argv[1:])
