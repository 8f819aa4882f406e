"""Our GridFTP server, asked by a bare client: what goes through, what is refused, what is left behind."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import random
import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certs.config import IdentityConfig
from certs.credential import Credential
from certs.permit import Permit, sign
from certs.tls import delegated_context, pinned_context
from certs.trust import Trust
from storage_provider.gridftp import dcsc
from storage_provider.gridftp.addresses import format_eprt, format_port, parse_spas
from storage_provider.gridftp.blocks import block_header, end_of_data
from storage_provider.gridftp.facts import parse_entry
from storage_provider.gridftp.gss import DELEGATION, NO_DELEGATION, GssError
from storage_provider.gridftp.markers import parse_restart, parse_spans
from storage_provider.gridftp.replies import Reply, adat_token
from storage_provider.gridftp.server import watch
from storage_provider.gridftp.settings import GsiftpSettings
from tests.helpers.gsiftp import CREDENTIAL, OwnServer, Raw, fds, path_of, serving, settled
from tests.helpers.pki import SiteHome, fresh_site, other_site, site

__all__ = ["fresh_site", "other_site", "site"]

SMALL = random.Random(1).randbytes(200_000)
BIG = random.Random(2).randbytes(9_500_000)
ZEROS = "0" * 64


@pytest.fixture
def door(site: SiteHome, tmp_path: Path) -> Iterator[OwnServer]:
    with serving(site.storage(), tmp_path / "se1") as server:
        yield server
        assert settled(), "a session did not end"


@pytest.fixture
def raw(door: OwnServer, site: SiteHome) -> Iterator[Raw]:
    with Raw(door.address) as client:
        yield client.login(site.gateway()).private()


def check(reply: Reply, code: int, word: str = "") -> None:
    assert reply.code == code and reply.text.startswith(word), reply


def refused(client: Raw, identity: IdentityConfig) -> bool:
    """Whether the server lets this identity in; the refusal is TLS's alert in a token, 535, or the end."""
    try:
        client.login(identity)
    except (GssError, AssertionError, ConnectionError) as error:
        return "535" in str(error) or "alert" in str(error) or isinstance(error, ConnectionError)
    return False


# -- the way in --------------------------------------------------------------------------------------------------


def test_nothing_but_the_way_in_before_authentication(door: OwnServer) -> None:
    with Raw(door.address) as client:
        for verb in ("FEAT", "PASV", "STOR x", "RETR x", "MLST /", "USER a", "PASS b", "SITE HELP", "ENC AAAA"):
            client.must(verb, 530)
        client.must("ADAT AAAA", 503)
        client.must("AUTH TLS", 504)
        client.must("NOOP", 200)
        client.must("QUIT", 221)


def test_junk_in_the_handshake_is_refused_and_ends_the_session(door: OwnServer) -> None:
    with Raw(door.address) as client:
        client.must("AUTH GSSAPI", 334)
        client.must("ADAT !!!", 501)
        client.must("ADAT QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo=", 535)
        with pytest.raises(ConnectionError):
            client.reply()


def test_another_authority_and_a_revoked_party_are_refused(
    fresh_site: SiteHome, other_site: SiteHome, tmp_path: Path
) -> None:
    revoked = fresh_site.host("leaver", "gateway")
    fresh_site.revoke(revoked)
    with serving(fresh_site.storage(), tmp_path / "se1") as door:
        for identity in (revoked, other_site.gateway()):
            with Raw(door.address) as client:
                assert refused(client, identity.model_copy(update={"trust": fresh_site.trust}))


@pytest.mark.parametrize("stale", [True, False])
def test_without_a_current_crl_nobody_comes_in(
    site: SiteHome, fresh_site: SiteHome, tmp_path: Path, stale: bool
) -> None:
    with serving(fresh_site.storage(), tmp_path / "se1") as door:
        with Raw(door.address) as client:
            client.login(site.gateway())
            if stale:
                fresh_site.put_crl(ends=datetime.now(UTC) - timedelta(minutes=1))
            else:
                fresh_site.drop_crls()
            check(client.ask("NOOP"), 421, "denied")  # nor does anybody stay
        with Raw(door.address) as client:
            assert refused(client, site.gateway())  # whose own CRLs are current


def test_older_peers_come_in_by_tls_12(door: OwnServer, site: SiteHome) -> None:
    path = door.put(SMALL)
    with Raw(door.address) as client:
        gss = client.shake(site.gateway(), newest=ssl.TLSVersion.TLSv1_2)
        client.adat(gss.wrap(NO_DELEGATION))
        client.protect(gss)
        assert gss.tls.version() == "TLSv1.2"
        endpoint = client.private().passive()
        client.send(f"RETR {path}")
        check(client.reply(), 150)
        context = pinned_context(CREDENTIAL.pem, "client")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        stream = client.connect(endpoint, context)
        stream.do_handshake()
        assert client.gather([stream]) == SMALL


