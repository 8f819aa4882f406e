"""``dgis deploy``: a site from one file. `files` reads and writes files only, `hosts` works on machines."""

from __future__ import annotations

import click

from dgis.cli.deploy import files, hosts


@click.group(
    "deploy",
    epilog="Example: dgis deploy check site.yml && dgis deploy render site.yml --out out && dgis deploy apply site.yml",
)
def command() -> None:
    """Guests, NAT, firewall, routes, service files, Ansible and the exception sheet, all from one site file."""


for each in (files.check, files.schema, files.render, files.diff, files.certificates, files.move):
    command.add_command(each)
for each in (hosts.apply, hosts.verify, hosts.watch):
    command.add_command(each)
