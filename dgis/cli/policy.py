"""``dgis policy``: who may do what in the VO, why, and the studies that are shared, labelled or opened."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from catalog.client import CatalogClient
from catalog.errors import CatalogError
from catalog.wire import BreakGlassRequest, LabelRequest, PolicyQuestion, Share, ShareRequest
from certs.vo.explain import explain
from certs.vo.file import read_policy
from certs.vo.policy import Action, StudyFacts
from dgis.cli.nodes import node_options, operator_identity, read_node
from dgis.cli.output import EXIT_FAILED, EXIT_OK, Format, console, format_option, notes, print_json, print_rows

F = TypeVar("F", bound=Callable[..., Any])
ACTIONS: tuple[Action, ...] = get_args(Action)
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@dataclass(frozen=True, slots=True)
class _Caller:
    """Which catalog is asked, and as whom."""

    home: Path
    config: Path | None
    cert: Path | None
    key: Path | None


@click.group("policy", epilog="Example: dgis policy check ae:VIEWER@local find --home grid")
def command() -> None:
    """The VO's policy: who may do what with which studies."""


def _caller_options(function: F) -> F:
    """``--home``, ``--config``, and ``--cert`` and ``--key`` for whoever is not the grid's operator."""
    cert = click.option("--cert", type=_FILE, help="Your own certificate (default: the local grid's operator).")
    key = click.option("--key", type=_FILE, help="Its key, unless it lies in the same file.")
    return cert(key(node_options(function)))


@contextmanager
def _catalog(caller: _Caller) -> Iterator[CatalogClient]:
    from certs.https.session import GridSession

    identity = operator_identity(caller.home, caller.config)
    if caller.cert is not None:
        own = {"cert": caller.cert.absolute(), "key": (caller.key or caller.cert).absolute()}
        identity = identity.model_copy(update=own)
    url = read_node(caller.home, caller.config).catalog.url
    try:
        with closing(GridSession(identity, connect_timeout=2.0, read_timeout=10.0)) as session:
            yield CatalogClient(session, url)
    except CatalogError as error:
        raise click.ClickException(str(error)) from error
    except ValueError as error:
        raise click.UsageError(str(error).splitlines()[0]) from error


@command.command("show", epilog="Example: dgis policy show --home grid > policy.toml")
@click.option("--version", type=click.IntRange(1), help="An earlier version (see dgis policy history).")
@_caller_options
def show_command(*, version: int | None, home: Path, config: Path | None, cert: Path | None, key: Path | None) -> None:
    """Print the policy in force, as it was put."""
    with _catalog(_Caller(home, config, cert, key)) as catalog:
        found = catalog.policy(version)
    if found is None:
        raise click.ClickException("no policy is in force; dgis policy put FILE puts one")
    notes().print(f"version {found.version}, put on {found.made_at:%Y-%m-%d %H:%M} UTC by {found.made_by}")
    click.echo(found.text, nl=not found.text.endswith("\n"))


@command.command("put", epilog="Example: dgis policy put policy.toml --follows 3 --home grid")
@click.argument("file", type=_FILE)
@click.option("--follows", type=click.IntRange(0), help="Refuse unless this is the version in force.")
@click.option("--dry-run", is_flag=True, help="Read the file, say what is wrong with it, put nothing.")
@_caller_options
def put_command(
    *,
    file: Path,
    follows: int | None,
    dry_run: bool,
    home: Path,
    config: Path | None,
    cert: Path | None,
    key: Path | None,
) -> None:
    """Put a policy in force, at once and everywhere; the one before stays in the history."""
    policy = read_policy(file)
    said = f"{policy.vo}: {len(policy.groups)} groups, {len(policy.grants)} grants"
    if dry_run:
        console().print(f"{said}; nothing was put")
        return
    with _catalog(_Caller(home, config, cert, key)) as catalog:
        made = catalog.put_policy(file.read_text(encoding="utf-8"), follows=follows)
    console().print(f"{said}; version {made.version} is in force")


@command.command("history", epilog="Example: dgis policy history --home grid")
@_caller_options
@format_option
def history_command(
    *, home: Path, config: Path | None, cert: Path | None, key: Path | None, fmt: Format
) -> None:
    """List the versions of the policy, the newest first."""
    with _catalog(_Caller(home, config, cert, key)) as catalog:
        rows = [
            {"version": one.version, "put": f"{one.made_at:%Y-%m-%d %H:%M:%S}", "by": one.made_by}
            for one in catalog.policy_versions()
        ]
    print_rows(fmt, "Versions of the policy", rows, right=("version",), empty="no policy was ever put in force")


