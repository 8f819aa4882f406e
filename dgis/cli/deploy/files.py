"""``dgis deploy`` commands that read site files and write files: check, schema, render, diff, certificates, move."""

from __future__ import annotations

import difflib
import sys
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgis.cli.output import EXIT_OK, EXIT_PARTLY, Format, console, format_option, notes, print_json, print_rows
from dgis.deploy.topology import Site

if TYPE_CHECKING:
    from dgis.deploy.render import Artefact

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
TREE = click.Path(exists=True, file_okay=False, path_type=Path)
certs_option = click.option(
    "--certs", type=TREE,
    help="Certificates of `dgis deploy certificates`, to go into the seeds (which are then secret).",
)  # fmt: skip


@click.command("check", epilog="Example: dgis deploy check pilot-cesnet.yml pilot-lf1.yml pilot-uvn.yml")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=FILE)
@format_option
def check(*, files: tuple[Path, ...], fmt: Format) -> None:
    """Say what is wrong with site files, line by line; several are also held against one another.

    Exit code 0 when all is well, 1 when a file cannot be, 3 when files contradict one another.
    """
    from dgis.deploy import check as checks
    from dgis.deploy import flows, sitefile

    read = [(sitefile.read(path), path) for path in files]
    sites = [checks.resolved(file, source) for (file, source), _ in read]
    found = [
        finding
        for ((_, source), _), site in zip(read, sites, strict=True)
        for finding in checks.contradictions(site, sites, source)
    ]
    if found:
        for finding in found:
            notes().print(str(finding), markup=False, highlight=False, soft_wrap=True)
        sys.exit(EXIT_PARTLY)
    rows = [
        {
            "site": site.name,
            "hosts": len(site.hosts),
            "guests": len(site.guests),
            "doors": len(flows.derive(site).doors),
            "exits": len(flows.derive(site).exits),
            "catalog": _catalog(site),
        }
        for site in sites
    ]
    print_rows(fmt, "Site files", rows, right=("hosts", "guests", "doors", "exits"))


def _catalog(site: Site) -> str:
    found = site.catalog_service
    return f"{found[0].name} at {found[1]}:{found[2]}" if found else "none"


@click.command("schema", epilog="Example: dgis deploy schema > site.schema.json")
def schema() -> None:
    """Print the JSON Schema of a site file, for editors."""
    from dgis.deploy.model import SiteFile

    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **SiteFile.model_json_schema()})


@click.command("render", epilog="Example: dgis deploy render vm-images/examples/hospital.yml --out out")
@click.argument("file", metavar="FILE", type=FILE)
@click.option(
    "--out", type=FOLDER, required=True, help="Where the tree goes; files of ours that are stale are removed."
)
@certs_option
@format_option
def render(*, file: Path, out: Path, certs: Path | None, fmt: Format) -> None:
    """Write OUT/HOST/{nat.nft, nat.iptables, haproxy.cfg, libvirt|xen/..., seed/GUEST.iso, ...}, the Ansible inventory,
    the exception sheet and the picture of the site."""
    from dgis.deploy import tree

    made = _rendered(file, certs)
    written = tree.write(made, out)
    if fmt == "json":
        print_json({"out": str(out), "files": sorted(made), "changed": written.changed, "removed": written.removed})
        return
    counts = f"{len(written.changed)} written, {len(written.removed)} removed, the rest as before"
    text = f"{len(made)} files in {out}: {counts}"
    console().print(text, markup=False, highlight=False, soft_wrap=True)


def _rendered(file: Path, certs: Path | None) -> dict[str, Artefact]:
    """Everything that a site file renders to, and the file itself: what a host is given to apply."""
    from dgis.deploy import check as checks
    from dgis.deploy.render import Artefact as Made
    from dgis.deploy.render import render as rendering

    site = checks.load(file)
    made = {**rendering(site, certs=certs), "site.yml": Made(file.read_bytes())}
    return dict(sorted(made.items()))


@click.command("diff", epilog="Example: dgis deploy diff site.yml --against out")
@click.argument("file", metavar="FILE", type=FILE)
@click.option("--against", type=TREE, required=True, help="A rendered tree, of an earlier `dgis deploy render`.")
@certs_option
def diff(*, file: Path, against: Path, certs: Path | None) -> None:
    """Show what rendering would change in a tree, as a unified diff. Exit code 3 when something would."""
    from dgis.deploy import tree

    lines = list(tree.differences(_rendered(file, certs), against))
    for line in lines:
        click.echo(line)
    sys.exit(EXIT_PARTLY if lines else EXIT_OK)


@click.command("certificates", epilog="Example: dgis deploy certificates site.yml --home grid --out certificates")
@click.argument("file", metavar="FILE", type=FILE)
@click.option("--home", type=FOLDER, required=True, help="The authority's directory (dgis-certs init).")
@click.option("--out", type=FOLDER, required=True, help="Where GUEST/SERVICE.cert.pem and .key.pem go.")
def certificates(*, file: Path, home: Path, out: Path) -> None:
    """Issue the certificates of a site's services by file, with the keys.

    What is there stays, but for what is due or says other names than the site file.

    The other way leaves each key where it is used: HOST/seed/GUEST/files has a csr.cnf for every service, for openssl
    and `dgis-certs sign`.
    """
    from dgis.deploy import certificates as issuing
    from dgis.deploy import check as checks

    made = issuing.issue(checks.load(file), home, out)
    for name in made:
        click.echo(name)
    notes().print(f"{len(made)} issued into {out}; keep that directory private", highlight=False)


@click.command("move", epilog="Example: dgis deploy move pilot-lf1.yml node xen2 --dry-run")
@click.argument("file", metavar="FILE", type=FILE)
@click.argument("guest")
@click.argument("host")
@click.option("--network", help="The network there, where the host has several.")
@click.option("--address", help="The guest's address there, when its number is taken.")
@click.option("--dry-run", is_flag=True, help="Show the change, write nothing.")
@format_option
def move(
    *, file: Path, guest: str, host: str, network: str | None, address: str | None, dry_run: bool, fmt: Format
) -> None:
    """Put a guest on another host, in the site file: its place and its address, the rest stays as it is written."""
    from dgis.deploy import move as moving
    from dgis.deploy import tree

    try:
        wanted = IPv4Address(address) if address is not None else None
    except ValueError:
        raise click.BadParameter("write an IPv4 address like 10.77.1.11", param_hint="--address") from None
    before = _text(file)
    after, site = moving.moved(before, str(file), guest, host, network=network, address=wanted)
    if not dry_run:
        tree.replace(file.resolve(), after.encode(), mode=None)
    if fmt == "json":
        print_json({"guest": guest, "host": host, "address": str(site.guest(guest).address), "written": not dry_run})
        return
    for line in difflib.unified_diff(before.splitlines(), after.splitlines(), str(file), str(file), lineterm="", n=1):
        click.echo(line)
    if not dry_run:
        text = "now: the playbook move-guest.yml takes the disks over; then dgis deploy apply on both hosts"
        notes().print(text, highlight=False, soft_wrap=True)


def _text(file: Path) -> str:
    """The site file with the line ends that it has."""
    from dgis.deploy.errors import DeployError

    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError:
        raise DeployError(f"{file}: is not UTF-8 text") from None
