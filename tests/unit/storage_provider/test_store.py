"""The disk store: whole or not at all, once, durable, within its room."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import stat
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from storage_provider import disk
from storage_provider import uploads as uploads_room
from storage_provider.channel import Stored
from storage_provider.checksum import CHUNK_BYTES, digests_of
from storage_provider.errors import Busy, Conflict, Corrupt, LocalFault, NoSpace, NotFound, Refused
from storage_provider.keys import object_key
from storage_provider.store import Incoming, Store
from storage_provider.uploads import EXPIRY_SECONDS, Uploads
from tests.conformance.memory_channel import spec_of

DATA = random.Random(3).randbytes(100_000)
BIG = random.Random(4).randbytes(2 * CHUNK_BYTES + 99)
ME = "/O=Grid/CN=me"


def put(store: Store, data: bytes, *, key: str | None = None) -> bool:
    incoming = store.begin(key or object_key(hashlib.sha256(data).hexdigest()), len(data))
    for at in range(0, len(data), 30_000):
        incoming.write(data[at : at + 30_000])
    return incoming.commit()[1]


def files(root: Path, *, below: str) -> list[Path]:
    return [path for path in (root / below).rglob("*") if path.is_file()]


def upload(uploads: Uploads, ident: str, data: bytes, start: int, stop: int) -> None:
    writer = uploads.open_range(ident, ME, start, stop)
    writer.write(data[start:stop])
    writer.close()


def test_put_read_list_delete(tmp_path: Path) -> None:
    store = Store(tmp_path)
    specs = [spec_of(DATA + bytes([n])) for n in range(30)]
    for n in range(30):
        assert put(store, DATA + bytes([n]))
    keys = sorted(spec.key for spec in specs)
    assert [stat.key for stat in store.list()] == keys
    assert [stat.key for stat in store.list(after=keys[9])] == keys[10:]
    assert [stat.key for stat in store.list(keys[4][:6])] == [key for key in keys if key.startswith(keys[4][:6])]
    fd, size = store.open(keys[0])
    os.close(fd)
    assert size == len(DATA) + 1
    assert store.checksum(keys[0]) == (keys[0][-64:], size)
    store.delete(keys[0])
    with pytest.raises(NotFound):
        store.stat(keys[0])
    with pytest.raises(NotFound):
        store.delete(keys[0])
    assert store.space().used == 29 * (len(DATA) + 1)


def test_the_same_object_again_is_kept_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert put(store, DATA) is True
    assert put(store, DATA) is False
    assert store.space().used == len(DATA)
    assert len(files(tmp_path, below="objects")) == 1 and not files(tmp_path, below="stage")


def test_a_rotten_object_is_not_taken_for_already_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, DATA)
    (path,) = files(tmp_path, below="objects")
    path.write_bytes(b"\0" + DATA[1:])
    assert store.confirm(spec_of(DATA).key, len(DATA)) is None
    assert put(store, DATA) is True
    assert path.read_bytes() == DATA
    assert store.space().used == len(DATA)


def test_wrong_bytes_leave_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(Corrupt):
        put(store, DATA[:-1] + b"!", key=spec_of(DATA).key)
    incoming = store.begin(spec_of(DATA).key, len(DATA))
    with pytest.raises(Refused):
        incoming.write(DATA + b"more")
    incoming = store.begin(spec_of(DATA).key, len(DATA))
    incoming.write(DATA[:10])
    with pytest.raises(Refused):
        incoming.commit()
    assert not files(tmp_path, below="stage") and not list(store.list())
    assert store.space().used == 0 and store.ledger.space().free > 0


def test_quota_and_reserve(tmp_path: Path) -> None:
    store = Store(tmp_path, quota=250_000)
    put(store, DATA)
    put(store, DATA + b"1")
    with pytest.raises(NoSpace):
        put(store, DATA + b"2")
    store.delete(spec_of(DATA).key)
    put(store, DATA + b"2")
    store.close()
    with pytest.raises(NoSpace):
        put(Store(tmp_path, reserve=1 << 60), DATA + b"3")


def test_disk_full_in_the_middle_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    incoming = store.begin(spec_of(DATA).key, len(DATA))
    incoming.write(DATA[:10])

    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk.os, "pwrite", full)
    with pytest.raises(NoSpace):
        incoming.write(DATA[10:])
    assert not files(tmp_path, below="stage")
    assert store.ledger.space().used == 0


@pytest.mark.parametrize("size", [0, 1, 4096, 100_000, 65_536, 524_288, 600_001])
@pytest.mark.parametrize("shift", [0, 17])
def test_an_object_that_is_here_whole_is_stored_at_once(tmp_path: Path, size: int, shift: int) -> None:
    """Whatever its size and wherever it lies in memory."""
    room = memoryview(mmap.mmap(-1, size + shift + mmap.PAGESIZE))[shift : shift + size]
    room[:] = BIG[:size]
    store = Store(tmp_path)
    store.ledger.promise(size)
    spec = spec_of(bytes(room))
    assert store.put(spec.key, room)[1]
    assert store.checksum(spec.key) == (spec.sha256, size)
    assert store.ledger.space().used == size
    store.ledger.promise(size)
    assert not store.put(spec.key, room)[1]
    assert not files(tmp_path, below="stage")
    assert store.ledger.space().used == size


def test_a_whole_object_with_wrong_bytes_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, quota=len(DATA))
    store.ledger.promise(len(DATA))
    with pytest.raises(Corrupt):
        store.put(spec_of(b"other").key, memoryview(DATA))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    store.ledger.promise(len(DATA))
    monkeypatch.setattr(disk.os, "pwrite", full)
    with pytest.raises(NoSpace):
        store.put(spec_of(DATA).key, memoryview(DATA))
    assert not files(tmp_path, below=".") or files(tmp_path, below=".") == [tmp_path / ".lock"]
    assert store.ledger.space().free == len(DATA)


def test_a_whole_object_is_synced_before_its_name_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace_ = os.fsync, os.replace

    def synced(fd: int) -> None:
        done.append("file" if stat.S_ISREG(os.fstat(fd).st_mode) else "folder")
        fsync(fd)

    def renamed(source: str, target: str) -> None:
        done.append("rename")
        replace_(source, target)

    store = Store(tmp_path)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    store.ledger.promise(len(DATA))
    store.put(spec_of(DATA).key, memoryview(DATA))
    assert done[0] == "file" and done[-2:] == ["rename", "folder"]
    assert done == ["file", "folder", "folder", "folder", "rename", "folder"], "the folders that were made, too"


def test_a_folder_apart_replaces_an_empty_one_and_no_other(tmp_path: Path) -> None:
    empty, full = tmp_path / "new" / "empty", tmp_path / "new" / "full"
    for folder in (empty, full):
        disk.make_apart(folder)
    (full / "kept").touch()
    before = empty.stat().st_ino
    for folder in (empty, full):
        disk.make_apart(folder)
    assert (full / "kept").exists()
    assert empty.stat().st_ino != before
    assert sorted(tmp_path.joinpath("new").iterdir()) == [empty, full]
    assert empty.stat().st_mode & 0o777 == 0o700


def test_folders_are_made_once_and_synced_from_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(disk, "fsync_dir", lambda folder: synced.append(os.path.relpath(folder, tmp_path)))
    folders = disk.Folders(tmp_path)
    for name in ("v1/ab/cd", "v1/ab/ce"):
        (tmp_path / "x").touch()
        disk.publish(tmp_path / "x", f"{tmp_path}/{name}/x", folders)
    assert synced == [".", "v1", "v1/ab", "v1/ab/cd", "v1/ab", "v1/ab/ce"]


def test_one_server_per_store_and_orphans_cleaned(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.begin(spec_of(DATA).key, len(DATA)).write(DATA)
    with pytest.raises(LocalFault):
        Store(tmp_path)
    store.close()
    assert files(tmp_path, below="stage")
    again = Store(tmp_path)
    assert not files(tmp_path, below="stage") and not list(again.list())


def test_set_aside_takes_an_object_out_of_sight(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, DATA)
    away = store.set_aside(spec_of(DATA).key)
    assert away.read_bytes() == DATA and not list(store.list()) and store.space().used == 0


def test_foreign_files_are_not_objects(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, DATA)
    folder = files(tmp_path, below="objects")[0].parent
    (folder / "x").write_text("x")
    (folder / ("Z" * 64)).write_text("x")
    assert len(list(store.list())) == 1


def test_upload_in_ranges_and_after_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    uploads, spec = Uploads(store), spec_of(BIG)
    ident, state = uploads.begin(spec, ME)
    assert state.missing == ((0, len(BIG)),)
    upload(uploads, ident, BIG, 1000, 5000)
    upload(uploads, ident, BIG, CHUNK_BYTES, len(BIG))
    store.close()
    store = Store(tmp_path)
    uploads = Uploads(store)
    again, state = uploads.begin(spec, ME)
    assert again == ident and state.missing == ((0, 1000), (5000, CHUNK_BYTES))
    upload(uploads, ident, BIG, 0, CHUNK_BYTES)
    assert uploads.commit(ident, ME).sha256 == spec.sha256
    assert [stat.key for stat in store.list()] == [spec.key]
    assert not list((tmp_path / "uploads").iterdir()) and len(uploads) == 0
    assert store.space().used == len(BIG)


def test_bytes_that_came_in_order_are_hashed_as_they_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read again for the digest, unless a range came out of order or before a restart."""
    reread: list[Path] = []
    plain = uploads_room.sha256_of
    monkeypatch.setattr(uploads_room, "sha256_of", lambda path: reread.append(path) or plain(path))
    store = Store(tmp_path)
    uploads = Uploads(store)
    for number, cuts in enumerate([((0, 70_000), (70_000, 200_000)), ((70_000, 200_000), (0, 70_000))]):
        data = random.Random(number).randbytes(200_000)
        ident, _ = uploads.begin(spec_of(data), ME)
        for start, stop in cuts:
            upload(uploads, ident, data, start, stop)
        assert uploads.commit(ident, ME).sha256 == spec_of(data).sha256
        assert len(reread) == number
    data = random.Random(2).randbytes(200_000)
    ident, _ = uploads.begin(spec_of(data), ME)
    upload(uploads, ident, data[:50_000] + b"!" + data[50_001:], 0, 200_000)
    with pytest.raises(Corrupt):
        uploads.commit(ident, ME)