def test_commands_in_clear_are_not_taken_after_the_handshake(raw: Raw) -> None:
    raw.raw(b"DELE /areas/main/objects\r\n")
    check(raw.reply(), 533, "denied")
    raw.must("NOOP", 200)


def test_features_help_and_where_one_is(raw: Raw) -> None:
    features = raw.must("FEAT", 211).lines
    assert {"DGIS 1", "DGIS-ELEMENT se1"} <= {line.strip() for line in features}
    assert "DCSC" in raw.must("SITE HELP", 214).text
    raw.must("CWD /areas/main", 250)
    raw.must("CWD ..", 250)
    assert '"/areas"' in raw.must("PWD", 257).text
    raw.must("CWD /etc", 550)
    check(raw.ask("XYZ"), 500)
    check(raw.ask("SITE EXEC x"), 504)


# -- clear data is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weak", ["PROT C", "PROT S", "DCAU N"])
@pytest.mark.parametrize("verb", ["PASV", "EPSV", "SPAS", "PORT 127,0,0,1,200,1", "RETR x", "STOR x", "MLSD /"])
def test_clear_data_is_refused(raw: Raw, weak: str, verb: str) -> None:
    raw.must(weak, 200)
    check(raw.ask(verb), 534, "denied")


def test_without_a_credential_no_data_flows(door: OwnServer, site: SiteHome) -> None:
    with Raw(door.address) as client:
        client.login(site.gateway())
        client.must("PROT P", 200)
        check(client.ask("PASV"), 534, "denied")
        check(client.ask("PORT 127,0,0,1,200,1"), 534, "denied")
        check(client.ask("DCSC P QUJD"), 501, "refused")
        check(client.ask("DCSC X"), 504)


def test_a_port_of_another_service_is_no_data_port(raw: Raw) -> None:
    check(raw.ask("PORT 127,0,0,1,0,22"), 504, "refused")


def test_who_holds_no_credential_of_the_session_gets_and_gives_nothing(door: OwnServer, raw: Raw) -> None:
    path = door.put(SMALL)
    endpoint = raw.passive()
    raw.send(f"RETR {path}")
    check(raw.reply(), 150)
    stranger = raw.connect(endpoint, pinned_context(dcsc.make().pem, "client"))
    with pytest.raises((ssl.SSLError, OSError)):
        stranger.do_handshake()
        assert stranger.recv(1) == b""
        raise ConnectionError
    honest = raw.connect(endpoint)
    honest.do_handshake()
    assert raw.gather([honest]) == SMALL


def test_with_a_delegated_proxy_both_ends_are_the_same_party(door: OwnServer, site: SiteHome) -> None:
    me, other = site.gateway(), site.gateway("dgis2")

    def proxied(identity: IdentityConfig) -> ssl.SSLContext:
        proxy = site.proxy_of(identity, f"{identity.cert.stem}.data")
        pem = proxy.cert.read_bytes() + proxy.key.read_bytes()
        return delegated_context(pem, "client", Trust(site.trust))

    with Raw(door.address) as client:
        client.login_delegating(site, me)
        client.must("PROT P", 200)
        client.must("MODE E", 200)
        endpoint = client.passive()
        client.send(f"STOR {path_of(SMALL)}")
        check(client.reply(), 150)
        stranger = client.connect(endpoint, proxied(other))
        stranger.do_handshake()
        with contextlib.suppress(OSError):
            assert stranger.recv(1) == b""  # known, but not this session's
        honest = client.connect(endpoint, proxied(me))
        honest.do_handshake()
        honest.sendall(block_header(len(SMALL), 0) + SMALL + end_of_data(streams=1))
        check(client.final(), 226)
        client.must(f"DCSC P {CREDENTIAL.blob}", 250)
        assert client.fetch(f"RETR {path_of(SMALL)}") == SMALL
        client.must("DCSC D", 250)
        check(client.ask(f"RETR {path_of(SMALL)}"), 425, "refused")


def test_a_proxy_of_somebody_else_is_not_taken(door: OwnServer, site: SiteHome) -> None:
    with Raw(door.address) as client:
        gss = client.shake(site.gateway())
        request = gss.unwrap(adat_token(client.adat(gss.wrap(DELEGATION))))
        token = base64.b64encode(gss.wrap(site.delegate(site.operator(), request))).decode()
        client.must(f"ADAT {token}", 535)


# -- objects in ---------------------------------------------------------------------------------------------------


def test_objects_go_in_verified_and_come_out(door: OwnServer, raw: Raw) -> None:
    for data in (SMALL, b"", BIG):
        check(raw.store(path_of(data), data), 226)
        assert raw.fetch(f"RETR {path_of(data)}") == data
    assert len(door.objects()) == 3 and door.leftovers() == []
    # once more: nothing is stored twice, and it is verified again
    check(raw.store(path_of(SMALL), SMALL), 226)
    assert len(door.objects()) == 3


