"""The statement is fresh, follows the configuration, and its status table is the one that the handlers answer from."""

from __future__ import annotations

import ast
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from dgis.cli import cli
from dgis.config import NodeConfig
from dgis.conformance.render import html, markdown
from dgis.conformance.statement import Statement, build
from dgis.dimse import status
from dgis.dimse.ae import AeEntry
from dgis.localgrid import default_node
from dgis.node import dimse_settings

ROOT = Path(__file__).resolve().parents[3]
COMMITTED = ROOT / "dgis" / "CONFORMANCE.md"


def statement(node: NodeConfig | None = None, *remotes: AeEntry) -> Statement:
    node = node or default_node()
    return build(node, dimse_settings(node), remotes, version=version("dgis"))


def test_the_committed_statement_is_fresh() -> None:
    now = markdown(statement())
    assert COMMITTED.read_text() == now, "run: dgis conformance --local-default --out dgis/CONFORMANCE.md"


def test_the_statement_follows_the_configuration() -> None:
    plain = default_node()
    other = plain.model_copy(
        update={
            "dgis": plain.dgis.model_copy(update={"aet": "OTHER", "copies": 3, "accept": "replicated"}),
            "dimse": plain.dimse.model_copy(update={"find_limit": 77, "names": "exact", "hierarchy": "strict"}),
            "transcoding": plain.transcoding.model_copy(update={"enabled": False}),
            "unknown_ae": plain.unknown_ae.model_copy(update={"rights": ("echo",), "networks": ()}),
        }
    )
    text = markdown(statement(other, AeEntry(title="PIPE|*X*", host="h", port=104, rights=("store",))))
    for said in ("| AE title | OTHER |", "At most 77 matches", "match exactly", "must be given", "3 copies on storage"):
        assert said in text, said
    assert "Nothing is converted" in text and "decompressed" not in text.split("### 8.2")[1]
    assert "decompressed" in markdown(statement()).split("### 8.2")[1]
    assert r"| PIPE\|\*X\* | h | 104 | No | store | the set of its query |" in text
    assert "may echo.\n" in text and "may echo when" not in text


def test_the_page_is_whole_html_with_links_that_lead_somewhere() -> None:
    page = html(statement(None, AeEntry(title="<script>", host="h", port=104)))
    assert "<script>" not in page and "&lt;script&gt;" in page
    targets, anchors = set(re.findall(r'href="#([^"]+)"', page)), re.findall(r' id="([^"]+)"', page)
    assert len(targets) > 15 and targets <= set(anchors)
    assert len(anchors) == len(set(anchors))
    assert page.count("<table>") > 25 and page.count("<table>") == page.count("</table>")
    assert "| ---" not in page, "a table that Markdown did not see as one"


def test_every_table_of_the_markdown_has_whole_rows() -> None:
    columns = 0
    for line in COMMITTED.read_text().splitlines():
        if not line.startswith("|"):
            columns = 0
            continue
        count = len(re.findall(r"(?<!\\)\|", line)) - 1
        assert columns in (0, count), line
        columns = count


def test_the_command_writes_both_forms(tmp_path: Path) -> None:
    run = CliRunner().invoke(cli, ["conformance", "--local-default"])
    assert run.exit_code == 0 and run.output == COMMITTED.read_text()
    page = tmp_path / "c.html"
    assert (
        CliRunner().invoke(cli, ["conformance", "--local-default", "--format", "html", "--out", str(page)]).exit_code
        == 0
    )
    assert page.read_text().startswith("<!doctype html>")
    assert CliRunner().invoke(cli, ["conformance", "--home", str(tmp_path)]).exit_code == 2


# --- the status table ------------------------------------------------------------------------------------------------

HANDLERS = ROOT / "dgis" / "dimse" / "handlers"
SERVICES = {
    "store.py": {"store"},
    "find.py": {"find"},
    "retrieve.py": {"move", "get"},
    "commit.py": {"commit"},
    "operation.py": {"find", "move", "get"},
    "dispatch.py": {"echo", "store", "find", "move", "get", "commit"},
}


def _used(source: str) -> set[int]:
    """The status constants that a module names."""
    names = {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "status"
    }
    return {value for name in names if isinstance(value := getattr(status, name, None), int)}


@pytest.mark.parametrize("path", sorted(HANDLERS.glob("*.py")), ids=lambda path: path.name)
def test_what_a_handler_can_answer_stands_in_the_table(path: Path) -> None:
    used = _used(path.read_text())
    if path.name not in SERVICES:
        assert not used, f"say in this test which services {path.name} answers"
        return
    known = {row.code for row in status.TABLE if SERVICES[path.name] & set(row.services)}
    missing = {f"{code:04X}" for code in used - known}
    assert not missing, f"{path.name} answers {missing}: add rows to dgis.dimse.status.TABLE"


def test_no_row_of_the_table_is_never_answered() -> None:
    sources = [*HANDLERS.glob("*.py"), *(ROOT / "dgis" / "dimse").glob("*.py")]
    used = set[int]().union(*(_used(path.read_text()) for path in sources))
    names = {name: value for name, value in vars(status).items() if name.isupper() and isinstance(value, int)}
    everywhere = "\n".join(path.read_text() for path in (ROOT / "dgis").rglob("*.py") if path.name != "status.py")
    body = Path(status.__file__).read_text().split("def of_store_error")[1]
    answered = used | {value for name, value in names.items() if re.search(rf"\b{name}\b", everywhere + body)}
    stale = {f"{row.code:04X}" for row in status.TABLE} - {f"{code:04X}" for code in answered}
    assert not stale
    assert len({(row.code, service) for row in status.TABLE for service in row.services}) == sum(
        len(row.services) for row in status.TABLE
    ), "one meaning for each code in each service"


@pytest.mark.parametrize(
    ("code", "service", "says"),
    [
        (0x0000, "store", "Success"),
        (0xA700, "find", "limit of matches"),
        (0xA700, "store", "no room"),
        (0xB007, "store", "does not match its SOP class"),
        (0xA7FF, "store", "out of resources"),
        (0xC123, "move", "cannot be processed"),
        (0x0111, "store", "there already"),
        (0x7777, "store", "not in the standard"),
    ],
)
def test_codes_of_peers_are_said_in_words(code: int, service: str, says: str) -> None:
    assert says in status.meaning(code, service)