def test_a_range_cut_short_counts_as_far_as_it_came(tmp_path: Path) -> None:
    uploads, spec = Uploads(Store(tmp_path)), spec_of(BIG)
    ident, _ = uploads.begin(spec, ME)
    writer = uploads.open_range(ident, ME, 0, 100_000)
    writer.write(BIG[:70_000])
    with pytest.raises(Busy):
        uploads.open_range(ident, ME, 99_000, 200_000)
    assert writer.close().missing == ((70_000, len(BIG)),)


def test_differing_overlap_is_a_conflict_and_harms_nothing(tmp_path: Path) -> None:
    uploads, spec = Uploads(Store(tmp_path)), spec_of(BIG)
    ident, _ = uploads.begin(spec, ME)
    upload(uploads, ident, BIG, 0, 100_000)
    writer = uploads.open_range(ident, ME, 50_000, 150_000)
    with pytest.raises(Conflict):
        writer.write(b"\0" * 100_000)
    writer.close()
    upload(uploads, ident, BIG, 50_000, len(BIG))
    assert uploads.commit(ident, ME).size == len(BIG)


def test_a_bad_chunk_is_missing_again(tmp_path: Path) -> None:
    uploads, spec = Uploads(Store(tmp_path)), spec_of(BIG)
    ident, _ = uploads.begin(spec, ME)
    bad = BIG[: CHUNK_BYTES + 5] + b"!" + BIG[CHUNK_BYTES + 6 :]
    upload(uploads, ident, bad, 0, len(bad))
    with pytest.raises(Corrupt) as caught:
        uploads.commit(ident, ME)
    assert caught.value.bad_chunks == (1,)
    assert uploads.status(ident, ME).missing == ((CHUNK_BYTES, 2 * CHUNK_BYTES),)
    upload(uploads, ident, BIG, CHUNK_BYTES, 2 * CHUNK_BYTES)
    uploads.commit(ident, ME)


