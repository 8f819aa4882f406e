"""The HTTPS door spoken to directly: what the protocol page promises, over real mutual TLS."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import requests

from certs.errors import Answered
from certs.https.server import route_rules
from certs.https.session import GridSession
from storage_provider.checksum import CHUNK_BYTES
from storage_provider.config import AreaTable, StorageConfig, StorageTable
from storage_provider.errors import Denied, NoSpace, NotFound, Refused
from storage_provider.keys import object_key
from storage_provider.node import build
from storage_provider.wire import PART_BYTES
from tests.conformance.faulty_wire import FaultyWire, Mood
from tests.conformance.memory_channel import spec_of
from tests.conformance.rigs import FULL_RULES, HttpsProvider, HttpsRig, write
from tests.helpers.pki import SiteHome

DATA = random.Random(8).randbytes(50_000)
BIG = random.Random(9).randbytes(2 * CHUNK_BYTES + 5)
SPEC = spec_of(DATA)
ROLES = ("gateway", "catalog", "storage", "operator", "user", "monitor")


def ask(
    rig: HttpsRig, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
) -> requests.Response:
    with rig.session.stream(method, f"{rig.far.url}{path}", data=body, headers=headers or {}) as response:
        response._content = response.raw.read()
        return response


def status(
    rig: HttpsRig, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
) -> int:
    try:
        return ask(rig, method, path, body=body, headers=headers).status_code
    except Answered as answer:
        return answer.http_status


def put(rig: HttpsRig, data: bytes) -> str:
    key = spec_of(data).key
    ask(rig, "PUT", f"/areas/main/objects/{key}", body=data)
    return key


# -- objects ----------------------------------------------------------------------------------------------------


def test_put_answers_created_then_already_there(rig: HttpsRig) -> None:
    path = f"/areas/main/objects/{SPEC.key}"
    first = ask(rig, "PUT", path, body=DATA)
    assert first.status_code == 201
    assert json.loads(first.content)["sha256"] == SPEC.sha256
    assert ask(rig, "PUT", path, body=DATA).status_code == 200
    assert len(rig.far.objects()) == 1


def test_already_there_is_said_only_of_what_is_whole(rig: HttpsRig) -> None:
    put(rig, DATA)
    rig.rot(SPEC.key)
    assert status(rig, "PUT", f"/areas/main/objects/{SPEC.key}", body=DATA) == 201
    assert rig.far.objects()[0].read_bytes() == DATA


@pytest.mark.parametrize(
    "key",
    [
        "v1/../../../etc/passwd",
        "v1/%2e%2e/%2e%2e/etc/passwd",
        SPEC.key.replace("/", "%2f"),
        SPEC.key.replace("/", "//"),
        SPEC.key.upper(),
        SPEC.key.replace("v1", "V1"),
        SPEC.key + "/",
        SPEC.key + "%00",
        SPEC.key[:-1],
        SPEC.key + "0",
        "/" + SPEC.key,
        "v1%5c" + SPEC.key[3:],
        "v1/ff/ff/" + SPEC.sha256,
    ],
)
def test_only_keys_are_names(rig: HttpsRig, key: str, tmp_path: Path) -> None:
    put(rig, DATA)
    before = sorted(tmp_path.rglob("*"))
    for method, body in (("GET", None), ("PUT", DATA), ("DELETE", None), ("HEAD", None)):
        assert _raw(rig, method, f"/areas/main/objects/{key}", body) in (400, 404)
    assert _raw(rig, "GET", f"/areas/main/checksums/{key}", None) in (400, 404)
    assert sorted(tmp_path.rglob("*")) == before


def _raw(rig: HttpsRig, method: str, path: str, body: bytes | None) -> int:
    """Send a path exactly as it is: requests would tidy it."""
    import http.client

    from certs.tls import client_context

    host, port = rig.far.address
    connection = http.client.HTTPSConnection(host, port, context=client_context(rig.gateway).context, timeout=5)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        if body is not None:
            connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        return connection.getresponse().status
    finally:
        connection.close()


def test_ranges_and_their_statuses(rig: HttpsRig) -> None:
    put(rig, DATA)
    path = f"/areas/main/objects/{SPEC.key}"
    part = ask(rig, "GET", path, headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, DATA[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(DATA)}"
    assert ask(rig, "GET", path, headers={"range": "bytes=-5"}).content == DATA[-5:]
    assert status(rig, "GET", path, headers={"range": f"bytes={len(DATA)}-"}) == 416
    assert status(rig, "GET", path, headers={"range": "bytes=0-1,5-6"}) == 416


def test_length_is_needed_and_must_be_true(rig: HttpsRig) -> None:
    path = f"/areas/main/objects/{SPEC.key}"
    with pytest.raises(Answered) as caught, rig.session.stream("PUT", f"{rig.far.url}{path}", data=iter([DATA])):
        pass
    assert caught.value.http_status == 411
    assert status(rig, "PUT", path, body=DATA[:-1]) == 422
    assert rig.leftovers() == [] and rig.far.objects() == []


def test_listing_in_pages(rig: HttpsRig) -> None:
    keys = sorted(put(rig, DATA[:50] + bytes([n])) for n in range(7))
    seen, after = [], ""
    while after is not None:
        page = json.loads(ask(rig, "GET", f"/areas/main/objects?limit=3&after={after}").content)
        seen += [each["key"] for each in page["objects"]]
        after = page["after"]
    assert seen == keys
    assert status(rig, "GET", "/areas/main/objects?prefix=..") == 400
    assert status(rig, "GET", "/areas/main/objects?limit=100000") == 422


# -- uploads ----------------------------------------------------------------------------------------------------


def begin(rig: HttpsRig, data: bytes) -> dict[str, object]:
    spec = spec_of(data)
    body = {"key": spec.key, "size": spec.size, "chunks": list(spec.chunks)}
    answer = rig.session.json("POST", f"{rig.far.door}/uploads", body=body)
    assert isinstance(answer, dict)
    return answer


def patch(rig: HttpsRig, upload: object, data: bytes, start: int, stop: int) -> int:
    headers = {"content-range": f"bytes {start}-{stop - 1}/{len(data)}"}
    return status(rig, "PATCH", f"/areas/main/uploads/{upload}", body=data[start:stop], headers=headers)


def test_an_upload_says_what_is_missing(rig: HttpsRig) -> None:
    upload = begin(rig, BIG)["upload"]
    assert patch(rig, upload, BIG, 100, 5000) == 200
    assert patch(rig, upload, BIG, 6000, 7000) == 200
    left = rig.session.json("GET", f"{rig.far.door}/uploads/{upload}")["missing"]
    assert left == [[0, 100], [5000, 6000], [7000, len(BIG)]]
    assert begin(rig, BIG)["missing"] == left
    assert status(rig, "POST", f"/areas/main/uploads/{upload}/commit", body=b"") == 400
    rig.restart()
    assert begin(rig, BIG)["missing"] == left
    for start, stop in left:
        assert patch(rig, upload, BIG, start, stop) == 200
    assert status(rig, "POST", f"/areas/main/uploads/{upload}/commit", body=b"") == 200
    assert begin(rig, BIG)["state"] == "committed"
    assert rig.far.objects()[0].read_bytes() == BIG


def test_differing_overlap_is_a_conflict(rig: HttpsRig) -> None:
    upload = begin(rig, BIG)["upload"]
    assert patch(rig, upload, BIG, 0, 1000) == 200
    assert patch(rig, upload, BIG, 500, 2000) == 200
    assert patch(rig, upload, b"!" * len(BIG), 1500, 2500) == 409
    assert patch(rig, upload, BIG, 1500, len(BIG)) == 200
    assert status(rig, "POST", f"/areas/main/uploads/{upload}/commit", body=b"") == 200


def test_bad_ranges_are_refused(rig: HttpsRig) -> None:
    upload = begin(rig, BIG)["upload"]
    path = f"/areas/main/uploads/{upload}"
    size = len(BIG)
    for header in ("", "bytes 0-9/*", f"bytes 0-{size}/{size}", f"bytes 0-9/{size + 1}", "bytes 9-0/10"):
        assert status(rig, "PATCH", path, body=b"0123456789", headers={"content-range": header}) == 400
    assert status(rig, "PATCH", path, body=b"123", headers={"content-range": f"bytes 0-9/{size}"}) == 400
    big = {"content-range": f"bytes 0-{PART_BYTES}/{PART_BYTES * 2}"}
    assert status(rig, "PATCH", path, body=b"x", headers=big) == 400
    assert (
        status(rig, "PATCH", "/areas/main/uploads/nobody", body=b"x", headers={"content-range": "bytes 0-0/9"}) == 404
    )


def test_an_aborted_upload_is_gone(rig: HttpsRig) -> None:
    upload = begin(rig, BIG)["upload"]
    assert status(rig, "DELETE", f"/areas/main/uploads/{upload}") == 204
    assert status(rig, "GET", f"/areas/main/uploads/{upload}") == 404
    assert rig.leftovers() == []


def test_someone_elses_upload_is_not_there(rig: HttpsRig, site: SiteHome) -> None:
    upload = begin(rig, BIG)["upload"]
    other = GridSession(site.gateway("dgis2"))
    with pytest.raises(Answered) as caught:
        other.json("GET", f"{rig.far.door}/uploads/{upload}")
    assert caught.value.http_status == 404


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"key": "x", "size": 1}',
        json.dumps({"key": SPEC.key, "size": -1}).encode(),
        json.dumps({"key": SPEC.key, "size": 1, "more": 2}).encode(),
        json.dumps({"key": SPEC.key[:-1] + "/", "size": 1}).encode(),
        json.dumps({"key": SPEC.key, "size": 1, "chunks": [SPEC.sha256]}).encode(),
    ],
)
def test_bad_json_is_refused(rig: HttpsRig, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    assert status(rig, "POST", "/areas/main/uploads", body=body, headers=headers) in (400, 422)
    assert rig.leftovers() == []


# -- who may ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_area_rules_by_role(rig: HttpsRig, site: SiteHome, tmp_path: Path, role: str) -> None:
    put(rig, DATA)
    channel = rig.open(rig.far.door, session=GridSession(site.host(f"a-{role}", role)))
    other = write(tmp_path, b"new")
    calls = {
        "read": lambda: channel.checksum(SPEC.key),
        "list": lambda: list(channel.list()),
        "write": lambda: channel.put(spec_of(b"new"), other),
        "delete": lambda: channel.delete(SPEC.key),
    }
    for verb, call in calls.items():
        if verb in FULL_RULES.get(role, frozenset()):
            call()
        else:
            with pytest.raises(Denied):
                call()


def test_another_area_is_not_for_you(rig: HttpsRig) -> None:
    channel = rig.open(f"{rig.far.url}/areas/secret")
    with pytest.raises(Denied):
        channel.stat(SPEC.key)


def test_a_permit_opens_one_object_to_one_holder(rig: HttpsRig, site: SiteHome) -> None:
    put(rig, DATA)
    other = put(rig, b"other")
    holder = site.host("se9", "storage")
    session = GridSession(holder)

    def holding(**changes: object) -> str:
        return rig.permit(**{"keys": (SPEC.key,), "se": "se1", "holder": holder, **changes})  # type: ignore[arg-type]

    def size(permit: str | None, key: str = SPEC.key) -> int:
        return rig.open(rig.far.door, session=session, permit=permit).stat(key).size

    assert size(holding()) == len(DATA)
    with pytest.raises(Denied):
        size(None)
    with pytest.raises(Denied):
        size(holding(), other)
    with pytest.raises(Denied):
        size(holding(se="se2"))
    with pytest.raises(Denied):
        size(holding(verbs=("write",)))
    with pytest.raises(Denied):
        size(holding(holder=site.host("se8", "storage")))
    with pytest.raises(Denied):
        size(holding(signer=site.gateway()))
    with pytest.raises(Denied):
        size(holding() + "x")
    with pytest.raises(Denied):
        size("not.a.token")
    with pytest.raises(Denied):
        rig.open(rig.far.door, session=session, permit=holding(verbs=("read", "list"))).list().__next__()
    with pytest.raises(Denied):
        rig.open(rig.far.door, session=session, permit=holding()).delete(SPEC.key)


def test_a_permit_to_write_covers_an_upload(rig: HttpsRig, site: SiteHome, tmp_path: Path) -> None:
    holder, spec = site.host("se9", "storage"), spec_of(random.Random(1).randbytes(9_000_000))
    permit = rig.permit(keys=(spec.key,), se="se1", verbs=("write",), holder=holder)
    channel = rig.open(rig.far.door, session=GridSession(holder), permit=permit)
    channel.put(spec, write(tmp_path, random.Random(1).randbytes(9_000_000)))
    assert [path.name for path in rig.far.objects()] == [spec.sha256]


def test_an_expired_permit_is_refused(rig: HttpsRig) -> None:
    from datetime import UTC, datetime, timedelta

    spec, door, good = rig.source(DATA)
    old = rig.permit(keys=(spec.key,), seconds=60, now=datetime.now(UTC) - timedelta(seconds=90))
    with pytest.raises(Denied):
        rig.channel.pull(spec, [door], old)
    assert rig.far.objects() == []
    assert rig.channel.pull(spec, [door], good).size == len(DATA)


def test_pull_refusals_by_permit(rig: HttpsRig) -> None:
    spec, door, _ = rig.source(DATA)
    wrong = [
        rig.permit(keys=(spec.key,), se="se1"),
        rig.permit(keys=(object_key("0" * 64),)),
        rig.permit(keys=(spec.key,), holder=rig.gateway),
        rig.permit(keys=(spec.key,), verbs=("write",)),
    ]
    for permit in wrong:
        with pytest.raises(Denied):
            rig.channel.pull(spec, [door], permit)
    assert rig.far.objects() == [] and rig.leftovers() == []


def test_pull_with_wrong_size_or_full_keeps_nothing(rig: HttpsRig) -> None:
    spec, door, permit = rig.source(BIG)
    from storage_provider.channel import ObjectSpec
    from storage_provider.errors import Corrupt

    with pytest.raises((Corrupt, Refused)):
        rig.channel.pull(ObjectSpec(spec.key, spec.size - 1, spec.sha256, spec.chunks), [door], permit)
    rig.far.stop()
    rig.far.quota = 1000
    rig.far.start()
    rig.wire.target = rig.far.address
    with pytest.raises(NoSpace):
        rig.channel.pull(spec, [door], permit)
    assert rig.far.objects() == [] and rig.leftovers() == []


def test_pull_falls_over_between_sources(rig: HttpsRig) -> None:
    spec, door, permit = rig.source(BIG)
    assert rig.channel.pull(spec, ["https://127.0.0.1:1/areas/main", door], permit).size == len(BIG)


def test_an_asker_that_leaves_stops_the_pull(rig: HttpsRig) -> None:
    spec, door, permit = rig.source(BIG)
    wire = FaultyWire(rig.peer.address)
    wire.set(Mood(bytes_per_second=300_000))
    slow = door.replace(str(rig.peer.address[1]), str(wire.port))
    body = {"key": spec.key, "size": spec.size, "chunks": spec.chunks, "sources": [slow], "permit": permit}
    request = {"headers": {"content-type": "application/json"}, "data": json.dumps(body).encode()}
    with rig.session.stream("POST", f"{rig.far.door}/pulls", **request) as response:  # type: ignore[arg-type]
        assert b"received" in next(response.iter_lines(chunk_size=1))
        assert rig.leftovers()
    until = time.monotonic() + 3
    while rig.leftovers() and time.monotonic() < until:
        time.sleep(0.05)
    assert rig.leftovers() == [] and rig.far.objects() == []
    wire.close()


# -- around it --------------------------------------------------------------------------------------------------


def test_every_route_names_its_rule(site: SiteHome, tmp_path: Path) -> None:
    area = AreaTable(name="main", rules={})
    config = StorageConfig(identity=site.storage(), storage=StorageTable(name="se1", root=tmp_path), area=(area,))
    rules = route_rules(build(config))
    assert all(rules.values()) and len(rules) >= 12
    assert {rule.name for rule in rules.values() if rule} <= {
        "area-rules", "storage-space", "open-to-verified", "metrics",
    }  # fmt: skip


def test_space_health_and_metrics(rig: HttpsRig, site: SiteHome) -> None:
    put(rig, DATA)
    ask(rig, "GET", f"/areas/main/objects/{SPEC.key}")
    space = rig.session.json("GET", f"{rig.far.url}/v1/space")
    assert space["name"] == "se1" and space["areas"][0]["used"] == len(DATA)
    assert "main" in rig.session.json("GET", f"{rig.far.url}/health")["checks"]["space"]["detail"]
    with GridSession(site.operator()).stream("GET", f"{rig.far.url}/metrics") as response:
        text = response.raw.read().decode()
    for line in (
        f'dgis_storage_space_bytes{{area="main",kind="used"}} {float(len(DATA))}',
        f'dgis_storage_received_bytes_total{{area="main"}} {float(len(DATA))}',
        f'dgis_storage_sent_bytes_total{{area="main"}} {float(len(DATA))}',
        'dgis_storage_stored_objects_total{area="main",outcome="new"} 1.0',
    ):
        assert line in text


def test_health_fails_when_full(site: SiteHome, tmp_path: Path) -> None:
    full = HttpsProvider(site.storage(), "se1", tmp_path / "full", quota=0)
    full.start()
    try:
        with pytest.raises(Answered) as caught:
            GridSession(site.gateway()).json("GET", f"{full.url}/health")
        assert caught.value.http_status == 503
    finally:
        full.stop()


def test_a_door_url_without_area_is_refused(rig: HttpsRig) -> None:
    from storage_provider.channels import open_channels
    from storage_provider.errors import DoorURL

    more = ("?x=1", "?", "#x", "/")
    urls = ("https://h/", "http://h/areas/main", "ftp://h/areas/main", "nonsense", "https://h/areas/a/b")
    for url in (*urls, "https://me@h/areas/main", *(f"https://h/areas/main{end}" for end in more)):
        with pytest.raises(DoorURL):
            open_channels(rig.session)(url)


def test_an_area_that_is_not_there_has_no_space(rig: HttpsRig) -> None:
    with pytest.raises(NotFound):
        rig.open(f"{rig.far.url}/areas/none").space()
