#!/usr/bin/python
"""Ansible module: bring many small files to a machine in one go, each by rename, and remove those that are over.

A copy of its own for each file costs five connections when it changes and two when it does not; a revocation list that
goes to every guest every hour should cost one.
"""

from __future__ import annotations

import base64
import fnmatch
import os
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: put_files
short_description: Bring many small files in one go
description:
  - Writes each file beside its place and renames it, so that a reader sees the old text or the new one.
  - Supports check mode and diff.
author: [dgis]
options:
  directories:
    description: Directories that are to be there, in this order; parents are not made.
    type: list
    elements: dict
    default: []
    suboptions: &attributes
      path: {description: Where it is., type: path, required: true}
      mode: {description: Permissions., type: str}
      owner: {description: User., type: str}
      group: {description: Group., type: str}
  files:
    description: The files; C(content) is text, C(base64) anything.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Where it is., type: path, required: true}
      content: {description: Its text., type: str}
      base64: {description: Its bytes., type: str}
      mode: {description: Permissions., type: str}
      owner: {description: User., type: str}
      group: {description: Group., type: str}
  only:
    description: Remove the files C(directory/pattern) that are not among C(files).
    type: list
    elements: dict
    default: []
    suboptions:
      directory: {description: Where., type: path, required: true}
      pattern: {description: Which., type: str, default: "*"}
"""
EXAMPLES = r"""
- name: Trust anchors
  put_files:
    directories: [{path: /etc/dgis/trust, mode: "0750", group: dgis}]
    files: [{path: /etc/dgis/trust/ca.pem, mode: "0644", content: "{{ lookup('file', 'ca.pem') }}"}]
"""
RETURN = r"""
put: {description: Paths that were written, returned: always, type: list}
removed: {description: Paths that were removed, returned: always, type: list}
"""

_ATTRIBUTES = {"mode": {"type": "str"}, "owner": {"type": "str"}, "group": {"type": "str"}}
_LARGEST_SHOWN = 100_000


def main() -> None:
    """Run as Ansible runs a module."""
    path = {"type": "path", "required": True}
    directory = {"path": path, **_ATTRIBUTES}
    texts = {"content": {"type": "str"}, "base64": {"type": "str"}}
    module = AnsibleModule(
        argument_spec={
            "directories": {"type": "list", "elements": "dict", "default": [], "options": directory},
            "files": {
                "type": "list", "elements": "dict", "default": [],
                "options": {"path": path, **texts, **_ATTRIBUTES},
                "required_one_of": [("content", "base64")], "mutually_exclusive": [("content", "base64")],
            },
            "only": {
                "type": "list", "elements": "dict", "default": [],
                "options": {"directory": path, "pattern": {"type": "str", "default": "*"}},
            },
        },
        supports_check_mode=True,
    )  # fmt: skip
    result: dict[str, Any] = {"changed": False, "put": [], "removed": [], "diff": []}
    for directory in module.params["directories"]:
        _directory(module, directory, result)
    for file in module.params["files"]:
        _file(module, file, result)
    wanted = {file["path"] for file in module.params["files"]}
    for each in module.params["only"]:
        _only(module, each, wanted, result)
    module.exit_json(**result)


def _directory(module: AnsibleModule, wanted: dict[str, Any], result: dict[str, Any]) -> None:
    path = wanted["path"]
    if not os.path.isdir(path):
        result["changed"] = True
        if module.check_mode:
            return
        try:
            os.mkdir(path)
        except OSError as error:
            module.fail_json(msg=f"{path}: the directory cannot be made: {error.strerror}")
    _attributes(module, wanted, result)


def _file(module: AnsibleModule, wanted: dict[str, Any], result: dict[str, Any]) -> None:
    path = wanted["path"]
    text = wanted["content"]
    content = base64.b64decode(wanted["base64"]) if text is None else text.encode()
    before = _read(path)
    if before != content:
        result["changed"] = True
        result["put"].append(path)
        result["diff"].append(_diff(path, before, content))
        if module.check_mode:
            return
        _write(module, path, content)
    _attributes(module, wanted, result)


def _write(module: AnsibleModule, path: str, content: bytes) -> None:
    try:
        descriptor, staged = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".put-")
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        module.fail_json(msg=f"{path}: cannot be written: {error.strerror}")
    module.atomic_move(staged, path)


def _only(module: AnsibleModule, each: dict[str, Any], wanted: set[str], result: dict[str, Any]) -> None:
    directory = each["directory"]
    if not os.path.isdir(directory):
        return
    for name in sorted(fnmatch.filter(os.listdir(directory), each["pattern"])):
        path = os.path.join(directory, name)
        if path in wanted or not os.path.isfile(path):
            continue
        result["changed"] = True
        result["removed"].append(path)
        if not module.check_mode:
            os.unlink(path)


def _attributes(module: AnsibleModule, wanted: dict[str, Any], result: dict[str, Any]) -> None:
    given = {key: wanted[key] for key in ("path", "mode", "owner", "group")}
    arguments = module.load_file_common_arguments({**given, "attributes": None}, path=wanted["path"])
    result["changed"] = module.set_fs_attributes_if_different(arguments, result["changed"])


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError:
        return None


def _diff(path: str, before: bytes | None, after: bytes) -> dict[str, str]:
    shown = {"before_header": path, "after_header": path}
    for key, content in (("before", before or b""), ("after", after)):
        binary = b"\0" in content or len(content) > _LARGEST_SHOWN
        shown[key] = f"{len(content)} bytes\n" if binary else content.decode("utf-8", "replace")
    return shown


if __name__ == "__main__":
    main()
