# SPDX-License-Identifier: Apache-2.0
"""Keeps in force, in every network namespace, what the registered workloads and the machine itself are subject to.

The engine is told what is desired of a whole namespace; here it is worked out from who is where (``topology``), who is
a member of what (``groups``, ``learning``) and the rules of each. What was applied last is remembered, so that asking
again for the same costs nothing, and everything that cannot be done at once is tried again by :meth:`Network.upkeep`.

* A registration, and a successor, need their namespaces to hold before they go on; they raise with all as before.
* Whoever else is affected (a peer whose group has a new member) follows at once where that works, else a second later.
* Letting go never fails: what stays behind of a table only refuses, and is removed when that works again.
* Between bundles each packet must pass the old and the new rules; only when the new bundle is in force the old ones go.
  An agent killed on the way leaves something stricter, and the next one finishes.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, TypeVar

from guest_agent.engines.network_port import (
    HOST_ENDPOINT,
    Desired,
    EngineError,
    Interface,
    NameAnswer,
    Namespace,
    Settings,
)
from guest_agent.events.network import PeerFacts
from guest_agent.network import groups, names, places, topology
from guest_agent.network.learning import Learned
from guest_agent.workloads import verification
from guest_agent.workloads.verification import VerificationError
from hauberk.policy import peers
from hauberk.policy.rules import PeerMatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from guest_agent.configuration import Configuration
    from guest_agent.engines.network_port import Endpoint, NetworkEngine, NetworkEvent, QuotaUsage
    from guest_agent.network.topology import Placement
    from guest_agent.workloads.registry import Identity
    from hauberk.policy.rules import PeerGroup, RuleSet
    from hauberk.policy.selectors import WorkloadIdentity

logger = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

_REMEMBERED: Final = 256
"""So many workloads' rules are remembered beyond their end, for packets that are told late."""
VERIFY_SECONDS: Final = 5
"""How often the tables are compared with what they should be, without being told of a change."""


@dataclass(slots=True)
class _Held:
    """A registered workload: where it is, who it is, and what it is subject to."""

    member: topology.Member
    identity: Identity
    who: WorkloadIdentity
    pid: int
    before: tuple[RuleSet, ...] | None = None  # while a successor is on its way


@dataclass(frozen=True, slots=True)
class NamespaceStatus:
    """One namespace, for people. ``held`` is the digest of what the kernel holds, "" for nothing."""

    inode: int
    own: bool
    endpoints: tuple[Endpoint, ...]
    held: str
    quotas: tuple[QuotaUsage, ...]
    problem: str = ""


@dataclass(slots=True)
class _Memory:
    """What outlives the agent beside the tables: learned names, and when the period of each quota began."""

    learned: Learned = field(default_factory=Learned)
    periods: dict[tuple[int, str], int] = field(default_factory=dict)
    changed: bool = False

    def encode(self) -> bytes:
        self.changed = False
        periods = [[namespace, name, began] for (namespace, name), began in self.periods.items()]
        return json.dumps({"names": self.learned.encode(), "periods": periods}).encode()

    @classmethod
    def decode(cls, data: bytes) -> _Memory:
        """Read back; what cannot be read is forgotten: names are learned again, periods begin again."""
        if not data:
            return cls()
        try:
            found = json.loads(data)
            periods = {(int(namespace), str(name)): int(began) for namespace, name, began in found["periods"]}
            return cls(Learned.decode(found["names"]), periods)
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("what was remembered of networks cannot be used: %s", error)
            return cls()


