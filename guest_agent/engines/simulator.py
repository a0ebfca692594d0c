# SPDX-License-Identifier: Apache-2.0
"""An engine without a kernel: the same port, in memory, for tests of everything above it.

The kernel's side lives in an object of its own, :class:`SimulatedKernel`, because what a kernel holds outlives the
agent: a second engine on the same kernel sees what the first one left, as a restarted agent does. Faults are set per
step, so that a test can make any step of any call fail or can stand in for a SIGKILL between two of them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from guest_agent.engines.port import (
    MAXIMUM_WORKLOAD_ID,
    EnforcedWorkload,
    EngineError,
    EngineUnavailableError,
    GateSettings,
    KernelEvent,
    KernelWorkload,
    Probe,
    SealError,
    SuccessorRecord,
    check_advance,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

STEPS: Final = (
    "probe", "sealed_digest", "seal", "register.before", "register.after", "release.before", "release.after",
    "successor", "advance.before", "advance.after", "registered", "is_armed", "drain",
)  # fmt: skip


@dataclass(slots=True)
class SimulatedKernel:
    """What outlives the agent: the seal, the gate, the workloads in force and the events nobody took yet."""

    offers_engine: bool = True
    digest: str | None = None
    successor: SuccessorRecord | None = None
    gate: GateSettings | None = None
    workloads: dict[int, EnforcedWorkload] = field(default_factory=dict)
    armed_pids: set[int] = field(default_factory=set)
    buffer: deque[KernelEvent] = field(default_factory=deque)
    buffer_limit: int = 1024
    events: int = 0
    events_lost: int = 0


class SimulatorEngine:
    """The engine port in memory.

    ``faults`` maps a step (one of ``STEPS``) to a callable that is called there; it raises what the test wants
    raised, or returns to let the step pass. A fault at ``register.after`` stands for an agent killed after the kernel
    took the workload.
    """

    def __init__(
        self, kernel: SimulatedKernel | None = None, faults: Mapping[str, Callable[[], None]] | None = None
    ) -> None:
        """Attach to ``kernel``, or to a fresh one. Raises ValueError for a fault at an unknown step."""
        unknown = set(faults or {}) - set(STEPS)
        if unknown:
            message = f"no such step: {', '.join(sorted(unknown))}; steps are {', '.join(STEPS)}"
            raise ValueError(message)
        self.kernel = kernel if kernel is not None else SimulatedKernel()
        self.faults: dict[str, Callable[[], None]] = dict(faults or {})
        self._lock = threading.Lock()
        self._signal = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def name(self) -> str:
        """Name shown in status."""
        return "simulator"

    def probe(self) -> Probe:
        """Tell whether the simulated kernel offers the engine."""
        if self.kernel.offers_engine:
            return Probe(available=True, reason="simulated, nothing is enforced", details={"kernel": "none"})
        return Probe(available=False, reason="the simulated kernel lacks BPF LSM", details={"kernel": "none"})

    def sealed_digest(self) -> str | None:
        """Return the digest the simulated kernel is sealed with."""
        self._step("sealed_digest")
        return self.kernel.digest

    def seal(self, digest: str, gate: GateSettings) -> None:
        """Seal once; again only with the same digest."""
        self._step("seal")
        with self._lock:
            if not self.kernel.offers_engine:
                message = "the simulated kernel lacks BPF LSM"
                raise EngineUnavailableError(message)
            if self.kernel.digest not in (None, digest):
                message = f"sealed with {self.kernel.digest}, not with {digest}; another bundle needs a reboot"
                raise SealError(message)
            self.kernel.digest, self.kernel.gate = digest, gate

    def register(self, workload: EnforcedWorkload) -> None:
        """Take a workload up, or raise with nothing changed (unless the fault stands for a kill after the fact)."""
        self._step("register.before")
        with self._lock:
            if self.kernel.digest is None:
                message = "nothing is registered before the seal; call seal first"
                raise EngineError(message)
            if not 0 < workload.workload_id <= MAXIMUM_WORKLOAD_ID:
                message = f"workload id {workload.workload_id} is no u32 above 0"
                raise EngineError(message)
            if workload.workload_id in self.kernel.workloads:
                message = f"workload id {workload.workload_id} is in force already"
                raise EngineError(message)
            if any(other.cgroup_id == workload.cgroup_id for other in self.kernel.workloads.values()):
                message = f"cgroup {workload.cgroup_id} belongs to another workload"
                raise EngineError(message)
            self.kernel.workloads[workload.workload_id] = workload
        self._step("register.after")

    def successor(self) -> SuccessorRecord | None:
        """Return the record of the successor in force."""
        self._step("successor")
        return self.kernel.successor

    def advance(self, successor: SuccessorRecord, workloads: Sequence[EnforcedWorkload]) -> None:
        """Take every workload's new table and the record at once, or raise with nothing changed."""
        self._step("advance.before")
        with self._lock:
            check_advance(self.kernel.successor, successor, self.kernel.workloads, workloads)
            self.kernel.workloads = {workload.workload_id: workload for workload in workloads}
            self.kernel.successor = successor
        self._step("advance.after")

    def release(self, workload_id: int) -> None:
        """Let go; nothing happens for a workload that is not held."""
        self._step("release.before")
        with self._lock:
            self.kernel.workloads.pop(workload_id, None)
        self._step("release.after")

    def registered(self) -> Sequence[KernelWorkload]:
        """Tell what is held, in the order of workload ids."""
        self._step("registered")
        with self._lock:
            return [
                KernelWorkload(
                    held.workload_id,
                    held.cgroup_id,
                    held.mount_namespace,
                    held.container_id,
                    held.table_digest,
                    held.network_namespace,
                )
                for _, held in sorted(self.kernel.workloads.items())
            ]

    def is_armed(self, pidfd: int) -> bool:
        """Tell whether a test has listed the process behind the descriptor as armed."""
        self._step("is_armed")
        with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:  # noqa: PTH123 - no path of a person's
            pids = [int(line.split()[1]) for line in file if line.startswith("Pid:")]
        return bool(self.kernel.armed_pids.intersection(pids))

    def fileno(self) -> int:
        """Return the eventfd that polls readable while events wait."""
        return self._signal

    def emit(self, event: KernelEvent) -> None:
        """Play the kernel: record an event, or lose and count it when the buffer is full."""
        with self._lock:
            self.kernel.events += 1
            if len(self.kernel.buffer) >= self.kernel.buffer_limit:
                self.kernel.events_lost += 1
                return
            self.kernel.buffer.append(event)
        os.eventfd_write(self._signal, 1)

    def drain(self) -> Iterator[KernelEvent]:
        """Take every event that waits."""
        self._step("drain")
        with contextlib.suppress(BlockingIOError):  # nobody signalled: events may wait all the same
            os.eventfd_read(self._signal)
        while True:
            with self._lock:
                if not self.kernel.buffer:
                    return
                event = self.kernel.buffer.popleft()
            yield event

    def statistics(self) -> Mapping[str, int]:
        """Return the simulated counters."""
        return {"events": self.kernel.events, "events_lost": self.kernel.events_lost}

    def close(self) -> None:
        """Close the eventfd; the kernel keeps what it holds."""
        os.close(self._signal)

    def _step(self, step: str) -> None:
        fault = self.faults.get(step)
        if fault is not None:
            fault()
