"""Write docs/reference.md from the code: settings, routes with their access rules, metrics, exit codes.

    python docs/generate_reference.py          # rewrites the page
A test fails when the page is stale, so nothing of it can be undocumented.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from catalog.app import build as build_catalog
from catalog.config import CatalogConfig
from catalog.store import Store
from certs import ca
from certs.config import IdentityConfig
from certs.https.server import create_app, route_rules
from dgis.config import NodeConfig
from dgis.deploy.model import SiteFile
from dgis.metrics import make_metrics
from storage_provider.config import StorageConfig
from storage_provider.node import build as build_storage

PAGE = Path(__file__).with_name("reference.md")
COMMON_ROUTES = "/health"
EXIT_CODES = {
    0: "all done",
    1: "failed; standard error says why",
    2: "wrong usage; standard error says what to write instead",
    3: "partly done: some items failed, or something needs a look; each is named",
    10: "`dgis-storage fsck` only: objects that are not what their key says",
}


def render() -> str:
    """The whole page."""
    parts = ["# Reference", "Made by `docs/generate_reference.py`; do not edit.", "## Settings"]
    for title, model in (
        ("`dgis serve`: node.toml", NodeConfig),
        ("`dgis-catalog serve`", CatalogConfig),
        ("`dgis-storage serve`", StorageConfig),
    ):
        parts += [f"### {title}", *_tables(model)]
    parts += ["### `dgis deploy`: the site file", *_site_file()]
    with tempfile.TemporaryDirectory() as home:
        parts += ["## Routes", *_routes(Path(home))]
    parts += ["## Metrics", _table(("metric", "kind", "labels", "meaning"), _metrics())]
    rows = [(str(code), text) for code, text in EXIT_CODES.items()]
    parts += [
        "## Exit codes",
        "Of `dgis`, `dgis-certs`, `dgis-catalog` and `dgis-storage` alike.",
        _table(("code", "meaning"), rows),
    ]
    return "\n\n".join(parts) + "\n"


def _tables(model: type[BaseModel]) -> Iterator[str]:
    for name, info in model.model_fields.items():
        repeated = _models(info.annotation)
        table = repeated[0]
        many = "tuple" in str(info.annotation).lower()
        yield f"#### `{'[[' if many else '['}{name}{']]' if many else ']'}`"
        if table.__doc__:
            yield " ".join(table.__doc__.split())
        yield _table(("key", "default"), [(f"`{key}`", _default(field)) for key, field in table.model_fields.items()])


def _site_file() -> Iterator[str]:
    """Every table of a site file, from the top down; each once."""
    waiting: list[tuple[str, type[BaseModel]]] = [("the file", SiteFile)]
    seen: set[type[BaseModel]] = set()
    while waiting:
        name, table = waiting.pop(0)
        if table in seen:
            continue
        seen.add(table)
        yield f"#### {name}"
        yield " ".join((table.__doc__ or "").split())
        yield _table(
            ("key", "default"),
            [(f"`{_key(key, field)}`", _default(field)) for key, field in table.model_fields.items()],
        )
        for key, field in table.model_fields.items():
            waiting += [
                (f"`{key}`" if name == "the file" else f"{name}, `{key}`", each) for each in _models(field.annotation)
            ]


def _key(name: str, field: object) -> str:
    return getattr(field, "alias", None) or name


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _default(field: object) -> str:
    value = getattr(field, "default", PydanticUndefined)
    if value is PydanticUndefined:
        return "required"
    if value is None or value == () or value == "":
        return "none"
    return f"`{', '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def _routes(home: Path) -> Iterator[str]:
    ca.init_site(home, organisation="reference")
    credential = ca.issue_host(home, "x", dns=("localhost",), ips=("127.0.0.1",), roles=("catalog",), out=home)
    identity = IdentityConfig(cert=credential.cert, key=credential.key, trust=home / "trust", gridmap=home / "gridmap")
    storage = StorageConfig.model_validate(
        {
            "identity": identity.model_dump(),
            "storage": {"name": "x", "root": str(home / "store")},
            "area": [{"name": "main", "rules": {"gateway": ["read"]}}],
        }
    )
    for title, app in (
        ("Every service", create_app(title="x", version="0", identity=identity)),
        ("Catalog", build_catalog(Store("sqlite://", site="x"), identity, version="0")),
        ("Storage provider", build_storage(storage)),
    ):
        yield f"### {title}"
        yield _table(("route", "access rule", "roles"), _rules(app, common=title == "Every service"))


def _rules(app: FastAPI, *, common: bool) -> list[tuple[str, str, str]]:
    shared = ("/v1/whoami", "/health", "/metrics", "/openapi.json")
    rows = []
    for route, rule in sorted(route_rules(app).items()):
        if common == route.endswith(shared):
            roles = ", ".join(sorted(rule.roles)) if rule and rule.roles else "any verified peer"
            if rule and rule.name == "area-rules":
                roles = "as the area's `rules` or a permit say"
            rows.append((f"`{route}`", rule.name if rule else "none", roles))
    return rows


def _metrics() -> list[tuple[str, str, str, str]]:
    from catalog.metrics import CatalogMetrics
    from certs.https.gate import HttpMetrics
    from storage_provider.metrics import Metrics as StorageMetrics

    registry = CollectorRegistry()
    make_metrics(registry)
    CatalogMetrics(registry)
    StorageMetrics(registry)
    HttpMetrics(registry)
    rows = []
    for collector in list(registry._collector_to_names):
        for family in collector.collect():
            labels = ", ".join(getattr(collector, "_labelnames", ()))
            rows.append((f"`{family.name}`", family.type, labels, family.documentation))
    return sorted(rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(render())
