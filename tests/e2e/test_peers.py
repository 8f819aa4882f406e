"""Other people's programs as peers of a whole grid, over the plain port and over DICOM TLS.

DCMTK's tools, Debian's Orthanc in both directions, dcmjs-dimse from npm.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from certs import ca
from certs.credential import Credential
from dgis.demo.images import Image
from dgis.demo.viewer import Viewer
from tests.helpers import dcmtk, library, orthanc
from tests.helpers.dcmjs import Dcmjs, install
from tests.helpers.dicomfiles import images
from tests.helpers.grid import Grid, free_port, wait_until

pytestmark = [pytest.mark.xdist_group("peers"), pytest.mark.peer]
UNCOMPRESSED = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
PORTS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


@dataclass
class Site:
    """A grid with both ports that holds ``files``, and the identities of its people."""

    grid: Grid
    folder: Path
    files: dict[str, Dataset]

    def port(self, tls: bool) -> int:
        return int(self.grid.ready["dimse_tls" if tls else "dimse"]["port"])

    def person(self, name: str) -> tuple[str, str, str]:
        """Key, certificate and CA of a peer; the same name gives the same ones."""
        out = self.folder.parent / "people"
        found = Credential(out / f"{name}.cert.pem", out / f"{name}.key.pem")
        if not found.cert.exists():
            found = ca.issue_host(self.grid.home, name, dns=("localhost",), ips=("127.0.0.1",), out=out)
        return str(found.key), str(found.cert), str(self.grid.ready["client"]["ca"])

    def of(self, **values: str) -> dict[str, Dataset]:
        return {u: d for u, d in self.files.items() if all(d.get(k) == v for k, v in values.items())}

    def study(self) -> tuple[str, dict[str, Dataset]]:
        """One study of two modalities and a patient with a name beyond ASCII."""
        found = self.of(PatientID="SYN001000001")
        return str(next(iter(found.values())).StudyInstanceUID), found

    def new(self, folder: Path) -> list[Image]:
        """Three images of a study that the grid does not have yet."""
        (folder / "new").mkdir(parents=True)
        study = f"1.2.826.0.1.3680043.10.1445.{zlib.crc32(str(folder).encode())}"
        for number, one in enumerate(self.of(PatientID="SYN001000001", Modality="CT").values()):
            made = copy.deepcopy(one)
            made.StudyInstanceUID, made.SeriesInstanceUID, made.SOPInstanceUID = (
                study,
                f"{study}.1",
                f"{study}.1.{number}",
            )
            made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
            made.save_as(folder / "new" / f"{number}.dcm", enforce_file_format=True)
        return images(folder / "new")

    def found(self, study: str) -> int:
        """How many instances of a study the grid knows."""
        asking = Viewer(title="ASKING", called="DGIS", host="127.0.0.1", port=self.grid.port)
        matches = asking.find("STUDY", StudyInstanceUID=study, NumberOfStudyRelatedInstances="")
        return sum(int(match.NumberOfStudyRelatedInstances) for match in matches)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = tmp_path_factory.mktemp("peers")
    files = library.make(place / "images")
    with Grid(place / "grid", options=("--tls-port", str(free_port()))) as grid:
        sender = Viewer(title="MODALITY", called="DGIS", host="127.0.0.1", port=grid.port)
        assert Counter(status for _, status in sender.store(images(place / "images"))) == {0: len(files)}
        yield Site(grid, place / "images", files)


# --- DCMTK -----------------------------------------------------------------------------------------------------------


def scu(site: Site, tool: str, tls: bool, *args: str | Path, called: str = "DGIS") -> str:
    """Run a tool that must succeed; what it says."""
    key, cert, trusted = site.person("dcmtk")
    secure = ("+tls", key, cert, "+cf", trusted) if tls else ()
    ends = ("-aet", "DCMTK", "-aec", called, "127.0.0.1", str(site.port(tls)))
    done = dcmtk.run(tool, "-v", *secure, *ends, *args)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@dcmtk.NEEDS
@PORTS
def test_dcmtk_echoes_stores_and_finds(site: Site, tls: bool, tmp_path: Path) -> None:
    assert "Received Echo Response (Success)" in scu(site, "echoscu", tls)
    new = site.new(tmp_path)
    sent = scu(site, "storescu", tls, "+sd", "+r", "-R", tmp_path / "new")
    assert dcmtk.stored(sent) == len(new) == 3
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={new[0].study_uid}", "-k", "PatientName")
    assert scu(site, "findscu", tls, "-S", *keys).count("Find Response: ") == 1, "one answer, findable by release"
    patients = ("-k", "QueryRetrieveLevel=PATIENT", "-k", "PatientName=*", "-k", "PatientID")
    distinct = len({one.PatientID for one in site.files.values()})
    assert scu(site, "findscu", tls, "-P", *patients).count("Find Response: ") == distinct


@dcmtk.NEEDS
@pytest.mark.parametrize("tool", ["getscu", "movescu"])
def test_dcmtk_retrieves(site: Site, tool: str, tmp_path: Path) -> None:
    """By a list of UIDs; getscu and movescu of Debian have no TLS (tests/e2e/test_dicom_tls.py has it)."""
    study, expected = site.study()
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}\\{library.COMPRESSED_STUDY}")
    args: tuple[str | Path, ...] = ("-S", *keys, "-od", tmp_path)
    if tool == "movescu":
        port = free_port()
        site.grid.cli("ae", "add", "DCMTK", "--host", "127.0.0.1", "--port", str(port))
        args = (*args, "-aem", "DCMTK", "+P", str(port))
    scu(site, tool, False, *args)
    check(tmp_path, expected | site.of(StudyInstanceUID=library.COMPRESSED_STUDY), syntaxes=UNCOMPRESSED)


def check(folder: Path, expected: dict[str, Dataset], *, syntaxes: set[str] | None = None) -> None:
    got = library.read(path for path in folder.iterdir() if path.is_file())
    assert set(got) == set(expected)
    for uid, one in got.items():
        assert library.same_pixels(one, expected[uid]), uid
        assert syntaxes is None or library.syntax(one) in syntaxes


# --- pynetdicom's own programs ---------------------------------------------------------------------------------------


def app(site: Site, name: str, *args: str | Path) -> str:
    """Run one of pynetdicom's applications as installed; what it says."""
    argv = [sys.executable, "-m", "pynetdicom", name, "127.0.0.1", str(site.port(False)), *map(str, args)]
    ends = ("-aet", "PYNETDICOM", "-aec", "DGIS", "-v")
    done = subprocess.run([*argv, *ends], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_pynetdicom_s_programs(site: Site, tmp_path: Path) -> None:
    study, expected = site.study()
    port = free_port()
    site.grid.cli("ae", "add", "PYNETDICOM", "--host", "127.0.0.1", "--port", str(port))
    assert "0x0000" in app(site, "echoscu")
    new = site.new(tmp_path)
    assert app(site, "storescu", tmp_path / "new", "-r").count("0x0000") == 3 == site.found(new[0].study_uid)
    keys = ("-S", "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}")
    assert app(site, "findscu", *keys, "-k", "PatientName=").count("0xFF00") == 1
    app(site, "getscu", *keys, "-od", tmp_path / "get")
    app(site, "movescu", *keys, "-aem", "PYNETDICOM", "--store", "--store-port", str(port), "-od", tmp_path / "move")
    for way in ("get", "move"):
        check(tmp_path / way, expected)


# --- Orthanc ---------------------------------------------------------------------------------------------------------


@dataclass
class Peer:
    """A running Orthanc that the grid knows as ``title``, over one of the two kinds of port."""

    site: Site
    orthanc: orthanc.Orthanc
    title: str
    tls: bool

    def rest(self, path: str, body: object = None) -> Any:
        return self.orthanc.rest(path, body)

    def has(self, study: str) -> int:
        """How many instances of a study it has."""
        query = {"Level": "Instance", "Query": {"StudyInstanceUID": study}}
        return len(self.rest("/tools/find", query))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "tls"])
