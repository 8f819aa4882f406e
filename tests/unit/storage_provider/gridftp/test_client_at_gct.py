"""The channel at a stock server (GCT): what the contract leaves open."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from certs.config import IdentityConfig
from certs.credential import Credential
from certs.tls import client_context
from storage_provider.channel import Put, Stored, Want
from storage_provider.errors import Corrupt, Denied, DoorURL, NoSpace, NotFound, StorageError, Unreachable
from storage_provider.gridftp.client.channel import GsiftpChannel
from storage_provider.gridftp.client.door import Door, part_suffix
from storage_provider.gridftp.settings import DataSettings
from storage_provider.timeouts import Timeouts
from tests.conformance.faulty_wire import FaultyWire
from tests.conformance.gct_rig import gct_rig
from tests.conformance.memory_channel import spec_of
from tests.conformance.rigs import write
from tests.helpers import gct
from tests.helpers.pki import SiteHome, fresh_site, other_site, site

__all__ = ["fresh_site", "other_site", "site"]
pytestmark = pytest.mark.peer

BIG = random.Random(5).randbytes(21 * 1024 * 1024)
SMALL = BIG[:100_000]


@pytest.fixture(scope="module")
def far(site: SiteHome) -> Iterator[gct.GctServer]:
    with gct.serve(site, site.gateway(), site.user("carol", "gateway")) as server:
        yield server


def channel(identity: IdentityConfig, door: str, **settings: object) -> GsiftpChannel:
    return GsiftpChannel(client_context(identity), door, timeouts=Timeouts(answer=5, write=5), **settings)  # type: ignore[arg-type]


def test_the_server_connects_to_us_where_that_is_allowed(site: SiteHome, far: gct.GctServer, tmp_path: Path) -> None:
    ports = (30_100, 30_131)
    active = DataSettings(active=True, ports=ports)
    with closing(channel(site.gateway(), far.url, data=active)) as here:
        puts = [Put(spec_of(data), write(tmp_path, data)) for data in (BIG, SMALL, b"", b"x", SMALL[1:])]
        assert all(isinstance(outcome, Stored) for _, outcome in here.put_many(puts))
        wants = [Want(put.spec.key) for put in puts] + [Want(puts[0].spec.key, 5, 70_000), Want(puts[1].spec.key, 9)]
        expected = [put.path.read_bytes() for put in puts] + [BIG[5:70_005], SMALL[9:]]
        with here.get_many(wants) as gots:
            assert [b"".join(got.blocks) for got in gots] == expected
        with here.get(puts[0].spec.key) as blocks:
            assert max(len(block) for block in blocks) <= 1024 * 1024
        with pytest.raises(NotFound), here.get(spec_of(b"none").key):
            pass
        with here.get(puts[1].spec.key) as blocks:
            assert b"".join(blocks) == SMALL


def test_one_login_serves_many_calls(site: SiteHome, far: gct.GctServer, tmp_path: Path) -> None:
    wire = FaultyWire(("127.0.0.1", far.port))
    with closing(wire), closing(channel(site.gateway(), far.url.replace(str(far.port), str(wire.port)))) as here:
        spec, path = spec_of(SMALL), write(tmp_path, SMALL)
        for _ in range(5):
            here.put(spec, path)
            assert here.checksum(spec.key) == spec.sha256
            with here.get(spec.key, length=10) as blocks:
                assert b"".join(blocks) == SMALL[:10]
        assert wire.accepted == 1


@pytest.mark.parametrize("kind", ["rsa", "ec", "proxy"])
def test_every_kind_of_key_logs_in(site: SiteHome, far: gct.GctServer, kind: str) -> None:
    who = {"rsa": lambda: site.user("carol", "gateway"), "ec": site.gateway}.get(kind)
    identity = who() if who is not None else site.proxy_of(site.gateway(), "delegated-dgis")
    with closing(channel(identity, far.url)) as here, pytest.raises(NotFound):
        here.stat(spec_of(b"none").key)


def test_who_is_not_mapped_is_denied(site: SiteHome, far: gct.GctServer) -> None:
    with closing(channel(site.operator(), far.url)) as here, pytest.raises(Denied) as caught:
        here.stat(spec_of(b"none").key)
    assert not caught.value.permanent


def test_a_server_that_is_not_who_it_should_be_is_unreachable(
    site: SiteHome, other_site: SiteHome, far: gct.GctServer
) -> None:
    key = spec_of(b"none").key
    elsewhere = far.url.replace("127.0.0.1", "127.0.0.3")
    wire = FaultyWire(("127.0.0.1", far.port), host="127.0.0.3", port=far.port)
    named = pytest.raises(Denied, match="name")
    with closing(wire), closing(channel(site.gateway(), elsewhere)) as here, named:
        here.stat(key)
    with closing(channel(other_site.gateway(), far.url)) as here, pytest.raises(Denied):
        here.stat(key)


def test_a_server_that_was_revoked_is_left_in_mid_session(fresh_site: SiteHome) -> None:
    with gct.serve(fresh_site, fresh_site.gateway()) as far, closing(channel(fresh_site.gateway(), far.url)) as here:
        key = spec_of(b"none").key
        with pytest.raises(NotFound):
            here.stat(key)
        fresh_site.revoke(far.identity)
        with pytest.raises(Denied, match="revoked"):
            here.stat(key)
        fresh_site.drop_crls()
        with pytest.raises(Denied, match="CRL"):
            here.stat(key)


def test_our_doors_are_not_at_foreign_servers(site: SiteHome, far: gct.GctServer) -> None:
    door = f"gsiftp://127.0.0.1:{far.port}/areas/main"
    with closing(channel(site.gateway(), door)) as here, pytest.raises(DoorURL):
        here.stat(spec_of(b"none").key)


def test_a_large_put_goes_on_where_it_was_cut(site: SiteHome, tmp_path: Path) -> None:
    """No connection lets more than 60 % through, so only who resumes can ever be done."""
    with gct_rig(site, tmp_path) as rig:
        rig.cut_put(len(BIG) * 6 // 10)
        spec = spec_of(BIG)
        assert rig.channel.put(spec, write(tmp_path, BIG)).sha256 == spec.sha256
        assert rig.channel.checksum(spec.key) == spec.sha256 and rig.leftovers() == []


def test_a_part_that_has_rotted_is_begun_anew(site: SiteHome, far: gct.GctServer, tmp_path: Path) -> None:
    with closing(channel(site.gateway(), far.url)) as here:
        here.put(spec_of(SMALL), write(tmp_path, SMALL))  # makes the folders
        spec, who = spec_of(BIG[:-1]), Credential(site.gateway().cert, site.gateway().key).dn()
        part = Path(Door.parse(far.url).part(spec.key, who))
        part.write_bytes(b"rotten" * 100_000)
        part.chmod(0o666)
        assert here.put(spec, write(tmp_path, BIG[:-1])).size == spec.size
        assert not part.exists()


def test_old_parts_of_ours_are_removed_and_nothing_else(site: SiteHome, far: gct.GctServer, tmp_path: Path) -> None:
    stage = far.root / "stage"
    stage.mkdir(exist_ok=True)
    stage.chmod(0o777)
    ours = part_suffix(Credential(site.gateway().cert, site.gateway().key).dn())
    old = {name: stage / f"{'0' * 63}{number}{name}" for number, name in enumerate((ours, ".0123456789abcdef.part"))}
    young = stage / f"{'1' * 64}{ours}"
    for path in (*old.values(), young):
        path.write_bytes(b"x")
    for path in old.values():
        os.utime(path, (time.time() - 90_000,) * 2)
    with closing(channel(site.gateway(), far.url)) as here:
        here.put(spec_of(SMALL[7:]), write(tmp_path, SMALL[7:]))
    assert [path.exists() for path in (*old.values(), young)] == [False, True, True]


def test_a_batch_to_a_door_that_is_gone_ends_soon(site: SiteHome, tmp_path: Path) -> None:
    with closing(channel(site.gateway(), "gsiftp://127.0.0.1:1/srv/dgis")) as here:
        puts = [Put(spec_of(SMALL[n:]), write(tmp_path, SMALL[n:])) for n in range(100)]
        began = time.monotonic()
        found = list(here.put_many(puts))
    assert len(found) == 100 and all(isinstance(outcome, Unreachable) for _, outcome in found)
    assert time.monotonic() - began < 5


def test_third_party_from_a_rotten_source_takes_the_next(site: SiteHome, far: gct.GctServer, tmp_path: Path) -> None:
    with gct.serve(site, site.gateway()) as other, closing(channel(site.gateway(), other.url)) as there:
        spec = spec_of(SMALL[3:])
        there.put(spec, write(tmp_path, SMALL[3:]))
        path = other.root / "objects" / spec.key
        with closing(channel(site.gateway(), far.url)) as here:
            path.write_bytes(b"!" + SMALL[4:])
            with pytest.raises(Corrupt):
                here.pull(spec, [other.url], None)
            with pytest.raises(StorageError):
                here.stat(spec.key)
            path.write_bytes(SMALL[3:])
            assert here.pull(spec, ["sftp://h/x", "gsiftp://127.0.0.1:1/a", other.url], None).sha256 == spec.sha256


def test_third_party_goes_on_where_an_earlier_call_was_cut(site: SiteHome, far: gct.GctServer, tmp_path: Path) -> None:
    """The part's front is what must stay: the source is made to lie about it, and is not asked for it."""
    spec, who = spec_of(BIG[5:]), Credential(site.gateway().cert, site.gateway().key).dn()
    with (
        gct.serve(site, site.gateway()) as other,
        closing(channel(site.gateway(), other.url)) as there,
        closing(channel(site.gateway(), far.url)) as here,
    ):
        for each in (here, there):
            each.put(spec_of(SMALL), write(tmp_path, SMALL))  # makes the folders
        there.put(spec, write(tmp_path, BIG[5:]))
        lying = other.root / "objects" / spec.key
        lying.write_bytes(b"lies" * 100 + BIG[405:])
        part = Path(Door.parse(far.url).part(spec.key, who))
        part.write_bytes(BIG[5:10_000_000])
        part.chmod(0o666)
        assert here.pull(spec, [other.url], None).sha256 == spec.sha256
        here.delete(spec.key)
        with pytest.raises(Corrupt):
            here.pull(spec, [other.url], None)


