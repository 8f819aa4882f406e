"""Read a site file: YAML in, `SiteFile` out, and every mistake with its line and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from certs.config import did_you_mean
from dgis.deploy.errors import Finding, SiteFileError
from dgis.deploy.model import SiteFile

Loc = tuple[int | str, ...]
MOST_BYTES = 1 << 20
_TAG: Final = "tag:yaml.org,2002:"
_RESOLVER: Final[Any] = yaml.SafeLoader("")
_WHOLE = re.compile(r"[-+]?[0-9]{1,18}")
# What pydantic says by type; a site file's reader need not know what a tuple is
_SENTENCES: Final = {
    "missing": "is missing: add it",
    "too_short": "write at least {min_length}",
    "string_too_short": "write at least {min_length} characters",
    "string_too_long": "write at most {max_length} characters",
    "string_type": "write text",
    "string_unicode": "write text",
    "string_pattern_mismatch": "write what fits {pattern}",
    "int_type": "write a whole number",
    "int_parsing": "write a whole number",
    "int_parsing_size": "write a smaller number",
    "bool_type": "write true or false",
    "bool_parsing": "write true or false",
    "greater_than_equal": "write a number from {ge} on",
    "less_than_equal": "write a number up to {le}",
    "tuple_type": "write a list: items in [ ], or each on a line of its own after a dash",
    "model_type": "write keys with values: KEY: VALUE",
    "model_attributes_type": "write keys with values: KEY: VALUE",
}


@dataclass(frozen=True, slots=True)
class Source:
    """A site file's text with the place of everything in it."""

    name: str
    text: str
    root: yaml.Node | None

    def line(self, loc: Loc) -> int:
        """The line (from 1) of the key at `loc`, or of the nearest thing around it that is there."""
        line = 1 if self.root is None else self.root.start_mark.line + 1
        for key, value in _path(self.root, loc):
            line = key.start_mark.line + 1
            if value is None:
                break
        return line

    def finding(self, loc: Loc, text: str) -> Finding:
        """A mistake at `loc`: elements of lists are called by their name where they have one."""
        where = self.words(loc)
        return Finding(self.name, self.line(loc), f"{where}: {text}" if where else text)

    def words(self, loc: Loc) -> str:
        """`guests.node1.address` for ("guests", 0, "address")."""
        words, node = [], self.root
        for part in loc:
            node = _child(node, part)
            words.append(_name_of(node) or str(part + 1) if isinstance(part, int) else _shown(part))
        return ".".join(words)

    def span(self, loc: Loc) -> tuple[int, int] | None:
        """Where the value at `loc` stands in the text, for an edit that leaves the rest as it is."""
        steps = list(_path(self.root, loc))
        if len(steps) != len(loc) or steps[-1][1] is None:
            return None
        value = steps[-1][1]
        return value.start_mark.index, value.end_mark.index


