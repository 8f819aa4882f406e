"""The servers that are measured, each behind the same face: dgis, Orthanc, DCMTK's storescp and dcmqrscp.

All lie on the same disk, below one folder. dgis is a whole local grid (``dgis up``: catalog, two storage providers,
worker, two receivers) over mutual TLS on loopback. For DICOM TLS all use certificates of that grid's own CA.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from bench.report import NotMeasured
from bench.senders import Door
from bench.usage import Roles
from certs import ca
from certs.credential import Credential
from dgis.demo.viewer import Viewer
from tests.helpers import dcmtk
from tests.helpers.grid import Grid, free_port, wait_until
from tests.helpers.orthanc import PROGRAM as ORTHANC
from tests.helpers.orthanc import Orthanc

DEST = "DEST"
"""The AE title that every server may move to."""
DRAIN_SECONDS = 300.0


class Server(Protocol):
    """A server under test. ``start`` and ``stop`` may be called again after a failure."""

    name: str
    forking: bool

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def door(self, *, tls: bool = False) -> Door: ...
    def roles(self) -> Roles: ...

    def found(self, studies: Sequence[str]) -> int:
        """How many instances of these studies it has, where it can be asked; else how many files it has in all."""

    def settle(self) -> None:
        """Return when nothing of what was sent is under way any more."""


@dataclass(slots=True)
class People:
    """Certificates of one CA for clients and for the peers' TLS listeners."""

    home: Path
    out: Path

    def person(self, name: str) -> Credential:
        """A host credential for loopback; the same name gives the same one."""
        if not (self.home / "ca").exists():
            raise NotMeasured("no TLS: the grid whose CA issues the certificates did not start")
        found = Credential(self.out / f"{name}.cert.pem", self.out / f"{name}.key.pem")
        if found.cert.exists():
            return found
        return ca.issue_host(self.home, name, dns=("localhost",), ips=("127.0.0.1",), out=self.out)

    @property
    def ca(self) -> str:
        return str(self.home / "trust" / "ca.pem")

    def dcmtk(self, name: str) -> tuple[str, ...]:
        """DCMTK's options to show this person's certificate and to trust the CA's."""
        person = self.person(name)
        return ("+tls", str(person.key), str(person.cert), "+cf", self.ca)


@dataclass
class GridServer:
    """dgis: a local grid, plain and TLS at once."""

    home: Path
    people: People
    moves_to: int = 0
    doors: str = ""
    name: str = "dgis"
    forking: bool = False
    tls_port: int = field(default_factory=free_port)
    grid: Grid | None = None

    def start(self) -> None:
        """Start it; with ``doors`` (a scheme) its storage elements are reached by that kind of door alone."""
        peers = (f"{DEST}:127.0.0.1:{self.moves_to}",) if self.moves_to else ()
        self.grid = Grid(self.home, options=("--tls-port", str(self.tls_port)), peers=peers)
        self.grid.start()
        if self.doors:
            self._only(self.doors)

    def _only(self, scheme: str) -> None:
        assert self.grid is not None
        for provider in ("se1", "se2"):
            door = self.grid.doors(provider)[scheme]
            self.grid.cli("se", "add", provider, "--site", "local", "--door", door)
        wait_until(lambda: self.schemes() == {scheme}, seconds=60, what=f"only {scheme} doors known", every=0.2)

    def schemes(self) -> set[str]:
        """The kinds of door that the worker knows of."""
        try:
            board = json.loads((self.home / "dgis" / "spool" / "state" / "worker.json").read_text())
        except (OSError, ValueError):
            return set()
        return {door["url"].split(":", 1)[0] for element in board["elements"] for door in element["doors"]}

    def stop(self) -> None:
        if self.grid is not None and self.grid.process is not None:
            try:
                self.grid.stop()
            except AssertionError:
                self.grid.kill()

    def running(self) -> Grid:
        """The grid; NotMeasured when it does not run."""
        if self.grid is None or self.grid.process is None or self.grid.process.poll() is not None:
            raise NotMeasured("dgis does not run")
        return self.grid

    def door(self, *, tls: bool = False) -> Door:
        if tls:
            return Door(self.tls_port, "DGIS", self.people.dcmtk("sender"))
        return Door(self.running().port, "DGIS")

    def roles(self) -> Roles:
        return self.running().processes()

    def found(self, studies: Sequence[str]) -> int:
        return find_instances(self.running().port, "DGIS", studies)

    def settle(self) -> None:
        self.running().wait_drained(DRAIN_SECONDS)

    def copies(self) -> tuple[int, ...]:
        """How many objects lie at each storage element."""
        return tuple(self.running().stored(name) for name in ("se1", "se2"))

