# SPDX-License-Identifier: Apache-2.0
"""The agent as it is, killed at one step: ``python -m tests.vm.containers.faulty STEP agent run …``.

The product has no way to be told this. A step is a function of the agent's own that is wrapped before the command line
starts; ``before`` and ``after`` say on which side of it the SIGKILL strikes. A SIGKILL leaves no line of cleaning up.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from guest_agent import records
from guest_agent.agent import Agent, _Tables
from guest_agent.engines.bpf_lsm.engine import BpfLsmEngine
from guest_agent.engines.bpf_lsm.libbpf import Map
from guest_agent.workloads import facts, oci_state, selection, verification
from guest_agent.workloads.registry import Registry
from hauberk.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

_FUNCTIONS: Final[dict[str, tuple[Any, str]]] = {
    "parse-state": (oci_state, "parse"),
    "announce": (Registry, "announce"),
    "verify": (verification, "verify"),
    "registry-verify": (Registry, "verify"),
    "read-config": (facts, "read_config"),
    "select": (selection, "select"),
    "gather": (facts, "gather"),
    "compile": (_Tables, "of"),
    "record": (records.RecordStore, "write"),
    "place-table": (BpfLsmEngine, "_place"),
    "register": (BpfLsmEngine, "register"),
    "recheck": (verification, "recheck"),
    "registry-enforce": (Registry, "enforce"),
    "answer": (Agent, "handle"),
}
_INSIDE: Final = ("record-unfinished", "between-slot-and-cgroup", "before-undo", "after-undo")
REGISTRATION: Final = (*(f"{when}-{name}" for name in _FUNCTIONS for when in ("before", "after")), *_INSIDE)
"""Every step of a registration, on both sides of each call, two places within one, and the undoing of a refused one."""
RELEASE: Final = tuple(
    f"{when}-{name}" for name in ("release", "registry-release", "forget") for when in ("before", "after")
)
SUBMISSION: Final = (
    *(f"{when}-{name}" for name in ("write-link", "write-next", "advance", "promote") for when in ("before", "after")),
    "before-epoch",
)
"""Every step of a submission that changes something, and the one store that puts it in force."""
_SUBMISSIONS: Final[dict[str, tuple[Any, str]]] = {
    "write-link": (records.RecordStore, "write_link"),
    "write-next": (records.RecordStore, "write_next"),
    "advance": (BpfLsmEngine, "advance"),
    "promote": (records.RecordStore, "promote"),
}
_RELEASES: Final[dict[str, tuple[Any, str]]] = {
    "release": (BpfLsmEngine, "release"),
    "registry-release": (Registry, "release"),
    "forget": (records.RecordStore, "remove"),
}


def strike() -> None:
    """End this process as an out-of-memory kill does."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(step: str) -> None:
    """Wrap the function of a step. Raises KeyError for one that does not exist."""
    if step == "record-unfinished":
        _before(Path, "replace", lambda path, *_: path.suffix == ".new" and path.stem.isdigit())
    elif step == "between-slot-and-cgroup":
        _before(Map, "put", lambda _map, key, *_: len(key) == _CGROUP_KEY)
    elif step == "before-epoch":
        _before(Map, "put", lambda changed, *_: changed.name == "epoch")
    elif step in {"before-undo", "after-undo"}:
        _before(verification, "recheck", _refuse)
        arm(step.replace("undo", "release"))
    else:
        when, _, name = step.partition("-")
        owner, attribute = {**_FUNCTIONS, **_RELEASES, **_SUBMISSIONS}[name]
        if when == "before":
            _before(owner, attribute, lambda *_: True)
        else:
            _after(owner, attribute)


def _refuse(*_: object) -> bool:
    message = "a test refuses what was registered"
    raise verification.VerificationError(message)


_CGROUP_KEY: Final = 8
"""Bytes of a cgroup id: of all maps written in a registration only ``cgroups`` has keys of this size."""


def _before(owner: Any, attribute: str, condition: Callable[..., bool]) -> None:  # noqa: ANN401 - class or module
    original = getattr(owner, attribute)

    def wrapped(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the original takes
        if condition(*arguments):
            strike()
        return original(*arguments, **named)

    setattr(owner, attribute, wrapped)


def _after(owner: Any, attribute: str) -> None:  # noqa: ANN401 - class or module
    original = getattr(owner, attribute)

    def wrapped(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the original takes
        original(*arguments, **named)
        strike()

    setattr(owner, attribute, wrapped)


if __name__ == "__main__":
    fault, *arguments = sys.argv[1:]
    arm(fault)
    sys.exit(main(arguments))