def read(path: Path) -> tuple[SiteFile, Source]:
    """Read and check the shape of a site file. Raises SiteFileError with every mistake found."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise SiteFileError((Finding(str(path), 0, "a site file has at most 1 MiB"),))
        text = data.decode("utf-8")
    except OSError as error:
        raise SiteFileError((Finding(str(path), 0, f"cannot be read: {error.strerror}"),)) from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SiteFileError((Finding(str(path), line, "is not UTF-8 text: save it as that"),)) from None
    return parse(text, str(path))


def parse(text: str, name: str) -> tuple[SiteFile, Source]:
    """The same for a text; `name` is what errors call it."""
    source = Source(name, text, _compose(text, name))
    _refuse_strange(source)
    if not isinstance(source.root, yaml.MappingNode):
        raise SiteFileError((Finding(name, 1, "a site file is a list of keys: begin with site: NAME"),))
    try:
        return SiteFile.model_validate(_plain(source.root)), source
    except ValidationError as error:
        details = _telling(error.errors(include_url=False, include_input=False))
        findings = [source.finding(detail["loc"], _sentence(detail)) for detail in details]
        raise SiteFileError(tuple(sorted(findings, key=lambda finding: finding.line))) from None


def _compose(text: str, name: str) -> yaml.Node | None:
    line = 0
    try:
        loader = yaml.SafeLoader(text)
        try:
            root: yaml.Node | None = loader.get_single_node()
        finally:
            line = loader.line + 1
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = f"not valid YAML: {_shown(' '.join(part for part in (error.context, error.problem) if part))}"
        raise SiteFileError((Finding(name, mark.line + 1 if mark else 0, said),)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        said = f"not valid YAML: take out the character U+{int(error.character):04X}"
        raise SiteFileError((Finding(name, line, said),)) from None
    except (ValueError, OverflowError):
        # \U escapes beyond Unicode, and version numbers of thousands of digits
        raise SiteFileError((Finding(name, line, "not valid YAML: there are no such numbers"),)) from None
    except RecursionError:
        raise SiteFileError((Finding(name, line, "nested too deep for a site file: write it flatter"),)) from None
    return root


def _refuse_strange(source: Source) -> None:
    """What YAML can and a site file does not mean.

    A key that stands twice would silently lose its first value, an alias hides what a line says, a tag changes it.
    """
    findings = []
    seen: set[int] = set()
    for node in _walk(source.root):
        line = node.start_mark.line + 1
        if id(node) in seen:
            raise SiteFileError((Finding(source.name, line, "write it out: no & and * here"),))
        seen.add(id(node))
        if not _untagged(node):
            findings.append(Finding(source.name, line, f"write it without the tag {_shown(_tag_of(node))}"))
        elif isinstance(node, yaml.MappingNode):
            findings += [Finding(source.name, *one) for one in _odd_keys(node)]
        elif isinstance(node, yaml.ScalarNode) and any("\ud800" <= char <= "\udfff" for char in node.value):
            findings.append(Finding(source.name, line, "write whole characters: half of a pair is none"))
    if findings:
        raise SiteFileError(tuple(sorted(findings, key=lambda finding: finding.line)))


def _odd_keys(node: yaml.MappingNode) -> Iterator[tuple[int, str]]:
    keys: set[str] = set()
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            yield line, "write a word as the key, like site: NAME"
        elif key.value in keys:
            yield line, f"{_shown(key.value)}: stands here twice; keep one"
        else:
            keys.add(key.value)


def _untagged(node: yaml.Node) -> bool:
    """Whether a node has no other type than its look gives it."""
    if not isinstance(node, yaml.ScalarNode):
        return str(node.tag) == _TAG + ("seq" if isinstance(node, yaml.SequenceNode) else "map")
    plain = node.style is None
    return bool(node.tag == _RESOLVER.resolve(yaml.ScalarNode, node.value, (plain, not plain)))


def _tag_of(node: yaml.Node) -> str:
    tag = str(node.tag)
    return f"!!{tag.removeprefix(_TAG)}" if tag.startswith(_TAG) else tag


def _walk(node: yaml.Node | None) -> Iterator[yaml.Node]:
    waiting = [node] if node is not None else []
    while waiting:
        here = waiting.pop()
        yield here
        if isinstance(here, yaml.SequenceNode):
            waiting += here.value
        elif isinstance(here, yaml.MappingNode):
            waiting += [part for pair in here.value for part in pair]


def _plain(node: yaml.Node) -> Any:
    """The node as Python values: text as it is written, but whole numbers and nothing.

    YAML 1.1 reads more into plain words than their writer means: `no` as false, 0644 as octal, 1:30 as ninety.
    """
    if isinstance(node, yaml.MappingNode):
        return {key.value: _plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(part) for part in node.value]
    if node.tag == _TAG + "null":
        return None
    number = node.tag == _TAG + "int" and _WHOLE.fullmatch(node.value)
    return int(node.value) if number else node.value


def _shown(text: str) -> str:
    """Somebody's words in a message: one line, nothing that a terminal would obey."""
    plain = "".join(char if char.isprintable() else "?" for char in text)
    return plain if len(plain) <= 80 else f"{plain[:77]}..."


def _path(node: yaml.Node | None, loc: Loc) -> Iterator[tuple[yaml.Node, yaml.Node | None]]:
    """Key and value of each step of `loc`, as far as they are there."""
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = (node.value[part], node.value[part])
        else:
            found = None
        if found is None:
            return
        yield found
        node = found[1]


def _child(node: yaml.Node | None, part: int | str) -> yaml.Node | None:
    return next((value for _, value in _path(node, (part,))), None)


def _name_of(node: yaml.Node | None) -> str:
    for key in ("name", "title", "site"):
        child = _child(node, key) if isinstance(node, yaml.MappingNode) else None
        if isinstance(child, yaml.ScalarNode):
            return _shown(child.value)
    return ""


def _telling(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Leave out that a list is too short when that follows from a mistake within it."""
    places = [detail["loc"] for detail in details]
    return [
        detail
        for detail in details
        if detail["type"] != "too_short"
        or not any(place != detail["loc"] and place[: len(detail["loc"])] == detail["loc"] for place in places)
    ]


def _sentence(detail: ErrorDetails) -> str:
    if detail["type"] == "extra_forbidden":
        return f"unknown key{did_you_mean(SiteFile, detail['loc'])}"
    if detail["type"] in _SENTENCES:
        return _SENTENCES[detail["type"]].format(**detail.get("ctx", {}))
    return detail["msg"].removeprefix("Value error, ").replace("Input should be", "write")