def test_wrong_bytes_without_chunk_digests_end_the_upload(tmp_path: Path) -> None:
    store = Store(tmp_path)
    uploads, spec = Uploads(store), spec_of(DATA)
    ident, _ = uploads.begin(spec, ME)
    upload(uploads, ident, b"\0" * len(DATA), 0, len(DATA))
    with pytest.raises(Corrupt):
        uploads.commit(ident, ME)
    assert len(uploads) == 0 and not list((tmp_path / "uploads").iterdir()) and not list(store.list())


def test_an_upload_belongs_to_its_owner(tmp_path: Path) -> None:
    uploads, spec = Uploads(Store(tmp_path)), spec_of(BIG)
    ident, _ = uploads.begin(spec, ME)
    other, _ = uploads.begin(spec, "/O=Grid/CN=other")
    assert other != ident
    with pytest.raises(NotFound):
        uploads.status(ident, "/O=Grid/CN=other")
    with pytest.raises(NotFound):
        uploads.commit(ident, "/O=Grid/CN=other")


def test_uploads_expire_and_give_room_back(tmp_path: Path) -> None:
    now = [1000.0]
    store = Store(tmp_path, quota=len(BIG) + 10)
    uploads, spec = Uploads(store, clock=lambda: now[0]), spec_of(BIG)
    ident, _ = uploads.begin(spec, ME)
    with pytest.raises(NoSpace):
        uploads.begin(spec, "/O=Grid/CN=other")
    now[0] += EXPIRY_SECONDS + 1
    uploads.begin(spec, "/O=Grid/CN=other")
    with pytest.raises(NotFound):
        uploads.status(ident, ME)


