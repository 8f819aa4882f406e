"""PROTOCOL.md names every setting, route, metric, error type and exit code there is."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from prometheus_client import CollectorRegistry

import storage_provider
from certs.https.server import route_rules
from storage_provider import cli
from storage_provider.config import AreaTable, GsiftpTable, SftpTable, StorageConfig, StorageTable
from storage_provider.gridftp.settings import GsiftpSettings
from storage_provider.https.problems import TABLE
from storage_provider.metrics import Metrics
from storage_provider.node import build
from storage_provider.sftp.settings import SftpSettings
from tests.helpers.pki import SiteHome

PAGE = (Path(storage_provider.__file__).parent / "PROTOCOL.md").read_text()


def test_every_setting() -> None:
    tables = {"server", "gsiftp", "sftp", "identity", "storage", "log"}
    for table in tables:
        assert f"`[{table}]`" in PAGE
    for model in (StorageTable, AreaTable, GsiftpTable, SftpTable):
        for key in model.model_fields:
            assert f"`{key}`" in PAGE
    assert set(StorageConfig.model_fields) == tables | {"area"}


def test_every_setting_of_a_door_reaches_it() -> None:
    for table, settings in ((GsiftpTable, GsiftpSettings), (SftpTable, SftpSettings)):
        assert set(table.model_fields) == {field.name for field in fields(settings)}
        defaults = settings(**table().model_dump())
        assert replace(defaults, port=0) == settings()


def test_every_route(site: SiteHome, tmp_path: Path) -> None:
    area = AreaTable(name="main", rules={})
    config = StorageConfig(identity=site.storage(), storage=StorageTable(name="se1", root=tmp_path), area=(area,))
    for route in route_rules(build(config)):
        method, path = route.split(" ", 1)
        short = path.replace("/areas/{area}", "").replace("{key:path}", "KEY").replace("{upload}", "ID")
        assert any(method in line and short in line for line in PAGE.splitlines()) or f"`{path}`" in PAGE, route


def test_every_metric() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    for family in registry.collect():
        assert f"{family.name}_total" in PAGE


def test_every_error_type_and_exit_code() -> None:
    for kind, status in TABLE:
        if kind.__name__ != "Unsupported":
            assert f"`{kind.problem_type}`" in PAGE and str(status) in PAGE
    for code in (cli.EXIT_FAILED, cli.EXIT_CORRUPT):
        assert str(code) in PAGE.split("`dgis-storage` exits", 1)[1].split("\n\n", 1)[0]