def test_wrong_bytes_leave_nothing_and_the_session_goes_on(door: OwnServer, raw: Raw) -> None:
    check(raw.store(path_of(SMALL), b"x" * len(SMALL)), 550, "corrupt")
    check(raw.store(path_of(SMALL), SMALL[:-1]), 550, "corrupt")
    assert door.objects() == [] and door.leftovers() == []
    check(raw.store(path_of(SMALL), SMALL), 226)


def test_more_than_announced_and_no_room_are_refused(site: SiteHome, tmp_path: Path) -> None:
    with serving(site.storage(), tmp_path / "se1", quota=300_000) as door, Raw(door.address) as client:
        client.login(site.gateway()).private()
        check(client.store(path_of(BIG), BIG), 452, "no-space")
        endpoint = client.passive()
        client.send("ALLO 10", f"STOR {path_of(SMALL)}")
        check(client.reply(), 200)
        check(client.reply(), 150)
        stream = client.connect(endpoint)
        stream.do_handshake()
        stream.sendall(block_header(1000, 0) + SMALL[:1000])
        check(client.final(), 550, "refused")
        check(client.store(path_of(SMALL), SMALL), 226)
        assert len(door.objects()) == 1 and door.leftovers() == []


def test_many_streams_in_any_order(door: OwnServer, raw: Raw) -> None:
    endpoint = raw.passive()
    raw.send(f"ALLO {len(BIG)}", f"STOR {path_of(BIG)}")
    check(raw.reply(), 200)
    check(raw.reply(), 150)
    links = [raw.connect(endpoint) for _ in range(4)]
    for each in links:
        each.do_handshake()
    pieces = [(at, BIG[at : at + 400_000]) for at in range(0, len(BIG), 400_000)]
    random.Random(3).shuffle(pieces)
    for number, (at, piece) in enumerate(pieces):
        links[number % 4].sendall(block_header(len(piece), at) + piece)
    for number, each in enumerate(links):
        each.sendall(end_of_data(streams=4 if number == 2 else None))
    check(raw.final(), 226)
    assert raw.fetch(f"RETR {path_of(BIG)}", streams=1) == BIG


def test_transfers_sent_ahead_over_one_connection(door: OwnServer, raw: Raw) -> None:
    many = [random.Random(number).randbytes(1000 * number) for number in range(1, 30)]
    endpoint = raw.passive()
    raw.send(*(f"STOR {path_of(data)}" for data in many))
    stream = raw.connect(endpoint)
    stream.do_handshake()
    for data in many:
        stream.sendall(block_header(len(data), 0) + data + end_of_data(streams=1))
    assert {raw.final().code for _ in many} == {226}
    raw.passive()
    raw.send(*(f"RETR {path_of(data)}" for data in many))
    check(raw.reply(), 150)


def test_refused_objects_sent_ahead_are_taken_off_when_the_client_says_so(door: OwnServer, raw: Raw) -> None:
    raw.must("OPTS STOR Ahead=1;", 200)
    check(raw.store(path_of(SMALL), SMALL), 226)
    stream = raw.data[-1]
    bad = "/areas/main/objects/nonsense"
    raw.send(f"STOR {bad}", f"STOR {path_of(b'after')}")
    stream.sendall(block_header(3, 0) + b"bad" + end_of_data(streams=1))
    stream.sendall(block_header(5, 0) + b"after" + end_of_data(streams=1))
    check(raw.final(), 550, "not-found")
    check(raw.final(), 226)


def test_objects_sent_ahead_are_stored_and_their_replies_travel_together(door: OwnServer, raw: Raw) -> None:
    raw.must("OPTS STOR Ahead=1;", 200)
    check(raw.store(path_of(SMALL), SMALL), 226)
    stream = raw.data[-1]
    many = [b"%d" % number * 50_000 for number in range(5)]
    raw.send(*(line for data in many for line in (f"ALLO {len(data)}", f"STOR {path_of(data)}")))
    for data in many:
        half = len(data) // 2  # as two blocks, in order
        stream.sendall(block_header(half, 0) + data[:half] + block_header(len(data) - half, half) + data[half:])
        stream.sendall(end_of_data(streams=1))
    for _ in many:
        check(raw.final(), 200)
        check(raw.final(), 226)
    raw.must("OPTS STOR Ahead=0;", 200)
    assert all(raw.must(f"SIZE {path_of(data)}", 213).text == str(len(data)) for data in many)


