"""DICOM TLS (PS3.15 B.12) on a whole grid, with DCMTK's tools on the other side."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import (
    CTImageStorage,
)
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelGet as STUDY_ROOT_GET,
)
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelMove as STUDY_ROOT_MOVE,
)

from certs import ca
from certs.config import IdentityConfig
from certs.credential import Credential
from dgis.dimse import users
from tests.helpers import dcmtk, rawtls
from tests.helpers.dicomfiles import synth
from tests.helpers.grid import BIN, Grid, free_port, wait_until
from tests.unit.dgis.dimse.raw import associate

pytestmark = [pytest.mark.xdist_group("dicom-tls"), pytest.mark.peer, dcmtk.NEEDS]
IMAGES = 6


@dataclass
class Site:
    """A grid with a TLS port, a folder of images stored over it, and its own CA's people."""

    grid: Grid
    images: Path
    people: Path

    @property
    def port(self) -> int:
        return int(self.grid.ready["dimse_tls"]["port"])

    @property
    def ca(self) -> str:
        return str(self.grid.ready["client"]["ca"])

    def person(self, name: str) -> Credential:
        """A credential of the grid's CA; the same name gives the same one."""
        found = Credential(self.people / f"{name}.cert.pem", self.people / f"{name}.key.pem")
        made = found.cert.exists()
        return (
            found
            if made
            else ca.issue_host(self.grid.home, name, dns=("localhost",), ips=("127.0.0.1",), out=self.people)
        )

    def tls(self, name: str = "viewer") -> tuple[str, ...]:
        """DCMTK's options to show this person's certificate."""
        person = self.person(name)
        return ("+tls", str(person.key), str(person.cert), "+cf", self.ca)

    def run(
        self, tool: str, *args: str | Path, name: str = "viewer", title: str = "VIEWER"
    ) -> subprocess.CompletedProcess[str]:
        return dcmtk.run(tool, "-v", *self.tls(name), "-aet", title, "-aec", "DGIS", "127.0.0.1", str(self.port), *args)

    def log(self) -> str:
        return (self.grid.home / "log" / "dgis.log").read_text(errors="replace")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("dicom-tls")
    images = synth(folder / "images", "--instances", str(IMAGES), "--rows", "64", "--cols", "64")
    with Grid(folder / "grid", options=("--tls-port", str(free_port())), providers=1, workers=1) as grid:
        made = Site(grid, images, folder / "people")
        stored = made.run("storescu", "+sd", "+r", images)
        assert dcmtk.stored(stored.stdout + stored.stderr) == IMAGES, stored.stderr[-2000:]
        yield made


def _study(site: Site) -> str:
    return str(pydicom.dcmread(next(p for p in site.images.rglob("*") if p.is_file())).StudyInstanceUID)


def test_echo_and_find(site: Site) -> None:
    assert site.run("echoscu").returncode == 0
    keys = ("-S", "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={_study(site)}")
    found = site.run("findscu", *keys)
    assert found.returncode == 0 and (found.stdout + found.stderr).count("Find Response: 1 ") == 1


def test_get_and_move_asked_over_tls(site: Site, tmp_path: Path) -> None:
    """DCMTK's getscu and movescu have no TLS in Debian's version, pynetdicom has."""
    port = free_port()
    site.grid.cli("ae", "add", "PLAIN", "--host", "127.0.0.1", "--port", str(port))
    got: list[str] = []

    def stored(event: evt.Event) -> int:
        got.append(event.request.AffectedSOPInstanceUID)
        return 0

    ae = AE("VIEWER")
    ae.add_requested_context(STUDY_ROOT_GET)
    ae.add_requested_context(STUDY_ROOT_MOVE)
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    context = rawtls.client_context(_identity(site), _identity(site))
    association = ae.associate(
        "127.0.0.1",
        site.port,
        ae_title="DGIS",
        ext_neg=[build_role(CTImageStorage, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, stored)],
        tls_args=(context, "127.0.0.1"),
    )
    assert association.is_established
    wanted = Dataset()
    wanted.QueryRetrieveLevel, wanted.StudyInstanceUID = "STUDY", _study(site)
    assert [status.Status for status, _ in association.send_c_get(wanted, STUDY_ROOT_GET)][-1] == 0
    assert len(got) == IMAGES
    with dcmtk.start("storescp", "-od", str(tmp_path), str(port)) as peer:
        statuses = [status.Status for status, _ in association.send_c_move(wanted, "PLAIN", STUDY_ROOT_MOVE)]
        peer.terminate()
    assert statuses[-1] == 0 and len(list(tmp_path.iterdir())) == IMAGES
    association.release()


