"""`catalog.toml`: the settings of the catalog service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from certs.config import AuditConfig, IdentityConfig, ListenConfig, LogConfig, Table, load_toml


class DatabaseConfig(Table):
    """`[database]`: `url` is sqlite:///PATH (relative paths count from this file) or postgresql://USER@HOST/NAME."""

    url: str


class NameConfig(Table):
    """`[catalog]`: the site that this catalog speaks for, and the service's own name."""

    site: str = Field(min_length=1, max_length=200)
    name: str = Field(default="catalog", min_length=1, max_length=200)


class PolicyConfig(Table):
    """`[policy]`: with `required`, nobody may do anything before the VO's first policy is put in force."""

    required: bool = False


class CatalogConfig(Table):
    """The whole file."""

    server: ListenConfig = ListenConfig()
    identity: IdentityConfig
    database: DatabaseConfig
    catalog: NameConfig
    policy: PolicyConfig = PolicyConfig()
    audit: AuditConfig = AuditConfig()
    log: LogConfig = LogConfig()


def load(path: Path) -> CatalogConfig:
    """Read a configuration file; raises ConfigError naming file, table and key."""
    config = load_toml(path, CatalogConfig)
    url = beside(config.database.url, path.absolute().parent)
    directory = config.audit.directory or _state_of(url, path.absolute().parent) / "audit"
    audit = config.audit.model_copy(update={"directory": directory})
    return config.model_copy(update={"database": DatabaseConfig(url=url), "audit": audit})


def _state_of(url: str, directory: Path) -> Path:
    """Name the directory that the catalog writes to: its database's, without one the configuration's."""
    return Path(url.removeprefix("sqlite:///")).parent if url.startswith("sqlite:///") else directory


def beside(url: str, directory: Path) -> str:
    """Make a relative SQLite path count from `directory`."""
    prefix = "sqlite:///"
    if not url.startswith(prefix) or url.startswith((prefix + "/", prefix + ":")) or url == prefix:
        return url
    return prefix + str(directory / url.removeprefix(prefix))
