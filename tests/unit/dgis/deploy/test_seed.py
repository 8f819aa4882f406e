"""The seed's ISO image: the same bytes whenever and wherever it is made, and readable by those who will read it."""

from __future__ import annotations

import functools
import io
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pycdlib
import pytest

from dgis.deploy import cloudinit, seed, sitefile, topology
from dgis.deploy.cloudinit import Seed
from dgis.deploy.services import File

EXAMPLE = Path(__file__).parents[4] / "vm-images/examples/pilot-cesnet.yml"


@pytest.fixture
def made() -> Seed:
    own = topology.resolve(sitefile.read(EXAMPLE)[0])
    # More than a sector, and letters of more than one byte
    return cloudinit.seed(own, own.guest("node"), secrets={"/etc/long": File("ř".encode() * 5000)})


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine in another time zone, thirty years later."""
    monkeypatch.setattr(time, "time", lambda: 2_700_000_000.5)
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def files(seed: Seed) -> dict[str, bytes]:
    return {
        "user-data": seed.user_data.encode(),
        "meta-data": seed.meta_data.encode(),
        "network-config": seed.network_config.encode(),
    }


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, timeout=60)


@functools.cache
def missing(*words: str) -> str:
    try:
        done = run(*words)
    except OSError as error:
        return f"{words[0]} cannot be run: {error.strerror}"
    return "" if done.returncode == 0 else f"{words[0]} does not work: {done.stderr.strip()[:200]}"


@pytest.fixture
def image(made: Seed) -> bytes:
    return seed.iso(made)


def test_the_same_seed_gives_the_same_bytes(made: Seed, image: bytes, elsewhere: None) -> None:
    assert seed.iso(made) == image
    assert seed.iso(replace(made, meta_data=made.meta_data + "#\n")) != image


@pytest.mark.parametrize("kind", ["joliet", "rr"])
def test_pycdlib_reads_it_back_by_long_names(made: Seed, image: bytes, kind: str) -> None:
    disk = pycdlib.PyCdlib()
    disk.open_fp(io.BytesIO(image))
    try:
        assert disk.pvd.volume_identifier.rstrip() == b"cidata"
        found = {}
        for child in files(made):
            out = io.BytesIO()
            disk.get_file_from_iso_fp(out, **{f"{kind}_path": f"/{child}"})
            found[child] = out.getvalue()
        assert found == files(made)
    finally:
        disk.close()


def test_xorriso_reads_it_back(made: Seed, image: bytes, tmp_path: Path) -> None:
    if why := missing("xorriso", "-version"):
        pytest.skip(why)
    file, out = tmp_path / "seed.iso", tmp_path / "out"
    file.write_bytes(image)
    done = run("xorriso", "-abort_on", "WARNING", "-osirrox", "on", "-indev", file, "-extract", "/", out)
    assert done.returncode == 0, done.stderr
    assert "Volume id    : 'cidata'" in done.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files(made)
    listed = run("xorriso", "-indev", file, "-lsl", "/").stdout
    assert listed.count("-r--r--r--") == 3 and listed.count("Jan  1  2026") + listed.count("Jan  1 00:00") == 3, listed


def test_blkid_finds_it_by_the_label_that_cloud_init_looks_for(image: bytes, tmp_path: Path) -> None:
    if why := missing("blkid", "--version"):
        pytest.skip(why)
    file = tmp_path / "seed.iso"
    file.write_bytes(image)
    assert run("blkid", "-p", "-o", "value", "-s", "LABEL", file).stdout == "cidata\n"
    assert run("blkid", "-p", "-o", "value", "-s", "TYPE", file).stdout == "iso9660\n"