@pytest.mark.parametrize("announced", [4, 6])
def test_an_object_sent_ahead_has_the_announced_size(door: OwnServer, raw: Raw, announced: int) -> None:
    raw.must("OPTS STOR Ahead=1;", 200)
    check(raw.store(path_of(SMALL), SMALL), 226)
    raw.send(f"ALLO {announced}", f"STOR {path_of(b'after')}")
    raw.data[-1].sendall(block_header(5, 0) + b"after" + end_of_data(streams=1))
    check(raw.final(), 200)
    check(raw.final(), 550, "refused")
    check(raw.ask(f"SIZE {path_of(b'after')}"), 550)
    assert not door.leftovers()


def test_what_is_sent_ahead_out_of_order_is_refused(door: OwnServer, raw: Raw) -> None:
    raw.must("OPTS STOR Ahead=1;", 200)
    check(raw.store(path_of(SMALL), SMALL), 226)
    raw.send("ALLO 5", f"STOR {path_of(b'after')}")
    raw.data[-1].sendall(block_header(3, 2) + b"ter" + block_header(2, 0) + b"af" + end_of_data(streams=1))
    check(raw.final(), 200)
    check(raw.final(), 426, "unreachable")


def test_an_upload_that_was_cut_goes_on_where_it_stood(door: OwnServer, site: SiteHome, raw: Raw) -> None:
    path = path_of(BIG)
    assert raw.must(f"SITE MISSING {len(BIG)} {path}", 250).text == f"0-{len(BIG)}"
    endpoint = raw.passive()
    raw.send(f"ALLO {len(BIG)}", f"STOR {path}")
    stream = raw.connect(endpoint)
    stream.do_handshake()
    stream.sendall(block_header(4_000_000, 0) + BIG[:4_000_000])
    stream.sendall(block_header(1_000_000, 6_000_000) + BIG[6_000_000:7_000_000])
    stream.close()
    check(raw.reply(), 200)
    check(raw.final(), 426, "unreachable")
    with Raw(door.address) as again:
        again.login(site.gateway()).private()
        left = again.must(f"SITE MISSING {len(BIG)} {path}", 250).text
        assert left == f"4000000-6000000,7000000-{len(BIG)}"
        endpoint = again.passive()
        again.must("REST 0-4000000,6000000-7000000", 350)
        again.send(f"ALLO {len(BIG)}", f"STOR {path}")
        stream = again.connect(endpoint)
        stream.do_handshake()
        for start, stop in ((4_000_000, 6_000_000), (7_000_000, len(BIG))):
            stream.sendall(block_header(stop - start, start) + BIG[start:stop])
        stream.sendall(end_of_data(streams=1))
        check(again.reply(), 200)
        check(again.final(), 226)
        assert again.must(f"SITE MISSING {len(BIG)} {path}", 250).text == ""
    assert door.leftovers() == []


def test_what_is_missing_in_very_many_places_is_told_in_one_line(door: OwnServer, raw: Raw) -> None:
    path, step = path_of(BIG), 20_000
    endpoint = raw.passive()
    raw.send(f"ALLO {len(BIG)}", f"STOR {path}")
    stream = raw.connect(endpoint)
    stream.do_handshake()
    for at in range(0, 400 * step, step):
        stream.sendall(block_header(100, at) + BIG[at : at + 100])
    stream.close()
    check(raw.reply(), 200)
    check(raw.final(), 426)
    told = parse_spans(raw.must(f"SITE MISSING {len(BIG)} {path}", 250).text)
    assert len(told.spans) == 256 and told.spans[-1][1] == len(BIG)
    for at in range(0, 400 * step, step):
        assert told.covers(at + 100, at + step)


def test_rest_0_begins_anew(door: OwnServer, raw: Raw) -> None:
    part = "/areas/main/stage/one.part"
    check(raw.store(part, SMALL), 226)
    raw.must("REST 0", 350)
    check(raw.store(part, SMALL[:10]), 226)
    assert raw.must(f"SIZE {part}", 213).text == "10"


def test_a_part_becomes_an_object_by_a_verified_rename(door: OwnServer, raw: Raw) -> None:
    part = "/areas/main/stage/one.part"
    check(raw.store(part, SMALL[:100_000]), 226)
    assert raw.must(f"SIZE {part}", 213).text == "100000"
    raw.must(f"RNFR {part}", 350)
    check(raw.ask(f"RNTO {path_of(SMALL)}"), 550, "corrupt")
    check(raw.store(part, SMALL[:100_000]), 226)
    endpoint = raw.passive()
    raw.send(f"ESTO A 100000 {part}")
    stream = raw.connect(endpoint)
    stream.do_handshake()
    stream.sendall(block_header(100_000, 0) + SMALL[100_000:] + end_of_data(streams=1))
    check(raw.final(), 226)
    raw.must(f"RNFR {part}", 350)
    raw.must(f"RNTO {path_of(SMALL)}", 250)
    check(raw.ask(f"RNTO {path_of(SMALL)}"), 503)
    assert raw.fetch(f"RETR {path_of(SMALL)}") == SMALL and door.leftovers() == []


