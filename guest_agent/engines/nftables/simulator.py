# SPDX-License-Identifier: Apache-2.0
"""The engine for packets without a kernel: the same port, in memory, for tests of everything above it.

What a kernel holds lives in an object of its own, :class:`SimulatedNetwork`: it outlives the agent, and a second engine
on it sees what the first one left. Packets are judged by the ruleset itself, as it would be given to the kernel, not by
the rules it was made from. Faults are set per step, so that a test can make any step fail, or can stand in for a
SIGKILL before or after it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from guest_agent.engines.network_port import (
    Applied,
    Desired,
    EngineError,
    EngineUnavailableError,
    NameAnswer,
    NetworkEvent,
    Probe,
)
from guest_agent.engines.nftables import protocols
from guest_agent.engines.nftables.evaluation import Evaluation, Outcome, Packet
from guest_agent.engines.nftables.plan import PlanError, difference, plan
from guest_agent.engines.nftables.ruleset import Ruleset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from guest_agent.engines.network_port import GroupMembers, Namespace, QuotaUsage
    from guest_agent.engines.nftables.ruleset import Hook
    from hauberk.policy.rules import PeerGroup

STEPS: Final = (
    "probe", "apply.before", "apply.after", "remove.before", "remove.after", "held", "verify", "set_members", "usage",
    "reset_quota", "drain",
)  # fmt: skip


@dataclass(slots=True)
class SimulatedNamespace:
    """What is in force in one namespace: the ruleset with its quotas' usage, and the flows that were let pass."""

    evaluation: Evaluation
    flows: list[tuple[Hook, Packet]] = field(default_factory=list)


@dataclass(slots=True)
class SimulatedNetwork:
    """What outlives the agent: the namespaces by inode number, and the events nobody took yet."""

    offers_engine: bool = True
    namespaces: dict[int, SimulatedNamespace] = field(default_factory=dict)
    buffer: deque[NetworkEvent | NameAnswer] = field(default_factory=deque)
    buffer_limit: int = 1024
    events: int = 0
    events_lost: int = 0


