"""Beyond one's rights, through DIMSE and HTTPS; each docstring is a row "attack -> result" of docs/security.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from catalog.client import CatalogClient
from catalog.errors import CatalogForbidden, CatalogRefused
from catalog.wire import LocateRequest, PermitRequest, Query
from certs import ca
from certs.config import IdentityConfig
from certs.credential import Credential
from certs.https.session import GridSession
from dgis.demo.viewer import Viewer
from dgis.rights import policy_file
from tests.helpers.dicomfiles import images, synth
from tests.helpers.grid import Grid, wait_until

NOT_AUTHORISED = 0x0124
OPERATOR = "/O=dgis local grid/OU=People/CN=operator"
ANN = "/O=dgis local grid/OU=People/CN=ann"
POLICY = f"""
vo = "attacked"
[groups]
operators = ["{OPERATOR}"]
modalities = ["ae:CT1@local", "ae:US1@local"]
readers = ["ae:READER@local", "{ANN}"]
[[grant]]
name = "sending"
to = ["modalities"]
roles = ["contributor"]
[[grant]]
name = "CT only"
to = ["readers"]
roles = ["viewer"]
studies = {{ modality = ["CT"] }}
[[grant]]
name = "operation"
to = ["operators"]
roles = ["operator"]
[break_glass]
to = ["readers"]
minutes = 5
"""


class Ward:
    """A grid with one CT and one MR study in it, and a policy that shows readers the CT."""

    def __init__(self, grid: Grid, work: Path) -> None:
        self.grid, self.work = grid, work
        sizes = ("--series", "1", "--instances", "2", "--rows", "64", "--cols", "64", "--seed")
        made = {
            kind: images(synth(work / kind, "--modality", kind, *sizes, str(seed)))
            for seed, kind in enumerate(("CT", "MR"), start=4711)
        }
        self.images = made
        self.uid = {kind: str(found[0].study_uid) for kind, found in made.items()}
        self.put(POLICY)
        for kind in made:
            assert {status for _, status in self.viewer("CT1").store(made[kind])} == {0}

    def viewer(self, title: str) -> Viewer:
        place = self.grid.ready["dimse"]
        return Viewer(title=title, called=place["aet"], host=place["host"], port=place["port"])

    def put(self, text: str) -> None:
        """Put a policy in force, and wait until the DGIS knows it."""
        file = self.work / "policy.toml"
        file.write_text(text)
        self.grid.cli("policy", "put", str(file))
        copy = policy_file(self.grid.home / "dgis" / "spool")
        wait_until(lambda: json.loads(copy.read_text())["text"] == text, seconds=20, what="the policy at the DGIS")

    def user(self, name: str) -> IdentityConfig:
        out = self.work / "people"
        if not (out / f"{name}.cert.pem").exists():
            ca.issue_user(self.grid.home, name, roles=frozenset({"user"}), out=out)
        credential = Credential(out / f"{name}.cert.pem", out / f"{name}.key.pem")
        return IdentityConfig(cert=credential.cert, key=credential.key, trust=self.grid.home / "trust")

    def catalog(self, name: str) -> CatalogClient:
        return CatalogClient(GridSession(self.user(name)), self.grid.ready["catalog"]["url"])


@pytest.fixture(scope="module")
def ward(attacked: Grid, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    before = attacked.cli("policy", "show").stdout
    made = Ward(attacked, tmp_path_factory.mktemp("ward"))
    yield made
    made.put(before)


def test_a_query_for_what_is_hidden(ward: Ward) -> None:
    """C-FIND by an AE for a study that its grants do not cover, by UID or by wildcard -> no answer shows it."""
    reader = ward.viewer("READER")
    shown = {str(row.StudyInstanceUID) for row in reader.find("STUDY", StudyInstanceUID="", PatientName="*")}
    assert ward.uid["CT"] in shown and ward.uid["MR"] not in shown
    assert reader.find("STUDY", StudyInstanceUID=ward.uid["MR"]) == []
    assert reader.find("SERIES", StudyInstanceUID=ward.uid["MR"], SeriesInstanceUID="") == []


def test_a_retrieve_of_what_is_hidden(ward: Ward) -> None:
    """C-GET of a study whose UID is known, beyond the grants -> nothing is sent; what is granted comes."""
    reader = ward.viewer("READER")
    counts, received = reader.get(ward.images["MR"])
    assert (counts, len(received.digests)) == ((0, 0), 0)
    counts, received = reader.get(ward.images["CT"])
    assert counts == (len(ward.images["CT"]), 0)


def test_an_operation_without_any_grant(ward: Ward) -> None:
    """C-STORE by a viewer, C-FIND by a modality, either by an AE that the policy does not name -> 0124H."""
    assert {status for _, status in ward.viewer("READER").store(ward.images["CT"])} == {NOT_AUTHORISED}
    assert {status for _, status in ward.viewer("STRANGER").store(ward.images["CT"])} == {NOT_AUTHORISED}
    for title in ("CT1", "STRANGER"):
        with pytest.raises(Exception, match="0124"):
            ward.viewer(title).find("STUDY", StudyInstanceUID="")


def test_a_user_beyond_the_grants_over_https(ward: Ward) -> None:
    """A user asks the catalog for hidden studies, or a permit of their objects or in another's name -> refused."""
    ann, joe = ward.catalog("ann"), ward.catalog("joe")
    rows = ann.query(Query(level="STUDY", keys=("StudyInstanceUID",)))
    assert {str(row["StudyInstanceUID"]) for row in rows} == {ward.uid["CT"]}
    assert list(ann.locate(LocateRequest(studies=(ward.uid["MR"],)))) == []
    key = next(iter(ann.locate(LocateRequest(studies=(ward.uid["CT"],))))).object.object_key
    assert ann.issue_permit(PermitRequest(dn=ANN, se="se1", keys=(key,), verbs=("read",))).token
    for wanted in (
        PermitRequest(dn=OPERATOR, se="se1", keys=(key,), verbs=("read",)),
        PermitRequest(dn=ANN, se="se1", keys=("v1/aa/bb/" + "a" * 64,), verbs=("read",)),
    ):
        with pytest.raises(CatalogForbidden):
            ann.issue_permit(wanted)
    with pytest.raises(CatalogRefused, match="may not have write"):
        ann.issue_permit(PermitRequest(dn=ANN, se="se1", keys=(key,), verbs=("read", "write")))
    with pytest.raises(CatalogForbidden):
        joe.query(Query(level="STUDY", keys=("StudyInstanceUID",)))
    for call in (lambda: ann.put_policy(POLICY), ann.policy_versions, lambda: ann.retire(["1.2"])):
        with pytest.raises(CatalogRefused, match="403"):
            call()


