"""Commands, addresses, facts and markers: what one side writes the other reads, and anything else is an error."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_provider.errors import Refused
from storage_provider.gridftp import addresses, commands, facts, markers
from storage_provider.gridftp.commands import Command, CommandError
from storage_provider.ranges import Ranges

PORTS = st.integers(1, 65535)
ENDPOINTS4 = st.tuples(st.ip_addresses(v=4).map(str), PORTS)
ENDPOINTS = st.tuples(st.ip_addresses().map(str), PORTS)
SPANS = st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40)).map(sorted).map(tuple), max_size=20)


@given(ENDPOINTS4)
def test_port_and_pasv_come_back(endpoint: addresses.Endpoint) -> None:
    assert addresses.parse_port(addresses.format_port(endpoint)) == endpoint
    assert addresses.parse_pasv(addresses.pasv_line(endpoint)) == endpoint


@given(ENDPOINTS)
def test_eprt_epsv_and_spas_come_back(endpoint: addresses.Endpoint) -> None:
    assert addresses.parse_eprt(addresses.format_eprt(endpoint)) == endpoint
    assert addresses.parse_epsv(addresses.epsv_line(endpoint[1])) == endpoint[1]
    assert addresses.parse_spas(addresses.spas_lines([endpoint, endpoint])) == (endpoint, endpoint)


def test_port_takes_ipv4_only() -> None:
    with pytest.raises(Refused):
        addresses.format_port(("::1", 2811))


@pytest.mark.parametrize("text", ["127,0,0,1,0,0", "256,0,0,1,8,0", "1,2,3,4,5", "127.0.0.1,8,0", "a,b,c,d,e,f", ""])
def test_bad_ports_are_refused(text: str) -> None:
    with pytest.raises(Refused):
        addresses.parse_port(text)


@pytest.mark.parametrize(
    "text", ["|1|::1|2811|", "|2|127.0.0.1|80|", "|1|host|80|", "|1|127.0.0.1|0|", "|1|1.2.3.4|x|", "|"]
)
def test_bad_eprts_are_refused(text: str) -> None:
    with pytest.raises(Refused):
        addresses.parse_eprt(text)


PARSERS: list[Callable[[str], object]] = [
    addresses.parse_port,
    addresses.parse_eprt,
    addresses.parse_spor,
    addresses.parse_pasv,
    addresses.parse_epsv,
    facts.parse_entry,
    facts.parse_time,
    markers.parse_spans,
    markers.parse_restart,
    markers.parse_performance,
    commands.parse_allo,
    commands.parse_rest,
    commands.parse_eret,
    commands.parse_esto,
    commands.parse_cksm,
    commands.parse_options,
    commands.parse_parallelism,
    commands.parse_size,
]


@pytest.mark.parametrize("parser", PARSERS)
@given(text=st.one_of(st.text(max_size=60), st.text(alphabet="0123456789,-|()PA; =/\u0663", max_size=60)))
def test_any_text_is_a_value_or_an_error_of_ours(parser: Callable[[str], object], text: str) -> None:
    try:
        parser(text)
    except (Refused, CommandError):
        return


@given(st.binary(max_size=80))
def test_any_line_is_a_command_or_an_error_of_ours(line: bytes) -> None:
    try:
        command = commands.parse_command(line)
    except CommandError as error:
        assert error.code in (500, 501)
        return
    assert command.verb.isascii() and command.verb.isupper() and 3 <= len(command.verb) <= 4
    assert not any(mark in command.argument for mark in "\r\n\0")


def test_commands_are_read() -> None:
    assert commands.parse_command(b"stor /areas/main/x y") == Command("STOR", "/areas/main/x y")
    assert commands.parse_allo("300 R 5") == 300
    assert commands.parse_rest("12") == commands.Restart(have=Ranges(((0, 12),)), offset=12)
    assert commands.parse_rest("0-5,8-9").have == Ranges(((0, 5), (8, 9)))
    assert commands.parse_eret("P 5 7 /a b") == commands.Partial("/a b", 5, 7)
    assert commands.parse_esto("A 5 /a b") == commands.Partial("/a b", 5, None)
    assert commands.parse_cksm("sha256 0 -1 /x").part == commands.Partial("/x", 0, None)
    assert commands.parse_options("Parallelism=4,4,4;Passive=1;") == {"parallelism": "4,4,4", "passive": "1"}
    assert commands.parse_parallelism("4,2,8") == 4


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"STOR " + b"x" * 5000, 501),
        (b"STOR \xff", 501),
        (b"STOR a\0b", 501),
        (b"X" * 100_000, 500),
        (b"", 500),
        (b"\x16\x03\x01\x02\x00", 500),
    ],
)
def test_bad_lines_have_their_reply(line: bytes, code: int) -> None:
    with pytest.raises(CommandError) as caught:
        commands.parse_command(line)
    assert caught.value.code == code


@given(SPANS)
def test_spans_and_restart_markers_come_back(spans: list[tuple[int, int]]) -> None:
    ranges = Ranges.of(spans)
    assert markers.parse_spans(markers.format_spans(ranges.spans)) == ranges
    assert markers.parse_restart(markers.restart_line(ranges)) == ranges


def test_a_marker_never_says_too_much() -> None:
    many = Ranges.of((10 * number, 10 * number + 1) for number in range(2000))
    told = markers.parse_restart(markers.restart_line(many))
    assert told and all(many.covers(*span) for span in told)


def test_performance_markers_come_back() -> None:
    lines = markers.performance_lines(markers.Performance(1.5, 1234))
    assert markers.parse_performance("\n".join(lines)) == 1234


NAMES = st.text(st.characters(blacklist_characters="\r\n\0", blacklist_categories=["Cs"]), min_size=1, max_size=40)


@given(
    NAMES.filter(lambda name: name.strip("\r\n") == name),
    st.sampled_from(["file", "dir", "cdir"]),
    st.integers(0, 1 << 50),
)
def test_facts_come_back(name: str, kind: str, size: int) -> None:
    entry = facts.Entry(name, kind, size, datetime(2026, 11, 20, 12, 30, 5, tzinfo=UTC))
    assert facts.parse_entry(facts.format_entry(entry, unique="x")) == entry


def test_a_name_with_a_line_end_is_not_listed() -> None:
    with pytest.raises(Refused):
        facts.format_entry(facts.Entry("a\r\nb", "file"))


def test_a_stock_servers_line_is_read() -> None:
    line = "Type=file;Size=300000;Modify=20261120181906;Perm=adfrw;UNIX.mode=0640;Unique=18-2; some file"
    entry = facts.parse_entry(line)
    assert (entry.name, entry.kind, entry.size) == ("some file", "file", 300000)
    assert entry.modified == datetime(2026, 11, 20, 18, 19, 6, tzinfo=UTC)
