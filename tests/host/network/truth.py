# SPDX-License-Identifier: Apache-2.0
"""The truth table: what policies say of each packet, against what becomes of it, and what is told of it.

Every state of a case goes the whole way: text of policies, the reader, selectors, an engine in a real network, packets.
Of every packet three things must agree: the decision (:mod:`tests.host.network.truth_verdicts`), whether it got through
and was answered, and the events: one from each end that reports or refuses it, which names the endpoint, the direction,
the interface and whether a rule or the default decided, whose alert names the policy, field and line, and none from
anywhere else. So a refusal is never taken from
silence alone. And flows that one state let through are held while the next is put in force: they go on if they are
allowed then too, and else do not. The same cases hold in three *layouts*:

* ``whole``: a namespace for each workload, with the table inside;
* ``cgroup``: the workloads of one Kubernetes namespace share a network namespace and are told apart by cgroup;
* ``interface``: from outside, in the namespace that routes between them.

What never leaves a namespace passes (``lo`` is exempt), so with cgroups the neighbours in one always reach each other.
And a cgroup is known of what has a socket that the kernel finds: of what comes in that is TCP and UDP. ICMP is the
machine's, SCTP is refused where what comes in is restricted for anybody there.

Where several decide about a packet in one place, in which order they do is the kernel's affair: who refuses it first
tells of it, and those behind him never see it. So of the events any order's are right.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self

from guest_agent.engines.network_port import (
    HOST_ENDPOINT,
    Cgroup,
    Desired,
    Endpoint,
    EngineError,
    Interface,
    Namespace,
    NetworkEvent,
    Settings,
    Whole,
)
from guest_agent.events.alerts import DEFAULT_POSTURE, OWN_POLICY, Subject
from guest_agent.events.network import NetworkAlertMaker, PeerFacts
from guest_agent.network import groups
from hauberk.policy import exemptions
from hauberk.policy.peers import name_matches
from hauberk.policy.rules import Action, Decision, PeerMatch, RuleSet, Section, Verdict
from tests.host.network.cases import addresses_of
from tests.host.network.topology import PORTS, Network, everybody
from tests.host.network.truth_verdicts import PORTLESS, Judged, Judgement, Verdicts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from guest_agent.engines.network_port import GroupMembers, NetworkEngine
    from guest_agent.events.alerts import Alert
    from hauberk.policy.rules import PeerGroup
    from tests.host.network.cases import Case, State, Workload
    from tests.host.network.topology import Flow, Probe, Round

Layout = Literal["whole", "cgroup", "interface"]
EVERYTHING_IS_TOLD: Final = Settings(log_rate=1_000_000, log_burst=1_000_000)
"""No limit that a test reaches: an event that is missing is a difference."""
_PATIENCE_SECONDS: Final = 30.0
_UNANSWERED: Final = {("icmpv6", 139)}
"""What no kernel answers unless told to; that it arrives has to do."""
_NO_SOCKET: Final = Decision(Verdict.DENY, None, "no socket can be found for it")
_CGROUPS: Final = tuple(Path("/sys/fs/cgroup") / name for name in ("unified", "."))


class Told(NamedTuple):
    """What an event says, in the terms of this table."""

    endpoint: str
    direction: Section
    verdict: str
    reason: str
    probe: Probe
    interface: str
    policy: str  # as the alert made of the event names it
    rule: str


@dataclass(slots=True)
class Tally:
    """What was done, and every difference that was found."""

    cases: int = 0
    states: int = 0
    probes: int = 0
    refused: int = 0
    flows: int = 0
    cut: int = 0
    events: int = 0
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Give it in a line, and the differences."""
        line = (
            f"{self.cases} cases, {self.states} states, {self.probes} probes ({self.refused} refused), "
            f"{self.flows} flows held over a change ({self.cut} forbidden by it), "
            f"{self.events} events, {len(self.differences)} differences"
        )
        return "\n".join((line, *self.differences[:60]))