def test_stream_mode_in_both_directions(door: OwnServer, site: SiteHome) -> None:
    with Raw(door.address) as client:
        client.login(site.gateway()).private(mode="S")
        endpoint = client.passive()
        client.send(f"ALLO {len(SMALL)}", f"STOR {path_of(SMALL)}")
        check(client.reply(), 200)
        stream = client.connect(endpoint)
        stream.do_handshake()
        stream.sendall(SMALL)
        stream.unwrap().close()
        check(client.final(), 226)
        client.must("REST 50000", 350)
        endpoint = client.passive()
        client.send(f"RETR {path_of(SMALL)}")
        stream = client.connect(endpoint)
        stream.do_handshake()
        got = b"".join(iter(lambda: stream.recv(65536), b""))
        stream.unwrap().close()
        check(client.final(), 226)
        assert got == SMALL[50_000:]


def test_stream_mode_cut_short_is_no_success(door: OwnServer, site: SiteHome) -> None:
    with Raw(door.address) as client:
        client.login(site.gateway()).private(mode="S")
        part = "/areas/main/stage/one.part"
        endpoint = client.passive()
        client.send(f"STOR {part}")
        stream = client.connect(endpoint)
        stream.do_handshake()
        stream.sendall(SMALL[:60_000])
        stream.close()  # a plain FIN: mode S has no other end
        check(client.final(), 426, "unreachable")
        assert client.must(f"SIZE {part}", 213).text == "60000"


@pytest.mark.parametrize("spelling", ["PORT", "EPRT"])
def test_the_server_connects_when_asked_to(door: OwnServer, raw: Raw, spelling: str) -> None:
    path = door.put(SMALL)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        endpoint = listener.getsockname()
        raw.must("OPTS RETR Parallelism=3,3,3;", 200)
        raw.must(f"{spelling} {(format_port if spelling == 'PORT' else format_eprt)(endpoint)}", 200)
        raw.send(f"RETR {path}")
        links = []
        for _ in range(3):
            plain, _ = listener.accept()
            plain.settimeout(10)
            made = pinned_context(CREDENTIAL.pem, "server").wrap_socket(
                plain, server_side=True, do_handshake_on_connect=False
            )
            raw.data.append(made)
            links.append(made)
        for each in links:
            each.do_handshake()
        assert raw.gather(links) == SMALL


def test_bytes_are_never_changed(door: OwnServer, raw: Raw) -> None:
    path = door.put(SMALL)
    raw.must("TYPE A", 200)
    raw.passive()
    check(raw.ask(f"RETR {path}"), 504, "unsupported")
    check(raw.ask(f"STOR {path}"), 504, "unsupported")