def boot_seconds() -> int:
    """Give the time since boot."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000_000


class Network:
    """The packets' side of the agent, on one engine. Safe for several threads."""

    def __init__(
        self,
        engine: NetworkEngine,
        configuration: Configuration,
        machine: verification.Machine,
        *,
        links: places.Links | None = None,
        clock: Callable[[], int] = boot_seconds,
    ) -> None:
        """Nothing is touched before :meth:`begin`."""
        self.engine = engine
        self.flushed = False
        self._machine = machine
        self._management = configuration.management
        self._resolvers = configuration.resolvers
        self._entities = dict(configuration.entities)
        self._strict = configuration.mode == "sealed"
        self._links = links or places.KernelLinks()
        self._clock = clock
        self._own = 0
        self._held: dict[int, _Held] = {}
        self._gone: dict[int, RuleSet] = {}
        self._host: tuple[RuleSet, ...] = ()
        self._host_before: tuple[RuleSet, ...] | None = None
        self._applied: dict[int, Desired] = {}
        self._paths: dict[int, str] = {}
        self._problems: dict[int, str] = {}
        self._peers = groups.Peers()
        self._version = 0  # counts changes of members and of their rules
        self._kinds: tuple[int, frozenset[str]] = (-1, frozenset())  # of groups that are named, by version
        self._wanted: tuple[object, dict[int, Desired]] = (None, {})  # what is desired, by what it follows from
        self._memory = _Memory()
        self._verified = 0
        self._lock = threading.RLock()

    # ---- what is in force ----------------------------------------------------------------------------------------

    def begin(self, host: RuleSet, memory: bytes = b"") -> None:
        """Put in force what holds for the machine and for every workload taken up.

        Raises EngineError when the agent's own namespace cannot be given its rules. Another one that cannot keeps what
        it has, and is tried again.
        """
        with self._lock:
            try:
                self._own = verification.network_namespace("self", self._machine)
            except VerificationError as error:
                raise EngineError(str(error)) from error
            self._paths[self._own] = str(self._machine.proc_root / "self" / "ns" / "net")
            self._memory = _Memory.decode(memory)
            self._memory.learned.forget(self._clock())
            self._host = (host,)
            self._version += 1
            # What nobody is subject to any more may have been left by an agent that was killed.
            self._applied = dict.fromkeys(
                (self._own, *(held.member.placement.namespace for held in self._all())), _NONE
            )
            self._refresh({self._own})

    def take_up(  # noqa: PLR0913 - what is known of a workload
        self,
        workload_id: int,
        identity: Identity,
        who: WorkloadIdentity,
        packets: RuleSet,
        namespace: int,
        *,
        exposed: bool = False,
    ) -> int:
        """Take up a workload of before a restart, to be put in force by :meth:`begin`; give its namespace, 0 if gone.

        ``namespace`` is where it was, 0 where that is not known.
        """
        found = places.find(identity, namespace, self._machine)
        if found is None:
            if packets.rules:
                logger.warning("workload %d has network rules and no process is left of it", workload_id)
            return 0
        placement, pid = found
        with self._lock:
            self._add(topology.Member(workload_id, placement, (packets,), exposed), identity, who, pid)
        return placement.namespace

    def register(  # noqa: PLR0913 - as above
        self,
        workload_id: int,
        identity: Identity,
        who: WorkloadIdentity,
        packets: RuleSet,
        placement: Placement,
        *,
        exposed: bool = False,
    ) -> None:
        """Put a workload's rules in force. Raises EngineError with everything as before.

        ``exposed``: it may have rights to undo them within its namespace.
        """
        with self._lock:
            if self.flushed and packets.rules:
                message = (
                    "the network rules of this machine were flushed, expected them in force before another container "
                    "that has some starts; restart the agent"
                )
                raise EngineError(message)
            self._add(topology.Member(workload_id, placement, (packets,), exposed), identity, who, identity.pid)
            try:
                self._check_quotas()
                self._refresh({placement.namespace} if packets.rules else set())
            except EngineError:
                del self._held[workload_id]
                self._version += 1
                self._refresh()
                raise

    def namespace_of(self, workload_id: int) -> int:
        """Give the namespace a workload is in, 0 for one that is not known."""
        with self._lock:
            held = self._held.get(workload_id)
            return held.member.placement.namespace if held is not None else 0

    def is_held_inside_alone(self, workload_id: int) -> bool:
        """Whether a workload has rules that hold only where it could change them."""
        with self._lock:
            held = self._held.get(workload_id)
            if held is None or not held.member.effective:
                return False
            namespace = held.member.placement.namespace
            of = {other.member.workload_id for other in self._all() if other.member.placement.namespace == namespace}
            outside = self._applied.get(self._own, _NONE).endpoints
            return not any(one.identifier in of and isinstance(one.attachment, Interface) for one in outside)

    def release(self, workload_id: int) -> None:
        """Let go of a workload that has ended. What cannot be removed yet is tried again."""
        with self._lock:
            held = self._held.pop(workload_id, None)
            if held is not None:
                self._gone[workload_id] = held.member.rule_sets[-1]
                if len(self._gone) > _REMEMBERED:
                    del self._gone[next(iter(self._gone))]
                self._version += 1
                self._refresh()

    def tighten(self, packets: Mapping[int, RuleSet], host: RuleSet) -> None:
        """Subject everybody to a successor's rules besides those that hold. Raises EngineError with all as before."""
        with self._lock:
            for workload_id, held in self._held.items():
                held.before = held.member.rule_sets
                following = packets.get(workload_id)
                if following is not None:
                    held.member = replace(held.member, rule_sets=(*held.before, self._shared(following)))
            self._host_before, self._host = self._host, (*self._host, host)
            self._version += 1
            try:
                self._check_quotas()
                self._refresh(None)
            except EngineError:
                self.take_back()
                raise

    def settle(self) -> None:
        """Let the rules of before a successor go, which is in force now."""
        with self._lock:
            for held in self._held.values():
                held.member = replace(held.member, rule_sets=held.member.rule_sets[-1:])
                held.before = None
            self._host, self._host_before = self._host[-1:], None
            self._version += 1
            self._refresh()

    def take_back(self) -> None:
        """Let the rules of a successor go that did not come into force."""
        with self._lock:
            for held in self._held.values():
                if held.before is not None:
                    held.member, held.before = replace(held.member, rule_sets=held.before), None
            if self._host_before is not None:
                self._host, self._host_before = self._host_before, None
            self._version += 1
            self._refresh()

    def flush(self) -> int:
        """Remove all that is ours from every namespace, until the agent starts again; give how many there were.

        Raises EngineError in sealed mode, and when one of them would not.
        """
        with self._lock:
            if self._strict:
                message = "found a sealed machine, expected one in host mode: what is sealed stays in force"
                raise EngineError(message)
            self.flushed = True
            emptied = tuple(self._applied)
            for inode in emptied:
                self.engine.remove(self._namespace(inode))
                del self._applied[inode]
            logger.warning("the network rules of %d namespace(s) were flushed", len(emptied))
            return len(emptied)

    # ---- as time goes by -----------------------------------------------------------------------------------------

    def upkeep(self) -> None:
        """Follow what has changed in the machine, begin new periods of quotas, look whether the tables still hold."""
        now = self._clock()
        with self._lock:
            if self.flushed:
                return
            self._refresh()
            self._reset_quotas(now)
            if now - self._verified >= VERIFY_SECONDS:
                self._verified = now
                self._verify()
            self._memory.learned.forget(now, {self._own, *(held.member.placement.namespace for held in self._all())})

    def verify(self) -> None:
        """Look whether the tables still hold, and put those in force again that somebody changed."""
        with self._lock:
            if not self.flushed:
                self._verify()

    def remember(self) -> bytes | None:
        """Give what is to be written down, None when nothing has changed since the last time."""
        with self._lock:
            return self._memory.encode() if self._memory.changed else None

    def drain(self) -> Iterator[NetworkEvent]:
        """Take the events that wait; answers of resolvers are learned from on the way."""
        for told in self.engine.drain():
            if isinstance(told, NameAnswer):
                self._learn(told)
            elif not self._is_echo(told):
                yield told

    def _is_echo(self, event: NetworkEvent) -> bool:
        """Whether an audited packet was told already: the one who sees a workload from outside sees it too."""
        with self._lock:
            held = self._held.get(event.endpoint)
            return (
                event.verdict == "audit"
                and held is not None
                and event.namespace == self._own != held.member.placement.namespace
            )

    def _learn(self, told: NameAnswer) -> None:
        if told.resolver not in self._resolvers:
            return
        now = self._clock()
        with self._lock:
            desired = self._applied.get(told.namespace)
            answer = names.read(told.payload)
            if desired is None or self.flushed or answer is None:
                return
            meant = [
                group
                for group in _groups_of(desired.endpoints)
                if group.kind == "name" and peers.name_matches(group.value, answer.name)
            ]
            if not meant:
                return
            learned = self._memory.learned
            known = {group: learned.members(told.namespace, group, now) for group in meant}
            for address, seconds in answer.addresses:
                learned.learn(told.namespace, answer.name, address, seconds, now)
            for group in meant:
                members = learned.members(told.namespace, group, now)
                # Whoever asks a thousand times a second is told the same, and must not keep the agent from its work.
                if members == known[group] and told.namespace not in self._problems:
                    continue
                self._memory.changed = True
                self._attempt(told.namespace, self.engine.set_members, self._namespace(told.namespace), group, members)

    def _reset_quotas(self, now: int) -> None:
        seen: set[tuple[int, str]] = set()
        for inode, desired in tuple(self._applied.items()):
            if not any(rule.quota for rule_set in _rule_sets(desired.endpoints) for rule in rule_set.rules):
                continue
            for usage in self._attempt(inode, self.engine.usage, self._namespace(inode)) or ():
                key = (inode, usage.name)
                seen.add(key)
                began = self._memory.periods.get(key)
                if began is not None and now < began + usage.seconds:
                    continue
                if began is not None:
                    self._attempt(inode, self.engine.reset_quota, self._namespace(inode), usage.name)
                    now_began = now - (now - began) % max(1, usage.seconds)
                else:
                    now_began = now
                self._memory.periods[key], self._memory.changed = now_began, True
        for key in self._memory.periods.keys() - seen:
            del self._memory.periods[key]
            self._memory.changed = True

    def _verify(self) -> None:
        try:
            for namespace in self.engine.verify():
                logger.error(
                    "the rules of network namespace %d were changed by somebody; they hold again", namespace.inode
                )
        except EngineError as error:
            logger.error("network rules that somebody changed cannot be put in force again: %s", error)  # noqa: TRY400

    # ---- what is told --------------------------------------------------------------------------------------------

    def rule_set_of(self, endpoint: int) -> RuleSet | None:
        """Give the newest rules of an endpoint, None where it is not known (any more)."""
        with self._lock:
            if endpoint == HOST_ENDPOINT:
                return self._host[-1] if self._host else None
            held = self._held.get(endpoint)
            return held.member.rule_sets[-1] if held is not None else self._gone.get(endpoint)

    def facts_of(self, namespace: int, address: str) -> PeerFacts:
        """Tell what is known of a peer's address."""
        with self._lock:
            entities, labels, of = groups.facts_of(address, self._peers) if address else ((), None, "")
            return PeerFacts(self._memory.learned.names_of(namespace, address), entities, labels, of)

    def status(self) -> list[NamespaceStatus]:
        """Tell what holds in each namespace."""
        with self._lock:
            found = []
            for inode in {self._own: None, **dict.fromkeys(self._applied), **dict.fromkeys(self._problems)}:
                namespace = self._namespace(inode)
                held = self._ask(lambda namespace=namespace: self.engine.held(namespace))  # type: ignore[misc] # bound now
                quotas = self._ask(lambda namespace=namespace: self.engine.usage(namespace))  # type: ignore[misc] # as above
                desired = self._applied.get(inode, _NONE)
                problem = self._problems.get(inode, "")
                found.append(
                    NamespaceStatus(
                        inode, inode == self._own, desired.endpoints, held or "", tuple(quotas or ()), problem
                    )
                )
            return found

    def problems(self) -> list[str]:
        """Say what does not hold as it should."""
        with self._lock:
            found = [f"network namespace {inode}: {problem}" for inode, problem in sorted(self._problems.items())]
            if self.flushed:
                found.append("the network rules were flushed: nothing is filtered until the agent is started again")
            shared = topology.shared_quotas((held.member for held in self._all()), self._own, self._host)
            found += [
                f"{policy}: its quota for all workloads together counts for each network namespace by itself"
                for policy in shared
            ]
            return found

    @staticmethod
    def _ask(question: Callable[[], _Answer]) -> _Answer | None:
        try:
            return question()
        except EngineError:
            return None

    # ---- within --------------------------------------------------------------------------------------------------

    def _all(self) -> Iterable[_Held]:
        return self._held.values()

    def _add(self, member: topology.Member, identity: Identity, who: WorkloadIdentity, pid: int) -> None:
        member = replace(member, rule_sets=tuple(map(self._shared, member.rule_sets)))
        self._held[member.workload_id] = _Held(member, identity, who, pid)
        self._version += 1
        self._paths[member.placement.namespace] = str(self._machine.proc_root / str(pid) / "ns" / "net")

    def _shared(self, packets: RuleSet) -> RuleSet:
        """Give the very rules that another workload has which are equal: they are kept, and planned, once."""
        for held in self._all():
            for rule_set in held.member.rule_sets:
                if rule_set == packets:
                    return rule_set
        return packets

    def _check_quotas(self) -> None:
        """Refuse, on a sealed machine, a quota that several namespaces would have to count together."""
        shared = topology.shared_quotas((held.member for held in self._all()), self._own, self._host)
        if shared and self._strict:
            message = (
                f"{', '.join(shared)}: found workloads in several network namespaces, expected one for a quota of "
                "level policy, which the kernel counts within one; use level pod"
            )
            raise EngineError(message)

    def _namespace(self, inode: int) -> Namespace:
        return Namespace(inode, self._paths[inode])

    def _look(self) -> dict[int, str]:
        """Read anew where everybody is; give the ends of pairs that lead to the namespaces."""
        there: dict[int, int] = {}
        for held in self._all():
            inode = held.member.placement.namespace
            if inode == self._own or inode in there:
                continue
            if not self._is_there(held):
                found = places.find(held.identity, inode, self._machine)
                if found is None:
                    continue
                held.pid = found[1]
                self._paths[inode] = str(self._machine.proc_root / str(held.pid) / "ns" / "net")
            there[inode] = held.pid
        if self._kinds[0] != self._version:
            rule_sets = (rule_set for held in self._all() for rule_set in held.member.rule_sets)
            named = _groups((*rule_sets, *self._host))
            self._kinds = (self._version, frozenset(group.kind for group in named))
        if self._kinds[1] - {"name"}:
            of = {inode: places.addresses(pid, self._machine) for inode, pid in there.items()}
            of[self._own] = places.addresses("self", self._machine)
            workloads = (
                (
                    tuple(sorted(held.who.labels.items())),
                    held.who.namespace,
                    of.get(held.member.placement.namespace),
                )
                for held in self._all()
            )
            self._peers = groups.Peers(
                of[self._own],
                self._entities,
                tuple((labels, namespace, found) for labels, namespace, found in workloads if found is not None),
            )
        ruled = {held.member.placement.namespace for held in self._all() if held.member.effective}
        return dict(self._links.routed({inode: pid for inode, pid in there.items() if inode in ruled}))

    def _is_there(self, held: _Held) -> bool:
        try:
            return verification.network_namespace(held.pid, self._machine) == held.member.placement.namespace
        except VerificationError:
            return False

    def _desired(self) -> dict[int, Desired]:
        """Give what is desired of each namespace, worked out anew where something it follows from has changed."""
        links = self._look()
        origin = (self._version, links, self._peers)
        if self._wanted[0] != origin:
            self._wanted = (origin, self._work_out(links))
        return self._wanted[1]

    def _work_out(self, links: dict[int, str]) -> dict[int, Desired]:
        members = (held.member for held in self._all())
        found: dict[int, Desired] = {}
        for inode, endpoints in topology.endpoints(members, self._own, self._host, links).items():
            asked = _groups_of(endpoints)
            resolvers = self._resolvers if any(group.kind == "name" for group in asked) else ()
            known = {group: groups.members(group, self._peers) for group in asked}
            found[inode] = Desired(
                endpoints,
                Settings(management=self._management, resolvers=resolvers),
                {group: listed for group, listed in known.items() if listed is not None},
            )
        return found

    def _refresh(self, required: set[int] | None = frozenset()) -> None:  # type: ignore[assignment] # never changed
        """Bring every namespace to what is desired of it. ``required`` raise EngineError, None: all of them."""
        if self.flushed:
            return
        desired = self._desired()
        waiting = [inode for inode in (*desired, *self._applied) if self._applied.get(inode) != desired.get(inode)]
        for inode in sorted(dict.fromkeys(waiting), key=lambda inode: (inode not in (required or ()), inode)):
            try:
                self._bring(inode, desired.get(inode))
            except EngineError as error:
                if required is None or inode in required:
                    raise
                if self._problems.get(inode) != str(error):
                    logger.warning("the rules of network namespace %d do not follow yet: %s", inode, error)
                self._problems[inode] = str(error)
        there = {held.member.placement.namespace for held in self._all()}  # with rules or, so far, without
        for inode in self._paths.keys() - there - self._applied.keys() - {self._own}:
            del self._paths[inode]
            self._problems.pop(inode, None)
            self._problems.pop(inode, None)

    def _bring(self, inode: int, desired: Desired | None) -> None:
        namespace = self._namespace(inode)
        if desired is None:
            if any(held.member.placement.namespace == inode for held in self._all()) or inode == self._own:
                self.engine.remove(namespace)
            else:
                self._remove_from_empty(namespace)
            self._applied.pop(inode, None)
        else:
            now = self._clock()
            names = {
                group: self._memory.learned.members(inode, group, now)
                for group in _groups_of(desired.endpoints)
                if group.kind == "name"
            }
            applied = self.engine.apply(namespace, replace(desired, groups={**desired.groups, **names}))
            self._applied[inode] = desired
            if applied.change != "nothing":
                logger.info(
                    "network namespace %d holds %s: %d endpoint(s), changed: %s, %d flow(s) cut", inode,
                    applied.digest[:16], len(desired.endpoints), applied.change, applied.flows_cut,
                )  # fmt: skip
        self._problems.pop(inode, None)

    def _remove_from_empty(self, namespace: Namespace) -> None:
        """Remove what is ours from a namespace that no workload is in; one that cannot be entered is gone."""
        try:
            self.engine.remove(namespace)
        except EngineError as error:
            logger.info("network namespace %d is left as it is: %s", namespace.inode, error)

    def _attempt(self, inode: int, action: Callable[..., _Answer], *arguments: object) -> _Answer | None:
        """Do what is tried again by and by anyway; a failure is shown until something works there again."""
        try:
            return action(*arguments)
        except EngineError as error:
            if self._problems.get(inode) != str(error):
                logger.warning("network namespace %d: %s", inode, error)
            self._problems[inode] = str(error)
            return None


_NONE: Final = Desired()


def _rule_sets(endpoints: Iterable[Endpoint]) -> Iterator[RuleSet]:
    for endpoint in endpoints:
        yield from endpoint.rule_sets


def _groups_of(endpoints: Iterable[Endpoint]) -> tuple[PeerGroup, ...]:
    return _groups(_rule_sets(endpoints))


def _groups(rule_sets: Iterable[RuleSet]) -> tuple[PeerGroup, ...]:
    found: dict[PeerGroup, None] = {}
    for rule_set in rule_sets:
        for rule in rule_set.rules:
            if isinstance(rule.match, PeerMatch) and rule.match.groups:
                found |= dict.fromkeys(rule.match.groups)
    return tuple(found)
