"""Read a site file: YAML in, `SiteFile` out, and every mistake with its line and what to write instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from certs.config import did_you_mean
from dgis.deploy.errors import Finding, SiteFileError
from dgis.deploy.model import SiteFile

Loc = tuple[int | str, ...]
MOST_BYTES = 1 << 20


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
            words.append(_name_of(node) or str(part + 1) if isinstance(part, int) else part)
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
        if path.stat().st_size > MOST_BYTES:
            raise SiteFileError((Finding(str(path), 0, "a site file has at most 1 MiB"),))
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SiteFileError((Finding(str(path), 0, f"cannot be read: {error.strerror}"),)) from error
    except UnicodeDecodeError:
        raise SiteFileError((Finding(str(path), 0, "is not UTF-8 text"),)) from None
    return parse(text, str(path))


def parse(text: str, name: str) -> tuple[SiteFile, Source]:
    """The same for a text; `name` is what errors call it."""
    source = Source(name, text, _compose(text, name))
    _refuse_twice(source)
    data = _plain(source.root) if source.root is not None else None
    if not isinstance(data, dict):
        raise SiteFileError((Finding(name, 1, "a site file is a list of keys: begin with site: NAME"),))
    try:
        return SiteFile.model_validate(data), source
    except ValidationError as error:
        details = _telling(error.errors(include_url=False, include_input=False))
        findings = [source.finding(detail["loc"], _sentence(detail)) for detail in details]
        raise SiteFileError(tuple(sorted(findings, key=lambda finding: finding.line))) from None


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        raise SiteFileError((Finding(name, line, f"not valid YAML: {error.problem or error.context}"),)) from None
    except (yaml.YAMLError, ValueError):
        raise SiteFileError((Finding(name, 0, "not valid YAML: it has characters that YAML does not allow"),)) from None
    except RecursionError:
        raise SiteFileError((Finding(name, 0, "nested too deep for a site file"),)) from None
    return root


def _refuse_twice(source: Source) -> None:
    """A key that stands twice would silently lose its first value; an alias hides what a line says."""
    findings = []
    seen: set[int] = set()
    for node in _walk(source.root):
        if id(node) in seen:
            raise SiteFileError((Finding(source.name, node.start_mark.line + 1, "write it out: no & and * here"),))
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, _ in node.value:
                if str(key.value) in keys:
                    text = f"{key.value}: stands here twice; keep one"
                    findings.append(Finding(source.name, key.start_mark.line + 1, text))
                keys.add(str(key.value))
    if findings:
        raise SiteFileError(tuple(findings))


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
    """The node as Python values; numbers of keys stay text, dates are nothing that a site file has."""
    constructor = yaml.constructor.SafeConstructor()
    try:
        return constructor.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        line = node.start_mark.line + 1
        text = f"cannot be read as plain values: {error}"
        raise SiteFileError((Finding(node.start_mark.name, line, text),)) from None


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
            return str(child.value)
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
    if detail["type"] == "too_short":
        return f"write at least {detail.get('ctx', {}).get('min_length', 1)}"
    if detail["type"] == "extra_forbidden":
        return f"unknown key{did_you_mean(SiteFile, detail['loc'])}"
    if detail["type"] == "missing":
        return "is missing"
    return detail["msg"].removeprefix("Value error, ").replace("Input should be", "write")