@command.command("check", epilog="Example: dgis policy check '/O=Grid/CN=ann' retrieve 1.2.840.1 --home grid")
@click.argument("actor")
@click.argument("action", type=click.Choice(ACTIONS))
@click.argument("study", required=False)
@click.option("--file", type=_FILE, help="Ask a file, no catalog; say of the study what follows.")
@click.option("--site", "sites", multiple=True, help="With --file: a site of the study.")
@click.option("--modality", "modalities", multiple=True, help="With --file: a modality of the study.")
@click.option("--institution", "institutions", multiple=True, help="With --file: an institution of the study.")
@click.option("--label", "labels", multiple=True, help="With --file: a label of the study.")
@_caller_options
@format_option
def check_command(
    *,
    actor: str,
    action: Action,
    study: str | None,
    file: Path | None,
    sites: tuple[str, ...],
    modalities: tuple[str, ...],
    institutions: tuple[str, ...],
    labels: tuple[str, ...],
    home: Path,
    config: Path | None,
    cert: Path | None,
    key: Path | None,
    fmt: Format,
) -> None:
    """Say whether ACTOR (a DN, or ae:TITLE@SITE) may do ACTION with STUDY, and why. Exit code 1 means no.

    Without a study: whether there may be one.
    """
    if file is not None:
        facts = StudyFacts(frozenset(sites), frozenset(modalities), frozenset(institutions), frozenset(labels))
        asked = facts if study is not None or sites or modalities or institutions or labels else None
        answer = explain(read_policy(file), actor, action, asked)
        result = {"allowed": answer.allowed, "grant": answer.grant, "text": answer.text}
    else:
        with _catalog(_Caller(home, config, cert, key)) as catalog:
            found = catalog.check_policy(PolicyQuestion(actor=actor, action=action, study_uid=study))
        result = found.model_dump(mode="json")
    if fmt == "json":
        print_json(result)
    else:
        click.echo(result["text"])
    sys.exit(EXIT_OK if result["allowed"] else EXIT_FAILED)


@command.command("share", epilog="Example: dgis policy share 1.2.840.1 '/O=Grid/CN=bob' --days 7 --home grid")
@click.argument("study")
@click.argument("grantee")
@click.option("--days", default=30, show_default=True, type=click.IntRange(1, 3660))
@click.option("--reason", default="", help="Kept with the share. No patient data.")
@_caller_options
def share_command(
    *,
    study: str,
    grantee: str,
    days: int,
    reason: str,
    home: Path,
    config: Path | None,
    cert: Path | None,
    key: Path | None,
) -> None:
    """Share STUDY with GRANTEE: a DN, ae:TITLE@SITE, or group:NAME. What a share opens, the policy says."""
    with _catalog(_Caller(home, config, cert, key)) as catalog:
        made = catalog.share(ShareRequest(study_uid=study, grantee=grantee, days=days, reason=reason))
    console().print(f"shared with {made.grantee} until {made.until:%Y-%m-%d %H:%M} UTC ({made.id})", soft_wrap=True)


@command.command("unshare", epilog="Example: dgis policy unshare 0f5e... --home grid")
@click.argument("share_id")
@_caller_options
def unshare_command(*, share_id: str, home: Path, config: Path | None, cert: Path | None, key: Path | None) -> None:
    """End a share at once."""
    with _catalog(_Caller(home, config, cert, key)) as catalog:
        catalog.unshare(share_id)
    console().print(f"{share_id} ended", soft_wrap=True)


@command.command("shares", epilog="Example: dgis policy shares 1.2.840.1 --home grid")
@click.argument("study", required=False)
@_caller_options
@format_option
def shares_command(
    *, study: str | None, home: Path, config: Path | None, cert: Path | None, key: Path | None, fmt: Format
) -> None:
    """List what is shared now, and the glasses that are broken: of STUDY, or of all."""
    with _catalog(_Caller(home, config, cert, key)) as catalog:
        rows = [_row(one) for one in catalog.shares(study)]
    print_rows(fmt, "Shares", rows, empty="nothing is shared")


def _row(one: Share) -> dict[str, object]:
    return {
        "id": one.id,
        "study": one.study_uid,
        "kind": one.kind.replace("_", " "),
        "with": one.grantee,
        "until": f"{one.until:%Y-%m-%d %H:%M}",
        "by": one.made_by,
        "reason": one.reason,
    }


@command.command("label", epilog="Example: dgis policy label 1.2.840.1 --add trial-7 --home grid")
@click.argument("study")
@click.option("--add", multiple=True, help="A label to put on (repeatable).")
@click.option("--remove", multiple=True, help="A label to take off (repeatable).")
@_caller_options
def label_command(
    *,
    study: str,
    add: tuple[str, ...],
    remove: tuple[str, ...],
    home: Path,
    config: Path | None,
    cert: Path | None,
    key: Path | None,
) -> None:
    """Put labels on STUDY, or take them off; print those that it has then, one a line."""
    with _catalog(_Caller(home, config, cert, key)) as catalog:
        labels = catalog.label(LabelRequest(study_uid=study, add=add, remove=remove)).labels
    for label in labels:
        click.echo(label)


@command.command(
    "break-glass", epilog="Example: dgis policy break-glass 1.2.840.1 --reason 'unconscious in A&E' --cert me.pem"
)
@click.argument("study")
@click.option("--reason", required=True, help="Why; at least ten characters. It is shown to whoever audits.")
@click.option("--also", metavar="AE", help="ae:TITLE@SITE of your own group that is to see it, too.")
@_caller_options
def break_glass_command(
    *,
    study: str,
    reason: str,
    also: str | None,
    home: Path,
    config: Path | None,
    cert: Path | None,
    key: Path | None,
) -> None:
    """Open STUDY for yourself without a grant, for as long as the policy says. It is audited loudly."""
    with _catalog(_Caller(home, config, cert, key)) as catalog:
        opened = catalog.break_glass(BreakGlassRequest(study_uid=study, reason=reason, also=also))
    for one in opened:
        console().print(f"open to {one.grantee} until {one.until:%H:%M:%S} UTC", soft_wrap=True)