class SimulatorNetworkEngine:
    """The network port in memory.

    ``faults`` maps a step (one of ``STEPS``) to a callable that is called there; it raises what the test wants
    raised, or returns to let the step pass. A fault at ``apply.after`` stands for an agent killed after the kernel
    took the ruleset.
    """

    def __init__(
        self, network: SimulatedNetwork | None = None, faults: Mapping[str, Callable[[], None]] | None = None
    ) -> None:
        """Attach to ``network``, or to a fresh one. Raises ValueError for a fault at an unknown step."""
        unknown = set(faults or {}) - set(STEPS)
        if unknown:
            message = f"no such step: {', '.join(sorted(unknown))}; steps are {', '.join(STEPS)}"
            raise ValueError(message)
        self.network = network if network is not None else SimulatedNetwork()
        self.faults: dict[str, Callable[[], None]] = dict(faults or {})
        self.applied: dict[int, tuple[Namespace, Desired, Ruleset]] = {}  # by inode: paths change
        self._lock = threading.RLock()
        self._signal = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def name(self) -> str:
        """Name shown in status."""
        return "simulator"

    def probe(self) -> Probe:
        """Tell whether the simulated kernel offers the engine."""
        self._step("probe")
        if self.network.offers_engine:
            return Probe(available=True, reason="simulated, nothing is enforced", details={"kernel": "none"})
        return Probe(available=False, reason="the simulated kernel lacks nf_tables", details={"kernel": "none"})

    def apply(self, namespace: Namespace, desired: Desired) -> Applied:
        """Put a ruleset in force, or raise with nothing changed (unless the fault stands for a kill after the fact)."""
        self._step("apply.before")
        with self._lock:
            if not self.network.offers_engine:
                message = "the simulated kernel lacks nf_tables"
                raise EngineUnavailableError(message)
            known = self.applied.get(namespace.inode)
            try:
                ruleset = plan(desired, known[2] if known else None)
            except PlanError as error:
                raise EngineError(str(error)) from error
            applied = self._load(namespace, ruleset)
            self.applied[namespace.inode] = namespace, desired, ruleset
        self._step("apply.after")
        return applied

    def remove(self, namespace: Namespace) -> None:
        """Let a namespace go; nothing happens for one that is not held."""
        self._step("remove.before")
        with self._lock:
            self.applied.pop(namespace.inode, None)
            self.network.namespaces.pop(namespace.inode, None)
        self._step("remove.after")

    def held(self, namespace: Namespace) -> str | None:
        """Tell the digest of what is in force."""
        self._step("held")
        with self._lock:
            held = self.network.namespaces.get(namespace.inode)
            return None if held is None else held.evaluation.ruleset.digest

    def verify(self) -> Sequence[Namespace]:
        """Put in force again what a test changed or deleted."""
        self._step("verify")
        changed: list[Namespace] = []
        with self._lock:
            for namespace, _, ruleset in self.applied.values():
                held = self.network.namespaces.get(namespace.inode)
                if held is None or held.evaluation.ruleset.digest != ruleset.digest:
                    self._load(namespace, ruleset)
                    changed.append(namespace)
        for namespace in changed:
            self.emit(NetworkEvent(0, namespace.inode, "tampered", detail="the table was changed or deleted"))
        return changed

    def set_members(self, namespace: Namespace, group: PeerGroup, members: GroupMembers) -> None:
        """Change the members of a group."""
        self._step("set_members")
        with self._lock:
            if namespace.inode not in self.applied:
                message = f"found no ruleset in namespace {namespace.inode}, expected one; call apply first"
                raise EngineError(message)
            _, desired, previous = self.applied[namespace.inode]
            desired = replace(desired, groups={**desired.groups, group: members})
            ruleset = plan(desired, previous)
            self._load(namespace, ruleset)
            self.applied[namespace.inode] = namespace, desired, ruleset

    def usage(self, namespace: Namespace) -> Sequence[QuotaUsage]:
        """Tell what each quota has counted."""
        self._step("usage")
        with self._lock:
            held = self.network.namespaces.get(namespace.inode)
            if held is None:
                return ()
            evaluation = held.evaluation
            return tuple(quota.usage(evaluation.used[name]) for name, quota in evaluation.ruleset.quotas.items())

    def reset_quota(self, namespace: Namespace, name: str) -> None:
        """Begin a new period of a quota."""
        self._step("reset_quota")
        with self._lock:
            held = self.network.namespaces.get(namespace.inode)
            if held is not None and name in held.evaluation.used:
                held.evaluation.used[name] = 0

    def fileno(self) -> int:
        """Return the eventfd that polls readable while events wait."""
        return self._signal

    def send(self, namespace: Namespace, hook: Hook, packet: Packet) -> Outcome:
        """Play the kernel: send a packet through a namespace's hook, and tell of it as the rules say."""
        with self._lock:
            held = self.network.namespaces.get(namespace.inode)
            if held is None:
                return Outcome()
            outcome = held.evaluation.packet(hook, packet)
            if outcome.passes and packet.state == "new":
                held.flows.append((hook, packet))
        for mark in outcome.told:
            self.emit(
                NetworkEvent(
                    timestamp_ns=0,
                    namespace=namespace.inode,
                    verdict=mark.verdict,
                    endpoint=mark.endpoint,
                    direction=mark.section,
                    reason=mark.reason,
                    protocol=protocols.name(packet.protocol),
                    source_address=packet.source,
                    destination_address=packet.destination,
                    source_port=packet.source_port,
                    destination_port=packet.destination_port,
                    icmp_type=packet.icmp_type,
                    interface_in=packet.interface_in,
                    interface_out=packet.interface_out,
                )
            )
        return outcome

    def tamper(self, namespace: Namespace) -> None:
        """Play somebody who deletes the table."""
        with self._lock:
            self.network.namespaces.pop(namespace.inode, None)

    def emit(self, event: NetworkEvent | NameAnswer) -> None:
        """Play the kernel: record an event or an answer, or lose and count it when the buffer is full."""
        with self._lock:
            self.network.events += 1
            if len(self.network.buffer) >= self.network.buffer_limit:
                self.network.events_lost += 1
                return
            self.network.buffer.append(event)
        os.eventfd_write(self._signal, 1)

    def drain(self) -> Iterator[NetworkEvent | NameAnswer]:
        """Take every event that waits."""
        self._step("drain")
        with contextlib.suppress(BlockingIOError):  # nobody signalled: events may wait all the same
            os.eventfd_read(self._signal)
        while True:
            with self._lock:
                if not self.network.buffer:
                    return
                event = self.network.buffer.popleft()
            yield event

    def statistics(self) -> Mapping[str, int]:
        """Return the simulated counters."""
        return {"events": self.network.events, "events_lost": self.network.events_lost}

    def close(self) -> None:
        """Close the eventfd; the network keeps what it holds."""
        os.close(self._signal)

    def _load(self, namespace: Namespace, ruleset: Ruleset) -> Applied:
        """Replace what is in force: usage of quotas stays, flows that would no longer begin end."""
        held = self.network.namespaces.get(namespace.inode)
        before = held.evaluation.ruleset if held is not None else Ruleset()
        used = held.evaluation.used if held is not None else {}
        fresh = SimulatedNamespace(Evaluation(ruleset, used))
        flows = held.flows if held is not None else []
        trial = Evaluation(ruleset)  # asking must not count
        fresh.flows += [(hook, packet) for hook, packet in flows if trial.packet(hook, packet).passes]
        self.network.namespaces[namespace.inode] = fresh
        cut = len(flows) - len(fresh.flows)
        if held is None:
            return Applied(ruleset.digest, "table", cut)
        changes = difference(before, ruleset)
        return Applied(ruleset.digest, "table" if changes is None else "elements" if changes else "nothing", cut)

    def _step(self, step: str) -> None:
        fault = self.faults.get(step)
        if fault is not None:
            fault()