def _identity(site: Site) -> IdentityConfig:
    person = site.person("viewer")
    return IdentityConfig(cert=person.cert, key=person.key, trust=site.grid.home / "trust")


@pytest.mark.parametrize("bound", [True, False], ids=["certificate named", "host name"])
def test_move_to_a_tls_destination(site: Site, tmp_path: Path, bound: bool) -> None:
    title, port, person = ("PINNED" if bound else "NAMED"), free_port(), site.person("storage-scp")
    extra = ("--certificate", str(person.dn())) if bound else ()
    site.grid.cli("ae", "add", title, "--host", "127.0.0.1", "--port", str(port), "--tls", *extra)
    with dcmtk.start("storescp", *site.tls("storage-scp"), "-od", str(tmp_path), "-aet", title, str(port)) as peer:
        moved = _move(site, title)
        peer.terminate()
    assert moved.returncode == 0, moved.stderr[-2000:]
    assert len(list(tmp_path.iterdir())) == IMAGES


def test_a_destination_with_another_certificate_gets_nothing(site: Site, tmp_path: Path) -> None:
    port, expected = free_port(), site.person("somebody-else")
    destination = ("--host", "127.0.0.1", "--port", str(port), "--tls", "--certificate", str(expected.dn()))
    site.grid.cli("ae", "add", "IMPOSTOR", *destination)
    with dcmtk.start("storescp", *site.tls("storage-scp"), "-od", str(tmp_path), str(port)) as peer:
        moved = _move(site, "IMPOSTOR")
        peer.terminate()
    assert moved.returncode != 0 and not list(tmp_path.iterdir())
    assert "another one than the AE table names" in site.log()


def _move(site: Site, destination: str) -> subprocess.CompletedProcess[str]:
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={_study(site)}")
    ends = ("-aet", "VIEWER", "-aec", "DGIS", "127.0.0.1", str(site.grid.port))
    return dcmtk.run("movescu", "-S", "-aem", destination, *keys, *ends)


def test_no_certificate_no_association(site: Site) -> None:
    anonymous = dcmtk.run("echoscu", "+tla", "+cf", site.ca, "-aec", "DGIS", "127.0.0.1", str(site.port))
    assert anonymous.returncode != 0
    wait_until(lambda: "did not return a certificate" in site.log(), seconds=3, what="the reason in the log")


def test_a_stranger_s_certificate_is_refused(site: Site, tmp_path: Path) -> None:
    ca.init_site(tmp_path / "other", organisation="Other")
    foreign = ca.issue_host(tmp_path / "other", "viewer", ips=("127.0.0.1",), out=tmp_path)
    refused = dcmtk.run(
        "echoscu", "+tls", str(foreign.key), str(foreign.cert), "+cf", site.ca, "127.0.0.1", str(site.port)
    )
    assert refused.returncode != 0
    wait_until(lambda: "no trust anchor here has issued" in site.log(), seconds=3, what="the reason in the log")


def test_a_revoked_certificate_is_refused_at_once(site: Site) -> None:
    assert site.run("echoscu", name="leaver").returncode == 0
    ca.revoke(site.grid.home, site.person("leaver").cert)
    assert site.run("echoscu", name="leaver").returncode != 0
    wait_until(lambda: "is revoked" in site.log(), seconds=3, what="the reason in the log")
    assert site.run("echoscu").returncode == 0


def test_a_title_bound_to_a_certificate_is_nobody_else_s(site: Site) -> None:
    site.grid.cli("ae", "add", "CT1", "--rights", "echo", "--certificate", str(site.person("ct1").dn()))
    assert site.run("echoscu", name="ct1", title="CT1").returncode == 0
    refused = site.run("echoscu", name="viewer", title="CT1")
    assert refused.returncode != 0 and "Calling AE Title Not Recognized" in refused.stderr + refused.stdout
    plain = dcmtk.run("echoscu", "-v", "-aet", "CT1", "-aec", "DGIS", "127.0.0.1", str(site.grid.port))
    assert plain.returncode != 0 and "Calling AE Title Not Recognized" in plain.stderr + plain.stdout
    rows = json.loads(site.grid.cli("ae", "list", "--format", "json").stdout)
    assert next(row for row in rows if row["title"] == "CT1")["certificate"] == str(site.person("ct1").dn())


