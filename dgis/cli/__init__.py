"""The ``dgis`` command: one file a noun, imported only when it is used.

May import everything of dgis and the clients of the services; holds no logic of its own beyond reading options and
printing. Data goes to standard output, all else to standard error; exit codes: 0 ok, 1 failed, 2 usage, 3 partly done.
"""

from __future__ import annotations

import importlib
import sys

import click

from certs.errors import CertsError

_HIDDEN = {"process": ("dgis.cli.serve", "process_group")}
_COMMANDS = {
    "ae": ("dgis.cli.ae", "Application entities: who may do what, and where to send."),
    "audit": ("dgis.cli.audit", "The audit trail: is it whole, and what does it say."),
    "commit": ("dgis.cli.commit", "Storage commitment: what others asked of us, and asking another AE."),
    "conflicts": ("dgis.cli.conflicts", "Instances that came twice with different content."),
    "conformance": ("dgis.cli.conformance", "The DICOM Conformance Statement of a node."),
    "deploy": ("dgis.cli.deploy", "A site from one file: guests, NAT, firewall, routes, and whether it is so."),
    "demo": ("dgis.cli.demo", "Bring up a grid, do the main job on real images, show it."),
    "echo": ("dgis.cli.echo", "C-ECHO to any AE."),
    "find": ("dgis.cli.find", "C-FIND: query any AE."),
    "get": ("dgis.cli.get", "C-GET: fetch from any AE into files."),
    "import": ("dgis.cli.importing", "File studies from disk or a DICOMDIR medium."),
    "policy": ("dgis.cli.policy", "The VO's policy: who may do what, shares, labels, broken glasses."),
    "se": ("dgis.cli.se", "Storage elements: which there are, and their doors."),
    "move": ("dgis.cli.move", "C-MOVE: have any AE send to another."),
    "send": ("dgis.cli.send", "C-STORE: send files to any AE."),
    "serve": ("dgis.cli.serve", "Run one DGIS from its node.toml."),
    "status": ("dgis.cli.status", "Services, certificates, spool, storage and last errors."),
    "up": ("dgis.cli.up", "A whole grid on this machine, in the foreground."),
}


class _LazyGroup(click.Group):
    """A group that imports a command's module only when the command runs (start-up time)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _HIDDEN:
            module, attribute = _HIDDEN[cmd_name]
        elif cmd_name in _COMMANDS:
            module, attribute = _COMMANDS[cmd_name][0], "command"
        else:
            return None
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(_COMMANDS.items())])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example: dgis up --home grid --peer VIEWER:127.0.0.1:11113",
)
@click.version_option(package_name="dgis")
def cli() -> None:
    """Many institutions' DICOM archives as one remote AE."""


def main() -> None:
    """Entry point: errors of ours become one teaching line and exit code 1, never a traceback."""
    from dgis.errors import DgisError

    try:
        cli(standalone_mode=True)
    except (CertsError, DgisError) as error:
        click.echo(f"dgis: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"dgis: {error.strerror or error}: {error.filename or 'see the arguments'}", err=True)
        sys.exit(1)