def test_abort_frees_the_room(tmp_path: Path) -> None:
    store = Store(tmp_path, quota=len(BIG))
    uploads, spec = Uploads(store), spec_of(BIG)
    ident, _ = uploads.begin(spec, ME)
    assert store.space().free == 0
    uploads.abort(ident, ME)
    assert store.space().free == len(BIG)


@pytest.mark.parametrize("harm", ["journal", "data", "truncate", "stranger"])
def test_a_broken_upload_folder_is_thrown_away_at_start(tmp_path: Path, harm: str) -> None:
    store = Store(tmp_path)
    ident, _ = Uploads(store).begin(spec_of(BIG), ME)
    folder = tmp_path / "uploads" / ident
    if harm == "journal":
        (folder / "journal.json").write_text("{")
    elif harm == "data":
        (folder / "data").unlink()
    elif harm == "truncate":
        (folder / "data").write_bytes(b"")
    else:
        folder.rename(folder.with_name("f" * 32))
    store.close()
    store = Store(tmp_path)
    assert len(Uploads(store)) == 0 and not list((tmp_path / "uploads").iterdir())
    assert store.space().free > 0


def test_digests_of_agrees_with_the_double(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"head" + BIG + b"tail")
    assert digests_of(path, size=len(BIG), offset=4) == (spec_of(BIG).sha256, spec_of(BIG).chunks)


# -- what one request does while another is at it ---------------------------------------------------------------


def test_an_upload_that_is_being_adopted_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new try of the same object in that moment used to end in a local fault and to destroy the finished one."""
    store = Store(tmp_path)
    uploads, spec = Uploads(store), spec_of(BIG)
    ident, _ = uploads.begin(spec, ME)
    upload(uploads, ident, BIG, 0, len(BIG))
    plain, seen = store.adopt, []

    def adopt(source: Path, key: str, size: int) -> tuple[Stored, bool]:
        seen.append(uploads.begin(spec, ME)[1].state)
        for act in (
            lambda: uploads.begin(replace(spec, size=0, chunks=()), ME),
            lambda: uploads.open_missing(ident, ME),
            lambda: uploads.open_range(ident, ME, 0, 10),
            lambda: uploads.commit(ident, ME),
            lambda: uploads.abort(ident, ME),
        ):
            with pytest.raises(Busy):
                act()
        return plain(source, key, size)

    monkeypatch.setattr(store, "adopt", adopt)
    assert uploads.commit(ident, ME).sha256 == spec.sha256
    assert seen == ["verifying"] and store.checksum(spec.key)[0] == spec.sha256
    assert len(uploads) == 0 and not list((tmp_path / "uploads").iterdir())
    assert store.space().used == len(BIG)
    uploads.begin(spec, ME)


def test_what_is_there_already_is_durable_before_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first bringer may have been killed after the rename, before the folder's sync."""
    store = Store(tmp_path)
    assert put(store, DATA)
    key, synced = spec_of(DATA).key, []
    monkeypatch.setattr("storage_provider.store.fsync_dir", synced.append)
    assert not put(store, DATA)
    assert len(synced) == 1 and synced[0].endswith("/objects/" + key.rpartition("/")[0])


def test_a_folder_that_is_there_is_not_thrown_away(tmp_path: Path) -> None:
    store = Store(tmp_path, quota=len(BIG))
    uploads, spec = Uploads(store), spec_of(BIG)
    ident, _ = uploads.begin(spec, ME)
    uploads.abort(ident, ME)
    (tmp_path / "uploads" / ident).mkdir()
    (tmp_path / "uploads" / ident / "data").write_bytes(b"somebody's")
    with pytest.raises(LocalFault):
        uploads.begin(spec, ME)
    assert (tmp_path / "uploads" / ident / "data").read_bytes() == b"somebody's"
    assert store.space().free == len(BIG)