def test_markers_tell_what_is_safe(door: OwnServer, raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MARKER_SECONDS", 0.0)
    monkeypatch.setattr(watch, "_TICK_SECONDS", 0.05)
    endpoint = raw.passive()
    raw.send(f"ALLO {len(BIG)}", f"STOR {path_of(BIG)}")
    check(raw.reply(), 200)
    check(raw.reply(), 150)
    stream = raw.connect(endpoint)
    stream.do_handshake()
    stream.sendall(block_header(1_000_000, 2_000_000) + BIG[2_000_000:3_000_000])
    while not (told := parse_restart((marker := [raw.reply(), raw.reply()])[1].text)):
        assert [each.code for each in marker] == [112, 111]
    assert told.spans[0][0] == 2_000_000 and told.spans[0][1] <= 3_000_000
    stream.sendall(block_header(len(BIG), 0) + BIG + end_of_data(streams=1))
    check(raw.final(), 226)


def test_striped_addresses_are_those_of_one_stripe(door: OwnServer, raw: Raw) -> None:
    path = door.put(SMALL)
    (endpoint,) = parse_spas(raw.must("SPAS", 229).lines)
    raw.send(f"RETR {path}")
    check(raw.reply(), 150)
    stream = raw.connect(endpoint)
    stream.do_handshake()
    assert raw.gather([stream]) == SMALL


def test_nobody_listens_where_the_server_should_connect(raw: Raw, door: OwnServer) -> None:
    path = door.put(SMALL)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        endpoint = gone.getsockname()
    raw.must(f"PORT {format_port(endpoint)}", 200)
    check(raw.ask(f"RETR {path}"), 426, "unreachable")
    raw.must("NOOP", 200)


def test_ranges(door: OwnServer, raw: Raw) -> None:
    path = door.put(SMALL)
    assert raw.fetch(f"ERET P 1000 5000 {path}") == SMALL[1000:6000]
    assert raw.fetch(f"ERET P 199000 5000 {path}") == SMALL[199_000:]
    raw.passive()
    check(raw.ask(f"ERET P 300000 5 {path}"), 550, "refused")
    raw.must("REST 0-199990", 350)
    endpoint = raw.passive()
    raw.send(f"RETR {path}")
    stream = raw.connect(endpoint)
    stream.do_handshake()
    head = stream.recv(17)
    assert head == block_header(10, 199_990)


# -- names --------------------------------------------------------------------------------------------------------


def test_digests_sizes_listings_and_deletion(door: OwnServer, raw: Raw) -> None:
    path = door.put(SMALL)
    for name, algorithm in (("SHA256", "sha256"), ("MD5", "md5"), ("SHA1", "sha1"), ("SHA512", "sha512")):
        assert raw.must(f"CKSM {name} 0 -1 {path}", 213).text == hashlib.new(algorithm, SMALL).hexdigest()
    assert raw.must(f"CKSM ADLER32 0 -1 {path}", 213).text == f"{zlib.adler32(SMALL):08x}"
    assert raw.must(f"CKSM SHA256 10 20 {path}", 213).text == hashlib.sha256(SMALL[10:30]).hexdigest()
    check(raw.ask(f"CKSM CRC32 0 -1 {path}"), 504, "unsupported")
    assert raw.must(f"SIZE {path}", 213).text == str(len(SMALL))
    assert len(raw.must(f"MDTM {path}", 213).text) == 14
    fact = parse_entry(raw.must(f"MLST {path}", 250).lines[1])
    assert (fact.name, fact.kind, fact.size) == (path, "file", len(SMALL))
    folder = path.rpartition("/")[0]
    listed = raw.must(f"MLSC {folder}", 250).lines[1:-1]
    assert [parse_entry(line).name for line in listed] == [path[-64:]]
    assert raw.must(f"MKD {folder}", 257)
    check(raw.ask("MKD /areas/main/mine"), 550)
    raw.must(f"DELE {path}", 250)
    check(raw.ask(f"SIZE {path}"), 550, "not-found")
    assert door.objects() == []


def test_a_long_listing_comes_in_pieces(door: OwnServer, raw: Raw) -> None:
    for number in range(150):
        check(raw.store(f"/areas/main/stage/p{number:03}.part", b"x"), 226)
    names = [parse_entry(line).name for line in raw.must("MLSC /areas/main/stage", 250).lines[1:-1]]
    assert names == [f"p{number:03}.part" for number in range(150)]
    over_data = raw.fetch("MLSD /areas/main/stage").decode().splitlines()
    assert [parse_entry(line).name for line in over_data] == [".", *names]
    assert raw.fetch("NLST /areas/main/stage").decode().split() == names


def test_space(raw: Raw) -> None:
    text = raw.must("SITE SPACE /areas/main", 250).text
    assert [part.partition("=")[0] for part in text.split()] == ["total", "free", "used"]
    check(raw.ask("SITE SPACE /"), 550, "not-found")


# -- rights -------------------------------------------------------------------------------------------------------


def test_roles_and_permits_decide(door: OwnServer, site: SiteHome) -> None:
    path = door.put(SMALL)
    stranger = site.host("stranger-with-permit")
    now = datetime.now(UTC)

    def permit(verbs: tuple[str, ...], se: str = "se1", signer: str = "catalog") -> str:
        by = site.catalog() if signer == "catalog" else site.host(signer, "gateway")
        dn = Credential(stranger.cert, stranger.key).dn()
        key = path.removeprefix("/areas/main/objects/")
        return sign(Permit(dn, se, (key,), verbs, now + timedelta(minutes=5)), Credential(by.cert, by.key), now=now)

    with Raw(door.address) as client:
        client.login(stranger).private()
        client.passive()
        for command in (
            f"RETR {path}",
            f"STOR {path}",
            f"DELE {path}",
            f"CKSM SHA256 0 -1 {path}",
            "MLSC /areas/main/objects",
        ):
            check(client.ask(command), 550, "denied")
        check(client.ask(f"SITE PERMIT {permit(('read',), se='se2')}"), 550, "denied")
        check(client.ask(f"SITE PERMIT {permit(('read',), signer='dgis')}"), 550, "denied")
        check(client.ask("SITE PERMIT nonsense"), 550, "denied")
        check(client.ask(f"RETR {path}"), 550, "denied")
        client.must(f"SITE PERMIT {permit(('read',))}", 250)
        assert client.fetch(f"RETR {path}") == SMALL
        check(client.ask(f"DELE {path}"), 550, "denied")
        client.must("SITE PERMIT", 250)
        check(client.ask(f"SIZE {path}"), 550, "denied")
    with Raw(door.address) as client:
        client.login(site.operator()).private()
        client.passive()
        check(client.ask(f"STOR {path}"), 550, "denied")
        assert client.fetch(f"RETR {path}") == SMALL


def test_error_texts_hold_key_and_reason_only(door: OwnServer, raw: Raw) -> None:
    for command in (f"SIZE /areas/main/objects/v1/00/00/{ZEROS}", "SIZE /areas/none/objects", "CWD ../../../../etc"):
        assert str(door.root) not in raw.ask(command).text


def test_acting_for_is_taken_in_percent_codes(raw: Raw) -> None:
    raw.must("SITE ACTINGFOR ae:STORE%20SCU@a", 250)
    raw.must("SITE ACTINGFOR", 250)
    check(raw.ask("SITE ACTINGFOR %0a"), 501)


def test_revoked_in_mid_session(fresh_site: SiteHome, tmp_path: Path) -> None:
    identity = fresh_site.gateway()
    with serving(fresh_site.storage(), tmp_path / "se1") as door:
        path = door.put(BIG)
        with Raw(door.address) as idle, Raw(door.address) as busy:
            for client in (idle, busy):
                client.login(identity).private()
            endpoint = busy.passive()
            busy.send(f"STOR {path_of(SMALL)}")
            stream = busy.connect(endpoint)
            stream.do_handshake()
            stream.sendall(block_header(len(SMALL), 0) + SMALL[:1000])
            check(busy.reply(), 150)
            fresh_site.revoke(identity)
            check(idle.ask(f"SIZE {path}"), 421, "denied")
            with pytest.raises(ConnectionError):
                idle.reply()
            started = time.monotonic()
            check(busy.final(), 550, "denied")
            assert time.monotonic() - started < 5
            check(busy.ask("NOOP"), 421, "denied")
        assert settled() and door.leftovers() == [] and len(door.objects()) == 1


# -- limits and ends ----------------------------------------------------------------------------------------------


def test_abort_ends_a_transfer_and_the_session_goes_on(door: OwnServer, raw: Raw) -> None:
    endpoint = raw.passive()
    raw.send(f"STOR {path_of(SMALL)}")
    stream = raw.connect(endpoint)
    stream.do_handshake()
    stream.sendall(block_header(len(SMALL), 0) + SMALL[:1000])
    check(raw.reply(), 150)
    raw.send("ABOR")
    check(raw.reply(), 426, "cancelled")
    check(raw.reply(), 226)
    assert door.leftovers() == []
    check(raw.store(path_of(SMALL), SMALL), 226)


def test_who_goes_away_leaves_nothing(door: OwnServer, site: SiteHome) -> None:
    path, before = door.put(BIG), fds()
    for verb in (f"STOR {path_of(SMALL)}", f"RETR {path}"):
        client = Raw(door.address).login(site.gateway()).private()
        endpoint = client.passive()
        client.send(verb)
        stream = client.connect(endpoint)
        stream.do_handshake()
        if verb.startswith("STOR"):
            stream.sendall(block_header(len(SMALL), 0) + SMALL[:5000])
        check(client.reply(), 150)
        client.close()
        assert settled(), verb
    assert door.leftovers() == [] and fds() == before


def test_idle_sessions_and_silent_transfers_end(site: SiteHome, tmp_path: Path) -> None:
    with serving(site.storage(), tmp_path / "se1", GsiftpSettings(idle_seconds=0.5)) as door:
        with Raw(door.address) as silent:
            check(silent.reply(), 421)  # before the login
        with Raw(door.address) as client:
            client.login(site.gateway()).private()
            endpoint = client.passive()
            client.send(f"STOR {path_of(SMALL)}")
            check(client.reply(), 150)
            check(client.final(), 426, "unreachable")  # nobody came
            endpoint = client.passive()
            client.send(f"STOR {path_of(SMALL)}")
            client.connect(endpoint).do_handshake()
            check(client.reply(), 150)
            check(client.final(), 426, "unreachable")  # somebody came and was silent
            check(client.reply(), 421)
        assert settled() and door.leftovers() == []


def test_sessions_are_limited_in_all_and_per_party(site: SiteHome, tmp_path: Path) -> None:
    with serving(site.storage(), tmp_path / "se1", GsiftpSettings(sessions=3, sessions_per_peer=2)) as door:
        with Raw(door.address) as one, Raw(door.address) as two:
            one.login(site.gateway())
            two.login(site.gateway())
            with Raw(door.address) as three, pytest.raises(AssertionError, match="421"):
                three.login(site.gateway())
            assert settled(left=2)
            with Raw(door.address) as other, Raw(door.address) as fourth:
                other.login(site.operator())
                assert fourth.greeting.code == 220  # those before their login take no place of the others
                with pytest.raises(AssertionError, match="421"):
                    fourth.login(site.operator())
        assert settled()
        with Raw(door.address) as later:
            later.login(site.gateway())


def stranger(door: OwnServer, address: str) -> socket.socket:
    return socket.create_connection(door.address, 5, source_address=(address, 0))


def said(raw: socket.socket, seconds: float = 5.0) -> bytes:
    """What comes next; b"" at the end, or when nothing comes in time."""
    raw.settimeout(seconds)
    try:
        return raw.recv(4096)
    except TimeoutError:
        return b"silence"
    except OSError:
        return b""


def test_silent_strangers_of_one_address_crowd_out_nobody(site: SiteHome, tmp_path: Path) -> None:
    limits = GsiftpSettings(sessions=1, waiting=20, waiting_per_address=3)
    with serving(site.storage(), tmp_path / "se1", limits) as door, ExitStack() as stack:
        crowd = [stack.enter_context(stranger(door, "127.0.0.2")) for _ in range(3)]
        assert all(said(each).startswith(b"220 ") for each in crowd)
        for _ in range(5):
            with stranger(door, "127.0.0.2") as newest:
                assert said(newest).startswith(b"421 ") and said(newest) == b""
        with Raw(door.address) as client:
            client.login(site.gateway())
            assert all(said(each, 0.05) == b"silence" for each in crowd)


def test_many_silent_addresses_lose_the_oldest(site: SiteHome, tmp_path: Path) -> None:
    limits = GsiftpSettings(waiting=4, waiting_per_address=2)
    with serving(site.storage(), tmp_path / "se1", limits) as door, ExitStack() as stack:
        crowd = []
        for n in range(4):
            crowd.append(stack.enter_context(stranger(door, f"127.0.0.{2 + n // 2}")))
            assert said(crowd[-1]).startswith(b"220 ")
        with Raw(door.address) as client:
            client.login(site.gateway())
            assert said(crowd[0]) == b"" and all(said(each, 0.05) == b"silence" for each in crowd[1:])


def test_eight_logins_of_one_address_at_once(door: OwnServer, site: SiteHome) -> None:
    def comes_in(_: int) -> None:
        with Raw(door.address) as client:
            client.login(site.gateway())

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(comes_in, range(24)))) == 24


