"""Requests made from the published schema: whatever comes, the service answers, and never with a fault of its own."""

from __future__ import annotations

import json

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from catalog.app import build
from catalog.store import Store
from certs.errors import Answered
from certs.https.server import running
from certs.https.session import GridSession
from tests.helpers.pki import SiteHome

QUIET = [
    HealthCheck.function_scoped_fixture,
    HealthCheck.too_slow,
    HealthCheck.filter_too_much,
    HealthCheck.data_too_large,
]


def send(session: GridSession, url: str, case: schemathesis.Case) -> int:
    body = json.dumps(case.body).encode() if isinstance(case.body, dict | list) else b"{}"
    params = {name: str(value) for name, value in (case.query or {}).items()}
    try:
        with session.stream(
            case.method,
            url + case.formatted_path,
            headers={"content-type": "application/json"},
            data=None if case.method == "GET" else body,
            params=params,
        ) as response:
            response.raw.read()
            return response.status_code
    except Answered as error:
        return error.http_status


def test_generated_requests_never_break_the_service(store: Store, site: SiteHome) -> None:
    app = build(store, site.catalog(), version="1")
    identity = site.host("client-gateway-operator", "gateway", "operator")
    schema = schemathesis.openapi.from_dict(app.openapi())
    operations = [found.ok() for found in schema.get_all_operations() if found.ok().path.startswith("/v1/")]
    assert len(operations) >= 13
    statuses: set[int] = set()
    with running(app, site.catalog()) as url:
        session = GridSession(identity)

        @settings(max_examples=8, deadline=None, suppress_health_check=QUIET, phases=[Phase.generate], derandomize=True)
        @given(data=st.data())
        def one(data: st.DataObject) -> None:
            for operation in operations:
                statuses.add(send(session, url, data.draw(operation.as_strategy())))

        one()
        session.json("GET", url + "/health")
        session.close()
    assert {status for status in statuses if status >= 500} == set()
    assert 200 in statuses