def test_the_log_names_the_wrong_port(site: Site) -> None:
    assert dcmtk.run("echoscu", "127.0.0.1", str(site.port), "-aec", "DGIS").returncode != 0
    assert dcmtk.run("echoscu", *site.tls(), "127.0.0.1", str(site.grid.port), "-aec", "DGIS").returncode != 0
    for sentence in ("a plain DICOM client on the DICOM TLS port", "a TLS client on the plain DICOM port"):
        wait_until(lambda: sentence in site.log(), seconds=3, what=sentence)  # noqa: B023


def test_the_certificate_stands_in_the_association_s_log_line(site: Site) -> None:
    assert site.run("echoscu", name="auditor", title="AUDIT").returncode == 0

    def ended() -> list[str]:
        return [line for line in site.log().splitlines() if "association ended" in line and "calling=AUDIT" in line]

    wait_until(ended, seconds=10, what="the association's log line")
    lines = ended()
    assert len(lines) == 1 and f"certificate='{site.person('auditor').dn()}'" in lines[0] and "tls=True" in lines[0]


def test_associations_are_answered_at_once_while_the_grid_hangs(site: Site) -> None:
    """No remote call inside association handling: viewers give up after 3 s."""
    roles = site.grid.processes()
    stopped = [*roles["catalog"], *roles["se1"], *roles["worker"]]
    for process in stopped:
        process.suspend()
    try:
        for port, options in ((site.port, site.tls()), (site.grid.port, ())):
            started = time.monotonic()
            assert dcmtk.run("echoscu", *options, "-aec", "DGIS", "127.0.0.1", str(port)).returncode == 0
            assert time.monotonic() - started < 1.0
    finally:
        for process in stopped:
            process.resume()

def test_two_hundred_idle_associations_cost_under_five_percent_of_a_core(site: Site) -> None:
    context = rawtls.client_context(_identity(site), _identity(site))
    contexts = [("1.2.840.10008.1.1", "1.2.840.10008.1.2")]
    with contextlib.ExitStack() as stack:
        for number in range(200):
            port = site.port if number % 2 else site.grid.port
            sock = socket.create_connection(("127.0.0.1", port), timeout=5)
            if number % 2:
                sock = context.wrap_socket(sock, server_hostname="127.0.0.1")
            associate(stack.enter_context(sock), contexts, calling=f"IDLE{number % 4}")
        before = site.grid.cpu_seconds()["dimse"]
        time.sleep(3.0)
        share = (site.grid.cpu_seconds()["dimse"] - before) / 3.0
    print(f"200 idle associations: {share:.2%} of a core")
    assert share < 0.05

def test_a_passcode_for_node_toml(site: Site) -> None:
    command = [str(BIN / "dgis"), "ae", "passcode", "reading room", "--passcode", "open sesame"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (user,) = tomllib.loads(text)["user"]
    assert user["name"] == "reading room" and users.matches(b"open sesame", user["passcode"])
    assert "open sesame" not in text

def test_status_watches_the_listener_s_own_certificate_and_crls(site: Site, tmp_path: Path) -> None:
    ca.init_site(tmp_path / "hospital", organisation="Hospital")
    edge = ca.issue_host(tmp_path / "hospital", "edge", ips=("127.0.0.1",), out=tmp_path)
    config = site.grid.home / "dgis" / "node.toml"
    own = f'cert = "{edge.cert}"\nkey = "{edge.key}"\ntrust = "{tmp_path / "hospital" / "trust"}"\n'
    changed = config.with_name("node-with-edge.toml")
    changed.write_text(config.read_text().replace("[dimse_tls]\n", f"[dimse_tls]\n{own}"))
    command = [str(BIN / "dgis"), "status", "--format", "json", "--config", str(changed)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)["certificates"]
    assert {"DICOM TLS", "CRLs", "CRLs of DICOM TLS"} <= {row["name"] for row in found}
    assert next(row["dn"] for row in found if row["name"] == "DICOM TLS") == str(edge.dn())

def test_up_wants_two_ports(tmp_path: Path) -> None:
    port = str(free_port())
    command = [str(BIN / "dgis"), "up", "--home", str(tmp_path / "g"), "--port", port, "--tls-port", port]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2 and "another port" in refused.stderr
