# SPDX-License-Identifier: Apache-2.0
"""What policies say about each packet of a case: the column of the truth table that is not measured.

The policies come in as text, by the same reader and normal form as anybody's; selectors choose for each workload, and
``hauberk policy explain`` answers for each end of a packet, in the words that a person would ask it with: the sender's
egress, the receiver's ingress. What is known of a peer (labels, namespace, entities) is taken from the case.
"""

from __future__ import annotations

import functools
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Final, NamedTuple

from guest_agent.network import groups
from hauberk.policy import collection, coverage, exemptions
from hauberk.policy.explain import Explainer, Question
from hauberk.policy.rules import (
    PACKET_SECTIONS,
    Decision,
    Operation,
    RuleSet,
    Section,
    Verdict,
)
from hauberk.policy.selectors import Scope, WorkloadIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hauberk.policy.collection import NormalPolicy
    from hauberk.policy.exemptions import Exemption
    from hauberk.policy.rules import Rule
    from tests.host.network.cases import State, Workload
    from tests.host.network.topology import Places, Probe

OPERATION_OF: Final = {Section.EGRESS: Operation.SEND, Section.INGRESS: Operation.RECEIVE}
PORTLESS: Final = frozenset({"icmp", "icmpv6"})
UNCOVERED: Final = Decision(Verdict.ALLOW, None, "no policy covers it")
"""What is decided, unasked, about the packets of whom no rule is about."""


class Judgement(NamedTuple):
    """What is decided about a packet for one workload at one of its ends."""

    who: str
    decision: Decision

    @property
    def refuses(self) -> bool:
        """Whether the packet ends here."""
        return self.decision.verdict is Verdict.DENY


class Judged(NamedTuple):
    """What is decided about a packet: at each end for the machine there and the pod, where they are subject to rules.

    All have to let it pass.
    """

    egress: tuple[Judgement, ...]
    ingress: tuple[Judgement, ...]

    @property
    def passes(self) -> bool:
        """Whether the packet arrives."""
        return not any(one.refuses for one in (*self.egress, *self.ingress))


class Verdicts:
    """The decisions about one state of a case."""

    def __init__(
        self,
        state: State,
        entities: Mapping[str, tuple[str, ...]] | None = None,
        names: Mapping[str, tuple[str, ...]] | None = None,
        exempt: Callable[[Workload], tuple[Exemption, ...]] | None = None,
    ) -> None:
        """Read the policies.

        ``entities`` are networks by the entity's name, ``names`` addresses by domain name, ``exempt`` gives what no
        rule of a workload is about. Raises PolicyError for a policy that is not valid: it would show nothing.
        """
        self.state = state
        files = [("case.yaml", state.text())] if state.policies else []
        self.policies: tuple[NormalPolicy, ...] = collection.load(files)
        self._entities = dict(entities or {})
        self._names = dict(names or {})
        self._exempt = exempt or (lambda _: exemptions.holding(whole=True, machine=False))
        self.workloads = {workload.name: workload for workload in state.workloads}
        self.rule_sets = {name: self._rule_set(workload) for name, workload in self.workloads.items()}
        self._explainers = {name: self._explainer(workload) for name, workload in self.workloads.items()}
        self._answered = functools.cache(self._answer)

    def judge(self, probe: Probe, places: Places) -> Judged:
        """Decide about a packet at both ends."""
        loopback = places.loopback(probe)
        return Judged(
            self._end(probe, Section.EGRESS, places, "lo" if loopback else places.interface_of(probe.source_address)),
            self._end(probe, Section.INGRESS, places, "lo" if loopback else places.interface_of(probe.target_address)),
        )

    def _end(self, probe: Probe, direction: Section, places: Places, interface: str) -> tuple[Judgement, ...]:
        """Decide at one end, which the packet passes by an interface: for the machine, and for the pod in it."""
        sending = direction is Section.EGRESS
        pod = probe.source if sending else probe.target
        other, address = (probe.target, probe.target_address) if sending else (probe.source, probe.source_address)
        subjects = [name for name in dict.fromkeys((places.plans[pod].machine, pod)) if name in self.workloads]
        if not any(self.rule_sets[name].rules for name in subjects):
            return tuple(Judgement(name, UNCOVERED) for name in subjects)
        question = self._peer(probe, other, address, interface)
        return tuple(Judgement(name, self._answered(name, direction, question)) for name in subjects)

    def _peer(self, probe: Probe, name: str, address: str, interface: str) -> str:
        """Give the question about a packet's other end: address, kind of packet, and what is known."""
        known = {
            "on": interface,
            "name": ",".join(name for name, addresses in self._names.items() if address in addresses),
            "entity": ",".join(self._entities_of(address)),
        }
        workload = self.workloads.get(name)
        if workload is not None and not workload.host:
            known["labels"] = ",".join(f"{key}={value}" for key, value in workload.labels)
            known["namespace"] = workload.namespace
        said = " ".join(f"{word} {value}" for word, value in known.items() if value)
        return f"{address} {probe.protocol}/{probe.port} {said}"

    @functools.lru_cache(maxsize=256)  # noqa: B019 - a state is short-lived
    def _entities_of(self, address: str) -> tuple[str, ...]:
        """Give what an address is to the machine; what is outside of the cluster is the world."""
        here = ip_address(address)
        found = [
            entity
            for entity, networks in self._entities.items()
            if any(here in ip_network(network) for network in networks)
        ]
        return tuple(found) if "cluster" in found else (*found, "world")

    def _explainer(self, workload: Workload) -> Explainer:
        scope = Scope.HOST if workload.host else Scope.CONTAINER
        return Explainer(self.rule_sets[workload.name], scope=scope, exemptions=self._exempt(workload))

    def _answer(self, name: str, direction: Section, peer: str) -> Decision:
        if not self.rule_sets[name].rules:
            return UNCOVERED
        return self._explainers[name].ask(Question(OPERATION_OF[direction], peer)).decision

    def _rule_set(self, workload: Workload) -> RuleSet:
        identity = WorkloadIdentity(
            name=workload.name.partition("/")[2],
            namespace=workload.namespace,
            labels=dict(workload.labels),
            host=workload.host,
            host_name=workload.name.replace("/", "-") if workload.host else "",
        )
        rules: list[Rule] = []
        for policy in self.policies:
            if policy.covers(identity):
                rules += [rule for rule in policy.rules if rule.section in PACKET_SECTIONS]
        # what nobody here can know of peers, the agent makes stricter before an engine gets it
        known = groups.Known(frozenset(self._entities), resolvers=True)
        return RuleSet(groups.held(coverage.packets_in_force(rules), known), self.state.posture)
