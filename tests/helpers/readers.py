"""What reads each artefact of a rendered tree: Debian's own programs, and our services for what is theirs.

A reader takes files of one kind, from any number of trees, and returns what it complains of by file: {} when it takes
them all. `Missing` says why it cannot be asked here. Nothing of this machine is changed: what has to be loaded to be
read is loaded in namespaces of its own.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from lxml import etree
from markdown_it import MarkdownIt

from catalog import config as catalog_config
from certs.config import load_toml
from certs.errors import CertsError
from certs.gridmap import read_gridmap
from certs.trust import Trust
from dgis.config import load_node
from dgis.dimse import ae
from dgis.errors import DgisError
from storage_provider.config import StorageConfig
from tests.helpers.xen import Unavailable, XlRefused, fetch_xen, normalise, xl_dryrun

Complaints = dict[Path, str]
Reader = Callable[[Sequence[Path]], Complaints]

_SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's cloud-init lives there
_BIN = Path(sys.executable).parent
_HERE = Path(__file__).parent
_OWN_USER = ("unshare", "--user", "--map-root-user", "--net")
_ENVIRONMENT = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}


class Missing(Exception):
    """The reader cannot be asked on this machine; the text says why."""


def run(words: Sequence[object], *, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; Missing when it is not installed."""
    command, environment = [str(word) for word in words], {**_ENVIRONMENT, **(env or {})}
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
    except OSError as error:
        raise Missing(f"{error.filename} cannot be run: {error.strerror}") from error


@functools.cache
def _need(*words: str) -> None:
    """Missing unless this command works: what is installed need not work in a container."""
    if (done := run(words)).returncode:
        raise Missing(f"{' '.join(words)} does not work: {(done.stderr or done.stdout).strip()[:200]}")


def _each(paths: Iterable[Path], read: Callable[[Path], str]) -> Complaints:
    return {path: said for path in paths if (said := read(path))}


def _complaint(words: Sequence[object], *, env: Mapping[str, str] | None = None) -> str:
    done = run(words, env=env)
    if done.returncode == 0:
        return ""
    _is_there(words)
    return (done.stderr or done.stdout).strip() or f"exit {done.returncode}"


def _is_there(words: Sequence[object]) -> None:
    """A program behind `unshare` that is not installed looks like one that refuses."""
    program = str(words[len(_OWN_USER)] if tuple(words[: len(_OWN_USER)]) == _OWN_USER else words[0])
    if run(("sh", "-c", f"command -v {program}")).returncode:
        raise Missing(f"{program} is not installed")


def by_commands(*commands: Sequence[str], own_user: bool = False) -> Reader:
    """A reader that runs each command on each file, which stands for FILE (its folder for FOLDER)."""
    prefix = _OWN_USER if own_user else ()

    def read(path: Path) -> str:
        stand = {"FILE": str(path), "FOLDER": str(path.parent)}
        said = (_complaint([*prefix, *(stand.get(word, word) for word in words)]) for words in commands)
        return "; ".join(filter(None, said))

    def reader(paths: Sequence[Path]) -> Complaints:
        if own_user:
            _need(*_OWN_USER, "true")
        return _each(paths, read)

    return reader


def by_python(read: Callable[[Path], object]) -> Reader:
    """A reader of ours: `read` raises what it complains of."""

    def tried(path: Path) -> str:
        try:
            read(path)
        except (DgisError, CertsError, ValueError, etree.XMLSyntaxError, csv.Error) as error:
            return str(error) or type(error).__name__
        return ""

    return lambda paths: _each(paths, tried)


def front(paths: Sequence[Path]) -> Complaints:
    """HAProxy reads its configuration, and with it both maps."""
    return _each(paths, lambda path: _complaint(("haproxy", "-c", "-q", "-f", path.parent / "haproxy.cfg")))


def host_files(paths: Sequence[Path]) -> Complaints:
    """systemd-networkd and sysctl make a host of its folder's files, in namespaces of its own: `hostreader.py`."""
    return _each(paths, lambda path: _host(path.parent if path.name == "sysctl.conf" else path.parent.parent))


@functools.cache
def _host(folder: Path) -> str:
    _need("unshare", "--net", "--mount", "true")
    said = _complaint(("unshare", "--net", "--mount", sys.executable, _HERE / "hostreader.py", folder))
    if said.startswith("missing: "):
        raise Missing(said.removeprefix("missing: "))
    return said


def xl(cache: Path) -> Reader:
    """The real xl parses a guest's file; its name, as xl understood it, is the file's."""

    def read(path: Path) -> str:
        try:
            guest = normalise(xl_dryrun(fetch_xen(cache), path, strict=True))
        except XlRefused as error:
            return str(error)
        except Unavailable as error:
            raise Missing(str(error)) from error
        return "" if guest.name == path.stem and guest.type in ("pv", "pvh") and guest.memory else f"read as {guest}"

    return lambda paths: _each(paths, read)


def cloud_init(paths: Sequence[Path]) -> Complaints:
    """cloud-init's own NoCloud source, schema and renderer take a seed: `seedreader.py`, once for all."""
    found = _seeds(tuple(sorted({path.parent for path in paths})))
    return {path: found[str(path.parent)] for path in paths if str(path.parent) in found}


@functools.cache
def _seeds(folders: tuple[Path, ...]) -> dict[str, str]:
    _need("cloud-init", "--version")
    done = run((_SYSTEM_PYTHON, _HERE / "seedreader.py", *folders))
    assert done.returncode == 0, f"seedreader.py: {done.stderr[-2000:]}"
    said: dict[str, str] = json.loads(done.stdout)
    return said