def test_acting_for_somebody_without_being_a_gateway(ward: Ward) -> None:
    """A user names somebody with more rights as whom to act for -> the name does not count."""
    ann = ward.catalog("ann")
    rows = ann.query(Query(level="STUDY", keys=("StudyInstanceUID",)), acting_for="ae:CT1@local")
    assert {str(row["StudyInstanceUID"]) for row in rows} == {ward.uid["CT"]}


def test_a_right_that_is_taken_away(ward: Ward) -> None:
    """A grant is taken out of the policy while the AE is at work -> its next query, and store, is refused."""
    reader = ward.viewer("READER")
    assert reader.find("STUDY", StudyInstanceUID=ward.uid["CT"])
    ward.put(POLICY.replace('"ae:READER@local", ', ""))
    try:
        with pytest.raises(Exception, match="0124"):
            reader.find("STUDY", StudyInstanceUID=ward.uid["CT"])
    finally:
        ward.put(POLICY)


def test_a_glass_is_broken(ward: Ward) -> None:
    """Breaking the glass without the right, or for an AE of another group -> refused; with it, open and told loudly."""
    people = ward.work / "people"
    ward.user("ann"), ward.user("joe")

    def broken(name: str, also: str) -> int:
        own = ("--cert", str(people / f"{name}.cert.pem"), "--key", str(people / f"{name}.key.pem"))
        said = ("--reason", "unconscious, no history", "--also", also)
        return ward.grid.cli("policy", "break-glass", ward.uid["MR"], *said, *own, check=False).returncode

    assert broken("joe", "ae:READER@local") == 1 and broken("ann", "ae:CT1@local") == 1
    assert ward.viewer("READER").find("STUDY", StudyInstanceUID=ward.uid["MR"]) == []
    assert broken("ann", "ae:READER@local") == 0
    assert len(ward.viewer("READER").find("STUDY", StudyInstanceUID=ward.uid["MR"])) == 1
    log = (ward.grid.home / "log" / "catalog.log").read_text()
    assert "glass_broken" in log and ANN in log and "unconscious" not in log
    shares = json.loads(ward.grid.cli("policy", "shares", "--format", "json").stdout)
    assert {row["with"] for row in shares} == {ANN, "ae:READER@local"}
    loud = json.loads(ward.grid.cli("audit", "search", "--kind", "emergency", "--format", "json").stdout)
    assert [(row["actor"], row["studies"]) for row in loud] == [(ANN, [ward.uid["MR"]])]
    refused = json.loads(ward.grid.cli("audit", "search", "--kind", "refused", "--format", "json").stdout)
    assert any(row["detail"].startswith("break-glass: No.") for row in refused)
    assert ward.grid.cli("audit", "verify").returncode == 0
