"""The spool: byte-exact, whole or not at all, whatever the sender or the disk does."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard

from catalog.header import columns
from dgis import part10
from dgis.disk import Lock, Numbered, WorkDirectory
from dgis.errors import BadDataSet, SpoolError, SpoolFull, SpoolLocked
from dgis.incoming import Incoming
from dgis.spool import Spool
from tests.helpers.objects import CT, EXPLICIT, data_set, element
from tests.helpers.spooling import arrival, everything_below, store

MIB = 1024 * 1024


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def object_bytes(path: Path, size: int) -> bytes:
    return path.read_bytes()[:size]


def test_the_stored_object_is_part10_meta_and_the_data_set_exactly_as_received(spool: Spool) -> None:
    data = data_set("1.2.3.4.1", extra=element(0x0029, 0x1010, b"UN", b"\0private\xff"))
    entry = store(spool, data=data, step=777)
    stored = object_bytes(entry.path, entry.record.size)
    assert stored == part10.file_meta(CT, "1.2.3.4.1", EXPLICIT) + data
    assert stored[entry.record.data_offset :] == data
    assert part10.data_set_offset(io.BytesIO(stored)) == (entry.record.data_offset, EXPLICIT)
    assert entry.record.sha256 == hashlib.sha256(stored).hexdigest()
    assert entry.record.data_sha256 == hashlib.sha256(data).hexdigest()
    assert entry.record.chunks == ()


def test_the_record_carries_all_that_registration_needs_and_is_read_back(spool: Spool) -> None:
    entry = store(spool)
    (found,) = spool.inbox()
    assert found == entry
    record = found.record
    assert (record.source_ae, record.called_ae, record.issuer, record.acting_for) == (
        "MOD",
        "DGIS",
        "site-a",
        "ae:MOD@a",
    )
    header = columns(zstandard.decompress(record.header_bytes()), record.header_syntax)
    assert "Test^Nobody" in header.patient.values()
    assert "1.2.3.1" in header.study.values()
    assert record.header_complete
    pixel = object_bytes(entry.path, record.size)[record.pixel_offset :]
    assert pixel.startswith(b"\xe0\x7f\x10\x00OW")


@pytest.mark.parametrize("size", [4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB])
@pytest.mark.parametrize("step", [65536, 3 * MIB + 1])
def test_chunk_digests_cover_the_stored_bytes_only_when_larger_than_one_chunk(
    spool: Spool, size: int, step: int
) -> None:
    overhead = len(part10.file_meta(CT, "1.2.3.4.1", EXPLICIT)) + len(data_set(pixels=b""))
    data = data_set(pixels=(os.urandom(2048) * 9000)[: (size - overhead) // 2 * 2])
    entry = store(spool, data=data + b"\0" * (size - overhead - len(data) + len(data_set(pixels=b""))), step=step)
    stored = object_bytes(entry.path, entry.record.size)
    pieces = [stored[at : at + 4 * MIB] for at in range(0, len(stored), 4 * MIB)]
    expected = tuple(hashlib.sha256(piece).hexdigest() for piece in pieces) if len(stored) > 4 * MIB else ()
    assert entry.record.size == size == len(stored)
    assert entry.record.chunks == expected
    assert entry.record.sha256 == hashlib.sha256(stored).hexdigest()


def test_a_data_set_cut_in_its_last_element_is_refused(spool: Spool) -> None:
    """Half an image with Success would be silently wrong: the sender must know."""
    with pytest.raises(BadDataSet, match="cut short") as refusal:
        store(spool, data=data_set()[:-100])
    assert refusal.value.status == 0xC000
    assert everything_below(spool.root / "inbox") == []


@pytest.mark.parametrize("uid", ["../../etc/passwd", "1.2.3/..", "1.2\\3", "1.2\n3"])
def test_a_path_for_a_uid_is_refused(spool: Spool, uid: str) -> None:
    with pytest.raises(BadDataSet, match="path separator") as refusal:
        store(spool, uid, data=data_set(uid))
    assert refusal.value.status == 0xA900


def test_elements_far_behind_the_first_64_kib_are_still_found(spool: Spool) -> None:
    big = element(0x0009, 0x1010, b"UN", bytes(300_000))
    head = element(8, 0x16, b"UI", CT.encode()) + element(8, 0x18, b"UI", b"1.2.3.4.1")
    rest = element(0x20, 0x0D, b"UI", b"1.9") + element(0x20, 0x0E, b"UI", b"1.8")
    entry = store(spool, data=head + big + rest)
    assert entry.record.instance_uid == "1.2.3.4.1"
    assert not entry.record.header_complete


@pytest.mark.parametrize("uid", ["x" * 200, "1.02.003", "1.2.3.4 ", "31"])
def test_odd_uids_are_kept_and_never_become_names(spool: Spool, uid: str) -> None:
    entry = store(spool, uid, data=data_set(uid))
    assert entry.record.instance_uid == uid.strip()
    path = spool.mark_registered(entry)
    assert path.name == entry.record.sha256
    assert all(spool.root in file.parents for file in everything_below(spool.root))


def test_padding_does_not_make_command_and_data_set_differ(spool: Spool) -> None:
    entry = store(spool, "1.2.3.4.1\0 ", data=data_set("1.2.3.4.1  "))
    assert entry.record.instance_uid == "1.2.3.4.1"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (data_set(study=None), 0xA900),
        (data_set(series=None), 0xA900),
        (data_set("1.2.3.4.99"), 0xA900),
        (b"", 0xC000),
        (b"\x01", 0xC000),
    ],
)
def test_what_cannot_be_filed_is_refused_with_its_status_and_leaves_nothing(
    spool: Spool, data: bytes, status: int
) -> None:
    with pytest.raises(BadDataSet) as refused:
        store(spool, data=data)
    assert refused.value.status == status
    assert refused.value.reason
    assert everything_below(spool.root) == []


def test_random_bytes_never_raise_anything_but_bad_data_set(spool: Spool) -> None:
    for seed in range(200):
        data = hashlib.sha512(bytes([seed])).digest() * (seed % 7 + 1)
        with pytest.raises(BadDataSet):
            store(spool, data=data)
    assert everything_below(spool.root) == []


def test_an_aborted_object_leaves_nothing_and_cannot_be_committed(spool: Spool) -> None:
    incoming = spool.begin(arrival())
    incoming.write(data_set())
    incoming.abort()
    incoming.abort()
    with pytest.raises(SpoolError):
        incoming.commit()
    assert everything_below(spool.root) == []


def test_a_buffer_may_be_reused_by_the_caller_after_write(spool: Spool) -> None:
    data = data_set()
    buffer = bytearray(data[:100])
    incoming = spool.begin(arrival())
    incoming.write(memoryview(buffer))
    buffer[:] = bytes(100)
    incoming.write(data[100:])
    entry = incoming.commit()
    assert object_bytes(entry.path, entry.record.size).endswith(data)


def test_the_limit_refuses_and_leaves_nothing_of_the_object(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit_bytes=2 * MIB)
    first = store(spool, data=data_set(pixels=bytes(MIB)))
    with pytest.raises(SpoolFull):
        store(spool, "1.2.3.4.2", data=data_set("1.2.3.4.2", pixels=bytes(3 * MIB)), step=65536)
    assert everything_below(spool.root) == [first.path]
    store(spool, "1.2.3.4.3", data=data_set("1.2.3.4.3"))


def test_the_limit_counts_what_other_processes_stored(tmp_path: Path) -> None:
    store(Spool(tmp_path / "spool"), data=data_set(pixels=bytes(3 * MIB)))
    with pytest.raises(SpoolFull):
        Spool(tmp_path / "spool", limit_bytes=3 * MIB).begin(arrival())


def test_the_reserve_of_the_disk_is_kept_free(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", reserve_bytes=1 << 60)
    with pytest.raises(SpoolFull):
        spool.begin(arrival())


@pytest.mark.parametrize("call", ["writev", "fsync", "rename"])
@pytest.mark.parametrize(
    ("code", "error"), [(errno.ENOSPC, SpoolFull), (errno.EDQUOT, SpoolFull), (errno.EIO, SpoolError)]
)
def test_a_failing_disk_gives_the_right_error_and_leaves_nothing(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, call: str, code: int, error: type[Exception]
) -> None:
    def fails(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    incoming = spool.begin(arrival())
    with monkeypatch.context() as patched, pytest.raises(error):
        patched.setattr(os, call, fails)
        incoming.write(data_set())
        incoming.commit()
    assert everything_below(spool.root) == []
    store(spool)


def test_a_short_write_is_continued(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev

    def short(fd: int, parts: Sequence[bytes]) -> int:
        return real(fd, [parts[0][:10]])

    monkeypatch.setattr(os, "writev", short)
    data = data_set()
    entry = store(spool, data=data)
    (found,) = spool.inbox()
    assert object_bytes(found.path, entry.record.size).endswith(data)


def test_inbox_names_sort_by_arrival_over_processes_and_threads(tmp_path: Path) -> None:
    spools = [Spool(tmp_path / "spool") for _ in range(3)]
    order = [store(spools[n % 3], f"1.2.{n}", data=data_set(f"1.2.{n}")).name for n in range(30)]
    assert spools[0].inbox_names() == order


def test_a_name_is_good_although_the_next_one_has_a_fresh_folder(tmp_path: Path) -> None:
    numbered, work = Numbered(), WorkDirectory(tmp_path)
    before = Path(numbered.next(work)[0])
    first = before.parent
    while (path := Path(numbered.next(work)[0])).parent == first:
        before = path
    before.touch()  # whoever got it is slower than whoever got the next one
    work.close()


def test_many_threads_commit_at_once(spool: Spool) -> None:
    def work(worker: int) -> None:
        for n in range(25):
            uid = f"1.{worker}.{n}"
            store(spool, uid, data=data_set(uid))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({entry.record.instance_uid for entry in spool.inbox()}) == 100


@pytest.mark.parametrize("damage", ["cut", "empty", "magic", "json", "digest", "base64", "grown"])
def test_a_corrupt_entry_goes_to_damaged_and_never_blocks_the_others(spool: Spool, damage: str) -> None:
    bad, good = store(spool, "1.1", data=data_set("1.1")), store(spool, "1.2", data=data_set("1.2"))
    whole = bad.path.read_bytes()
    bad.path.write_bytes(
        {
            "cut": whole[:-5],
            "empty": b"",
            "magic": whole[:-1] + b"9",
            "json": whole.replace(b'"size":', b'"siZe":'),
            "digest": whole.replace(bad.record.sha256.encode(), b"Z" * 64),
            "base64": whole.replace(bad.record.header_zstd[:4].encode(), b"****"),
            "grown": b"x" + whole,
        }[damage]
    )
    assert [entry.name for entry in spool.inbox()] == [good.name]
    assert spool.damaged() == (bad.name,)
    assert spool.inbox_names() == [good.name]


def test_registered_is_content_addressed_and_identical_content_twice_is_fine(spool: Spool) -> None:
    first, second = store(spool), store(spool)
    assert first.record.sha256 == second.record.sha256
    paths = {spool.mark_registered(first), spool.mark_registered(second)}
    assert paths == {spool.root / "registered" / first.record.sha256[:2] / first.record.sha256}
    assert spool.find(first.record.sha256) in paths
    assert list(spool.registered()) == list(paths)
    spool.free(first.record.sha256)
    spool.free(first.record.sha256)
    assert spool.find(first.record.sha256) is None


def test_find_refuses_what_is_no_digest(spool: Spool) -> None:
    for name in ("../../inbox", "AB" * 32, "", "a" * 63):
        with pytest.raises(ValueError):
            spool.find(name)


def test_rejected_entries_are_kept_and_listed_with_the_reason(spool: Spool) -> None:
    entry = store(spool)
    spool.reject(entry, "no such issuer")
    assert spool.rejected() == ((entry.name, "no such issuer"),)
    assert spool.failed(entry)
    assert spool.inbox_names() == []


def test_backlog_counts_both_halves_and_pending_only_the_inbox(spool: Spool) -> None:
    first, second = store(spool, "1.1", data=data_set("1.1")), store(spool, "1.2", data=data_set("1.2"))
    path = spool.mark_registered(first)
    backlog = spool.backlog()
    assert (backlog.count, backlog.unregistered) == (2, 1)
    assert backlog.bytes == path.stat().st_size + second.path.stat().st_size
    assert spool.pending([first.name, second.name]) and not spool.pending([first.name])
    assert spool.still_pending({first.name, second.name}) == {second.name}


def test_stale_incoming_of_a_dead_process_is_removed_and_a_living_one_is_kept(tmp_path: Path) -> None:
    root = tmp_path / "spool"
    living = Spool(root)
    incoming = living.begin(arrival())
    incoming.write(data_set())
    child = os.fork()
    if child == 0:  # dies with an object half received
        half = Spool(root).begin(arrival("1.9"))
        half.write(bytes(600_000))
        os._exit(0)
    os.waitpid(child, 0)
    assert len([d for d in (root / "incoming").iterdir() if d.is_dir()]) == 2
    assert Spool(root).remove_stale() == 1
    assert incoming.commit().path.exists()


def test_a_forked_child_gets_its_own_incoming_directory(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    store(spool)
    child = os.fork()
    if child == 0:
        store(spool, "1.7", data=data_set("1.7"))
        os._exit(0 if len([d for d in (spool.root / "incoming").iterdir() if d.is_dir()]) == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    store(spool, "1.8", data=data_set("1.8"))
    assert len(list(spool.inbox())) == 3


def test_memory_does_not_grow_with_the_object(spool: Spool) -> None:
    block = bytes(MIB)
    incoming: Incoming = spool.begin(arrival())
    incoming.write(data_set(pixels=b"")[:-4] + (200 * MIB).to_bytes(4, "little"))
    tracemalloc.start()
    for _ in range(64):
        incoming.write(block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    incoming.abort()
    assert peak < 4 * MIB


def test_one_lock_holder_only(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    with pytest.raises(SpoolLocked):
        Lock(tmp_path / "lock")
    lock.release()
    Lock(tmp_path / "lock").release()


def test_objects_on_their_way_in_move_to_a_fresh_folder_now_and_then_and_the_old_one_goes(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgis.disk._A_PART", 4)
    slow = spool.begin(arrival("1.1"))  # under way while the others come and go
    for n in range(2, 12):
        store(spool, f"1.{n}", data=data_set(f"1.{n}"))
    folders = [p for p in (spool.root / "incoming").glob("*/*") if p.is_dir()]
    assert len(folders) == 3, "the one in use, the one before it, and the one with an object in it"
    slow.write(data_set("1.1"))
    slow.commit()
    for n in range(12, 16):
        store(spool, f"1.{n}", data=data_set(f"1.{n}"))
    assert len([p for p in (spool.root / "incoming").glob("*/*") if p.is_dir()]) == 2
    assert len(list(spool.inbox())) == 15