def test_an_upload_that_a_session_holds_is_its_own_even_when_nothing_is_missing(tmp_path: Path) -> None:
    """Nothing is claimed then; its digest must not be taken for that of another upload of the key."""
    store = Store(tmp_path)
    uploads, spec = Uploads(store), spec_of(DATA)
    ident, _ = uploads.begin(spec, ME)
    upload(uploads, ident, DATA, 0, len(DATA))
    fd, before = uploads.open_missing(ident, ME)
    for act in (
        lambda: uploads.begin(replace(spec, size=0), ME),
        lambda: uploads.open_missing(ident, ME),
        lambda: uploads.commit(ident, ME),
        lambda: uploads.abort(ident, ME),
    ):
        with pytest.raises(Busy):
            act()
    os.close(fd)
    assert uploads.commit(ident, ME, digest=spec.sha256, synced=before.received).size == len(DATA)
    assert store.checksum(spec.key) == (spec.sha256, len(DATA))


def test_a_failed_sync_does_not_leave_an_upload_in_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, spec = Uploads(Store(tmp_path)), spec_of(DATA)
    ident, _ = uploads.begin(spec, ME)
    upload(uploads, ident, DATA, 0, len(DATA))

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(uploads_room, "sync", fail)
        with pytest.raises(LocalFault):
            uploads.commit(ident, ME)
    assert uploads.status(ident, ME).missing == ((0, len(DATA)),)
    upload(uploads, ident, DATA, 0, len(DATA))
    assert uploads.commit(ident, ME).sha256 == spec.sha256


def test_a_range_that_cannot_be_opened_is_not_claimed_for_ever(tmp_path: Path) -> None:
    uploads, spec = Uploads(Store(tmp_path)), spec_of(DATA)
    ident, _ = uploads.begin(spec, ME)
    data = tmp_path / "uploads" / ident / "data"
    data.rename(tmp_path / "away")
    with pytest.raises(LocalFault):
        uploads.open_range(ident, ME, 0, 100)
    (tmp_path / "away").rename(data)
    upload(uploads, ident, DATA, 0, len(DATA))
    assert uploads.commit(ident, ME).sha256 == spec.sha256


def test_a_range_known_before_cannot_change_what_the_digest_carried_on(tmp_path: Path) -> None:
    """A front that went on from range to range is that of the bytes in the file, whoever sends what again meanwhile."""
    store = Store(tmp_path)
    uploads, spec = Uploads(store), spec_of(DATA)
    ident, _ = uploads.begin(spec, ME)
    upload(uploads, ident, DATA, 0, 50_000)
    on = uploads.open_range(ident, ME, 50_000, len(DATA))
    again = uploads.open_range(ident, ME, 0, 50_000)
    on.write(DATA[50_000:])
    again.write(DATA[:20_000])
    with pytest.raises(Conflict):
        again.write(b"?" * 30_000)
    on.close()
    again.close()
    assert uploads.commit(ident, ME).sha256 == spec.sha256
    assert store.checksum(spec.key)[0] == spec.sha256


@pytest.mark.parametrize("way", ["object", "range"])
def test_a_descriptor_is_closed_when_nobody_writes_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Who gives a request up ends its transfer while a disk thread writes: the number may be another file's soon."""
    store = Store(tmp_path)
    uploads, spec = Uploads(store), spec_of(DATA)
    ident, _ = uploads.begin(spec, ME)
    writer = store.begin(spec.key, len(DATA)) if way == "object" else uploads.open_range(ident, ME, 0, len(DATA))
    inside = threading.Event()
    order: list[str] = []
    plain = disk.write_at

    def slow(fd: int, data: bytes, offset: int) -> None:
        inside.set()
        time.sleep(0.2)
        plain(fd, data, offset)
        order.append("written")

    for room in ("store", "uploads"):
        monkeypatch.setattr(f"storage_provider.{room}.write_at", slow)
    thread = threading.Thread(target=writer.write, args=(DATA,))
    thread.start()
    assert inside.wait(10)
    (writer.abort if isinstance(writer, Incoming) else writer.close)()
    order.append("ended")
    thread.join(10)
    assert order == ["written", "ended"]
    with pytest.raises((Refused, Conflict)):
        writer.write(b"")
