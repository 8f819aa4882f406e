"""Write a statement as Markdown (the texts are in `templates`) and as one HTML page made from that Markdown."""

from __future__ import annotations

import re

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token

from dgis.conformance.statement import Statement

_HEADING = re.compile(r"h([23])\Z")


def markdown(statement: Statement) -> str:
    """Return the statement as GitHub-flavoured Markdown."""
    made = _environment(html=False).get_template("statement.md.j2").render(s=statement)
    return re.sub(r"\n{3,}", "\n\n", made).strip() + "\n"


def html(statement: Statement) -> str:
    """Return the statement as one self-contained HTML page with a table of contents."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown(statement))
    contents = list(_anchored(tokens))
    body = parser.renderer.render(tokens, parser.options, {})
    page = _environment(html=True).get_template("page.html.j2")
    return page.render(s=statement, body=body, contents=contents)


def _anchored(tokens: list[Token]) -> list[tuple[int, str, str]]:
    """Give the headings anchors; return (depth, anchor, text) of those for the table of contents."""
    contents = []
    for heading, inline in zip(tokens, tokens[1:], strict=False):
        found = _HEADING.match(heading.tag)
        if heading.type == "heading_open" and found:
            anchor = re.sub(r"[^a-z0-9 -]", "", inline.content.lower()).replace(" ", "-")  # as GitHub makes them
            heading.attrSet("id", anchor)
            contents.append((int(found[1]), anchor, inline.content))
    return contents


def _environment(*, html: bool) -> Environment:
    made = Environment(
        loader=PackageLoader("dgis.conformance"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["cell"] = _cell
    made.filters["number"] = "{:g}".format
    return made


def _cell(value: object) -> str:
    """Make a value safe inside a table of Markdown."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\|*_<>`\[\]])", r"\\\1", text)