class Table:
    """A network with an engine in it, in one layout; a context manager."""

    def __init__(
        self, layout: Layout, engine: Callable[[], NetworkEngine], patience: float = _PATIENCE_SECONDS
    ) -> None:
        """Take the layout, and what makes the engine once the network is there.

        ``patience`` is how many seconds to wait for what is expected before it counts as missing; nobody waits for it
        but where there is a difference.
        """
        self.layout = layout
        self._patience = patience
        self.tally = Tally()
        self._make_engine = engine
        self._stack = contextlib.ExitStack()
        self._in_force: set[str] = set()
        self._round: Round | None = None
        self._told: dict[Probe, set[Told]] = {}
        self._alerts = NetworkAlertMaker("machine", "nftables")
        self._peers = groups.Peers()
        self._case_names: Mapping[str, tuple[str, ...]] = {}
        self._rule_sets: Mapping[str, RuleSet] = {}
        self._flows: tuple[Flow, ...] = ()
        self._over: set[Probe] = set()
        self._right: dict[int, dict[Probe, set[frozenset[Told]]]] = {}  # by source port: what comes late is not lost

    def __enter__(self) -> Self:
        """Make the network and the engine."""
        with contextlib.ExitStack() as stack:
            cgroups = stack.enter_context(_cgroups()) if self.layout == "cgroup" else {}
            plans = everybody(shared=self.layout == "cgroup", second=self.layout == "whole")
            self.network = stack.enter_context(Network(plans, cgroups))
            self._cgroup_of = cgroups
            self.engine = self._make_engine()
            stack.callback(self.engine.close)
            self._namespaces = {
                machine: Namespace(path.stat().st_ino, str(path))
                for machine in ("router", *{plan.machine for plan in plans})
                for path in (self.network.namespace(machine),)
            }
            self._machine_of = {namespace.inode: machine for machine, namespace in self._namespaces.items()}
            self._numbers = {plan.name: number for number, plan in enumerate(plans, start=1)}
            self._names = {number: name for name, number in self._numbers.items()}
            self.network.watch(self.engine.fileno(), self._drain)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything."""
        self._stack.close()

    def holds(self, case: Case) -> bool:
        """Tell whether a case has a meaning in this layout.

        Its machines must be there, and its pods in a layout that has them. Seen from outside, an interface has another
        name, and there is no host.
        """
        machines = {plan.machine for plan in everybody(shared=self.layout == "cgroup")}
        hosts = {one.name for state in case.states for one in state.workloads if one.host}
        if self.layout == "interface":
            return not hosts and "iface" not in case.features
        return hosts <= machines and not (self.layout == "cgroup" and "iface" in case.features)

    def run(self, case: Case) -> None:
        """Put each state of a case in force and try its packets. Differences go into the tally."""
        self.tally.cases += 1
        for number, state in enumerate(case.states):
            self.tally.states += 1
            where = f"{case.group}: {case.name} [{self.layout}, state {number}]"
            verdicts = Verdicts(state, case.entities, case.names, self._exempt)
            try:
                self._apply(case, state, verdicts)
            except EngineError as error:
                self.tally.differences.append(f"{where}: not put in force: {error}")
                return
            self._go_on(where, verdicts)
            self._try(where, case, state, verdicts)

    def _exempt(self, workload: Workload) -> tuple[exemptions.Exemption, ...]:
        return exemptions.holding(whole=workload.host or self.layout != "cgroup", machine=workload.host)

    def _apply(self, case: Case, state: State, verdicts: Verdicts) -> None:
        wanted: dict[str, list[Endpoint]] = {}
        rules = [rule for rule_set in verdicts.rule_sets.values() for rule in rule_set.rules]
        for workload in state.workloads:
            rule_set = verdicts.rule_sets[workload.name]
            if rule_set.rules:
                machine = workload.name if workload.host else self.network.plans[workload.name].machine
                place = "router" if self.layout == "interface" else machine
                wanted.setdefault(place, []).append(self._endpoint(workload, rule_set, machine))
        self._rule_sets = verdicts.rule_sets
        self._case_names = case.names
        members = self._members(case, state, rules)
        for machine in sorted(self._in_force - wanted.keys()):
            self.engine.remove(self._namespaces[machine])
        self._in_force = set(wanted)
        for machine, endpoints in wanted.items():
            desired = Desired(tuple(endpoints), EVERYTHING_IS_TOLD, members)
            applied = self.engine.apply(self._namespaces[machine], desired)
            held = self.engine.held(self._namespaces[machine])
            if held != applied.digest:
                self.tally.differences.append(f"{case.name}: applied {applied.digest}, but {machine} holds {held}")

    def _endpoint(self, workload: Workload, rule_set: RuleSet, machine: str) -> Endpoint:
        if workload.host:
            return Endpoint(HOST_ENDPOINT, (rule_set,), Whole())
        number = self._numbers[workload.name]
        match self.layout:
            case "whole":
                return Endpoint(number, (rule_set,), Whole())
            case "interface":
                return Endpoint(number, (rule_set,), Interface(self.network.router_interface(machine)))
            case "cgroup":
                directory = self._cgroup_of[workload.name]
                level = len(directory.relative_to(_cgroup_root()).parts)
                return Endpoint(number, (rule_set,), Cgroup(directory.stat().st_ino, level))

    def _members(self, case: Case, state: State, rules: Sequence[object]) -> Mapping[PeerGroup, GroupMembers]:
        """Give the members of every group that rules name, as the agent finds them; names as the case has them."""
        workloads = tuple(
            (one.labels, one.namespace, addresses_of(one.name)) for one in state.workloads if not one.host
        )
        self._peers = groups.Peers(case.entities.get(groups.HOST, ()), case.entities, workloads)
        found: dict[PeerGroup, GroupMembers] = {}
        for rule in rules:
            match = getattr(rule, "match", None)
            for group in match.groups if isinstance(match, PeerMatch) else ():
                members = (
                    tuple((address, 3600) for address in _named(group.value, case.names))
                    if group.kind == "name"
                    else groups.members(group, self._peers)
                )
                if members is not None:
                    found[group] = members
        return found

    def _try(self, where: str, case: Case, state: State, verdicts: Verdicts) -> None:
        """Send a state's packets and compare."""
        probes = case.probes(self.network, state)
        judged = {probe: self._attributed(probe, verdicts.judge(probe, self.network), verdicts) for probe in probes}
        passing = {probe for probe, one in judged.items() if one.passes}
        answering = {probe for probe in passing if (probe.protocol, probe.port) not in _UNANSWERED}
        right = {probe: found for probe, one in judged.items() if (found := self._events(probe, one)) != {frozenset()}}
        self._told = {}
        begun = self._round = self.network.send(probes)
        self._right[begun.source_port] = right
        self.network.collect_until(
            lambda: (
                answering <= begun.answered
                and passing <= begun.arrived
                and all(self._told.get(probe, frozenset()) in sets for probe, sets in right.items())
            ),
            self._patience,
        )
        self.network.settle()
        self._drain()
        kept = begun.answered.intersection(probe for probe in probes if probe.protocol in {"tcp", "udp"})
        self._flows = self.network.hold(probe for probe in kept if probe.port == PORTS[0])
        self.network.finish()
        self.tally.probes += len(probes)
        self.tally.refused += len(probes) - len(passing)
        self.tally.events += sum(map(len, self._told.values()))
        self._compare(where, begun, judged, answering)

    def _go_on(self, where: str, verdicts: Verdicts) -> None:
        """Find out whether what was established goes on if it is allowed now, and else does not."""
        allowed = {
            flow
            for flow in self._flows
            if self._attributed(flow.probe, verdicts.judge(flow.probe, self.network), verdicts).passes
        }
        self._over = {flow.probe for flow in self._flows}
        alive = self.network.send_again(self._flows, allowed, self._patience)
        self.tally.flows += len(self._flows)
        self.tally.cut += len(self._flows) - len(allowed)
        self.tally.differences += [
            f"{where}: the flow {_packet(flow.probe)} {'ended' if flow in allowed else 'goes on'}, expected: "
            f"{_why(verdicts.judge(flow.probe, self.network))}"
            for flow in sorted(allowed ^ alive)
        ]
        self._drain()
        self._flows = ()

    def _compare(self, where: str, begun: Round, judged: Mapping[Probe, Judged], answering: set[Probe]) -> None:
        found = self.tally.differences
        right = self._right[begun.source_port]
        for probe, one in judged.items():
            if one.passes is not (probe in begun.arrived):
                found.append(f"{where}: {_packet(probe)} {_got(probe in begun.arrived)}, expected: {_why(one)}")
            elif (probe in answering) is not (probe in begun.answered):
                found.append(f"{where}: {_packet(probe)} arrived, but its answer did not")
            told = frozenset(self._told.get(probe, ()))
            expected = right.get(probe, {frozenset()})
            if told not in expected:
                nearest = max(expected, key=lambda some, told=told: (len(some & told), -len(some)))  # type: ignore[misc]
                found += [f"{where}: {_said(event)} is missing" for event in sorted(nearest - told)]
                found += [f"{where}: {_said(event)}, which nothing explains" for event in sorted(told - nearest)]

    def _attributed(self, probe: Probe, judged: Judged, verdicts: Verdicts) -> Judged:
        """Give who decides about a packet where workloads are told apart by their sockets' cgroups."""
        if self.layout != "cgroup" or self.network.loopback(probe) or probe.protocol in {"tcp", "udp"}:
            return judged
        machine = self.network.plans[probe.target].machine
        of_machine = tuple(one for one in judged.ingress if one.who == machine)
        restricted = any(
            _restricts_ingress(rule_set)
            for name, rule_set in verdicts.rule_sets.items()
            if name in self.network.plans and self.network.plans[name].machine == machine
        )
        if probe.protocol == "sctp" and restricted:
            of_machine += (Judgement(machine, _NO_SOCKET),)
        return Judged(judged.egress, of_machine)

    def _events(self, probe: Probe, judged: Judged) -> set[frozenset[Told]]:
        """Give what may be told of a packet, for each order in which those at one place decide."""
        out = [(Section.EGRESS, one) for one in judged.egress]
        into = [(Section.INGRESS, one) for one in judged.ingress]
        places = [[*out, *into]] if self.layout == "interface" else [out, into]
        found: set[frozenset[Told]] = set()
        for orders in itertools.product(*(itertools.permutations(place) for place in places)):
            told: list[Told] = []
            for direction, one in itertools.chain.from_iterable(orders):
                event = self._event(probe, one.who, direction, one.decision)
                told += [event] if event is not None else []
                if one.refuses:
                    break
            found.add(frozenset(told))
        return found

    def _event(self, probe: Probe, who: str, direction: Section, decision: Decision) -> Told | None:
        if decision.verdict is Verdict.ALLOW:
            return None
        address = probe.source_address if direction is Section.EGRESS else probe.target_address
        interface = self.network.interface_of(address)
        if self.layout == "interface":
            interface = self.network.router_interface(who, interface)
        reason = "default" if decision.rule is None else "rule"
        if decision is _NO_SOCKET:
            reason = "unattributed"
        verdict = "deny" if decision.verdict is Verdict.DENY else "audit"
        policy, rule = DEFAULT_POSTURE, ""
        if decision.rule is not None:
            origin = decision.rule.origin
            policy, rule = origin.policy, f"{origin.field} ({origin.file}:{origin.line})"
        elif reason == "unattributed":
            policy = OWN_POLICY
        return Told(who, direction, verdict, reason, probe, interface, policy, rule)

    def _drain(self) -> None:
        """Take in what the engine tells."""
        for event in self.engine.drain():
            if isinstance(event, NetworkEvent):
                self._take(event)

    def _take(self, event: NetworkEvent) -> None:
        if event.direction is None:
            self.tally.differences.append(f"nobody touched a table, yet this was told: {event}")
            return
        begun = self._round
        if event.source_port is not None:
            begun = self.network.round_of(event.source_port)
        kind = event.icmp_type if event.protocol in PORTLESS else event.destination_port
        found = (event.protocol, event.source_address, event.destination_address, kind or 0)
        probe = None if begun is None else begun.find(*found)
        if begun is None or probe is None:
            self.tally.differences.append(f"told of a packet that nobody sent: {event}")
            return
        endpoint = self._name_of(event)
        sees_out = (event.direction is Section.EGRESS) is not (self.layout == "interface")
        interface = event.interface_out if sees_out else event.interface_in
        alert = self._alert(event, endpoint)
        policy, rule = alert["PolicyName"], alert["Rule"] if event.reason == "rule" else ""
        told = Told(endpoint, event.direction, event.verdict, event.reason, probe, interface, policy, rule)
        if begun is not self._round and probe in self._over:
            return  # what is sent over a flow that was ended
        if begun is self._round:
            self._told.setdefault(probe, set()).add(told)
        elif not any(told in some for some in self._right[begun.source_port].get(probe, ())):
            self.tally.differences.append(f"told late, and wrong: {_said(told)}")

    def _alert(self, event: NetworkEvent, endpoint: str) -> Alert:
        """Make the alert of an event, as the agent does."""
        address = event.source_address if event.direction is Section.INGRESS else event.destination_address
        entities, labels, namespace = groups.facts_of(address, self._peers)
        names = tuple(name for name, addresses in self._case_names.items() if address in addresses)
        subject = Subject(pod=endpoint, rule_set=self._rule_sets.get(endpoint))
        return self._alerts.make(event, subject, PeerFacts(names, entities, labels, namespace))

    def _name_of(self, event: NetworkEvent) -> str:
        if event.endpoint == HOST_ENDPOINT:
            return self._machine_of.get(event.namespace, "?")
        return self._names.get(event.endpoint, "?")