@pytest.fixture
def small_disk(site: SiteHome) -> Iterator[gct.GctServer]:
    """A server whose disk holds 12 MiB."""
    with gct.serve(site, site.gateway()) as server:
        options = ["-t", "tmpfs", "-o", "size=12m,mode=777", "none"]
        done = subprocess.run(["mount", *options, server.root], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("no disk of a given size can be made here")
        try:
            yield server
        finally:
            subprocess.run(["umount", "-l", server.root], check=True)


def test_what_does_not_fit_leaves_its_space(site: SiteHome, small_disk: gct.GctServer, tmp_path: Path) -> None:
    """A full disk must not stay full of what did not fit; what does fit is stored."""
    with closing(channel(site.gateway(), small_disk.url)) as here:
        with pytest.raises(NoSpace) as caught:
            here.put(spec_of(BIG), write(tmp_path, BIG))
        assert not caught.value.permanent and not list((small_disk.root / "stage").iterdir())
        puts = [Put(spec_of(BIG[n : n + 900_000]), write(tmp_path, BIG[n : n + 900_000])) for n in range(20)]
        found = Counter(type(outcome) for _, outcome in here.put_many(puts))
        assert set(found) == {Stored, NoSpace} and found[Stored] >= 10
        assert len(list(here.list())) == found[Stored] and not list((small_disk.root / "stage").iterdir())


def test_a_server_that_was_revoked_is_left_within_a_batch(fresh_site: SiteHome, tmp_path: Path) -> None:
    active = DataSettings(active=True, ports=(30_140, 30_171))
    with (
        gct.serve(fresh_site, fresh_site.gateway()) as far,
        closing(channel(fresh_site.gateway(), far.url, data=active)) as here,
    ):
        puts = [Put(spec_of(SMALL[n:]), write(tmp_path, SMALL[n:])) for n in range(6)]
        assert all(isinstance(outcome, Stored) for _, outcome in here.put_many(puts))
        with here.get_many([Want(put.spec.key) for put in puts]) as gots:
            assert b"".join(next(gots).blocks) == SMALL
            fresh_site.revoke(far.identity)
            for got in gots:
                with pytest.raises(Denied, match="revoked"):
                    list(got.blocks)
