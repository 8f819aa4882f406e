"""libvirt's XML of a guest and of a network of guests (formatdomain, formatnetwork). Pure; lxml does the escaping."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lxml import etree

from dgis.deploy.errors import DeployError
from dgis.deploy.topology import Guest, Host, Network, Site, uuid_of

# root= for the image's initramfs; panic= since a guest that hangs in a panic helps nobody; one card is eth0 (cloudinit)
KERNEL_WORDS = "root=LABEL=dgisroot ro net.ifnames=0 panic=10"
_CONSOLE = "console=ttyS0"
# XML 1.0 section 2.2: what no document can hold, however it is written
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a guest: what it is for, its file on the host, and its letter (vda or xvda is letter a)."""

    use: str
    file: str
    letter: str
    writable: bool


def disks(site: Site, guest: Guest) -> tuple[Disk, ...]:
    """The disks of a guest in the order in which it sees them: root, data if it has any, seed."""
    images = site.host(guest.host).images
    uses = [("root", "root.raw", True), ("data", "data.raw", True), ("seed", "seed.iso", False)]
    there = [use for use in uses if use[0] != "data" or guest.data]
    return tuple(
        Disk(use, f"{images}/{guest.name}.{suffix}", letter, writable)
        for letter, (use, suffix, writable) in zip("abc", there, strict=False)
    )


def mebibytes(guest: Guest) -> int:
    """The memory of a guest in whole MiB, at least one: xl counts in nothing smaller."""
    return max(1, guest.memory // 2**20)


def domain(site: Site, guest: Guest) -> bytes:
    """The domain of a guest on a KVM host: paravirtual devices, the image's kernel booted without a boot loader.

    Raises DeployError for a guest of a Xen host.
    """
    host = site.host(guest.host)
    if host.hypervisor != "kvm":
        raise DeployError(f"{guest.name} runs on {host.name}, a {host.hypervisor} host: libvirt domains are for kvm")
    root = etree.Element("domain", type="kvm")
    _texts(root, ("name", guest.name), ("uuid", guest.uuid))
    _texts(root, ("title", f"{guest.name} of {site.title}"))
    roles = ", ".join(guest.roles) or "none of the grid's"
    _texts(root, ("description", f"Roles: {roles}. Made from the site file of {site.name}: change it there."))
    # dumpCore off: a guest's memory holds patient data, which must not end up in a dump on the host
    memory = etree.SubElement(root, "memory", unit="MiB", dumpCore="off")
    memory.text = str(mebibytes(guest))
    _texts(root, ("vcpu", str(guest.cpus)))
    _boot(etree.SubElement(root, "os"), host.images)
    features = etree.SubElement(root, "features")
    etree.SubElement(features, "acpi")
    etree.SubElement(features, "apic")
    # The host's model by name with its features: fast ciphers, and it still moves to any host that has as much, which
    # host-passthrough does not promise
    etree.SubElement(root, "cpu", mode="host-model")
    etree.SubElement(root, "clock", offset="utc")
    _texts(root, ("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "restart"))
    _devices(etree.SubElement(root, "devices"), site, guest)
    return _document(root)


def network(site: Site, host: Host, network: Network) -> bytes:
    """The network `dgis-NAME`: a bridge that the host has already, so that libvirt writes no NAT rules of its own."""
    root = etree.Element("network")
    _texts(root, ("name", f"dgis-{network.name}"))
    _texts(root, ("uuid", uuid_of(site.name, f"{host.name}/{network.name}")))
    etree.SubElement(root, "forward", mode="bridge")
    etree.SubElement(root, "bridge", name=network.bridge)
    return _document(root)


def _boot(system: etree._Element, images: str) -> None:
    etree.SubElement(system, "type", arch="x86_64", machine="q35").text = "hvm"
    _texts(system, ("kernel", f"{images}/vmlinuz"), ("initrd", f"{images}/initrd.gz"))
    _texts(system, ("cmdline", f"{KERNEL_WORDS} {_CONSOLE}"))


def _devices(devices: etree._Element, site: Site, guest: Guest) -> None:
    for disk in disks(site, guest):
        _disk(devices, disk)
    card = etree.SubElement(devices, "interface", type="bridge")
    etree.SubElement(card, "mac", address=guest.mac)
    etree.SubElement(card, "source", bridge=site.network_of(guest).bridge)
    etree.SubElement(card, "model", type="virtio")
    serial = etree.SubElement(devices, "serial", type="pty")
    etree.SubElement(serial, "target", port="0")
    console = etree.SubElement(devices, "console", type="pty")
    etree.SubElement(console, "target", type="serial", port="0")
    etree.SubElement(devices, "memballoon", model="virtio")
    rng = etree.SubElement(devices, "rng", model="virtio")
    etree.SubElement(rng, "backend", model="random").text = "/dev/urandom"


def _disk(devices: etree._Element, disk: Disk) -> None:
    element = etree.SubElement(devices, "disk", type="file", device="disk")
    driver = etree.SubElement(element, "driver", name="qemu", type="raw")
    if disk.writable:
        # Past the host's page cache: what the guest flushed is on the disk; holes stay holes
        driver.attrib.update({"cache": "none", "io": "native", "discard": "unmap"})
    etree.SubElement(element, "source", file=disk.file)
    etree.SubElement(element, "target", dev=f"vd{disk.letter}", bus="virtio")
    if not disk.writable:
        etree.SubElement(element, "readonly")
    _texts(element, ("serial", disk.use))


def _texts(parent: etree._Element, *pairs: tuple[str, str]) -> None:
    for name, text in pairs:
        etree.SubElement(parent, name).text = _NO_XML.sub("\ufffd", text)


def _document(root: etree._Element) -> bytes:
    return etree.tostring(root, pretty_print=True, encoding="UTF-8", xml_declaration=True)
