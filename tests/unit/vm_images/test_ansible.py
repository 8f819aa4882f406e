"""The playbooks: read by ansible-playbook and ansible-lint, explained at their head, made of what pip alone brings."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgis.deploy import check, inventory

ROOT = Path(__file__).parents[3]
HERE = ROOT / "vm-images/ansible"
PLAYBOOKS = sorted(path for path in HERE.glob("*.yml"))
BIN = Path(sys.executable).parent
needs_ansible = pytest.mark.skipif(
    not (BIN / "ansible-playbook").exists(), reason="ansible-core is not installed (the extra `ansible`)"
)
needs_lint = pytest.mark.skipif(
    not (BIN / "ansible-lint").exists(), reason="ansible-lint is not installed (the extra `lint`)"
)


def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a tool of this environment where ansible.cfg lies."""
    path = f"{BIN}:/usr/bin:/bin:/usr/sbin:/sbin"
    home = {"PATH": path, "HOME": str(Path.home()), "LC_ALL": "C.UTF-8", **environment}
    return subprocess.run([*map(str, words)], cwd=HERE, env=home, capture_output=True, text=True, check=False)


@needs_ansible
def test_ansible_reads_every_playbook_with_an_inventory_of_ours(tmp_path: Path) -> None:
    site = check.load(ROOT / "vm-images/examples/hospital.yml")
    for path, text in inventory.files(site).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    done = run(BIN / "ansible-playbook", "--syntax-check", "-i", tmp_path / "inventory/hosts.yml", *PLAYBOOKS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""  # no warning either
    assert done.stdout.count("playbook: ") == len(PLAYBOOKS) == 8


@needs_lint
@pytest.mark.timeout(300)  # 16 seconds of work, at times on a busy machine
def test_ansible_lint_has_nothing_to_say() -> None:
    done = run(BIN / "ansible-lint", "--offline", "--nocolor", "-f", "pep8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "profile: production" in (HERE / ".ansible-lint").read_text()
    assert "skip_list" not in (HERE / ".ansible-lint").read_text()


def tasks(node: Any) -> list[dict[str, Any]]:
    """Every task of a file, whatever it is nested in."""
    if isinstance(node, list):
        return [task for each in node for task in tasks(each)]
    if not isinstance(node, dict):
        return []
    inner = [task for key in ("tasks", "handlers", "block", "always", "rescue") for task in tasks(node.get(key))]
    return [node, *inner]


def test_only_modules_that_come_with_ansible_core_or_with_us_are_used() -> None:
    ours = {path.stem for path in (HERE / "library").glob("*.py")}
    used = set()
    for path in HERE.rglob("*.yml"):
        if path.parent.name in ("defaults", "vars"):
            continue
        for task in tasks(yaml.safe_load(path.read_text())):
            used |= {key for key in task if "." in key} | (ours & task.keys())
    assert used >= {"ansible.builtin.command", "put_files"}
    assert {key for key in used if not key.startswith("ansible.builtin.")} == ours


@pytest.mark.parametrize("path", PLAYBOOKS, ids=lambda path: path.stem)
def test_a_playbook_says_what_it_is_for_and_only_what_is_so(path: Path) -> None:
    head = "\n".join(line[1:] for line in path.read_text().partition("\n-")[0].splitlines())
    assert " Variables (-e):" in head and " Example:" in head
    assert f"ansible-playbook -i OUT/inventory/hosts.yml {path.name}" in head
    everything = "\n".join(each.read_text().partition("\n-")[2] for each in PLAYBOOKS)
    everything += "\n".join(each.read_text() for each in (HERE / "roles").rglob("*.yml"))
    for name in re.findall(r"\b(dgis_[a-z_]+|ca_home|ca_refresh|remove_disks|force|guest)=", head):
        assert re.search(rf"\b{name}\b", everything), f"{name} is said at the head of {path.name} and used nowhere"
    assert path.name in (HERE / "README.md").read_text()


def forwards_after(unit: str, result: str) -> str:
    """What ip_forward is after the unit ended so, in a network namespace of its own; systemd hands over the result."""
    (line,) = (line for line in unit.splitlines() if line.startswith("ExecStopPost="))
    words = shlex.join(shlex.split(line.partition("=")[2]))
    script = f"sysctl -q -w net.ipv4.ip_forward=1; {words}; sysctl -n net.ipv4.ip_forward"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, check=False,
        env={**os.environ, "SERVICE_RESULT": result},
    )  # fmt: skip
    if "Operation not permitted" in done.stderr:
        pytest.skip("no network namespace of our own here: it takes root")
    return done.stdout.strip()


@needs_ansible
@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (Debian: systemd)"
)
@pytest.mark.parametrize("firewall", ["nft", "iptables"])
def test_systemd_reads_the_units_of_a_host(firewall: str, tmp_path: Path) -> None:
    values = {
        "dgis_site": "motol", "dgis_host": "kvm1", "dgis_hypervisor": "kvm", "dgis_firewall": firewall,
        "hypervisor_net_root": "/etc/dgis/deploy", "hypervisor_net_bin": "/bin/true",
        "hypervisor_net_options": ["--reload", "sh -c 'systemctl reload haproxy'"],
    }  # fmt: skip
    for name in ("dgis-nat.service", "dgis-watch.service"):
        source = HERE / f"roles/hypervisor_net/templates/{name}.j2"
        task = json.dumps({"src": str(source), "dest": str(tmp_path / name)})
        made = run(BIN / "ansible", "localhost", "-c", "local", "-m", "template", "-a", task, "-e", json.dumps(values))
        assert made.returncode == 0, made.stdout + made.stderr
        done = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", tmp_path / name)
        missing = ("is not executable: No such file", "libvirtd.service")  # what this machine has not
        said = [line for line in done.stderr.splitlines() if not any(each in line for each in missing)]
        assert said == []
    rules = (tmp_path / "dgis-nat.service").read_text()
    # the kernel forwards after the rules stand, and not at all when they are missing or refused
    assert "Condition" not in rules and rules.index("\nExecStart=") < rules.index("sysctl --quiet --ignore")
    after = {result: forwards_after(rules, result) for result in ("success", "exit-code", "timeout")}
    assert after == {"success": "1", "exit-code": "0", "timeout": "0"}
    assert f"/etc/dgis/deploy/nat.{firewall}" in rules and ("DGIS-FORWARD" in rules) is (firewall == "iptables")
    assert (
        """watch /etc/dgis/deploy/site.yml --host kvm1 --root /etc/dgis/deploy --reload 'sh -c '"'"'systemctl"""
        in (tmp_path / "dgis-watch.service").read_text()
    )


