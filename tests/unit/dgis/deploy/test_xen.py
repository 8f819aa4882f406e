"""xl's configuration: as the real xl reads it, it is what the site file says."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgis.deploy import sitefile, topology, xen
from dgis.deploy.errors import DeployError
from dgis.deploy.topology import Guest, Site
from tests.helpers.xen import Disk, Unavailable, Vif, XenTree, XlGuest, cache_folder, fetch_xen, normalise, xl_dryrun

EXAMPLES = sorted((Path(__file__).parents[4] / "vm-images/examples").glob("*.yml"))
IMAGES = "/var/lib/dgis/images"


@functools.cache
def load(path: Path) -> Site:
    return topology.resolve(sitefile.read(path)[0])


def site(name: str) -> Site:
    return load(next(path for path in EXAMPLES if path.stem == name))


def guests() -> list[tuple[Site, Guest]]:
    sites = map(load, EXAMPLES)
    return [(site, guest) for site in sites for guest in site.guests if site.host(guest.host).hypervisor == "xen"]


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> XenTree:
    try:
        return fetch_xen(cache_folder(tmp_path_factory))
    except Unavailable as error:
        pytest.skip(f"no xl: {error}")


def expected(site: Site, guest: Guest) -> XlGuest:
    """What xl should have understood, from the site file alone."""
    host = site.host(guest.host)
    base, letters = f"{host.images}/{guest.name}", iter("abc")
    files = [("root.raw", "rw"), *([("data.raw", "rw")] if guest.data else []), ("seed.iso", "ro")]
    return XlGuest(
        name=guest.name,
        type=host.guest_type,
        uuid=guest.uuid,
        memory=guest.memory // 2**20,
        vcpus=guest.cpus,
        kernel=f"{host.images}/vmlinuz",
        ramdisk=f"{host.images}/initrd.gz",
        cmdline="root=LABEL=dgisroot ro net.ifnames=0 panic=10 console=hvc0",
        disks=tuple(Disk(f"{base}.{file}", f"xvd{next(letters)}", "raw", access) for file, access in files),
        vifs=(Vif(guest.mac, site.network_of(guest).bridge),),
        on_poweroff="destroy",
        on_reboot="restart",
        on_crash="restart",
    )


@pytest.mark.peer
@pytest.mark.parametrize(("site", "guest"), guests(), ids=lambda each: each.name)
def test_xl_understands_what_the_site_file_says(site: Site, guest: Guest, tree: XenTree, tmp_path: Path) -> None:
    file = tmp_path / f"{guest.name}.cfg"
    file.write_text(xen.config(site, guest))
    try:
        understood = normalise(xl_dryrun(tree, file, strict=True))
    except Unavailable as error:
        pytest.skip(str(error))
    assert understood == expected(site, guest)


def test_the_examples_have_guests_of_both_types() -> None:
    assert {site.host(guest.host).guest_type for site, guest in guests()} == {"pv", "pvh"}


def test_without_a_data_disk_the_seed_is_the_second() -> None:
    own = site("pilot-cesnet")
    text = xen.config(own, own.guest("wiki"))
    assert f'"format=raw, vdev=xvdb, access=ro, target={IMAGES}/wiki.seed.iso"' in text
    assert "xvdc" not in text


def test_the_same_file_gives_the_same_text() -> None:
    assert xen.config(site("dmz-pair"), site("dmz-pair").guest("gate")) == xen.config(
        site("dmz-pair"), site("dmz-pair").guest("gate")
    )


def test_a_guest_of_a_kvm_host_has_no_file_here() -> None:
    own = site("hospital")
    with pytest.raises(DeployError, match="kvm"):
        xen.config(own, own.guest("gate"))


@given(text=st.text(min_size=1, max_size=30) | st.sampled_from(['a"', "a', 'b", "a,backend=1", "a\nname=x", "a\\"]))
def test_no_text_breaks_out_of_a_value(text: str) -> None:
    """A site file's patterns allow none of this; a value that they let through by mistake is refused here."""
    plain = site("pilot-cesnet")
    shape = [line.partition("=")[0] for line in xen.config(plain, plain.guest("node")).splitlines()]
    hosts = (replace(plain.hosts[0], images=f"/{text}"), *plain.hosts[1:])
    for own, guest in (
        (replace(plain, hosts=hosts), plain.guest("node")),
        (plain, replace(plain.guest("node"), mac=text)),
        (plain, replace(plain.guest("node"), uuid=text)),
    ):
        try:
            config = xen.config(own, guest)
        except DeployError:
            continue
        assert not set(text) & set("\"'\\,\n\r")
        assert [line.partition("=")[0] for line in config.splitlines()] == shape
