"""The shape of a site file: its tables and keys, and what each may hold. Pure; whether it all fits is `topology`'s."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Annotated, Literal

from pydantic import Field, model_validator

from certs.config import Table
from dgis.config import AeTitle, Right
from dgis.deploy.values import (
    Address,
    Bytes,
    DomainName,
    InterfaceAddress,
    InterfaceName,
    Label,
    Net,
    Organisation,
    Port,
    Ports,
    Protocol,
    SshKey,
    Subject,
    Text,
)

Role = Literal["dgis", "catalog", "storage", "ca", "front"]
Zone = Literal["open", "dmz", "inside"]


class HypervisorTable(Table):
    """`hypervisor`: what runs the guests; `type` is Xen's (pv or pvh)."""

    kind: Literal["xen", "kvm"]
    type: Literal["pv", "pvh"] | None = None

    @model_validator(mode="after")
    def _type_of_xen(self) -> HypervisorTable:
        if self.kind == "kvm" and self.type is not None:
            raise ValueError("type (pv or pvh) belongs to xen: leave it out")
        return self

    @property
    def guest_type(self) -> str:
        """`pv`, `pvh` or `kvm`."""
        return "kvm" if self.kind == "kvm" else self.type or "pvh"


class UplinkTable(Table):
    """`uplink`: the way to other institutions. `public` is the address that they see, where a firewall translates."""

    interface: InterfaceName
    address: InterfaceAddress
    gateway: Address | None = None
    public: Address | None = None


class InnerTable(Table):
    """`inner`: the wire between the hosts of this site."""

    interface: InterfaceName
    address: InterfaceAddress


class LanTable(Table):
    """`lan`: the institution's own network, where viewers and modalities are; `networks` lie behind `gateway`."""

    interface: InterfaceName
    address: InterfaceAddress
    gateway: Address | None = None
    networks: tuple[Net, ...] = ()


class NetworkTable(Table):
    """`networks`: a bridge for guests. Zone `dmz` may face out but not reach in, `inside` may not face out."""

    name: Label
    bridge: InterfaceName
    cidr: Net
    gateway: Address | None = None
    zone: Zone = "open"


class HostTable(Table):
    """`hosts`: a machine that runs guests. One without `uplink` is `behind` another host, over `inner`.

    `front` is the public port that HTTPS and SFTP share; `ssh` the host's own; `images` where guest disks lie.
    `others` are interfaces of other projects (docker0, virbr0) whose forwarding is theirs: everything else is refused.
    """

    name: Label
    uplink: UplinkTable | None = None
    inner: InnerTable | None = None
    lan: LanTable | None = None
    behind: Label | None = None
    networks: Annotated[tuple[NetworkTable, ...], Field(min_length=1)]
    hypervisor: HypervisorTable | None = None
    firewall: Literal["nft", "iptables"] = "nft"
    front: Port = 443
    ssh: Port = 22
    others: tuple[InterfaceName, ...] = ()
    images: Annotated[str, Field(pattern=r"^/[A-Za-z0-9/._-]{1,200}$")] = "/var/lib/dgis/images"

    @model_validator(mode="after")
    def _one_way_out(self) -> HostTable:
        if (self.uplink is None) == (self.behind is None):
            raise ValueError("give an uplink, or name by behind the host of this site that has one")
        if self.behind is not None and self.inner is None:
            raise ValueError("a host behind another one needs inner: the interface and address towards it")
        return self


class GridftpTable(Table):
    """`gridftp`: the control port and the data ports, the same inside and outside."""

    port: Port = 2811
    data: Ports


class AeTable(Table):
    """`aes`: an application entity of the institution. With host and port it is a move destination."""

    title: AeTitle
    host: Address | None = None
    port: Port | None = None
    rights: tuple[Right, ...] = ("echo", "find", "move", "get")
    networks: tuple[Net, ...] = ()

    @model_validator(mode="after")
    def _a_pair(self) -> AeTable:
        if (self.host is None) != (self.port is None):
            raise ValueError("host and port belong together: give both, or neither")
        return self


class DimseTable(Table):
    """`dimse`: the AE of a DGIS, the networks that reach it, and the AEs that it knows."""

    aet: AeTitle
    port: Port = 11112
    tls_port: Port | None = None
    networks: Annotated[tuple[Net, ...], Field(min_length=1)]
    aes: tuple[AeTable, ...] = ()


