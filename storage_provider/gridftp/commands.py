"""Commands of a GridFTP control connection as values: RFC 959, RFC 3659, GFD.20, GFD.47; bytes in, no I/O.

Everything here raises `CommandError`, which carries the reply to give.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from storage_provider.errors import Refused
from storage_provider.gridftp.markers import parse_spans
from storage_provider.ranges import Ranges

# Longer than any path; ADAT, ENC and DCSC alone carry certificates, SITE PERMIT a token.
MOST_COMMAND_BYTES = 96 * 1024
MOST_ARGUMENT = 4096
_LONG = frozenset({"ADAT", "ENC", "MIC", "DCSC", "SITE"})
_VERB = re.compile(rb"[A-Za-z]{3,4}", re.A)
_NUMBER = re.compile(r"\d{1,18}", re.A)
ALGORITHMS = {"SHA256": "sha256", "MD5": "md5", "SHA1": "sha1", "SHA512": "sha512", "ADLER32": "adler32"}


class CommandError(Exception):
    """A command cannot be done as it was given; `code` and the text are the reply."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its verb in upper case and the rest of the line."""

    verb: str
    argument: str = ""


@dataclass(frozen=True, slots=True)
class Restart:
    """What REST said: bytes the far side has, as a stream offset or as ranges of an earlier marker."""

    have: Ranges = Ranges()
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Partial:
    """A part of a file: `length` None is up to its end."""

    path: str
    offset: int
    length: int | None


@dataclass(frozen=True, slots=True)
class ChecksumRequest:
    """What CKSM asks for; `algorithm` is hashlib's name, or adler32."""

    algorithm: str
    part: Partial


def parse_command(line: bytes) -> Command:
    """Read a command line without its line end."""
    if len(line) > MOST_COMMAND_BYTES:
        raise CommandError(500, "refused: the command is too long")
    verb, _, rest = line.partition(b" ")
    if _VERB.fullmatch(verb) is None:
        raise CommandError(500, "refused: not a command")
    name = verb.decode("ascii").upper()
    if len(rest) > MOST_ARGUMENT and name not in _LONG:
        raise CommandError(501, "refused: the argument is too long")
    try:
        argument = rest.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CommandError(501, "refused: the argument is not UTF-8") from error
    if any(mark in argument for mark in "\0\r\n"):
        raise CommandError(501, "refused: the argument holds a control character")
    return Command(name, argument)


def parse_allo(argument: str) -> int:
    """Read `SIZE [R RECORD]` (RFC 959 section 4.1.3)."""
    words = argument.split()
    if not words or (words[1:] and words[1].upper() != "R"):
        raise _syntax("ALLO SIZE")
    return _number(words[0])


def parse_rest(argument: str) -> Restart:
    """Read `OFFSET` (stream mode) or `0-100,200-300` (mode E, GFD.20 section 3.6)."""
    text = argument.strip()
    if _NUMBER.fullmatch(text):
        return Restart(offset=int(text), have=Ranges.of([(0, int(text))]))
    try:
        return Restart(have=parse_spans(text))
    except Refused as error:
        raise _syntax("REST OFFSET or REST 0-100,200-300") from error


def parse_eret(argument: str) -> Partial:
    """Read `P OFFSET LENGTH PATH` (GFD.20 section 3.2)."""
    words = argument.split(" ", 3)
    if len(words) != 4 or words[0].upper() != "P" or not words[3]:
        raise _syntax("ERET P OFFSET LENGTH PATH")
    return Partial(words[3], _number(words[1]), _number(words[2]))


def parse_esto(argument: str) -> Partial:
    """Read `A OFFSET PATH` (GFD.20 section 3.3): what comes is moved by OFFSET."""
    words = argument.split(" ", 2)
    if len(words) != 3 or words[0].upper() != "A" or not words[2]:
        raise _syntax("ESTO A OFFSET PATH")
    return Partial(words[2], _number(words[1]), None)


def parse_cksm(argument: str) -> ChecksumRequest:
    """Read `ALGORITHM OFFSET LENGTH PATH` (GFD.47 section 4); a length of -1 is up to the end."""
    words = argument.split(" ", 3)
    if len(words) != 4 or not words[3]:
        raise _syntax("CKSM ALGORITHM OFFSET LENGTH PATH")
    algorithm = ALGORITHMS.get(words[0].upper())
    if algorithm is None:
        raise CommandError(504, "unsupported: checksum algorithms are " + ", ".join(ALGORITHMS))
    length = None if words[2] == "-1" else _number(words[2])
    return ChecksumRequest(algorithm, Partial(words[3], _number(words[1]), length))


def parse_options(text: str) -> Mapping[str, str]:
    """Read `Name=value;Name=value;` of OPTS RETR, names in lower case."""
    options = {}
    for part in text.split(";"):
        name, equals, value = part.strip().partition("=")
        if equals:
            options[name.strip().lower()] = value.strip()
        elif name:
            raise _syntax("OPTS RETR Name=value;")
    return options


def parse_parallelism(value: str) -> int:
    """Read `START,LOW,HIGH` of OPTS RETR Parallelism (GFD.20 section 3.5); we open the first number."""
    numbers = [_number(part) for part in value.split(",")]
    if len(numbers) > 3 or numbers[0] < 1:
        raise _syntax("OPTS RETR Parallelism=N,N,N;")
    return numbers[0]


def parse_two(argument: str, usage: str) -> tuple[str, str]:
    """Read two words, the second being the rest of the line."""
    first, _, rest = argument.strip().partition(" ")
    if not first or not rest.strip():
        raise _syntax(usage)
    return first, rest.strip()


def parse_size(text: str) -> int:
    """Read a number of bytes."""
    return _number(text)


def _number(text: str) -> int:
    if _NUMBER.fullmatch(text) is None:
        raise CommandError(501, "refused: a number was expected")
    number = int(text)
    if number > 1 << 50:
        raise CommandError(501, "refused: the number is larger than any file")
    return number


def _syntax(usage: str) -> CommandError:
    return CommandError(501, f"refused: expected {usage}")
