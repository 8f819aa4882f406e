"""The node's copy of the VO's policy: what it answers, and that it outlasts the catalog."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from catalog.errors import CatalogUnavailable
from catalog.wire import PolicyText
from dgis.rights import PolicyCopy, Rights, policy_file

TEXT = """
vo = "Test"
[groups]
senders = ["ae:CT*@lf1"]
[[grant]]
name = "sending"
to = ["senders"]
roles = ["contributor"]
"""
CT, VIEWER = "ae:CT1@lf1", "ae:VIEWER@lf1"


class Catalog:
    """Gives a policy, or none, or no answer."""

    def __init__(self) -> None:
        self.text: str | None = None
        self.version = 0
        self.away = False

    def policy(self, version: int | None = None) -> PolicyText | None:
        if self.away:
            raise CatalogUnavailable("away")
        if self.text is None:
            return None
        return PolicyText(version=self.version, text=self.text, made_at=datetime.now(UTC), made_by="/CN=op")

    def put(self, text: str) -> None:
        self.text, self.version = text, self.version + 1


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgis.rights._LOOK_SECONDS", 0.0)


@pytest.mark.usefixtures("no_waiting")
def test_every_process_answers_by_the_newest_copy(tmp_path: Path) -> None:
    path, catalog = policy_file(tmp_path), Catalog()
    rights, copy = Rights(path), PolicyCopy(catalog, path)
    assert rights.refusal(VIEWER, "store") == "", "before a policy is known the AE table decides alone"
    copy.refresh()
    assert rights.refusal(VIEWER, "store") == ""
    catalog.put(TEXT)
    copy.refresh()
    assert rights.refusal(CT, "store") == "" and rights.refusal(CT, "find").startswith("No.")
    assert "in no group" in rights.refusal(VIEWER, "store")
    catalog.put(TEXT.replace("CT*", "*"))
    copy.refresh()
    assert rights.refusal(VIEWER, "store") == ""
    catalog.away = True
    with pytest.raises(CatalogUnavailable):
        copy.refresh()
    assert Rights(path).refusal(VIEWER, "find").startswith("No."), "a node that starts while the catalog is away"


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("content", ["", "{}", '{"version": 3, "text": "vvo = 1"}', '{"version": 3}', "[1]"])
def test_a_copy_that_is_not_understood_grants_nothing(tmp_path: Path, content: str) -> None:
    path = policy_file(tmp_path)
    path.parent.mkdir()
    path.write_text(content)
    assert Rights(path).refusal(CT, "store").startswith("No.")


def test_a_node_may_insist_on_a_policy(tmp_path: Path) -> None:
    rights = Rights(policy_file(tmp_path), required=True)
    assert "not known here yet" in rights.refusal(CT, "store")