@needs_ansible
class TestPutFiles:
    """The module that brings many small files at once."""

    def put(self, *words: str, **arguments: object) -> dict[str, Any]:
        module = ("-m", "put_files", "-a", json.dumps(arguments))
        done = run(
            BIN / "ansible", "localhost", "-c", "local", *module, *words,
            ANSIBLE_CALLBACK_RESULT_FORMAT="json", ANSIBLE_NOCOLOR="1",
        )  # fmt: skip
        said: dict[str, Any] = json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("=> {") + 3 :])[0]
        return {**said, "rc": done.returncode}

    def test_files_come_and_go_and_a_second_run_changes_nothing(self, tmp_path: Path) -> None:
        where = tmp_path / "trust"
        (tmp_path / "stale.pem").write_text("old")
        wanted = {
            "directories": [{"path": str(where), "mode": "0750"}],
            "files": [
                {"path": str(where / "ca.pem"), "content": "a text\n", "mode": "0640"},
                {"path": str(tmp_path / "seed.iso"), "base64": "AAEC/w==", "mode": "0600"},
            ],
            "only": [{"directory": str(tmp_path), "pattern": "*.pem"}],
        }
        tried = self.put("--check", **wanted)
        assert tried["changed"] and not where.exists() and (tmp_path / "stale.pem").exists()
        done = self.put(**wanted)
        assert (done["put"], done["removed"]) == (
            [str(where / "ca.pem"), str(tmp_path / "seed.iso")],
            [str(tmp_path / "stale.pem")],
        )
        assert (where / "ca.pem").read_text() == "a text\n"
        assert (tmp_path / "seed.iso").read_bytes() == b"\0\1\2\xff"
        modes = [path.stat().st_mode & 0o777 for path in (where, where / "ca.pem", tmp_path / "seed.iso")]
        assert modes == [0o750, 0o640, 0o600]
        assert self.put(**wanted)["changed"] is False

        (where / "ca.pem").chmod(0o644)  # what somebody changed by hand comes back
        again = self.put(**wanted)
        assert again["changed"] and again["put"] == [] and (where / "ca.pem").stat().st_mode & 0o777 == 0o640

    def test_what_cannot_be_written_is_said(self, tmp_path: Path) -> None:
        done = self.put(files=[{"path": str(tmp_path / "missing" / "file"), "content": "x"}])
        assert done["rc"] != 0 and "cannot be written: No such file or directory" in done["msg"]
        assert self.put(files=[{"path": str(tmp_path / "file")}])["rc"] != 0
