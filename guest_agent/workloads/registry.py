# SPDX-License-Identifier: Apache-2.0
"""The registry: what the agent knows of every container, as a state machine without I/O.

announced -> verified -> enforced -> gone, and from announced or verified straight to gone when registration fails.
Nothing here looks at the machine: callers bring what they saw (:class:`Identity`, :class:`Observation`), so that
every rule can be tested by itself and the order of events is the only thing that matters.

Invariants, which hold after every call whether it returned or raised:

1. A container id names at most one workload that is not gone.
2. A workload id is in 1..2**32-1 and is given out once; a registry that starts above what an earlier agent used never
   repeats one within a boot.
3. No two verified or enforced workloads share a cgroup id or a cgroup path, and no cgroup of one lies above or below
   that of another: otherwise one task would be under two sets of rules, or escape its own by moving down.
4. Only an enforced workload is protected, and it stays enforced until an observation says that its init is gone AND its
   cgroup is empty or removed. Who asks makes no difference: a poststop for a container that lives frees nothing.
5. A registration that fails leaves nothing: its id and its cgroup are free again (its workload id is not).
6. Poststop is idempotent: for an unknown container it is answered "gone".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MAXIMUM_WORKLOAD_ID: Final = 0xFFFF_FFFF
MAXIMUM_CONTAINER_ID: Final = 255


class RegistryError(Exception):
    """A step that the state machine refuses. The message says what was found and what was expected."""


class ConflictError(RegistryError):
    """The container, or its cgroup, collides with a workload that is alive."""


class State(StrEnum):
    """Where a workload stands."""

    ANNOUNCED = "announced"
    VERIFIED = "verified"
    ENFORCED = "enforced"
    GONE = "gone"


class Release(StrEnum):
    """Answer to a request to let go of a container."""

    GONE = "gone"  # nothing of it is held (any more)
    ALIVE = "alive"  # init or cgroup still lives: kept in force, to be looked at again
    PENDING = "pending"  # still being registered: the registration itself will find the container gone


@dataclass(frozen=True, slots=True)
class Identity:
    """What the kernel recognises a workload by, as verified by the agent itself.

    ``pid`` is 0 for a workload taken up from the kernel after a restart whose init cannot be known any more.
    ``cgroup_path`` is relative to the cgroup v2 mount ("/kubepods/x"), empty when the cgroup is gone.
    """

    pid: int
    start_time: int
    cgroup_id: int
    cgroup_path: str
    mount_namespace: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen when somebody asked to let go."""

    init_alive: bool
    cgroup_populated: bool

    @property
    def over(self) -> bool:
        """Whether the workload has ended: both, never one of the two."""
        return not self.init_alive and not self.cgroup_populated


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload as the registry holds it."""

    workload_id: int
    container_id: str
    state: State
    identity: Identity | None = None
    table_digest: str = ""
    stop_requested: bool = False


def paths_overlap(first: str, second: str) -> bool:
    """Whether one cgroup path is the other or lies above it. An unknown path ("") overlaps nothing."""
    if not first or not second:
        return False
    above, below = sorted((first.rstrip("/") + "/", second.rstrip("/") + "/"), key=len)
    return below.startswith(above)


class Registry:
    """The workloads that are not gone, by container id. Not thread-safe: its owner holds a lock around each call."""

    def __init__(self, first_workload_id: int = 1) -> None:
        """Start giving out ids at ``first_workload_id``. Raises ValueError when that is no u32 above 0."""
        if not 0 < first_workload_id <= MAXIMUM_WORKLOAD_ID:
            message = f"first workload id {first_workload_id} is not in 1..{MAXIMUM_WORKLOAD_ID}"
            raise ValueError(message)
        self._next = first_workload_id
        self._workloads: dict[str, Workload] = {}

    def __len__(self) -> int:
        """Count the workloads that are not gone."""
        return len(self._workloads)

    def __iter__(self) -> Iterator[Workload]:
        """Go through the workloads in the order of announcement."""
        return iter(tuple(self._workloads.values()))

    @property
    def next_workload_id(self) -> int:
        """The id the next announcement gets."""
        return self._next

    def find(self, container_id: str) -> Workload | None:
        """Return the workload of a container, None when there is none (any more)."""
        return self._workloads.get(container_id)

    def announce(self, container_id: str) -> Workload:
        """Take note of a container and give it a workload id.

        Raises ConflictError while an earlier container of that id is not gone, RegistryError for an impossible id.
        """
        if not container_id or len(container_id) > MAXIMUM_CONTAINER_ID or not container_id.isprintable():
            message = f"a container id has 1 to {MAXIMUM_CONTAINER_ID} printable characters, found {len(container_id)}"
            raise RegistryError(message)
        earlier = self._workloads.get(container_id)
        if earlier is not None:
            message = (
                f"container {container_id} is {earlier.state.value} already (workload {earlier.workload_id}); "
                "an id is free again once its init is gone and its cgroup empty"
            )
            raise ConflictError(message)
        if self._next > MAXIMUM_WORKLOAD_ID:
            message = "all workload ids of this boot are used; reboot the machine"
            raise RegistryError(message)
        workload = Workload(self._next, container_id, State.ANNOUNCED)
        self._next += 1
        self._workloads[container_id] = workload
        return workload

    def verify(self, container_id: str, identity: Identity) -> Workload:
        """Record what the agent verified. Raises ConflictError when the cgroup collides with another workload's."""
        workload = self._in_state(container_id, State.ANNOUNCED)
        self._refuse_conflicts(identity, container_id)
        return self._store(replace(workload, state=State.VERIFIED, identity=identity))

    def enforce(self, container_id: str, table_digest: str) -> Workload:
        """Record that the kernel enforces the workload. Raises RegistryError unless it is verified."""
        workload = self._in_state(container_id, State.VERIFIED)
        return self._store(replace(workload, state=State.ENFORCED, table_digest=table_digest))

    def renew(self, container_id: str, table_digest: str) -> Workload:
        """Record that the kernel holds an enforced workload to another table. Raises RegistryError for any other."""
        workload = self._in_state(container_id, State.ENFORCED)
        return self._store(replace(workload, table_digest=table_digest))

    def abandon(self, container_id: str, workload_id: int) -> Workload:
        """Give a registration up; the container id and the cgroup are free again.

        Raises RegistryError for an enforced workload (only :meth:`release` lets go of one), and when the id now
        belongs to another registration.
        """
        workload = self._known(container_id)
        if workload.workload_id != workload_id:
            message = f"container {container_id} is workload {workload.workload_id}, not {workload_id}"
            raise RegistryError(message)
        if workload.state is State.ENFORCED:
            message = f"container {container_id} is enforced; it is released once it has ended, not abandoned"
            raise RegistryError(message)
        del self._workloads[container_id]
        return replace(workload, state=State.GONE)

    def take_up(self, workload_id: int, container_id: str, identity: Identity, table_digest: str) -> Workload:
        """Record a workload that the kernel holds from before a restart, as enforced.

        Raises ConflictError when the container or cgroup is known already. The next id given out is above
        ``workload_id``.
        """
        if not 0 < workload_id <= MAXIMUM_WORKLOAD_ID:
            message = f"workload id {workload_id} is not in 1..{MAXIMUM_WORKLOAD_ID}"
            raise RegistryError(message)
        if container_id in self._workloads or any(
            other.workload_id == workload_id for other in self._workloads.values()
        ):
            message = f"container {container_id} (workload {workload_id}) is known already"
            raise ConflictError(message)
        self._refuse_conflicts(identity, container_id)
        self._next = max(self._next, workload_id + 1)
        return self._store(Workload(workload_id, container_id, State.ENFORCED, identity, table_digest))

    def request_stop(self, container_id: str, observation: Observation | None) -> Release:
        """Answer a poststop or the reaper, who ask whether this container may be let go of.

        ``Release.GONE`` means that the caller is to release the engine's side first and then to call :meth:`release`;
        for an unknown container there is nothing to release. ``observation`` may be None only for a container that is
        not enforced.
        """
        workload = self._workloads.get(container_id)
        if workload is None:
            return Release.GONE
        if workload.state is not State.ENFORCED:
            return Release.PENDING
        if observation is None:
            message = f"container {container_id} is enforced; letting go needs an observation"
            raise RegistryError(message)
        if observation.over:
            return Release.GONE
        self._store(replace(workload, stop_requested=True))
        return Release.ALIVE

    def release(self, container_id: str, workload_id: int, observation: Observation) -> Workload:
        """Let go of an enforced workload that has ended.

        Raises RegistryError while its init or its cgroup lives, and when the id belongs to another workload by now.
        """
        workload = self._in_state(container_id, State.ENFORCED)
        if workload.workload_id != workload_id:
            message = f"container {container_id} is workload {workload.workload_id}, not {workload_id}"
            raise RegistryError(message)
        if not observation.over:
            message = f"container {container_id} lives (init or cgroup); it stays in force"
            raise RegistryError(message)
        del self._workloads[container_id]
        return replace(workload, state=State.GONE)

    def _known(self, container_id: str) -> Workload:
        workload = self._workloads.get(container_id)
        if workload is None:
            message = f"container {container_id} is unknown; it was never announced or is gone"
            raise RegistryError(message)
        return workload

    def _in_state(self, container_id: str, state: State) -> Workload:
        workload = self._known(container_id)
        if workload.state is not state:
            message = f"container {container_id} is {workload.state.value}, expected {state.value}"
            raise RegistryError(message)
        return workload

    def _refuse_conflicts(self, identity: Identity, container_id: str) -> None:
        for other in self._workloads.values():
            if other.identity is None or other.container_id == container_id:
                continue
            same_path = other.identity.cgroup_path == identity.cgroup_path != ""
            if other.identity.cgroup_id == identity.cgroup_id or same_path:
                message = (
                    f"cgroup {identity.cgroup_path or identity.cgroup_id} belongs to container {other.container_id}; "
                    "each container needs a cgroup of its own"
                )
                raise ConflictError(message)
            if paths_overlap(other.identity.cgroup_path, identity.cgroup_path):
                message = (
                    f"cgroup {identity.cgroup_path} lies above or below {other.identity.cgroup_path} of container "
                    f"{other.container_id}; nested containers cannot be told apart"
                )
                raise ConflictError(message)

    def _store(self, workload: Workload) -> Workload:
        self._workloads[workload.container_id] = workload
        return workload
