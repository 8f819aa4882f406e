"""The channel at our own server: batches that run into refusals in their middle, sessions, order."""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from certs import ca
from certs.tls import client_context
from storage_provider.channel import ObjectSpec, Put, Stored, Want
from storage_provider.errors import Denied, DoorURL, NoSpace, NotFound, Unreachable
from storage_provider.gridftp.client.channel import GsiftpChannel
from storage_provider.gridftp.client.session import Session
from storage_provider.gridftp.client.staging import Staging
from storage_provider.gridftp.server import names
from storage_provider.gridftp.settings import DataSettings
from storage_provider.timeouts import Timeouts
from tests.conformance.faulty_wire import FaultyWire
from tests.conformance.gsiftp_rig import GsiftpProvider, gsiftp_rig
from tests.conformance.memory_channel import spec_of
from tests.conformance.rigs import FULL_RULES, write
from tests.helpers.pki import SiteHome, site

__all__ = ["site"]

DATA = random.Random(6).randbytes(2 * 1024 * 1024)
Serve = Callable[..., GsiftpProvider]


@pytest.fixture
def serve(site: SiteHome, tmp_path: Path) -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(**settings: object) -> GsiftpProvider:
            provider = GsiftpProvider(site.storage("se1"), "se1", tmp_path / "se1", **settings)  # type: ignore[arg-type]
            provider.start()
            stack.callback(provider.stop)
            return provider

        yield start


def channel(site: SiteHome, door: str, *, sessions: int = 4) -> GsiftpChannel:
    tls, patience = client_context(site.gateway()), Timeouts(answer=5, write=5)
    return GsiftpChannel(tls, door, timeouts=patience, data=DataSettings(sessions=sessions))


def puts(tmp_path: Path, number: int, size: int) -> list[Put]:
    return [Put(spec_of(DATA[n : n + size]), write(tmp_path, DATA[n : n + size])) for n in range(number)]


