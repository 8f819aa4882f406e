"""Clients import without server libraries; pure rooms import no network."""

from __future__ import annotations

import subprocess
import sys

import pytest

SERVER = ("fastapi", "uvicorn", "starlette", "sqlalchemy")
NETWORK = ("socket", "ssl", "requests", "urllib3", "certs.tls")


def loaded(module: str) -> set[str]:
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "storage_provider.https.client",
        "storage_provider.channels",
        "storage_provider.transfer.engine",
        "storage_provider.cli",
    ],
)
def test_clients_bring_no_server(module: str) -> None:
    assert loaded(module).isdisjoint(SERVER)


@pytest.mark.parametrize(
    "module",
    [
        "storage_provider.upload",
        "storage_provider.ranges",
        "storage_provider.keys",
        "storage_provider.transfer.plan",
        "storage_provider.transfer.route",
    ],
)
def test_pure_rooms_know_no_network(module: str) -> None:
    assert loaded(module).isdisjoint(NETWORK)


def test_nobody_brings_the_neighbours() -> None:
    names = loaded("storage_provider.node")
    assert not {name for name in names if name.split(".")[0] in ("dgis", "catalog", "pydicom", "pynetdicom")}
