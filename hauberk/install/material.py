# SPDX-License-Identifier: Apache-2.0
"""The files that are installed, as the repository holds them: ``deploy/`` and ``hooks/`` are their only source.

A wheel carries both trees beside this module; in a checkout they are where they are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from hauberk.install.errors import MachineError

HOOK: Final = "/usr/libexec/hauberk/hauberk-hook"
FAIL_OPEN_PROGRAM: Final = "/usr/libexec/hauberk/hauberk-fail-open"
FAIL_OPEN: Final = "--fail-open"
_PACKAGED: Final = Path(__file__).with_name("material")
_CHECKOUT: Final = Path(__file__).parents[2]


def material(name: str) -> bytes:
    """Read one of the files, named as in the repository. Raises MachineError if the installation lacks it."""
    for place in (_PACKAGED, _CHECKOUT):
        path = place / name
        if path.is_file():
            return path.read_bytes()
    message = f"{name} is not part of this installation of hauberk ({_PACKAGED}); install the wheel again"
    raise MachineError(message)


def hooks(*, fail_open: bool) -> dict[str, list[dict[str, Any]]]:
    """Give the ``hooks`` member of an OCI configuration."""
    stages: dict[str, list[dict[str, Any]]] = json.loads(material("deploy/oci/config-hooks.json"))["hooks"]
    if fail_open:
        for entry in stages["createRuntime"]:
            _open(entry)
    return stages


def hook_file(name: str, *, fail_open: bool) -> bytes:
    """Give one of the files for ``hooks.d``."""
    content = material(f"deploy/oci/hooks.d/{name}")
    document = json.loads(content)
    if not fail_open or "createRuntime" not in document["stages"]:
        return content
    _open(document["hook"])
    return encoded(document)


def encoded(document: object) -> bytes:
    """Render JSON as the files of this repository are."""
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def _open(entry: dict[str, Any]) -> None:
    entry["args"] = [entry["args"][0], FAIL_OPEN, *entry["args"][1:]]