def test_a_login_takes_only_so_long(site: SiteHome, tmp_path: Path) -> None:
    settings = GsiftpSettings(grace_seconds=0.5)
    with (
        serving(site.storage(), tmp_path / "se1", settings) as door,
        Raw(door.address) as slow,
        Raw(door.address) as client,
    ):
        client.login(site.gateway())
        for _ in range(3):
            slow.must("NOOP", 200)
        check(slow.reply(), 421)
        time.sleep(0.6)
        client.must("NOOP", 200)


@pytest.mark.parametrize("command", ["NOOP", "AUTH GSSAPI", "STOR x"])
def test_before_the_login_only_so_many_commands_are_answered(door: OwnServer, command: str) -> None:
    with Raw(door.address) as client:
        client.send(*[command] * 500)
        codes = []
        with pytest.raises(ConnectionError):
            for _ in range(501):
                codes.append(client.reply().code)
        assert len(codes) == 21 and codes[-1] == 421 and 421 not in codes[:-1]


def test_ports_and_the_address_to_tell(site: SiteHome, tmp_path: Path) -> None:
    settings = GsiftpSettings(data_ports=(20200, 20201), advertise="192.0.2.7")  # below the ephemeral ones
    with serving(site.storage(), tmp_path / "se1", settings) as door, Raw(door.address) as client:
        client.login(site.gateway()).private()
        text = client.must("PASV", 227).text
        assert "(192,0,2,7,78,23" in text
        with Raw(door.address) as second, Raw(door.address) as third:
            second.login(site.gateway()).private().must("EPSV", 229)
            check(third.login(site.gateway()).private().ask("EPSV"), 425, "faulty")


def test_over_ipv6(site: SiteHome, tmp_path: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with serving(site.storage(), tmp_path / "se1", GsiftpSettings(host="::1")) as door, Raw(door.address) as client:
        assert door.url.startswith("gsiftp://[::1]:")
        client.login(site.gateway()).private()
        check(client.store(path_of(SMALL), SMALL), 226)
        check(client.ask("PASV"), 522, "refused")


def test_stop_ends_running_sessions_and_leaves_nothing(site: SiteHome, tmp_path: Path) -> None:
    before = fds()
    with serving(site.storage(), tmp_path / "se1") as door:
        client = Raw(door.address).login(site.gateway()).private()
        endpoint = client.passive()
        client.send(f"STOR {path_of(SMALL)}")
        client.connect(endpoint).do_handshake()
        check(client.reply(), 150)
        assert door.server.check() == "1 sessions"
    assert settled(0.5) and door.leftovers() == []
    with pytest.raises(OSError):
        door.server.check()
    client.close()
    assert fds() == before