@dataclass
class OrthancServer:
    """Debian's Orthanc in its own default configuration, with or without TCP_NODELAY=1 in its environment."""

    home: Path
    people: People
    nodelay: bool = True
    tls: bool = False
    moves_to: int = 0
    name: str = ""
    forking: bool = False
    peer: Orthanc | None = None

    def __post_init__(self) -> None:
        self.name = self.name or ("Orthanc, NODELAY" if self.nodelay else "Orthanc, as installed")

    def start(self) -> None:
        if not ORTHANC.exists():
            raise NotMeasured("Orthanc is not installed (Debian: orthanc)")
        peer = Orthanc(self.home, nodelay=self.nodelay, extra=self._tls() if self.tls else {})
        if self.moves_to:
            peer.modalities[DEST.lower()] = (DEST, "127.0.0.1", self.moves_to)
        self.peer = peer
        peer.__enter__()

    def _tls(self) -> dict[str, object]:
        person = self.people.person("orthanc")
        return {
            "DicomTlsEnabled": True, "DicomTlsRemoteCertificateRequired": True,
            "DicomTlsPrivateKey": str(person.key), "DicomTlsCertificate": str(person.cert),
            "DicomTlsTrustedCertificates": self.people.ca,
        }  # fmt: skip

    def stop(self) -> None:
        if self.peer is not None and self.peer.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.peer.__exit__(None, None, None)
            self.peer.process.kill()
            self.peer = None

    def running(self) -> Orthanc:
        if self.peer is None or self.peer.process is None or self.peer.process.poll() is not None:
            raise NotMeasured(f"{self.name} does not run")
        return self.peer

    def door(self, *, tls: bool = False) -> Door:
        return Door(self.running().port, "ORTHANC", self.people.dcmtk("sender") if tls else ())

    def roles(self) -> Roles:
        process = self.running().process
        assert process is not None
        return {"Orthanc": [psutil.Process(process.pid)]}

    def found(self, studies: Sequence[str]) -> int:
        """Over REST, the same for its plain and its TLS port."""
        query = {"Level": "Instance", "Query": {"StudyInstanceUID": "\\".join(studies)}}
        answer = self.running().rest("/tools/find", query)
        assert isinstance(answer, list)
        return len(answer)

    def settle(self) -> None:
        """Nothing: it indexes before it answers."""

@dataclass
class DcmtkServer:
    """storescp or dcmqrscp, forking for each association; TCP_NODELAY=1 in the environment, PDUs of 128 KiB.

    Neither flushes what it wrote to disk; storescp keeps no index. dcmqrscp's index is one file that it locks and
    reads through for every image, of at most 500 studies here and 1 GiB a study (its own limits). It names files by
    the time: children that serve several senders at once overwrite each other's (with 4 senders 1 image of 320 was
    lost, with 16 two), so that it is measured with one sender.
    """

    home: Path
    people: People
    tool: str = "storescp"
    tls: bool = False
    moves_to: int = 0
    name: str = ""
    forking: bool = True
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.name = self.name or f"DCMTK {self.tool}"

    @property
    def title(self) -> str:
        return self.tool.upper()

    @property
    def place(self) -> Path:
        return self.home / "received"

    def start(self) -> None:
        if not (dcmtk.PLACE / self.tool).exists():
            raise NotMeasured(f"{self.tool} is not installed (Debian: dcmtk)")
        if self.tls and self.tool != "storescp":
            raise NotMeasured(f"{self.tool} of this version has no TLS")
        self.place.mkdir(parents=True, exist_ok=True)
        arguments = self._storescp() if self.tool == "storescp" else self._dcmqrscp()
        self.process = dcmtk.start(self.tool, *arguments, nodelay=True)
        wait_until(self._listens, seconds=10, what=f"{self.name} listens")

    def _storescp(self) -> tuple[str, ...]:
        tls = self.people.dcmtk("storescp") if self.tls else ()
        return (*tls, "--fork", "+B", "-pdu", "131072", "-aet", self.title, "-od", str(self.place), str(self.port))

    def _dcmqrscp(self) -> tuple[str, ...]:
        config = self.home / "dcmqrscp.cfg"
        host = f"dest = ({DEST}, localhost, {self.moves_to})\n" if self.moves_to else ""
        config.write_text(
            f"NetworkTCPPort = {self.port}\nMaxPDUSize = 131072\nMaxAssociations = 64\n"
            f"HostTable BEGIN\n{host}HostTable END\nVendorTable BEGIN\nVendorTable END\n"
            f"AETable BEGIN\n{self.title} {self.place} RW (500, 1024mb) ANY\nAETable END\n"
        )
        return ("-c", str(config))

    def _listens(self) -> bool:
        """Look without connecting where the port belongs to a TLS listener: a half association would be one."""
        assert self.process is not None and self.process.poll() is None, f"{self.name} did not start"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        if self.process is None:
            return
        own = psutil.Process(self.process.pid) if self.process.poll() is None else None
        for process in (*(own.children(recursive=True) if own else ()), self.process):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(10)
        self.process = None

    def door(self, *, tls: bool = False) -> Door:
        return Door(self.port, self.title, self.people.dcmtk("sender") if tls else ())

    def roles(self) -> Roles:
        if self.process is None or self.process.poll() is not None:
            raise NotMeasured(f"{self.name} does not run")
        return {self.tool: [psutil.Process(self.process.pid)]}

    def found(self, studies: Sequence[str]) -> int:
        """The files that lie there; none is deleted between cells (see `bench.field.spread`)."""
        return sum(1 for path in self.place.iterdir() if path.name != "index.dat")

    def settle(self) -> None:
        """Nothing: its files are written when it answers."""

def find_instances(port: int, called: str, studies: Sequence[str]) -> int:
    """C-FIND at STUDY level with a list of UIDs; the sum of the numbers of instances."""
    viewer = Viewer(title="BENCH", called=called, host="127.0.0.1", port=port)
    matches = viewer.find("STUDY", StudyInstanceUID="\\".join(studies), NumberOfStudyRelatedInstances="")
    return sum(int(match.NumberOfStudyRelatedInstances) for match in matches)
