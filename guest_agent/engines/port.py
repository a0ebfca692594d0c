# SPDX-License-Identifier: Apache-2.0
"""What an enforcement engine offers the agent, and what it tells back.

The agent thinks in workloads and tables; how a kernel is made to hold to them is an engine's own affair. This module is
the whole of what the two sides know of each other, so that every test of the agent can run against the simulator and
every kernel adapter stays thin.

Rules every engine keeps:

* ``register`` is atomic: when it returns, the workload is entirely in force; when it raises, nothing of it is left.
* ``advance`` is atomic for all workloads together: before it returns or dies, either every workload and the record of
  the successor are as they were, or every one is as asked for.
* ``release`` is idempotent: releasing a workload the engine does not hold is no error. While it raises, the workload
  counts as still in force.
* What the engine holds survives the agent: ``registered`` of a fresh instance tells what the kernel still enforces.
* A full event buffer loses events, which are counted in ``statistics``, and never a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

Mode = Literal["sealed", "host"]
EventVerdict = Literal["audit", "deny"]
EventOperation = Literal[
    "execute", "map", "read", "write", "gate", "mount", "namespace", "chroot", "ptrace", "signal", "bpf", "pin",
    "connect", "module", "network",
]  # fmt: skip

EVENT_OPERATIONS: Final[tuple[str, ...]] = (
    "execute", "map", "read", "write", "gate", "mount", "namespace", "chroot", "ptrace", "signal", "bpf", "pin",
    "connect", "module", "network",
)  # fmt: skip
MAXIMUM_WORKLOAD_ID: Final = 0xFFFF_FFFF


class EngineError(Exception):
    """The engine could not do what was asked; nothing changed. The message names the cause and what to do next."""


class EngineUnavailableError(EngineError):
    """The kernel lacks what the engine needs; ``probe`` says what."""


class SealError(EngineError):
    """The kernel is sealed with another bundle than the one asked for; only a reboot changes that."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether an engine can work on this machine. ``reason`` is one sentence for people; ``details`` is for scripts."""

    available: bool
    reason: str
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GateSettings:
    """The positive list of what may execute without being a registered workload.

    ``mode`` "sealed" gates everything outside the list; "host" gates nothing unregistered. All paths are absolute and
    name existing files; cgroups are given as paths below the cgroup v2 mount ("/" is its root).
    """

    mode: Mode
    managers: tuple[str, ...]  # container managers: what they start is gated until registered (/usr/bin/runc, …)
    helpers: tuple[str, ...]  # files a manager may execute besides managers (the hook, wrapper runtimes)
    kernel_helpers: tuple[str, ...]  # what the kernel starts by itself (modprobe, …)
    service_cgroups: tuple[str, ...]  # the service manager's own subtrees: "/init.scope", "/system.slice", …
    agent_pid: int  # the agent, in the root pid namespace: the only one to change what is enforced
    mount_points: tuple[str, ...] = ()  # files of the measured root that a manager may mount over


@dataclass(frozen=True, slots=True)
class EnforcedWorkload:
    """One workload as the kernel is to know it.

    ``workload_id`` is a u32 above 0, never used twice within a boot; ``cgroup_id`` is the inode number of the cgroup v2
    directory; ``mount_namespace`` the inode number of the namespace; ``table`` the compiled rules and
    ``table_digest`` what the agent knows them by (their fingerprint). ``network_namespace`` is the inode number of the
    network namespace where a packet filter holds the workload, 0 for one without network rules: with any other number
    the kernel refuses what would pass that filter by.
    """

    workload_id: int
    container_id: str
    cgroup_id: int
    mount_namespace: int
    table: bytes
    table_digest: str
    network_namespace: int = 0


@dataclass(frozen=True, slots=True)
class KernelWorkload:
    """One workload as the kernel holds it, read back to take it up after a restart of the agent."""

    workload_id: int
    cgroup_id: int
    mount_namespace: int
    container_id: str
    table_digest: str
    network_namespace: int = 0


@dataclass(frozen=True, slots=True)
class SuccessorRecord:
    """The bundle that took the sealed one's place: its SHA-256 (hex), its version, its place in the chain (from 1)."""

    digest: str
    version: int
    number: int


