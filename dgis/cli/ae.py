"""``dgis ae``: the AE table. Running receivers read it again by themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from dgis.cli.nodes import node_learned, node_options, node_table, read_node
from dgis.cli.output import EXIT_FAILED, EXIT_OK, Format, console, format_option, print_json, print_rows
from dgis.dimse.ae import ALL_RIGHTS, AeEntry, Right
from dgis.dimse.ae import read as read_table
from dgis.dimse.learned import Learned

RIGHTS: tuple[Right, ...] = ("echo", "store", "find", "move", "get", "commit")
VIEWER_RIGHTS = "echo,store,find,move,get"


@click.group("ae", epilog="Example: dgis ae add VIEWER --host 192.0.2.20 --port 11113 --home grid")
def command() -> None:
    """Application entities: who may do what, and where C-MOVE sends to."""


@command.command("list")
@node_options
@format_option
def list_command(*, home: Path, config: Path | None, fmt: Format) -> None:
    """List the table, and what was learned about move destinations (kind learned)."""
    rows: list[dict[str, object]]
    rows = [
        {
            "title": entry.title,
            "kind": "table",
            "destination": f"{entry.host}:{entry.port}" if entry.destination else "",
            "rights": [right for right in RIGHTS if right in entry.rights],
            "networks": list(entry.networks),
            "issuer": entry.issuer,
            "tls": entry.tls,
            "certificate": entry.certificate,
            "identity": entry.identity,
            "charset": entry.charset,
            "find_limit": entry.find_limit,
            "requesters": list(entry.requesters),
        }
        for entry in read_table(node_table(home, config).path)
    ]
    rows += [_learned_row(one) for one in node_learned(home, config).entries()]
    print_rows(fmt, "Application entities", rows, empty="the table is empty; dgis ae add TITLE ... fills it")


def _learned_row(one: Learned) -> dict[str, object]:
    return {
        "title": one.title,
        "kind": "learned",
        "destination": f"{one.address}:{one.port or '(not used yet)'}",
        "rights": [],
        "networks": [],
        "issuer": "",
        "tls": one.tls,
        "certificate": one.certificate,
        "identity": "",
        "charset": "",
        "find_limit": None,
        "requesters": [],
    }


def _rights(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[Right, ...]:
    wanted = {part.strip() for part in value.split(",") if part.strip()}
    if not wanted <= ALL_RIGHTS:
        raise click.BadParameter(f"{', '.join(sorted(wanted - ALL_RIGHTS))}: choose from {', '.join(RIGHTS)}")
    return tuple(right for right in RIGHTS if right in wanted)


@command.command(
    "add", epilog="Example: dgis ae add CT1 --rights echo,store --network 192.0.2.0/24 --issuer HOSPITAL-A"
)
@click.argument("title")
@click.option("--host", default="", help="Where it listens, to be a move destination.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Its port.")
@click.option("--rights", default=VIEWER_RIGHTS, show_default=True, callback=_rights, help="What it may do here.")
@click.option("--network", "networks", multiple=True, help="Only from there (repeatable; default: anywhere).")
@click.option("--requester", "requesters", multiple=True, help="Who may move to it: AE title, or self (default: all).")
@click.option("--issuer", default="", help="Issuer of its patient IDs when a data set names none.")
@click.option("--tls", is_flag=True, help="Its port is a DICOM TLS port.")
@click.option("--certificate", default="", metavar="DN", help="Subject of the certificate it must show, over TLS.")
@click.option("--identity", default="", metavar="DN", help="Who it is for the VO's policy (default: ae:TITLE@SITE).")
@click.option("--charset", default="", metavar="TERM", help="The one character set that it reads, like ISO_IR 100.")
@click.option("--find-limit", type=click.IntRange(1), help="Answers to one C-FIND, in place of the node's.")
@node_options
def add_command(
    *,
    title: str,
    host: str,
    port: int,
    rights: tuple[Right, ...],
    networks: tuple[str, ...],
    issuer: str,
    tls: bool,
    certificate: str,
    identity: str,
    charset: str,
    find_limit: int | None,
    requesters: tuple[str, ...],
    home: Path,
    config: Path | None,
) -> None:
    """Add or change one entry."""
    if bool(host) != bool(port):
        raise click.UsageError("a destination needs both --host and --port")
    try:
        entry = AeEntry(
            title=title,
            host=host,
            port=port,
            rights=rights,
            networks=networks,
            issuer=issuer,
            tls=tls,
            certificate=certificate,
            identity=identity,
            charset=charset,
            find_limit=find_limit,
            requesters=requesters,
        )
    except ValueError as error:
        raise click.UsageError(_first_line(error)) from None
    node_table(home, config).put(entry)
    console().print(
        f"{entry.title}: {', '.join(entry.rights) or 'no rights'}"
        + (f", at {host}:{port}{' over TLS' if tls else ''}" if host else "")
        + (f", as {entry.certificate}" if entry.certificate else "")
    )


def _first_line(error: ValueError) -> str:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)


@command.command("remove")
@click.argument("title")
@node_options
def remove_command(*, title: str, home: Path, config: Path | None) -> None:
    """Remove every entry with this title, and what was learned about it."""
    learned = node_learned(home, config).remove(title)
    if not node_table(home, config).remove(title) and not learned:
        raise click.ClickException(f"{title} is not in the table; dgis ae list shows what is")
    console().print(f"{title} removed")


@command.command("echo")
@click.argument("title")
@node_options
@format_option
def echo_command(*, title: str, home: Path, config: Path | None, fmt: Format) -> None:
    """Send a C-ECHO to an entry's host and port, as this node would open a C-MOVE sub-association."""
    from dgis.cli.peers import remote
    from dgis.dimse.echo import echo_peer

    node = read_node(home, config)
    peer = node_table(home, config).destination(title)
    if peer is None:
        raise click.ClickException(f"{title} is not in the table, or without host and port; see dgis ae list")
    there = remote(title, home=home, config=config, aet=node.dgis.aet, timeout=5.0)
    answer = echo_peer(there.ae, there.peer)
    if fmt == "json":
        print_json({"title": peer.title, "ok": answer.ok, "detail": answer.detail, "seconds": answer.seconds})
    else:
        console().print(f"{peer.title} at {peer.host}:{peer.port}: {answer.detail}")
    sys.exit(EXIT_OK if answer.ok else EXIT_FAILED)


@command.command("passcode", epilog="Example: dgis ae passcode reading-room >> node.toml")
@click.argument("name")
@click.password_option("--passcode", help="Asked for when not given.")
def passcode_command(*, name: str, passcode: str) -> None:
    """Print a [[user]] table for node.toml with the hash of a passcode (user identity negotiation)."""
    import json

    from dgis.dimse.users import hashed

    click.echo(f"[[user]]\nname = {json.dumps(name)}\npasscode = {json.dumps(hashed(passcode.encode()))}")
