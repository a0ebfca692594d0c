# SPDX-License-Identifier: Apache-2.0
"""What policies say about each packet of a case: the column of the truth table that is not measured.

The policies come in as text, by the same reader and normal form as anybody's; selectors choose for each workload, and
``decide`` answers for each end of a packet: the sender's egress, the receiver's ingress. What is known of a peer
(labels, namespace, entities) is taken from the case.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Final

from hauberk.policy import collection, exemptions, objects
from hauberk.policy.rules import (
    PACKET_SECTIONS,
    Circumstances,
    Decision,
    Operation,
    Peer,
    RuleSet,
    Section,
    Verdict,
    decide,
)
from hauberk.policy.selectors import WorkloadIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hauberk.policy.collection import NormalPolicy
    from hauberk.policy.exemptions import Exemption
    from hauberk.policy.rules import Rule
    from tests.host.network.cases import State, Workload
    from tests.host.network.topology import Places, Probe

OPERATION_OF: Final = {Section.EGRESS: Operation.SEND, Section.INGRESS: Operation.RECEIVE}
PORTLESS: Final = frozenset({"icmp", "icmpv6"})
NOBODY: Final = RuleSet(())
"""The rules of whom no policy covers."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What is decided about a packet at both ends; None where nobody is subject to policies."""

    egress: Decision | None
    ingress: Decision | None

    @property
    def sent(self) -> bool:
        """Whether it leaves its sender."""
        return self.egress is None or self.egress.verdict is not Verdict.DENY

    @property
    def passes(self) -> bool:
        """Whether it arrives."""
        return self.sent and (self.ingress is None or self.ingress.verdict is not Verdict.DENY)


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
        self._decided = functools.cache(self._decide)

    def judge(self, probe: Probe, places: Places) -> Judged:
        """Decide about a packet at both ends."""
        loopback = places.loopback(probe)
        return Judged(
            self.decision(probe, Section.EGRESS, "lo" if loopback else places.interface_of(probe.source_address)),
            self.decision(probe, Section.INGRESS, "lo" if loopback else places.interface_of(probe.target_address)),
        )

    def decision(self, probe: Probe, direction: Section, interface: str) -> Decision | None:
        """Decide about a packet at one end, which it passes by an interface; None where that is no workload."""
        sending = direction is Section.EGRESS
        subject = self.workloads.get(probe.source if sending else probe.target)
        if subject is None:
            return None
        other, address = (probe.target, probe.target_address) if sending else (probe.source, probe.source_address)
        return self._decided(subject.name, direction, self._peer(probe, other, address, interface))

    def _peer(self, probe: Probe, name: str, address: str, interface: str) -> Peer:
        workload = self.workloads.get(name)
        portless = probe.protocol in PORTLESS
        return Peer(
            address,
            probe.protocol,
            None if portless else probe.port,
            interface,
            icmp_type=probe.port if portless else None,
            names=tuple(name for name, addresses in self._names.items() if address in addresses),
            entities=self._entities_of(address),
            labels=workload.labels if workload else None,
            namespace=workload.namespace if workload else "",
        )

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

    def _decide(self, name: str, direction: Section, peer: Peer) -> Decision:
        rule_set = self.rule_sets[name]
        matching = [rule for rule in rule_set.rules if objects.matches(rule, peer)]
        known = Circumstances(peer=peer, beyond_quota=False, exemptions=self._exempt(self.workloads[name]))
        return decide(rule_set, matching, OPERATION_OF[direction], source=None, owner=False, known=known)

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
        return RuleSet(tuple(rules), self.state.posture)