@dataclass(frozen=True, slots=True)
class KernelEvent:
    """One decision the kernel took that is to be told.

    ``timestamp_ns`` counts from CLOCK_BOOTTIME. ``workload_id`` is 0 for a task outside every registered workload (a
    refusal of the gate). ``pid`` and ``parent_pid`` are numbers of the root pid namespace. ``detail`` is close to the
    system call ("open", "unlink", "rename", …). ``path`` and ``other_path`` (the second name of a rename or link) are
    kernel paths, relative to the root of the mount namespace; ``path_known`` is false when the path could not be told
    and was denied for that.
    """

    timestamp_ns: int
    workload_id: int
    pid: int
    parent_pid: int
    uid: int
    verdict: EventVerdict
    operation: EventOperation
    detail: str
    path: str
    other_path: str
    source: str
    command: str
    owner: bool
    path_known: bool


def check_advance(
    present: SuccessorRecord | None,
    successor: SuccessorRecord,
    held: Iterable[int],
    workloads: Sequence[EnforcedWorkload],
) -> None:
    """Refuse what no engine may take: a step out of turn, or anything but every workload in force, each once.

    Raises EngineError.
    """
    expected = 1 if present is None else present.number + 1
    if successor.number != expected or (present is not None and successor.version <= present.version):
        message = (
            f"found successor {successor.number} (version {successor.version}), expected number {expected} and a"
            f" version above {present.version if present else 0}; submit the bundle again"
        )
        raise EngineError(message)
    given = sorted(workload.workload_id for workload in workloads)
    if given != sorted(held):
        message = (
            f"found tables for workloads {given}, expected one for each of {sorted(held)}; submit the bundle again"
        )
        raise EngineError(message)


@runtime_checkable
class Engine(Protocol):
    """One kernel mechanism, or its simulator. Methods may be called from several threads unless they say otherwise."""

    @property
    def name(self) -> str:
        """Short name for status and logs ("bpf_lsm")."""

    def probe(self) -> Probe:
        """Find out whether this kernel offers what the engine needs. Changes nothing and raises nothing."""

    def sealed_digest(self) -> str | None:
        """Return the SHA-256 (hex) of the bundle the kernel is sealed with; None when it is not sealed yet.

        Raises EngineError when the kernel's state cannot be read: unknown is not "not sealed".
        """

    def seal(self, digest: str, gate: GateSettings) -> None:
        """Put the gate in force and fix the bundle's digest until reboot; when it returns, both hold.

        Sealing again with the same digest takes up what is there (and refreshes the gate's view of the agent and of
        files that were replaced) without a gap. Raises SealError for another digest, EngineUnavailableError when the
        kernel lacks something.
        """

    def register(self, workload: EnforcedWorkload) -> None:
        """Put a workload in force. Raises EngineError with nothing left behind. Needs ``seal`` first."""

    def successor(self) -> SuccessorRecord | None:
        """Tell which bundle succeeded the sealed one, None when that one is in force still.

        Raises EngineError when the kernel's state cannot be read: unknown is not "none".
        """

    def advance(self, successor: SuccessorRecord, workloads: Sequence[EnforcedWorkload]) -> None:
        """Put a successor's rules in force for every workload at one instant, and record the successor with it.

        ``workloads`` are those in force, each once, with their new tables and network namespaces (a successor may bring
        network rules or take them away); ids, cgroups and mount namespaces do not change.
        ``successor.number`` is one more than the present one's. A task keeps its source: what it executed last, under
        the new rules' own numbers. Raises EngineError with nothing changed.
        """

    def release(self, workload_id: int) -> None:
        """Let go of a workload. Idempotent; raises EngineError when the kernel would not."""

    def registered(self) -> Sequence[KernelWorkload]:
        """Tell what the kernel holds now, in the order of workload ids."""

    def is_armed(self, pidfd: int) -> bool:
        """Tell whether a process acts inside a registered workload, whatever cgroup it is in by now.

        Raises EngineError when that cannot be told.
        """

    def fileno(self) -> int:
        """Descriptor that polls readable when events wait."""

    def drain(self) -> Iterator[KernelEvent]:
        """Take every event that waits, without blocking. Only one thread may drain at a time."""

    def statistics(self) -> Mapping[str, int]:
        """Counters since the engine was loaded: at least ``events`` and ``events_lost``."""

    def close(self) -> None:
        """Let go of this process's own descriptors. What is in force stays in force."""
