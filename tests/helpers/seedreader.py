"""Run by the system's Python, which has cloud-init: read NoCloud seeds as a guest does at its first boot.

    /usr/bin/python3 seedreader.py OUT/HOST/seed/GUEST...

Prints as JSON what cloud-init complains of, by folder. Nothing is applied: files, users and networks stay as they are.
"""

import contextlib
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

from cloudinit import distros, helpers
from cloudinit.cmd.devel import net_convert
from cloudinit.config import schema
from cloudinit.sources import DataSourceNoCloud


def source(folder: Path, work: Path) -> None:
    """The NoCloud data source takes the three files, and an instance-id of ours from them."""
    shutil.copytree(folder, work / "seed" / "nocloud", ignore=shutil.ignore_patterns("files"))
    paths = helpers.Paths({"cloud_dir": str(work), "run_dir": str(work)})
    paths.seed_dir = str(work / "seed")
    distro = distros.fetch("debian")("debian", {}, paths)
    found = DataSourceNoCloud.DataSourceNoCloud({"datasource_list": ["NoCloud"]}, distro, paths)
    if not found._get_data():
        raise ValueError("the NoCloud data source finds nothing in it")
    if not found.get_instance_id().startswith("dgis-") or found.get_hostname().hostname != folder.name:
        raise ValueError(f"read as {found.get_instance_id()}, called {found.get_hostname()}")
    if found.network_config["version"] != 2:
        raise ValueError("its network configuration was not taken")


def read(folder: Path, work: Path) -> None:
    source(folder, work)
    schema.validate_cloudconfig_file(str(folder / "user-data"), schema.get_schema())
    words = ["-p", folder / "network-config", "-k", "yaml", "-d", work / "net", "-D", "debian", "-O", "networkd"]
    arguments = net_convert.get_parser().parse_args([str(word) for word in words])
    net_convert.handle_args("net-convert", arguments)
    if not list((work / "net" / "etc" / "systemd" / "network").glob("*.network")):
        raise ValueError("no network came of it")


def main(folders: list[Path]) -> None:
    said = {}
    for folder in folders:
        words = io.StringIO()
        try:
            with tempfile.TemporaryDirectory() as work, contextlib.redirect_stdout(words):
                read(folder, Path(work))
        except (ValueError, LookupError, TypeError, RuntimeError, OSError) as error:
            said[str(folder)] = f"{type(error).__name__}: {error}"
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
