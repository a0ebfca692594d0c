# SPDX-License-Identifier: Apache-2.0
"""The engine of a machine whose kernel holds no rules about paths: it only remembers what the agent registered.

For hosts that filter packets alone (``engines: [nftables]``), also on kernels that refuse BPF LSM. Nothing is gated and
no program or file is refused, so nothing of a policy about these is enforced and sealed mode is not to be had. What the
kernel would hold elsewhere lies in one file below ``/run``, which is replaced whole: a restarted agent finds it, and a
successor of the bundle comes into force with all of its workloads or not at all. Whoever can write that file is root
and could do worse.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from guest_agent.engines.port import (
    EngineError,
    KernelWorkload,
    Probe,
    SealError,
    SuccessorRecord,
    check_advance,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from guest_agent.engines.port import EnforcedWorkload, GateSettings, KernelEvent


@dataclass(slots=True)
class _State:
    digest: str | None = None
    successor: SuccessorRecord | None = None
    workloads: dict[int, KernelWorkload] = field(default_factory=dict)


class AbsentEngine:
    """The engine port without an engine. ``cgroups_of`` gives the ids of a process's cgroup and of those above it."""

    def __init__(self, file: Path, cgroups_of: Callable[[int], frozenset[int]]) -> None:
        """Nothing is touched before it is asked for something."""
        self._file = file
        self._cgroups_of = cgroups_of
        self._lock = threading.Lock()
        self._never = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def name(self) -> str:
        """Name shown in status."""
        return "absent"

    def probe(self) -> Probe:
        """Remembering is always possible."""
        return Probe(available=True, reason="no engine for programs and files: registrations are remembered, no more")

    def sealed_digest(self) -> str | None:
        """Return the digest of the bundle this boot began with."""
        return self._read().digest

    def seal(self, digest: str, gate: GateSettings) -> None:
        """Remember the bundle. Raises SealError for another one within the boot, EngineError for sealed mode."""
        if gate.mode != "host":
            message = f"found mode {gate.mode}, expected host: without bpf_lsm nothing is sealed or gated"
            raise EngineError(message)
        with self._changing() as state:
            if state.digest not in (None, digest):
                message = (
                    f"this boot began with bundle {state.digest}, not with {digest}; submit it as a successor, "
                    "or reboot"
                )
                raise SealError(message)
            state.digest = digest

    def register(self, workload: EnforcedWorkload) -> None:
        """Remember a workload. Raises EngineError."""
        with self._changing() as state:
            if state.digest is None:
                message = "nothing is registered before the seal; call seal first"
                raise EngineError(message)
            if workload.workload_id in state.workloads or any(
                other.cgroup_id == workload.cgroup_id for other in state.workloads.values()
            ):
                message = f"workload {workload.workload_id} or its cgroup {workload.cgroup_id} is registered already"
                raise EngineError(message)
            state.workloads[workload.workload_id] = _remembered(workload)

    def successor(self) -> SuccessorRecord | None:
        """Return the record of the successor in force."""
        return self._read().successor

    def advance(self, successor: SuccessorRecord, workloads: Sequence[EnforcedWorkload]) -> None:
        """Remember the successor and its workloads in one step."""
        with self._changing() as state:
            check_advance(state.successor, successor, state.workloads, workloads)
            state.successor = successor
            state.workloads = {workload.workload_id: _remembered(workload) for workload in workloads}

    def release(self, workload_id: int) -> None:
        """Forget a workload."""
        with self._changing() as state:
            state.workloads.pop(workload_id, None)

    def registered(self) -> Sequence[KernelWorkload]:
        """Tell what is remembered, in the order of workload ids."""
        return [held for _, held in sorted(self._read().workloads.items())]

    def is_armed(self, pidfd: int) -> bool:
        """Tell whether a process is in the cgroup of a registered workload. Raises EngineError."""
        registered = {held.cgroup_id for held in self._read().workloads.values()}
        try:
            lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text(encoding="ascii").splitlines()
            pids = [int(line.split()[1]) for line in lines if line.startswith("Pid:")]
            return any(not registered.isdisjoint(self._cgroups_of(pid)) for pid in pids)
        except Exception as error:
            message = f"the cgroup of the process behind descriptor {pidfd} cannot be told ({error})"
            raise EngineError(message) from error

    def fileno(self) -> int:
        """Return a descriptor that never becomes readable."""
        return self._never

    def drain(self) -> Iterator[KernelEvent]:
        """Nothing is ever told."""
        return iter(())

    def statistics(self) -> Mapping[str, int]:
        """Nothing is counted."""
        return {"events": 0, "events_lost": 0}

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._never)

    @contextmanager
    def _changing(self) -> Iterator[_State]:
        """Change what is remembered: written when the block ends well, and not at all when it raises."""
        with self._lock:
            state = self._read()
            yield state
            self._write(state)

    def _read(self) -> _State:
        """Read the file; a missing one is that of a boot that has not begun. Raises EngineError."""
        try:
            found = json.loads(self._file.read_bytes())
            successor = found["successor"]
            workloads = [KernelWorkload(**held) for held in found["workloads"]]
            return _State(
                str(found["digest"]),
                None if successor is None else SuccessorRecord(**successor),
                {held.workload_id: held for held in workloads},
            )
        except FileNotFoundError:
            return _State()
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{self._file} cannot be read ({error}), expected the registrations of this boot; reboot"
            raise EngineError(message) from error

    def _write(self, state: _State) -> None:
        unfinished = self._file.with_suffix(".new")
        document = {
            "digest": state.digest,
            "successor": None if state.successor is None else asdict(state.successor),
            "workloads": [asdict(held) for held in state.workloads.values()],
        }
        try:
            unfinished.write_text(json.dumps(document), encoding="utf-8")
            unfinished.replace(self._file)
        except OSError as error:
            message = f"{self._file} cannot be written ({error.strerror}); make room there"
            raise EngineError(message) from error


def _remembered(workload: EnforcedWorkload) -> KernelWorkload:
    return KernelWorkload(
        workload.workload_id,
        workload.cgroup_id,
        workload.mount_namespace,
        workload.container_id,
        workload.table_digest,
        workload.network_namespace,
    )