def seed_image(paths: Sequence[Path]) -> Complaints:
    """The image has the label that cloud-init looks for."""

    def read(path: Path) -> str:
        done = run(("blkid", "-p", "-o", "export", path))
        return "" if {"LABEL=cidata", "TYPE=iso9660"} <= set(done.stdout.splitlines()) else f"blkid: {done.stdout}"

    return _each(paths, read)


def certificate(path: Path) -> None:
    """Ours and openssl's judgement of a certificate, by the trust directory beside it."""
    etc = next(folder for folder in path.parents if folder.name == "dgis")
    Trust(etc / "trust").judge(path.read_bytes())
    trust = ("-CApath", etc / "trust", "-no-CAfile", "-no-CAstore", "-crl_check_all")
    if said := _complaint(("openssl", "verify", *trust, "-untrusted", path, path)):
        raise ValueError(said)


def trust(path: Path) -> None:
    """The certificates of a site are judged by a trust directory, in which each file has its say."""
    for peer in sorted(path.parent.with_name("ssh_peers").glob("*.pem")):
        certificate(peer)
    if path.name == "ca.pem" and (said := _complaint(("openssl", "storeutl", "-noout", "-certs", path))):
        raise ValueError(said)


def key(path: Path) -> None:
    """openssl finds the key sound, and the certificate beside it is its own."""
    public = run(("openssl", "pkey", "-in", path, "-check", "-pubout")).stdout.partition("\n")[2]
    cert = path.with_name(path.name.replace(".key.", ".cert."))
    if not public or run(("openssl", "x509", "-in", cert, "-noout", "-pubkey")).stdout != public:
        raise ValueError("it is no key, or another certificate's")


def ansible(paths: Sequence[Path]) -> Complaints:
    """ansible-inventory lists every machine with the variables of its file, and warns of nothing."""
    complaint, machines = _listed(
        tuple(sorted({next(p for p in path.parents if p.name == "inventory") for path in paths}))
    )
    if complaint:
        return dict.fromkeys(paths, complaint)

    def read(path: Path) -> str:
        keys = set(re.findall(r"^(\w+):", path.read_text(), re.MULTILINE))
        lacking = keys - set(machines.get(path.stem, ())) if path.parent.name == "host_vars" else set()
        return f"not known of the machine: {lacking}" if lacking else ""

    return _each(paths, read)


@functools.cache
def _listed(folders: tuple[Path, ...]) -> tuple[str, dict[str, dict[str, object]]]:
    inventories = [word for folder in folders for word in ("-i", folder / "hosts.yml")]
    done = run((_BIN / "ansible-inventory", *inventories, "--list"), env={"ANSIBLE_LOCALHOST_WARNING": "0"})
    return done.stderr.strip(), json.loads(done.stdout)["_meta"]["hostvars"] if done.returncode == 0 else {}


def ssh_config(paths: Sequence[Path]) -> Complaints:
    """ssh knows every machine of the file by an address."""

    def read(path: Path) -> str:
        names = re.findall(r"^Host (\S+)$", path.read_text(), re.MULTILINE)
        for name in names:
            done = run(("ssh", "-G", "-F", path, name))
            if done.returncode or f"\nhostname {name}\n" in done.stdout:
                return done.stderr or f"{name} has no address of its own"
        return "" if names else "no machine in it"

    return _each(paths, read)


def etc_hosts(paths: Sequence[Path]) -> Complaints:
    """The C library finds every name of the file at its address, when the file is /etc/hosts."""
    _need("unshare", "--user", "--map-root-user", "--mount", "true")
    ask = 'mount --bind "$1" /etc/hosts && shift && getent -s hosts:files hosts "$@"'

    def read(path: Path) -> str:
        lines = [line.split() for line in path.read_text().splitlines() if not line.startswith(("127.", "::", "#"))]
        wanted = {name: address for address, *names in lines for name in names}
        done = run(("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", ask, "sh", path, *wanted))
        found = {name: line.split()[0] for line in done.stdout.splitlines() for name in line.split()[1:]}
        return "" if found == wanted else f"found {found}, not {wanted}; {done.stderr}"

    return _each(paths, read)


def sheet(path: Path) -> None:
    """Every row of a CSV sheet has as many cells as its head; every line with bars in Markdown is a row of a table."""
    if path.suffix == ".csv":
        with path.open(newline="") as stream:
            cells = {len(row) for row in csv.reader(stream, strict=True)}
        if len(cells) != 1:
            raise ValueError(f"rows of {sorted(cells)} cells")
        return
    found = [token.type for token in MarkdownIt("commonmark").enable("table").parse(path.read_text())]
    rows = len(re.findall(r"^\|", path.read_text(), re.MULTILINE))
    if not rows or rows != found.count("tr_open") + found.count("table_open"):  # the line below a head is no row
        raise ValueError(f"{rows} lines with bars, {found.count('tr_open')} rows in {found.count('table_open')} tables")


def service(path: Path) -> None:
    """A service's own reader takes its file."""
    readers: dict[str, Callable[[Path], object]] = {
        "node.toml": load_node,
        "ae.toml": ae.read,
        "catalog.toml": catalog_config.load,
        "storage.toml": lambda path: load_toml(path, StorageConfig),
        "gridmap": read_gridmap,
    }
    readers[path.name](path)