def peer(request: pytest.FixtureRequest, site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    tls = bool(request.param)
    key, cert, trusted = site.person("orthanc")
    title = "ORTHANC_TLS" if tls else "ORTHANC"
    extra: dict[str, object] = {"DicomAet": title, "DefaultEncoding": "Utf8"}
    if tls:
        extra |= {
            "DicomTlsEnabled": True, "DicomTlsRemoteCertificateRequired": True, "DicomTlsPrivateKey": key,
            "DicomTlsCertificate": cert, "DicomTlsTrustedCertificates": trusted,
        }  # fmt: skip
    dgis = {"AET": "DGIS", "Host": "127.0.0.1", "Port": site.port(tls), "UseDicomTls": tls}
    home = tmp_path_factory.mktemp("orthanc")
    with orthanc.Orthanc(home, nodelay=True, modalities={"dgis": dgis}, extra=extra) as running:
        destination = ("--host", "127.0.0.1", "--port", str(running.port))
        rights = ("--rights", "echo,store,find,move,get,commit")
        site.grid.cli("ae", "add", title, *destination, *rights, *(("--tls",) if tls else ()))
        yield Peer(site, running, title, tls)


@orthanc.NEEDS
def test_orthanc_asks_dgis(peer: Peer, tmp_path: Path) -> None:
    """C-ECHO, C-STORE, C-FIND at three levels and C-MOVE to itself, driven over its REST interface."""
    study, expected = peer.site.study()
    peer.rest("/modalities/dgis/echo", {})
    new = peer.site.new(tmp_path)
    for one in new:
        peer.orthanc.upload(one.path)
    resources = [one["ID"] if isinstance(one, dict) else one for one in peer.rest("/instances")]
    stored = peer.rest("/modalities/dgis/store", {"Resources": resources, "Synchronous": True})
    assert stored["FailedInstancesCount"] == 0 and peer.site.found(new[0].study_uid) == 3
    found = query(peer, "Study", {"PatientName": "*", "StudyInstanceUID": study, "ModalitiesInStudy": ""})
    assert len(found) == 1 and found[0]["PatientName"] == str(next(iter(expected.values())).PatientName)
    series = query(peer, "Series", {"StudyInstanceUID": study, "SeriesInstanceUID": "", "Modality": ""})
    assert {(one["SeriesInstanceUID"], one["Modality"]) for one in series} == {
        (one.SeriesInstanceUID, one.Modality) for one in expected.values()
    }
    everything = query(peer, "Study", {"StudyInstanceUID": "", "PatientID": ""})
    studies = {one["StudyInstanceUID"] for one in everything}
    assert len(studies) == len(everything) and studies >= {str(d.StudyInstanceUID) for d in peer.site.files.values()}
    asked = peer.rest("/modalities/dgis/query", {"Level": "Study", "Query": {"StudyInstanceUID": study}})
    moved = peer.rest(f"/queries/{asked['ID']}/retrieve", {"TargetAet": peer.title, "Synchronous": True})
    assert moved["Query"] and peer.has(study) == len(expected)
    peer.rest("/modalities/dgis/move", {"Level": "Study", "Resources": [{"StudyInstanceUID": library.COMPRESSED_STUDY}],
                                        "TargetAet": peer.title, "Synchronous": True})  # fmt: skip
    assert peer.has(library.COMPRESSED_STUDY) == 5


def query(peer: Peer, level: str, keys: dict[str, str]) -> list[dict[str, str]]:
    asked = peer.rest("/modalities/dgis/query", {"Level": level, "Query": keys})
    answers = peer.rest(f"/queries/{asked['ID']}/answers?expand&simplify")
    return [{str(k): str(v) for k, v in answer.items()} for answer in answers]


@orthanc.NEEDS
def test_dgis_asks_orthanc(peer: Peer, tmp_path: Path) -> None:
    """`dgis echo`, `send`, `find`, `get` and `move` with Orthanc as SCP."""
    cli = peer.site.grid.cli
    cli("echo", peer.title)
    new = peer.site.new(tmp_path)
    study = new[0].study_uid
    assert json.loads(cli("send", peer.title, str(tmp_path / "new"), "--format", "json").stdout)["sent"] == 3
    assert peer.has(study) == 3
    key = ("-k", f"StudyInstanceUID={study}")
    [match] = json.loads(cli("find", peer.title, *key, "--format", "json").stdout)["matches"]
    assert match["PatientName"] == str(next(iter(peer.site.study()[1].values())).PatientName)
    got = json.loads(cli("get", peer.title, "--out", str(tmp_path / "got"), *key, "--format", "json").stdout)
    assert (got["status"], got["completed"]) == ("0000", 3)
    assert set(library.read((tmp_path / "got").iterdir())) == set(library.read((tmp_path / "new").iterdir()))
    assert peer.site.found(study) == 0
    assert "3 sent" in cli("move", peer.title, "--to", "DGIS", *key).stdout
    wait_until(lambda: peer.site.found(study) == 3, seconds=5, what="the study came to the grid")


@orthanc.NEEDS
def test_storage_commitment_with_orthanc(peer: Peer, tmp_path: Path) -> None:
    """Both ways; each report comes on an association of its own, over the same kind of port."""
    study = list(peer.site.study()[1].values())
    references = [{"SOPClassUID": d.SOPClassUID, "SOPInstanceUID": d.SOPInstanceUID} for d in study]
    asked = peer.rest("/modalities/dgis/storage-commitment", {"DicomInstances": references})

    def state() -> str:
        return str(peer.rest(f"/storage-commitment/{asked['ID']}")["Status"])

    wait_until(lambda: state() != "Pending", seconds=60, what="Orthanc got the report", every=0.2)
    assert state() == "Success"
    new = peer.site.new(tmp_path)
    peer.site.grid.cli("send", peer.title, str(tmp_path / "new"))
    done = peer.site.grid.cli("commit", "check", peer.title, str(tmp_path / "new"), "--format", "json", check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["committed"], told["failed"]) == (len(new), [])


# --- dcmjs-dimse -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("npm"))


@PORTS
def test_dcmjs(site: Site, module: Path, tls: bool, tmp_path: Path) -> None:
    """Echo, store, find at four levels, get and move, with a username (user identity negotiation)."""
    study, expected = site.study()
    one, new, port = next(iter(expected.values())), site.new(tmp_path), free_port()
    site.grid.cli("ae", "add", "DCMJS", "--host", "127.0.0.1", "--port", str(port))
    for name in ("get", "move"):
        (tmp_path / name).mkdir()
    client = Dcmjs(
        module, "127.0.0.1", site.port(tls), tls=site.person("dcmjs") if tls else None,
        identity={"type": 1, "positiveResponseRequested": True, "primaryField": "reading room"},
    )  # fmt: skip
    charset = {"SpecificCharacterSet": "ISO_IR 192"}
    keys = {**charset, "StudyInstanceUID": study, "SeriesInstanceUID": ""}
    told = client.run(
        {"do": "echo"},
        {"do": "store", "files": [str(image.path) for image in new]},
        {"do": "find", "level": "PATIENT", "keys": {**charset, "PatientName": "NOVÁK*", "PatientID": ""}},
        {"do": "find", "level": "STUDY", "keys": {**charset, "PatientName": "novak^jiri", "StudyInstanceUID": study}},
        {"do": "find", "level": "SERIES", "keys": {**keys, "Modality": ""}},
        {"do": "find", "level": "IMAGE", "keys": {**keys, "SeriesInstanceUID": one.SeriesInstanceUID}},
        {"do": "get", "study": study, "folder": str(tmp_path / "get")},
        {"do": "move", "study": study, "destination": "DCMJS", "port": port, "folder": str(tmp_path / "move")},
    )
    assert [step["error"] for step in told] == [None] * len(told), told
    echo, store, patient, by_name, series, image, get, move = told
    assert echo["statuses"] == [0] and store["statuses"] == [0] * 3
    assert site.found(new[0].study_uid) == 3
    assert [a["PatientID"] for a in patient["answers"]] == [one.PatientID]
    assert [a["StudyInstanceUID"] for a in by_name["answers"]] == [study]
    assert {a["SeriesInstanceUID"] for a in series["answers"]} == {d.SeriesInstanceUID for d in expected.values()}
    assert len(image["answers"]) == 3
    for step, folder in ((get, "get"), (move, "move")):
        assert step["statuses"][-1] == 0 and step["counts"] == [len(expected), 0, 0], step
        check(tmp_path / folder, expected)