def test_an_older_own_server_does_not_say_its_name(
    site: SiteHome, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = serve()
    with closing(channel(site, far.door)) as here:
        assert here.element() == "se1"
    monkeypatch.setattr(names, "features", lambda element: ("DGIS 1",))
    with closing(channel(site, far.door)) as here:
        assert here.element() is None


def test_a_new_batch_is_not_asked_for_object_by_object(
    site: SiteHome, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    plain = Staging.verified

    def verified(staging: Staging, session: Session, specs: list[ObjectSpec]) -> list[bool]:
        asked.append(len(specs))
        return plain(staging, session, specs)

    monkeypatch.setattr(Staging, "verified", verified)
    batch = puts(tmp_path, 20, 1000)
    with closing(channel(site, serve().door)) as here:
        for _ in range(2):
            assert all(isinstance(stored, Stored) for _, stored in here.put_many(batch))
    assert asked == [2, 2, 18]


def test_one_login_serves_many_calls(site: SiteHome, serve: Serve, tmp_path: Path) -> None:
    wire = FaultyWire(serve().address)
    with closing(wire), closing(channel(site, f"gsiftp://127.0.0.1:{wire.port}/areas/main")) as here:
        for put in puts(tmp_path, 5, 1000):
            here.put(put.spec, put.path)
            assert here.checksum(put.spec.key) == put.spec.sha256
            with here.get(put.spec.key, length=10) as blocks:
                assert len(b"".join(blocks)) == 10
        assert wire.accepted == 1


def test_a_full_area_refuses_what_does_not_fit_and_takes_the_rest(site: SiteHome, serve: Serve, tmp_path: Path) -> None:
    """Refused in the middle of a flight: what was sent ahead is read away, and everything else is as it should be."""
    room = 30
    batch = puts(tmp_path, 100, 50_000)
    provider = serve(quota=room * 50_000)
    with closing(channel(site, provider.door)) as here:
        found = {put.spec.key: outcome for put, outcome in here.put_many(batch)}
        assert Counter(type(outcome) for outcome in found.values()) == {Stored: room, NoSpace: 100 - room}
        listed = {stat.key for stat in here.list()}
        assert listed == {key for key, outcome in found.items() if isinstance(outcome, Stored)}
    assert provider.leftovers() == []


def test_without_the_right_to_write_a_batch_is_denied(site: SiteHome, serve: Serve, tmp_path: Path) -> None:
    rules = {"gateway": FULL_RULES["gateway"] - {"write"}}
    with closing(channel(site, serve(rules=rules).door)) as here:
        found = [outcome for _, outcome in here.put_many(puts(tmp_path, 20, 50_000))]
        assert [type(outcome) for outcome in found] == [Denied] * 20


def test_hundreds_go_and_come_in_order(site: SiteHome, serve: Serve, tmp_path: Path) -> None:
    batch = puts(tmp_path, 300, 700)
    with closing(channel(site, serve().door)) as here:
        assert all(isinstance(outcome, Stored) for _, outcome in here.put_many(batch))
        wants = [Want(put.spec.key) for put in batch]
        wants[150:150] = [Want(spec_of(b"none").key)]
        with here.get_many(wants) as gots:
            for want, got in zip(wants, gots, strict=True):
                if want is wants[150]:
                    with pytest.raises(NotFound):
                        list(got.blocks)
                else:
                    assert spec_of(b"".join(got.blocks)).key == want.key


def test_a_skipped_answer_does_not_shift_the_next(site: SiteHome, serve: Serve, tmp_path: Path) -> None:
    batch = puts(tmp_path, 12, 70_000)
    with closing(channel(site, serve().door)) as here:
        list(here.put_many(batch))
        with here.get_many([Want(put.spec.key) for put in batch]) as gots:
            for number, got in enumerate(gots):
                if number % 3 == 0:
                    assert spec_of(b"".join(got.blocks)).key == got.want.key
                elif number % 3 == 1:
                    next(got.blocks)


def test_a_door_of_ours_has_its_own_form(site: SiteHome, serve: Serve) -> None:
    url = serve().url
    with closing(channel(site, f"{url}/srv/dgis")) as here, pytest.raises(DoorURL, match="areas"):
        here.stat(spec_of(b"none").key)


def test_third_party_goes_on_where_a_put_was_cut(site: SiteHome, tmp_path: Path) -> None:
    with gsiftp_rig(site, tmp_path) as rig:
        data = random.Random(7).randbytes(20 * 1024 * 1024)
        spec, door, permit = rig.source(data)
        rig.cut_put(len(data) // 5)  # less than it needs even with every try
        with pytest.raises(Unreachable):
            rig.channel.put(spec, write(tmp_path, data))
        rig.heal()
        assert rig.leftovers() != []
        rotten = rig.peer.root / "main" / "objects" / spec.key
        rotten.write_bytes(b"lies" + rotten.read_bytes()[4:])  # at the front, which is not asked for any more
        assert rig.channel.pull(spec, [door], permit).sha256 == spec.sha256
        assert rig.leftovers() == []


def test_over_ipv6(site: SiteHome, tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    made = ca.issue_host(site.home, "se-v6", dns=("localhost",), ips=("::1",), roles=("storage",), out=tmp_path)
    with ExitStack() as stack:
        doors = []
        for name in ("se1", "se2"):
            provider = GsiftpProvider(site.identity(made), name, tmp_path / name, host="::1")
            stack.callback(provider.stop)
            doors.append(f"{provider.start()}/areas/main")
        first, second = (stack.enter_context(closing(channel(site, door))) for door in doors)
        spec = spec_of(DATA)
        first.put(spec, write(tmp_path, DATA))
        assert second.pull(spec, [first.door], None).sha256 == spec.sha256
        with second.get(spec.key) as blocks:
            assert b"".join(blocks) == DATA
