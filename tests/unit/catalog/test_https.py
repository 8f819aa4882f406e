"""The service over real mutual TLS: client, rules, streams, permits, restarts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from catalog.app import build
from catalog.client import CatalogClient
from catalog.errors import CatalogIncomplete, CatalogRefused, CatalogUnavailable
from catalog.keys import supported
from catalog.store import Store
from catalog.store.database import Database
from catalog.wire import (
    LabelRequest,
    LocateRequest,
    Match,
    PermitRequest,
    Query,
    ReplicaChange,
    Site,
    StorageElement,
)
from certs.dn import DN
from certs.errors import Answered
from certs.https.server import route_rules, running
from certs.https.session import GridSession
from certs.permit import verify
from certs.trust import Trust
from tests.helpers.catalogrecords import batch, record
from tests.helpers.pki import SiteHome

ROOT = Path(__file__).resolve().parents[3]
ALL = Query(level="IMAGE", keys=("SOPInstanceUID",))


@pytest.fixture
def url(store: Store, site: SiteHome) -> Iterator[str]:
    app = build(store, site.catalog(), version="1")
    with running(app, site.catalog()) as address:
        yield address


Connect = Callable[..., CatalogClient]


@pytest.fixture
def connect(url: str, site: SiteHome) -> Iterator[Connect]:
    """Make a client with the roles named, `connect("gateway")`."""
    with ExitStack() as stack:

        def made(*roles: str) -> CatalogClient:
            session = GridSession(site.host("client-" + "-".join(roles), *roles))
            stack.callback(session.close)
            return CatalogClient(session, url)

        yield made


def test_the_whole_life_through_the_client(connect: Connect, url: str, site: SiteHome) -> None:
    gateway, operator = connect("gateway"), connect("operator")
    operator.put_site(Site(name="a", title="Here"))
    operator.put_storage_element(StorageElement(name="se1", site="a", doors=("https://localhost:1/areas/main",)))
    with pytest.raises(CatalogRefused, match="se1"):  # one place under two names
        operator.put_storage_element(StorageElement(name="se2", site="a", doors=("https://LOCALHOST:1/areas/main/",)))
    assert [one.name for one in gateway.storage_elements()] == ["se1"]
    assert gateway.sites() == [Site(name="a", title="Here")]

    records = [record(f"1.{n}", name="Žižka^Jan", SpecificCharacterSet="ISO_IR 192") for n in range(250)]
    results = gateway.register(batch(*records), acting_for="ae:CT1@a")
    assert {result.outcome for result in results} == {"registered"}
    assert [result.instance_uid for result in results] == [one.instance_uid for one in records]

    rows = operator.query(Query(level="IMAGE", keys=("SOPInstanceUID", "PatientName")))
    assert sum(1 for row in rows if row["PatientName"] == "Žižka^Jan") == 250
    assert (rows.count, rows.truncated) == (250, False)
    short = gateway.query(ALL.model_copy(update={"limit": 10}), acting_for="ae:X@a")
    assert len(list(short)) == 10
    assert short.truncated

    gateway.update_replicas(
        [
            ReplicaChange(
                object_key=one.object_key,
                location="se1",
                kind="object",
                state="verified",
                size=one.size,
                sha256=one.sha256,
            )
            for one in records
        ]
    )
    located = list(gateway.locate(LocateRequest(studies=("1.2.1",))))
    assert len(located) == 250
    assert {replica.state for one in located for replica in one.replicas} == {"spooled", "verified"}

    again = gateway.register(batch(record("1.1", content=b"other")))[0]
    [conflict] = operator.conflicts()
    assert (again.conflict_id, conflict.kind) == (conflict.id, "content")
    assert operator.resolve_conflict(conflict.id, "replace").state == "replaced"
    with pytest.raises(CatalogRefused):
        operator.resolve_conflict(conflict.id, "keep_first")
    assert operator.retire(["1.0", "no.such"]) == 1
    changes = gateway.changes(after=250)
    assert [one.seq for one in changes] == list(range(251, 251 + len(changes)))
    assert changes[-1].tombstone
    assert operator.health()["status"] == "ok"


def test_a_refused_replica_change_is_told_and_the_rest_applied(connect: Connect) -> None:
    gateway = connect("gateway")
    one = record("1.1")
    gateway.register(batch(one))
    good = ReplicaChange(
        object_key=one.object_key, location="se1", kind="object", state="verified", size=one.size, sha256=one.sha256
    )
    with pytest.raises(CatalogRefused, match="1 of 2"):
        gateway.update_replicas([good.model_copy(update={"object_key": "v1/unknown"}), good])
    assert gateway.register(batch(one))[0].verified_at == ("se1",)


def test_permits_are_signed_for_known_elements(connect: Connect, site: SiteHome) -> None:
    gateway, operator = connect("gateway"), connect("operator")
    operator.put_storage_element(StorageElement(name="se1", site="a"))
    wanted = PermitRequest(dn="/O=Test Grid/CN=se2", se="se1", keys=("v1/aa/bb/x",), verbs=("read",), seconds=60)
    reply = gateway.issue_permit(wanted)
    permit = verify(reply.token, Trust(site.trust), signer_allowed=lambda dn: "catalog" in str(dn), se="se1")
    assert (permit.dn, permit.keys, permit.verbs) == (DN.parse(wanted.dn), wanted.keys, wanted.verbs)
    assert 0 < (reply.expires - datetime.now(UTC)).total_seconds() <= 60
    for wrong in ({"se": "nowhere"}, {"dn": "not a name"}):
        with pytest.raises(CatalogRefused):
            gateway.issue_permit(wanted.model_copy(update=wrong))


ROUTES = {
    "register": ({"gateway"}, lambda c: c.register(batch(record("1.1")))),
    "query": ({"gateway", "operator"}, lambda c: list(c.query(ALL))),
    "locate": ({"gateway", "operator"}, lambda c: list(c.locate(LocateRequest(studies=("1",))))),
    "replicas": (
        {"gateway"},
        lambda c: c.update_replicas([ReplicaChange(object_key="k", location="se1", kind="object", state="removed")]),
    ),
    "policy": ({"gateway", "operator", "catalog", "storage", "user", "monitor"}, lambda c: c.policy()),
    "put policy": ({"operator"}, lambda c: c.put_policy("vo =")),
    "policy versions": ({"operator"}, lambda c: c.policy_versions()),
    "shares": ({"gateway", "operator"}, lambda c: c.shares()),
    "label": ({"gateway", "operator"}, lambda c: c.label(LabelRequest(study_uid="1"))),
    "retire": ({"operator"}, lambda c: c.retire(["1"])),
    "conflicts": ({"gateway", "operator"}, lambda c: c.conflicts()),
    "changes": ({"gateway", "operator", "catalog"}, lambda c: c.changes()),
    "elements": ({"gateway", "operator", "catalog", "storage", "user", "monitor"}, lambda c: c.storage_elements()),
    "sites": ({"gateway", "operator", "catalog", "storage", "user", "monitor"}, lambda c: c.sites()),
    "put element": ({"operator"}, lambda c: c.put_storage_element(StorageElement(name="s", site="a"))),
    "remove element": ({"operator"}, lambda c: c.remove_storage_element("s")),
    "put site": ({"operator"}, lambda c: c.put_site(Site(name="s"))),
}


@pytest.mark.parametrize("new_url", ["sqlite"], indirect=True)
def test_each_route_admits_its_roles_and_no_other(connect: Connect) -> None:
    for role in ("gateway", "operator", "catalog", "storage", "user", "monitor"):
        client = connect(role)
        for name, (admitted, call) in ROUTES.items():
            if role in admitted:
                try:
                    call(client)
                except CatalogRefused as mistake:  # two that are not complete: refused for that, not for the role
                    assert name in ("put policy", "label") and "403" not in str(mistake), (role, name)
                continue
            with pytest.raises(CatalogRefused, match="403") as refusal:
                call(client)
            assert refusal.value.permanent, (role, name)
    with pytest.raises(CatalogRefused, match="403"):
        connect("user").issue_permit(PermitRequest(dn="/CN=x", se="s", keys=("k",), verbs=("read",)))
    with pytest.raises(CatalogRefused, match="403"):
        connect("user").resolve_conflict("x", "keep_first")


@pytest.mark.parametrize("new_url", ["sqlite"], indirect=True)
def test_every_route_names_a_rule_and_is_published(store: Store, site: SiteHome, url: str) -> None:
    app = build(store, site.catalog(), version="1")
    assert [name for name, found in route_rules(app).items() if found is None] == []
    session = GridSession(site.host("nobody"))
    published = session.json("GET", url + "/openapi.json")
    session.close()
    assert {path for path in published["paths"] if path.startswith("/v1/")} >= {
        "/v1/register",
        "/v1/query",
        "/v1/locate",
        "/v1/replicas",
        "/v1/retire",
        "/v1/conflicts",
        "/v1/permits",
        "/v1/changes",
        "/v1/storage-elements",
        "/v1/sites",
        "/v1/conflicts/{conflict_id}/resolve",
    }


@pytest.mark.parametrize("new_url", ["sqlite"], indirect=True)
def test_metrics_hold_figures_and_no_patient(connect: Connect, url: str, site: SiteHome) -> None:
    gateway = connect("gateway")
    gateway.register(batch(record("1.1", name="Secret^Name", patient_id="SECRETID")))
    list(gateway.query(ALL))
    session = GridSession(site.host("monitor", "monitor"))
    with session.stream("GET", url + "/metrics") as response:
        text = response.raw.read().decode()
    session.close()
    for wanted in (
        'dgis_catalog_registered_total{outcome="registered"} 1.0',
        "dgis_catalog_register_seconds_count 1.0",
        'dgis_catalog_query_seconds_count{level="IMAGE"} 1.0',
        "dgis_catalog_instances",
        'dgis_catalog_conflicts_open{kind="content"}',
    ):
        assert wanted in text
    assert "secret" not in text.lower()


@pytest.mark.parametrize("new_url", ["sqlite"], indirect=True)
def test_wrong_requests_are_refused_without_an_echo_of_their_values(connect: Connect, url: str, site: SiteHome) -> None:
    session = GridSession(site.host("client-gateway", "gateway"))
    wrong: list[tuple[str, object]] = [
        ("/v1/query", {"level": "STUDY", "unknown": 1}),
        ("/v1/query", {"level": "STUDY", "matches": [{"keyword": "SecretKeyword", "op": "eq", "values": ["Secret"]}]}),
        ("/v1/query", {"level": "SECRET"}),
        ("/v1/register", {"instances": []}),
        ("/v1/register", {"instances": [{"instance_uid": "Secret"}]}),
        ("/v1/locate", {}),
        ("/v1/locate", {"studies": "Secret"}),
        ("/v1/replicas", []),
    ]
    for path, body in wrong:
        with pytest.raises(Answered) as refusal:
            session.json("POST", url + path, body=body)
        assert refusal.value.http_status == 422
        assert '"Secret' not in str(refusal.value)
    session.close()
    assert connect("gateway").register(batch(record("1.1")))[0].outcome == "registered"


@pytest.mark.parametrize("new_url", ["sqlite"], indirect=True)
def test_every_supported_keyword_passes_the_wire(connect: Connect) -> None:
    gateway = connect("gateway")
    gateway.register(batch(record("1.1")))
    [row] = gateway.query(Query(level="STUDY", keys=tuple(sorted(supported("STUDY")))))
    assert row["ModalitiesInStudy"] == ["CT"]


def test_a_client_that_reads_slowly_blocks_nobody(connect: Connect) -> None:
    gateway = connect("gateway")
    for start in range(0, 2000, 1000):
        gateway.register(batch(*[record(f"1.{n}", raw=None) for n in range(start, start + 1000)]))
    slow = [gateway.query(Query(level="IMAGE", keys=tuple(supported("IMAGE")))) for _ in range(6)]
    assert all(next(rows) for rows in slow)
    began = time.monotonic()
    assert gateway.register(batch(record("9.9")))[0].outcome == "registered"
    assert time.monotonic() - began < 5
    assert sum(1 for _ in slow[0]) == 1999
    for rows in slow:
        rows.close()


@contextmanager
def breaking_proxy(target: str, *, after: int) -> Iterator[str]:
    """A TCP relay that cuts each connection once `after` bytes of answers have passed."""
    host, port = target.removeprefix("https://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def relay(client: socket.socket) -> None:
        server = socket.create_connection((host, int(port)))

        def forward() -> None:
            while data := client.recv(65536):
                server.sendall(data)

        threading.Thread(target=lambda: _quiet(forward), daemon=True).start()
        passed = 0
        while passed < after and (data := server.recv(4096)):
            client.sendall(data)
            passed += len(data)
        for one in (client, server):
            _quiet(lambda one=one: one.shutdown(socket.SHUT_RDWR))
            one.close()

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=lambda c=client: _quiet(lambda: relay(c)), daemon=True).start()

    threading.Thread(target=lambda: _quiet(accept), daemon=True).start()
    yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def _quiet(call: Callable[[], object]) -> None:
    try:
        call()
    except OSError:
        return


@pytest.mark.parametrize("new_url", ["sqlite"], indirect=True)
def test_an_answer_that_breaks_off_is_incomplete_not_short(connect: Connect, url: str, site: SiteHome) -> None:
    gateway = connect("gateway")
    gateway.register(batch(*[record(f"1.{n}") for n in range(1000)]))
    with breaking_proxy(url, after=150_000) as cut:
        session = GridSession(site.host("client-gateway", "gateway"))
        rows = CatalogClient(session, cut).query(Query(level="IMAGE", keys=tuple(supported("IMAGE"))))
        seen = []
        with pytest.raises(CatalogIncomplete):
            for row in rows:
                seen.append(row)
        session.close()
    assert 0 < len(seen) < 1000


@pytest.mark.parametrize("new_url", ["sqlite"], indirect=True)
def test_no_answer_is_unavailable(site: SiteHome, new_url: object) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        session = GridSession(site.host("client-gateway", "gateway"))
        client = CatalogClient(session, f"https://127.0.0.1:{free.getsockname()[1]}")
        for call in (lambda: client.register(batch(record("1.1"))), lambda: client.query(ALL), client.storage_elements):
            with pytest.raises(CatalogUnavailable) as refusal:
                call()
            assert not refusal.value.permanent
        session.close()


# -- the process -------------------------------------------------------------------------------------------------------


def write_config(directory: Path, site: SiteHome, database: str, port: int) -> Path:
    identity = site.catalog()
    path = directory / "catalog.toml"
    path.write_text(
        "\n".join(
            [
                "[server]",
                f"port = {port}",
                "[identity]",
                f'cert = "{identity.cert}"',
                f'key = "{identity.key}"',
                f'trust = "{site.trust}"',
                f'gridmap = "{site.gridmap}"',
                "[database]",
                f'url = "{database}"',
                "[catalog]",
                'site = "a"',
            ]
        )
    )
    return path


def cli(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "catalog.cli", *arguments]


@contextmanager
def process(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(cli("serve", "--config", str(config)), cwd=ROOT)
    try:
        yield started
    finally:
        started.kill()
        started.wait(10)


def wait_for(client: CatalogClient) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            client.health()
            return
        except CatalogUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_kill_9_loses_nothing_that_was_answered(site: SiteHome, new_url: Callable[..., str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = write_config(tmp_path, site, new_url(migrated=False), port)
    session = GridSession(site.host("client-gateway", "gateway"), read_timeout=20)
    client = CatalogClient(session, f"https://127.0.0.1:{port}")
    answered: list[str] = []
    stop = threading.Event()

    def register() -> None:
        n = 0
        while not stop.is_set():
            wanted = [record(f"1.{n}.{i}", study=f"1.{n}", series=f"1.{n}.0") for i in range(20)]
            try:
                client.register(batch(*wanted))
            except CatalogUnavailable:
                time.sleep(0.05)
                continue  # the same batch again: it may or may not have been filed
            answered.extend(one.instance_uid for one in wanted)
            n += 1

    sender = threading.Thread(target=register)
    try:
        for round_ in range(2):
            with process(config) as service:
                wait_for(client)
                if round_ == 0:
                    sender.start()
                time.sleep(0.7 + round_ / 7)
                os.kill(service.pid, signal.SIGKILL)
        stop.set()
        sender.join(60)
        with process(config):
            wait_for(client)
            held = {str(row["SOPInstanceUID"]) for row in client.query(ALL)}
            assert len(answered) >= 40
            assert set(answered) <= held
            counts = [
                row["NumberOfStudyRelatedInstances"]
                for row in client.query(Query(level="STUDY", keys=("NumberOfStudyRelatedInstances",)))
            ]
            assert set(counts) == {20}
            assert sum(map(int, map(str, counts))) == len(held)
            changes = client.changes(limit=10_000)
            assert [one.seq for one in changes] == list(range(1, len(held) + 1))
    finally:
        stop.set()
        session.close()


@pytest.mark.parametrize("new_url", ["sqlite"], indirect=True)
def test_command_line(site: SiteHome, new_url: Callable[..., str], tmp_path: Path) -> None:
    database = new_url()
    config = write_config(tmp_path, site, database, 0)
    store = Store(Database(database), site="a")
    from catalog.prepare import prepare

    store.register([prepare(record(f"1.{n}")) for n in range(7)])
    store.close()
    done = subprocess.run(
        cli("reindex", "--config", str(config), "--format", "json"), cwd=ROOT, capture_output=True, check=True
    )
    assert json.loads(done.stdout) == {"instances": 7}
    assert (
        subprocess.run(cli("migrate", "--config", str(config)), cwd=ROOT, capture_output=True, check=True).stdout == b""
    )
    config.write_text(config.read_text() + "\nsitee = 1\n")
    wrong = subprocess.run(cli("serve", "--config", str(config)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "sitee" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_sigterm_stops_cleanly(site: SiteHome, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = write_config(tmp_path, site, "sqlite:///sub/catalog.sqlite", port)
    session = GridSession(site.host("client-gateway", "gateway"))
    with process(config) as service:
        wait_for(CatalogClient(session, f"https://127.0.0.1:{port}"))
        service.terminate()
        assert service.wait(8) == 0
    session.close()
    assert (tmp_path / "sub" / "catalog.sqlite").exists()


def test_matches_travel() -> None:
    query = Query(level="STUDY", matches=(Match(keyword="StudyDate", op="range", values=("", "20240101")),))
    assert Query.model_validate_json(query.model_dump_json()) == query
