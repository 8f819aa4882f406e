"""Everything that a site file renders to, as files by their path below OUT. Pure but for reading certificates."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dgis.deploy import (
    certificates,
    cloudinit,
    firewall,
    flows,
    hostfiles,
    inventory,
    iptables,
    libvirt,
    names,
    nat,
    picture,
    routes,
    seed,
    services,
    xen,
)
from dgis.deploy.plan import Front, plan
from dgis.deploy.services import File
from dgis.deploy.topology import Guest, Host, Site

_HAPROXY = "/etc/haproxy"


@dataclass(frozen=True, slots=True)
class Artefact:
    """A rendered file; a secret one has keys in it and is written for its owner only."""

    content: bytes
    secret: bool = False


def render(site: Site, *, certs: Path | None = None) -> dict[str, Artefact]:
    """Every artefact of a site; with `certs` (laid out as `certificates.issue` does) the seeds have them inside."""
    made: dict[str, Artefact] = {
        "site.svg": Artefact(picture.svg(site)),
        "exceptions.md": _text(firewall.markdown(site)),
        "exceptions.csv": _text(firewall.csv(site)),
        "register.sh": _text(registration(site)),
    }
    made |= {path: _text(text) for path, text in inventory.files(site).items()}
    for host in site.hosts:
        made |= {f"{host.name}/{path}": artefact for path, artefact in _host(site, host, certs).items()}
    return dict(sorted(made.items()))


def registration(site: Site) -> str:
    """The commands by which the grid's operator tells the catalog of this site's storage elements."""
    lines = [
        "#!/bin/sh",
        "# for the operator of the grid, where the catalog's role operator is held; see docs/storage.md",
    ]
    for guest in site.with_role("storage"):
        words = ["dgis", "se", "add", f"{site.name}-{guest.name}", "--site", site.name]
        for door in names.own_doors(site, guest):
            words += ["--door", door]
        lines.append(shlex.join(words) + ' "$@"')
    return "\n".join(lines) + "\n"


def _text(text: str) -> Artefact:
    return Artefact(text.encode())


def _host(site: Site, host: Host, certs: Path | None) -> dict[str, Artefact]:
    wanted = plan(site, flows.derive(site), host)
    made = {
        "nat.nft": _text(nat.ruleset(wanted)),
        "nat.iptables": _text(iptables.ruleset(wanted)),
        "sysctl.conf": _text(hostfiles.sysctl_text(host)),
    }
    made |= {f"networkd/{name}": _text(text) for name, text in hostfiles.networkd(site, host).items()}
    if wanted.front is not None:
        made |= {name: _text(text) for name, text in routes.files(wanted.front).items()}
    if host.hypervisor == "kvm":
        for network in host.networks:
            made[f"libvirt/networks/{network.name}.xml"] = Artefact(libvirt.network(site, host, network))
    for guest in site.guests_at(host):
        if guest.roles:  # a guest of another project is its own: we forward to it, and define nothing
            made |= dict(_guest(site, host, guest, certs))
    return made


def _guest(site: Site, host: Host, guest: Guest, certs: Path | None) -> Iterator[tuple[str, Artefact]]:
    if host.hypervisor == "kvm":
        yield f"libvirt/{guest.name}.xml", Artefact(libvirt.domain(site, guest))
    else:
        yield f"xen/{guest.name}.cfg", _text(xen.config(site, guest))
    extra = {**_front_files(site, guest), **(certificates.of_guest(site, certs, guest) if certs is not None else {})}
    secret = any(file.mode & 0o077 == 0 for file in extra.values())
    made = cloudinit.seed(site, guest, secrets=extra)
    place = f"seed/{guest.name}"
    yield f"{place}/user-data", Artefact(made.user_data.encode(), secret)
    yield f"{place}/meta-data", _text(made.meta_data)
    yield f"{place}/network-config", _text(made.network_config)
    yield f"seed/{guest.name}.iso", Artefact(seed.iso(made), secret)
    for path, file in _readable(services.files(site, guest), extra):
        yield f"{place}/files{path}", Artefact(file.content, file.mode & 0o077 == 0)


def _readable(own: Mapping[str, File], extra: Mapping[str, File]) -> Iterator[tuple[str, File]]:
    """The guest's files, as files: what Ansible copies and a person reads. The seed has them all in one."""
    yield from sorted({**own, **extra}.items())


def _front_files(site: Site, guest: Guest) -> dict[str, File]:
    """HAProxy's files, for the guest that is a gateway's front."""
    front = _front_of(site, guest)
    if front is None:
        return {}
    return {f"{_HAPROXY}/{name}": File(text.encode()) for name, text in routes.files(front).items()}


def _front_of(site: Site, guest: Guest) -> Front | None:
    if "front" not in guest.roles:
        return None
    return plan(site, flows.derive(site), site.gateway_of(guest)).front
