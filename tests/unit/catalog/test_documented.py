"""What can be set, called or measured is on the protocol page."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from catalog.app import build
from catalog.config import CatalogConfig, beside, load
from catalog.metrics import CatalogMetrics
from catalog.store import Store
from catalog.store.database import Database
from certs.https.server import route_rules
from tests.helpers.pki import SiteHome

PAGE = (Path(__file__).resolve().parents[3] / "catalog" / "PROTOCOL.md").read_text()


def test_every_route_is_documented(site: SiteHome, tmp_path: Path) -> None:
    app = build(Store(Database(f"sqlite:///{tmp_path / 'x.sqlite'}"), site="a"), site.catalog(), version="1")
    missing = [route for route in route_rules(app) if route.split()[1].replace("{conflict_id}", "{id}") not in PAGE]
    assert missing == []


def test_every_metric_is_documented() -> None:
    registry = CollectorRegistry()
    CatalogMetrics(registry)
    assert [found.name for found in registry.collect() if found.name not in PAGE] == []


def test_every_setting_is_documented() -> None:
    for table, field in CatalogConfig.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        line = next(line for line in PAGE.splitlines() if line.startswith(f"| `[{table}]`"))
        assert [name for name in model.model_fields if f"`{name}`" not in line] == []


def test_the_audit_trail_lies_where_the_catalog_writes(tmp_path: Path) -> None:
    text = "[identity]\ncert = 'c'\nkey = 'k'\ntrust = 't'\n[catalog]\nsite = 'a'\n[database]\nurl = '{}'\n"
    file = tmp_path / "etc.toml"
    for url, wanted in (
        ("sqlite:////var/lib/dgis/c.sqlite", Path("/var/lib/dgis/audit")),
        ("sqlite:///state/c.sqlite", tmp_path / "state" / "audit"),
        ("postgresql://dgis@db/dgis", tmp_path / "audit"),
    ):
        file.write_text(text.format(url))
        assert load(file).audit.directory == wanted


def test_relative_databases_lie_beside_their_configuration() -> None:
    assert beside("sqlite:///c.sqlite", Path("/etc/dgis")) == "sqlite:////etc/dgis/c.sqlite"
    assert beside("sqlite:////var/c.sqlite", Path("/etc/dgis")) == "sqlite:////var/c.sqlite"
    assert beside("postgresql://dgis@db/dgis", Path("/etc/dgis")) == "postgresql://dgis@db/dgis"
