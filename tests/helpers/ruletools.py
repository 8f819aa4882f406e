"""nft and iptables-restore as judges of texts, in a network namespace of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

NFT, IPTABLES = ("nft", "-c", "-f"), ("iptables-restore", "--test")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_SAMPLES = {NFT: "table inet x { }\n", IPTABLES: "*filter\nCOMMIT\n"}
# Each file by itself; what is refused without a word is said, too
_EACH = 'tool=$1; shift; for f; do $tool "$f" >"$f.out" 2>&1 || test -s "$f.out" || echo refused >"$f.out"; done'


def refusals(tool: tuple[str, ...], texts: Iterable[str], folder: Path) -> list[str]:
    """What a tool says of each text in a network namespace of its own; "" when it takes it."""
    paths = []
    for number, text in enumerate(texts):
        paths.append(folder / f"{tool[0]}{number}")
        paths[-1].write_text(text, encoding="utf-8")
    words = ("unshare", "--net", *(() if os.geteuid() == 0 else ("-r",)), "sh", "-c", _EACH, "sh", " ".join(tool))
    subprocess.run((*words, *map(str, paths)), check=True, timeout=100, env=os.environ | {"PATH": _PATH})
    return [Path(f"{path}.out").read_text(encoding="utf-8") for path in paths]


def require(tool: tuple[str, ...], folder: Path) -> None:
    """Skip where a tool does not take what it must."""
    if shutil.which(tool[0], path=_PATH) is None or shutil.which("unshare") is None:
        pytest.skip(f"not installed: {tool[0]} or unshare")
    said = refusals(tool, [_SAMPLES[tool]], folder)
    if said != [""]:
        pytest.skip(f"{tool[0]} does not work here: {said[0].strip()}")
