"""``dgis-certs``: a site CA on the command line. Data on stdout, the rest on stderr; exit 0, 1 failed, 2 usage."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from certs import ca, csr, overview
from certs.credential import Credential
from certs.errors import CertsError
from certs.log import configure
from certs.peer import ROLES
from certs.proxycli import proxy_group
from certs.rollcli import rollover_group
from certs.sshcli import ssh_group

_PATH = click.Path(path_type=Path)
_COLOURS = {"valid": "green", "current": "green", "due": "yellow", "expired": "red", "revoked": "red", "stale": "red"}

_home = click.option(
    "--home", type=_PATH, required=True, envvar="DGIS_HOME", help="Directory of the site (ca, trust, gridmap)."
)
_format = click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
_out = click.option("--out", type=_PATH, default=Path(), help="Where NAME.cert.pem and NAME.key.pem go.")
_dns = click.option(
    "--dns", multiple=True, help="A DNS name it answers to; repeat for more. Without --dns and --ip: NAME."
)
_ips = click.option("--ip", "ips", multiple=True, help="An IP address it answers to; repeat for more.")
_roles = click.option(
    "--role", "roles", multiple=True, type=click.Choice(sorted(ROLES)), help="A role in the gridmap; repeat for more."
)


class _Commands(click.Group):
    """The CLI's edge: an error of ours becomes one line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CertsError as error:
            _fail(str(error))
        except OSError as error:
            _fail(f"{error.filename or 'files'}: {error.strerror}")


def _fail(text: str) -> NoReturn:
    click.echo(f"dgis-certs: {text}", err=True)
    raise SystemExit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Certificates of a grid site: its CA, hosts, users, revocation."""
    configure("dgis-certs", "warning", "text")


main.add_command(ssh_group)
main.add_command(proxy_group)
main.add_command(rollover_group)


@main.command()
@_home
@click.option("--organisation", default="dgis", show_default=True, help="O= of every certificate of this site.")
def init(home: Path, organisation: str) -> None:
    """Create the site's CA (root and issuing), its trust directory and an empty gridmap."""
    ca.init_site(home, organisation=organisation)
    click.echo(f"{home}: CA ready; take {home / 'ca' / 'root' / 'root.key.pem'} offline", err=True)


@main.group()
def issue() -> None:
    """Issue a certificate with a new key."""


@issue.command("user")
@click.argument("name")
@_home
@_out
@_roles
@_format
def issue_user(name: str, home: Path, out: Path, roles: tuple[str, ...], form: str) -> None:
    """Issue an RSA user certificate and enter it into the gridmap (role user unless others are named)."""
    _say(ca.issue_user(home, name, roles=roles or ("user",), out=out), form)


@issue.command("host")
@click.argument("name")
@_home
@_out
@_roles
@_dns
@_ips
@_format
def issue_host(
    name: str, home: Path, out: Path, roles: tuple[str, ...], dns: tuple[str, ...], ips: tuple[str, ...], form: str
) -> None:
    """Issue a P-256 host or service certificate and enter it into the gridmap."""
    _say(ca.issue_host(home, name, dns=dns, ips=ips, roles=roles, out=out), form)


@main.command()
@click.argument("name")
@_dns
@_ips
@click.option("--out", type=_PATH, default=Path(), help="Where NAME.key.pem and NAME.csr.pem go.")
@_format
def request(name: str, dns: tuple[str, ...], ips: tuple[str, ...], out: Path, form: str) -> None:
    """Make a private key and a certificate request, on the machine that will use them.

    The key stays here; bring NAME.csr.pem to the CA and sign it there. An existing NAME.key.pem is kept, so the same
    command asks for a renewal.

    \b
    Example:
      dgis-certs request se3 --dns se3.b.example --ip 192.0.2.30 --out /etc/dgis/storage
    """
    made = csr.make(name, dns=dns, ips=ips, out=out)
    origin = "new key" if made.new_key else "key kept"
    click.echo(f"{made.key}: {origin}; sign the request at the CA: dgis-certs sign {made.request.name}", err=True)
    facts = {"csr": str(made.request), "key": str(made.key)}
    click.echo(json.dumps({**facts, "new_key": made.new_key}) if form == "json" else facts["csr"])


