"""Real Xen as a test peer: Debian's `xl` as a parser, and a whole Xen host under emulation.

`xl_dryrun(fetch_xen(cache), file)` reads a guest's configuration with the real `xl create -n`: 0.1 s, no Xen, no root.
`with xen_host(tree, folder, site) as host:` boots Xen 4.17 with an in-memory dom0 under QEMU's TCG: 10 s, as root.
There the real `xl create` starts PV and PVH guests, 10 s each. Nothing is installed: packages are
unpacked below a folder.
"""

from __future__ import annotations

from tests.helpers.xen.debs import Unavailable, XenTree, cache_folder, fetch_xen
from tests.helpers.xen.dryrun import Disk, Vif, XlGuest, XlRefused, normalise, xl_dryrun
from tests.helpers.xen.host import BootFailed, Call, Domain, Site, Uplink, XenHost, xen_host
from tests.helpers.xen.initramfs import Lease, guest_initrd
from tests.helpers.xen.machine import PROGRAMS, Dom0, python_files
from tests.helpers.xen.probe import probe_xen

__all__ = [
    "PROGRAMS",
    "BootFailed",
    "Call",
    "Disk",
    "Dom0",
    "Domain",
    "Lease",
    "Site",
    "Unavailable",
    "Uplink",
    "Vif",
    "XenHost",
    "XenTree",
    "XlGuest",
    "XlRefused",
    "cache_folder",
    "fetch_xen",
    "guest_initrd",
    "normalise",
    "probe_xen",
    "python_files",
    "xen_host",
    "xl_dryrun",
]