def _restricts_ingress(rule_set: RuleSet) -> bool:
    """Tell whether some packet that comes in can be told of or refused."""
    listed = rule_set.is_allow_list(Section.INGRESS) and rule_set.posture_of(Section.INGRESS) is not Verdict.ALLOW
    return listed or any(
        rule.section is Section.INGRESS
        and (rule.action is not Action.ALLOW or rule.quota is not None)
        and isinstance(rule.match, PeerMatch)
        and not rule.match.nothing
        for rule in rule_set.rules
    )


def _packet(probe: Probe) -> str:
    return (
        f"{probe.protocol} {probe.port} from {probe.source} ({probe.source_address}) "
        f"to {probe.target} ({probe.target_address})"
    )


def _got(arrived: bool) -> str:  # noqa: FBT001 - what happened
    return "arrived" if arrived else "did not arrive"


def _why(judged: Judged) -> str:
    return " and ".join(
        f"{end} of {who}: {decision.verdict.name.lower()} by "
        f"{decision.rule.origin.policy if decision.rule else decision.reason}"
        for end, some in (("egress", judged.egress), ("ingress", judged.ingress))
        for who, decision in some
    )


def _said(told: Told) -> str:
    return (
        f"the event {told.verdict} of {told.endpoint}'s {told.direction.value} by the {told.reason} "
        f"on {told.interface} about {_packet(told.probe)} by {told.policy} {told.rule}"
    )


def _named(value: str, names: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(address for name, addresses in names.items() if name_matches(value, name) for address in addresses)


def _cgroup_root() -> Path:
    """Give the place where cgroup v2 is mounted: alone, or beside the older one."""
    root = next((path.resolve() for path in _CGROUPS if (path / "cgroup.controllers").is_file()), None)
    assert root is not None, "cgroup v2 is mounted neither at /sys/fs/cgroup/unified nor at /sys/fs/cgroup"
    return root


@contextlib.contextmanager
def _cgroups() -> Iterator[dict[str, Path]]:
    """Make a cgroup for every pod, below one of the tests' own; x/b's is deeper than the others'."""
    root = _cgroup_root() / f"hauberk-truth-{os.getpid()}"
    made = {
        plan.name: root / ("deep/er" if plan.name == "x/b" else ".") / plan.name.replace("/", "-")
        for plan in everybody()
    }
    try:
        for directory in made.values():
            directory.mkdir(parents=True)
        yield {name: directory.resolve() for name, directory in made.items()}
    finally:
        for directory in sorted({*root.rglob("*"), root}, reverse=True):
            if directory.is_dir():
                directory.rmdir()