class ForwardTable(Table):
    """`forwards`: a port of the public address that leads to a guest; a range keeps its numbers."""

    public: Ports
    guest: Ports | None = None
    protocol: Protocol = "tcp"
    sources: Annotated[tuple[Net, ...], Field(min_length=1, alias="from")]
    purpose: Text = "forward"


class NameTable(Table):
    """`names`: a TLS server name on the shared port that leads to a port of this guest, TLS untouched."""

    name: DomainName
    port: Port
    sources: Annotated[tuple[Net, ...], Field(min_length=1, alias="from")]


class EgressTable(Table):
    """`egress`: what a guest without roles may connect to."""

    to: Net
    ports: Ports | None = None
    protocol: Protocol = "tcp"
    purpose: Text = "egress"


class GuestTable(Table):
    """`guests`: a virtual machine. Its MAC address, UUID, names, certificates and egress list follow from this.

    `sftp` is a public port; the front's own means that SFTP shares it. `active` are ports at which foreign GridFTP
    servers may connect to a DGIS (MODE E). `data` is the size of the second disk, for what the services keep.
    """

    name: Label
    host: Label
    network: Label | None = None
    address: Address
    roles: tuple[Role, ...] = ()
    memory: Bytes = 2 * 2**30
    cpus: Annotated[int, Field(ge=1, le=256)] = 2
    disk: Bytes = 8 * 2**30
    data: Bytes = 0
    dimse: DimseTable | None = None
    gridftp: GridftpTable | None = None
    sftp: Port | None = None
    active: Ports | None = None
    forwards: tuple[ForwardTable, ...] = ()
    names: tuple[NameTable, ...] = ()
    egress: tuple[EgressTable, ...] = ()

    @model_validator(mode="after")
    def _what_roles_need(self) -> GuestTable:
        for role, key in (("dgis", "dimse"), ("storage", "gridftp"), ("storage", "sftp"), ("dgis", "active")):
            if getattr(self, key) is not None and role not in self.roles:
                raise ValueError(f"{key} belongs to the role {role}: add it to roles, or leave {key} out")
        if "dgis" in self.roles and self.dimse is None:
            raise ValueError("the role dgis needs dimse: its AE title and the networks that reach it")
        if self.roles and self.egress:
            raise ValueError("egress of a guest with roles follows from the roles: leave it out")
        return self


class PeerGuestTable(Table):
    """`peers.guests`: a guest of another site, as far as we meet it. `stock`: a GridFTP server of the Grid Community
    Toolkit, which connects to us for downloads."""

    name: Label
    roles: Annotated[tuple[Literal["dgis", "catalog", "storage"], ...], Field(min_length=1)]
    gridftp: GridftpTable | None = None
    sftp: Port | None = None
    active: Ports | None = None
    stock: bool = False


class PeerTable(Table):
    """`peers`: another site of the grid; `sources` are the networks that its connections come from."""

    site: Label
    domain: DomainName
    address: Address
    sources: tuple[Net, ...] = ()
    front: Port = 443
    guests: Annotated[tuple[PeerGuestTable, ...], Field(min_length=1)]

    @property
    def networks(self) -> tuple[IPv4Network, ...]:
        """Where its connections come from: its public address unless it says otherwise."""
        return self.sources or (IPv4Network(self.address),)


class UpdatesTable(Table):
    """`updates`: a package proxy that guests may reach."""

    address: Address
    port: Port


class SiteFile(Table):
    """The whole file. `admins` are the networks from which hosts are administered and services watched, `admin_keys`
    their SSH keys, `operators` the certificate subjects of the grid's operators; `catalog` names the site that has the
    VO's catalog where that is not clear."""

    site: Label
    title: Text = ""
    organisation: Organisation
    domain: DomainName
    hypervisor: HypervisorTable
    admins: Annotated[tuple[Net, ...], Field(min_length=1)]
    admin_keys: Annotated[tuple[SshKey, ...], Field(min_length=1)]
    operators: tuple[Subject, ...] = ()
    resolvers: tuple[Address, ...] = ()
    time: tuple[Address, ...] = ()
    updates: tuple[UpdatesTable, ...] = ()
    catalog: Label | None = None
    copies: Annotated[int, Field(ge=1, le=16)] = 2
    hosts: Annotated[tuple[HostTable, ...], Field(min_length=1)]
    guests: tuple[GuestTable, ...] = ()
    peers: tuple[PeerTable, ...] = ()