@main.command()
@click.argument("file", metavar="CSR", type=_PATH)
@click.option("--name", required=True, help="CN of the certificate, and of its file.")
@_dns
@_ips
@_roles
@_home
@click.option("--out", type=_PATH, default=Path(), help="Where NAME.cert.pem goes.")
@click.option("--strict", is_flag=True, help="Refuse a request that asks for another subject or other names.")
@_format
def sign(
    file: Path,
    name: str,
    dns: tuple[str, ...],
    ips: tuple[str, ...],
    roles: tuple[str, ...],
    home: Path,
    out: Path,
    strict: bool,
    form: str,
) -> None:
    """Sign a host's certificate request (PKCS#10) and enter it into the gridmap.

    Subject, names and roles are what is said here. The request gives its key alone; where it says otherwise that is
    told on stderr.

    \b
    Example:
      dgis-certs sign se3.csr.pem --name se3 --dns se3.b.example --ip 192.0.2.30 --role storage --home HOME --out OUT
    """
    signed = ca.sign_request(home, file, ca.Host(name, dns, ips, roles), out=out, strict=strict)
    for sentence in signed.differences:
        click.echo(f"{file}: {sentence}", err=True)
    facts = {"cert": str(signed.cert), "dn": str(signed.dn)}
    text = json.dumps({**facts, "differences": signed.differences}, ensure_ascii=False)
    click.echo(text if form == "json" else f"{facts['dn']}\n{facts['cert']}")


@main.command()
@click.argument("cert", type=_PATH)
@_home
def revoke(cert: Path, home: Path) -> None:
    """Revoke a certificate and publish the CRL at once."""
    ca.revoke(home, cert)
    click.echo(f"{cert}: revoked, CRL published in {home / 'trust'}", err=True)


@main.command()
@_home
def crl(home: Path) -> None:
    """Re-issue the CRLs; run it hourly (dgis up does)."""
    until = ca.refresh_crls(home)
    click.echo(f"CRLs current until {until:%Y-%m-%d %H:%M} UTC", err=True)


@main.command()
@click.argument("files", nargs=-1, type=_PATH)
@click.option("--home", type=_PATH, envvar="DGIS_HOME", help="Show what this site's CA has issued, and its CRLs.")
@_format
def show(files: tuple[Path, ...], home: Path | None, form: str) -> None:
    """Show certificates and when they end: of FILES, or everything of a site."""
    if not files and home is None:
        raise click.UsageError("name certificate FILES or a site by --home")
    rows = tuple(row for path in files for row in overview.of_file(path))
    lists: tuple[overview.CrlRow, ...] = ()
    if not files and home is not None:
        rows, lists = overview.of_site(home), overview.crls(home / "trust")
    if form == "json":
        click.echo(json.dumps(_as_json(rows, lists), indent=2, ensure_ascii=False))
    else:
        _print_tables(rows, lists)


def _say(credential: Credential, form: str) -> None:
    facts = {"cert": str(credential.cert), "key": str(credential.key), "dn": str(credential.dn())}
    click.echo(json.dumps(facts, ensure_ascii=False) if form == "json" else f"{facts['dn']}\n{facts['cert']}")


def _as_json(rows: tuple[overview.CertificateRow, ...], lists: tuple[overview.CrlRow, ...]) -> dict[str, object]:
    now = datetime.now(UTC)
    return {
        "certificates": [
            {
                "dn": row.dn,
                "profile": row.profile,
                "serial": row.serial,
                "not_before": row.not_before.isoformat(),
                "not_after": row.not_after.isoformat(),
                "days_left": row.days_left(now),
                "status": row.status,
            }
            for row in rows
        ],
        "crls": [
            {
                "issuer": row.issuer,
                "number": row.number,
                "revoked": row.revoked,
                "this_update": row.this_update.isoformat(),
                "next_update": row.next_update.isoformat(),
                "status": row.status,
            }
            for row in lists
        ],
    }


def _print_tables(rows: tuple[overview.CertificateRow, ...], lists: tuple[overview.CrlRow, ...]) -> None:
    console = Console()
    now = datetime.now(UTC)
    table = _table("Certificates", "Name", "Kind", "Ends (UTC)", "Left", "Status")
    for row in rows:
        left = f"{row.days_left(now)} d"
        table.add_row(Text(row.dn), row.profile, f"{row.not_after:%Y-%m-%d %H:%M}", left, _coloured(row.status))
    console.print(table)
    if lists:
        table = _table("Revocation lists", "Issuer", "No.", "Current until (UTC)", "Revoked", "Status")
        for each in lists:
            ends = f"{each.next_update:%Y-%m-%d %H:%M}"
            table.add_row(Text(each.issuer), str(each.number), ends, str(each.revoked), _coloured(each.status))
        console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, no_wrap=True)
    return table


def _coloured(status: str) -> Text:
    return Text(status, style=_COLOURS.get(status, "yellow"))
