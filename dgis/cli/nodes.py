"""Which node a command speaks of: a local grid's (``--home``) or the one of a ``node.toml`` (``--config``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from certs.config import IdentityConfig
from dgis.config import NodeConfig, load_node
from dgis.dimse.ae import AeTable

if TYPE_CHECKING:
    from certs.https.session import GridSession
    from dgis.dimse.learned import LearnedStore

F = TypeVar("F", bound=Callable[..., Any])


def node_options(function: F) -> F:
    """``--home DIR`` and ``--config FILE``."""
    home = click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(".grid"),
        show_default=True,
        envvar="DGIS_HOME",
        help="Directory of the local grid (dgis up).",
    )
    config = click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        help="node.toml of a DGIS that belongs to no local grid.",
    )
    return home(config(function))


def config_path(home: Path, config: Path | None) -> Path:
    """The node.toml that is meant. Raises UsageError when there is none."""
    path = config or home / "dgis" / "node.toml"
    if not path.is_file():
        raise click.UsageError(
            f"there is no {path}: name the grid's directory with --home (the one given to dgis up), "
            "or a node.toml with --config"
        )
    return path


def read_node(home: Path, config: Path | None) -> NodeConfig:
    """The node that is meant."""
    return load_node(config_path(home, config))


def node_table(home: Path, config: Path | None) -> AeTable:
    """Its AE table."""
    from dgis.node import ae_table

    path = config_path(home, config)
    return ae_table(load_node(path), path)


def node_learned(home: Path, config: Path | None) -> LearnedStore:
    """What it has learned about move destinations."""
    from dgis.node import learned_store

    return learned_store(read_node(home, config))


def operator_identity(home: Path, config: Path | None) -> IdentityConfig:
    """Who the command is on the grid: the local grid's operator, with ``--config`` the node itself."""
    if config is not None:
        return load_node(config).identity
    from dgis.localgrid import Paths
    from dgis.localprobe import operator_identity as local_operator

    return local_operator(Paths(home.absolute()))


def operator_session(home: Path, config: Path | None) -> GridSession:
    """An authenticated session for the command."""
    from certs.https.session import GridSession

    return GridSession(operator_identity(home, config), connect_timeout=2.0, read_timeout=10.0)
