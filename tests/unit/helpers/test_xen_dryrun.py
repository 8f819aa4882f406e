"""The real `xl` as a judge of guest configurations: what it refuses, and what only comparing with the wish finds."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.xen import (
    Disk,
    Unavailable,
    Vif,
    XenTree,
    XlGuest,
    XlRefused,
    cache_folder,
    fetch_xen,
    normalise,
    xl_dryrun,
)

pytestmark = pytest.mark.peer

IMAGES = "/var/lib/dgis/images"
GUEST = XlGuest(
    name="hosp-a-dgis",
    type="pvh",
    uuid="6f7e3d4a-9f7b-5c5e-8a55-0123456789ab",
    memory=1024,
    vcpus=2,
    kernel=f"{IMAGES}/vmlinuz",
    ramdisk=f"{IMAGES}/initrd.gz",
    cmdline="root=LABEL=dgisroot ro console=hvc0",
    disks=(
        Disk(f"{IMAGES}/hosp-a-dgis.root.raw", "xvda", "raw", "rw"),
        Disk(f"{IMAGES}/hosp-a-dgis.seed.raw", "xvdb", "raw", "ro"),
    ),
    vifs=(Vif("00:16:3e:d9:15:21", "dgisbr0"),),
    on_poweroff="destroy",
    on_reboot="restart",
    on_crash="restart",
)
CONFIG = f"""\
name = "hosp-a-dgis"
uuid = "6f7e3d4a-9f7b-5c5e-8a55-0123456789ab"
type = "pvh"
kernel = "{IMAGES}/vmlinuz"
ramdisk = "{IMAGES}/initrd.gz"
extra = "root=LABEL=dgisroot ro console=hvc0"
memory = 1024
vcpus = 2
disk = [
  "format=raw, vdev=xvda, access=rw, target={IMAGES}/hosp-a-dgis.root.raw",
  "format=raw, vdev=xvdb, access=ro, target={IMAGES}/hosp-a-dgis.seed.raw",
]
vif = ["mac=00:16:3e:d9:15:21, bridge=dgisbr0"]
on_poweroff = "destroy"
on_reboot = "restart"
on_crash = "restart"
"""


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> XenTree:
    try:
        return fetch_xen(cache_folder(tmp_path_factory))
    except Unavailable as error:
        pytest.skip(f"no xl: {error}")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "hosp-a-dgis.cfg"


def read(tree: XenTree, file: Path, text: str, *, strict: bool = False) -> XlGuest:
    file.write_text(text)
    try:
        return normalise(xl_dryrun(tree, file, strict=strict))
    except Unavailable as error:
        pytest.skip(str(error))


def changed(old: str, new: str) -> str:
    assert old in CONFIG
    return CONFIG.replace(old, new)


def test_a_good_file_is_read_as_it_was_meant(tree: XenTree, file: Path) -> None:
    assert read(tree, file, CONFIG, strict=True) == GUEST


def test_what_xl_leaves_out_of_its_json_has_its_default(tree: XenTree, file: Path) -> None:
    got = read(tree, file, 'name = "a"\ntype = "pv"\nkernel = "/k"\non_poweroff = "preserve"\n', strict=True)
    assert (got.memory, got.vcpus, got.ramdisk, got.cmdline, got.disks, got.vifs) == (0, 1, "", "", (), ())
    assert (got.on_poweroff, got.on_reboot, got.on_crash) == ("preserve", "restart", "destroy")
    assert read(tree, file, changed('on_reboot = "restart"', 'on_reboot = "destroy"')).on_reboot == "destroy"
    assert read(tree, file, changed("vcpus = 2", "vcpus = 1")).vcpus == 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"pvh"', '"pvm"', "Invalid domain type pvm"),
        ("format=raw, vdev=xvdb", "format=vhdx, vdev=xvdb", "unknown value for format"),
        ('"hosp-a-dgis"\n', '"hosp-a-dgis\n', "lexical error"),
        ('name = "hosp-a-dgis"\n', "", "Domain name must be specified"),
        ("0123456789ab", "0123456789xy", "Failed to parse UUID"),
        ('on_crash = "restart"', 'on_crash = "explode"', 'Unknown on_crash action "explode"'),
        ('kernel = "/var/lib/dgis/images/vmlinuz"\n', "", "Neither kernel nor bootloader"),
    ],
)
def test_what_xl_refuses_it_names(tree: XenTree, file: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(XlRefused, match=words):
        read(tree, file, changed(old, new))


@pytest.mark.parametrize(
    ("old", "new", "meant"),
    [
        ("memory =", "memroy =", replace(GUEST, memory=0)),
        ("on_crash =", "on_crahs =", replace(GUEST, on_crash="destroy")),
        ("memory = 1024", "memory = 1024\nmemory = 64", replace(GUEST, memory=64)),
        ("extra =", 'cmdline = "quiet"\nextra =', replace(GUEST, cmdline="quiet")),
        ("vdev=xvdb", "vdev=xvda", replace(GUEST, disks=(GUEST.disks[0], replace(GUEST.disks[1], vdev="xvda")))),
        (
            "access=ro, target=/var/lib/dgis/images/hosp-a-dgis.seed.raw",
            "target=/var/lib/dgis/images/hosp-a-dgis.seed.raw, access=ro",
            replace(GUEST, disks=(GUEST.disks[0], Disk(GUEST.disks[1].target + ", access=ro", "xvdb", "raw", "rw"))),
        ),
        ("00:16:3e:d9:15:21", "00:16:3e:d9:15:zz", replace(GUEST, vifs=(Vif("00:16:3e:d9:15:00", "dgisbr0"),))),
    ],
    ids=["unknown-key", "mistyped-action", "twice", "extra-and-cmdline", "same-vdev", "target-not-last", "bad-mac"],
)
def test_what_xl_takes_amiss_only_comparing_finds(
    tree: XenTree, file: Path, old: str, new: str, meant: XlGuest
) -> None:
    got = read(tree, file, changed(old, new))
    assert got != GUEST
    assert got == meant


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("00:16:3e:d9:15:21", "00:16:3e:d9:15:zz", "Invalid parameter `mac'"),
        ("mac=", "mak=", "unrecognized argument `mak="),
        ("memory = 1024", 'memory = "lots"', "not a valid number"),
        ("extra =", 'cmdline = "quiet"\nextra =', "ignoring root= and extra="),
    ],
)
def test_strict_refuses_what_xl_only_grumbles_about(tree: XenTree, file: Path, old: str, new: str, words: str) -> None:
    text = changed(old, new)
    read(tree, file, text)
    with pytest.raises(XlRefused, match=words):
        read(tree, file, text, strict=True)


def test_a_short_mac_is_filled_up_without_a_word(tree: XenTree, file: Path) -> None:
    """The last byte is what lay in memory, so that it may differ from day to day."""
    got = read(tree, file, changed("00:16:3e:d9:15:21", "00:16:3e:d9:15"), strict=True)
    assert re.fullmatch("00:16:3e:d9:15:[0-9a-f]{2}", got.vifs[0].mac)


def test_the_machine_keeps_no_trace(tree: XenTree, file: Path) -> None:
    def seen() -> tuple[str, bool]:
        return Path("/proc/self/mounts").read_text(), Path("/dev/xen").exists()

    before = seen()
    read(tree, file, CONFIG)
    assert seen() == before


def test_a_package_that_apt_does_not_know_is_a_reason_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.helpers.xen.debs.TOOLSTACK", ("dgis-no-such-package",))
    with pytest.raises(Unavailable, match="dgis-no-such-package|apt-get"):
        fetch_xen(tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["xen-xl.lock"]
