"""xl's configuration of a Xen guest (xl.cfg(5)). Pure.

xl drops unknown keys and has no escapes worth relying on, so only values that need none are written; all others raise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from dgis.deploy.errors import DeployError
from dgis.deploy.libvirt import KERNEL_WORDS, disks, mebibytes
from dgis.deploy.topology import Guest, Site

# No quote, backslash or control character; no comma either, which parts the settings of a disk or a card
_PLAIN = re.compile(r"[A-Za-z0-9 ._:/=+-]{1,255}")


def config(site: Site, guest: Guest) -> str:
    """The file that `xl create` takes for a guest on a Xen host. Raises DeployError for a value that cannot be written,
    and for a guest of another hypervisor.

    A moved or crashed guest is never saved: it is shut down and started, `on_crash` without a dump of its memory, which
    holds patient data.
    """
    host = site.host(guest.host)
    if host.hypervisor != "xen":
        raise DeployError(f"{guest.name} runs on {host.name}, a {host.hypervisor} host: xl's file is for xen")
    cards = [_settings((("mac", guest.mac), ("bridge", site.network_of(guest).bridge)))]
    # target= comes last: xl takes everything behind it for the path
    drives = [
        _settings(
            (
                ("format", "raw"),
                ("vdev", f"xvd{disk.letter}"),
                ("access", "rw" if disk.writable else "ro"),
                ("target", disk.file),
            )
        )
        for disk in disks(site, guest)
    ]
    lines = (
        f"# Made from the site file of {_plain(site.name)}: change it there.",
        f"name = {_string(guest.name)}",
        f"type = {_string(host.guest_type)}",
        f"uuid = {_string(guest.uuid)}",
        f"memory = {mebibytes(guest)}",
        f"vcpus = {guest.cpus:d}",
        f"kernel = {_string(f'{host.images}/vmlinuz')}",
        f"ramdisk = {_string(f'{host.images}/initrd.gz')}",
        f"cmdline = {_string(f'{KERNEL_WORDS} console=hvc0')}",
        f"disk = {_list(drives)}",
        f"vif = {_list(cards)}",
        'on_poweroff = "destroy"',
        'on_reboot = "restart"',
        'on_crash = "restart"',
    )
    return "\n".join(lines) + "\n"


def _settings(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{key}={_plain(value)}" for key, value in pairs)


def _plain(value: str) -> str:
    if not _PLAIN.fullmatch(value):
        raise DeployError(f"{value!a} cannot stand in xl's file: write it in letters, digits and . _ : / = + -")
    return value


def _string(value: str) -> str:
    return f'"{_plain(value)}"'


def _list(values: Iterable[str]) -> str:
    return "[" + "".join(f'\n  "{value}",' for value in values) + "\n]"
