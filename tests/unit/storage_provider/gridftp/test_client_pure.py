"""Doors and what a far side's no means: no connection here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.dn import DN
from storage_provider.errors import (
    Corrupt,
    Denied,
    DoorURL,
    Faulty,
    NoSpace,
    NotFound,
    Refused,
    StorageError,
    Unreachable,
    Unsupported,
)
from storage_provider.gridftp.client.asking import _meets
from storage_provider.gridftp.client.door import Door
from storage_provider.gridftp.client.faults import fault_of
from storage_provider.gridftp.replies import Reply
from storage_provider.keys import object_key

KEY = object_key("ab" * 32)
DOOR = "gsiftp://se.example.org:2811/srv/dgis"


@pytest.mark.parametrize(
    ("url", "host", "port", "own"),
    [
        ("gsiftp://se.example.org/areas/main", "se.example.org", 2811, True),
        ("gsiftp://[2001:db8::1]:50000/areas/main", "2001:db8::1", 50000, True),
        ("gsiftp://10.0.0.7:2811/srv/dgis/", "10.0.0.7", 2811, False),
        ("gsiftp://10.0.0.7:2811/areas/main/deeper", "10.0.0.7", 2811, False),
    ],
)
def test_doors(url: str, host: str, port: int, own: bool) -> None:
    door = Door.parse(url)
    assert (door.host, door.port, door.own, door.url) == (host, port, own, url)
    assert door.object(KEY) == f"{door.path}/objects/{KEY}"


@pytest.mark.parametrize(
    "url",
    [
        "https://h/areas/a", "gsiftp://h", "gsiftp://h/", "gsiftp:///areas/a", "gsiftp://h:0/a", "gsiftp://h:99999/a",
        "gsiftp://u@h/a", "gsiftp://h/a?x", "gsiftp://h/a#x", "gsiftp://h/a/../b", "gsiftp://h/a//b", "gsiftp://h/a b",
        "gsiftp://h/a%0d%0aDELE b", "gsiftp://h/a\r\nDELE b", "gsiftp://[::1/a", "",
    ],
)  # fmt: skip
def test_what_is_no_door(url: str) -> None:
    with pytest.raises(DoorURL):
        Door.parse(url)


@given(st.text(max_size=60))
def test_any_text_is_a_door_or_a_door_error(text: str) -> None:
    for url in (text, f"gsiftp://h/{text}", f"gsiftp://{text}/areas/a"):
        try:
            door = Door.parse(url)
        except DoorURL:
            continue
        assert "\r" not in door.path and "\n" not in door.path and ".." not in door.path.split("/")


def test_parties_do_not_share_a_part() -> None:
    door = Door.parse(DOOR)
    one, other = (door.part(KEY, DN.parse(f"/O=Grid/CN={name}")) for name in ("dgis-a", "dgis-b"))
    assert one != other and one.startswith(f"{door.stage}/{'ab' * 32}.") and one.endswith(".part")


GCT_MISSING = (
    "GlobusError: v=1 c=PATH_NOT_FOUND",
    "GridFTP-Errno: 2",
    "GridFTP-Reason: System error in stat",
    "GridFTP-Error-String: No such file or directory",
    "End.",
)


@pytest.mark.parametrize(
    ("code", "lines", "kind"),
    [
        (550, ("not-found: no such object",), NotFound),
        (452, ("no-space: the quota is used up",), NoSpace),
        (550, ("corrupt: wrong digest",), Corrupt),
        (550, ("local-fault: the disk failed",), Faulty),
        (426, ("unreachable: the data connection was cut",), Unreachable),
        (550, GCT_MISSING, NotFound),
        (500, ("Command failed. : x", "globus_xio: System error in write: No space left on device", "End."), NoSpace),
        (500, ("Command failed. : callback failed.", "an end-of-file was reached", "End."), Unreachable),
        (500, ("Command failed. : x", "globus_xio: Unable to connect to 10.77.0.11:50300", "End."), Unreachable),
        (500, ("Path not allowed.",), Denied),
        (553, ("GlobusError: v=1 c=PERMISSION_DENIED", "Permission denied", "End."), Denied),
        (534, ("Data connection auth error : Encryption is required.",), Refused),
        (421, ("Too many sessions",), Unreachable),
        (500, ("Invalid command.",), Refused),
        (504, ("No such parameter",), Unsupported),
        (451, ("try later",), Faulty),
        (599, ("?",), Refused),
        (499, ("?",), Faulty),
    ],
)
def test_replies_have_their_errors(code: int, lines: tuple[str, ...], kind: type[StorageError]) -> None:
    error = fault_of(Reply(code, lines), door=DOOR, key=KEY)
    assert type(error) is kind
    assert (error.door, error.key) == (DOOR, KEY)


def test_a_refused_login_may_pass_later() -> None:
    error = fault_of(Reply(530, ("Login incorrect. : No local mapping", "End.")), door=DOOR)
    assert isinstance(error, Denied) and not error.permanent
    assert fault_of(Reply(550, ("denied: no rule allows it",)), door=DOOR).permanent


@given(st.integers(400, 599), st.lists(st.text(max_size=400), min_size=1, max_size=5))
def test_texts_of_foreign_servers_are_short_printable_and_without_paths(code: int, lines: list[str]) -> None:
    detail = fault_of(Reply(code, (*lines, "cannot open /srv/patients/Doe^John")), door=DOOR).detail
    assert detail.isprintable() and len(detail) < 500 and "Doe" not in detail


def test_folders_that_a_prefix_can_lie_in() -> None:
    assert all(_meets("v1/ab/", prefix) for prefix in ("", "v", "v1", "v1/", "v1/a", "v1/ab", "v1/ab/cd"))
    assert not any(_meets("v1/ab/", prefix) for prefix in ("v1/b", "v1/ac", "v2"))
