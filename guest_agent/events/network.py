# SPDX-License-Identifier: Apache-2.0
"""From packets that got a verdict to an alert that names policy, rule, peer, port and container.

An alert has KubeArmor's fields as its alerts of network policies fill them: ``Operation`` is ``NetworkFirewall``,
``Type`` ``MatchedNetworkPolicy``, ``Resource`` the direction, and ``Data`` begins with ``SourceIP``, ``SourcePort``,
``DestinationIP``, ``DestinationPort`` and ``Protocol``. What a packet has not (ports of ICMP) is left out, where
KubeArmor writes 0. Behind them stand interface, type of ICMP, the quota, the names the peer was learned by, and
``Count`` where the alert stands for more than one packet (:mod:`guest_agent.events.folding`).

The kernel tells a packet and a verdict, no rule. Which rule it was is found by asking ``decide`` again, with the rules
the kernel's table was made of. Where the answer is another one than the kernel's (the peer was a member of a group that
it no longer is; both old and new rules hold while they change), the alert says so instead of naming a rule.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from guest_agent.events.alerts import (
    DEFAULT_POSTURE,
    OWN_POLICY,
    Alert,
    Named,
    Subject,
    iso_time,
    named_after,
    printable,
)
from guest_agent.events.folding import OTHERS, peer_of
from hauberk.policy import peers
from hauberk.policy.rules import Circumstances, Operation, Peer, PeerMatch, Rule, RuleSet, Section, Verdict, decide

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest_agent.engines.network_port import NetworkEvent

OPERATION: Final = "NetworkFirewall"
TYPE: Final = "MatchedNetworkPolicy"
_OPERATIONS: Final = {Section.INGRESS: Operation.RECEIVE, Section.EGRESS: Operation.SEND}
_TAMPERED: Final = "somebody changed or deleted the rules in force here; they are in force again"
_UNATTRIBUTED: Final = "no socket can be found for packets of this protocol, and what comes in here is restricted"
_FOLDED: Final = "packets of so many peers or ports that these were only counted"
_OTHERWISE: Final = "the rules as they are now say otherwise: they, or what is known of the peer, have changed"
_MAXIMUM_CACHED_DECISIONS: Final = 1024
_MAXIMUM_NAMES: Final = 4


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """What the agent knows of an address: names it was learned by, entities it is, and of a workload labels."""

    names: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] | None = None
    namespace: str = ""


NOTHING_KNOWN: Final = PeerFacts()


@dataclass(slots=True)
class NetworkAlertMaker:
    """Makes alerts of packets. ``clock`` gives (wall, boottime) in nanoseconds."""

    host_name: str
    enforcer: str
    clock: Callable[[], tuple[int, int]] = field(
        default=lambda: (time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    )
    _cache: dict[tuple[object, ...], _Found] = field(default_factory=dict)

    def make(self, event: NetworkEvent, subject: Subject, facts: PeerFacts = NOTHING_KNOWN) -> Alert:
        """Turn an event into an alert. ``subject.rule_set`` are the rules for packets that the engine was given."""
        wall, boot = self.clock()
        nanoseconds = max(0, wall - max(0, boot - event.timestamp_ns))
        found = self._found(event, subject, facts)
        denied = event.verdict == "deny"
        named = found.named
        return Alert(
            Timestamp=nanoseconds // 1_000_000_000,
            UpdatedTime=iso_time(nanoseconds),
            HostName=self.host_name,
            NamespaceName=subject.namespace,
            PodName=subject.pod,
            ContainerID=subject.container_id,
            ContainerName=subject.container_name,
            HostPID=0,
            PPID=0,
            UID=0,
            PolicyName=named.policy,
            Severity=str(named.severity) if named.severity else "",
            Tags=",".join(named.tags),
            ATags=list(named.tags),
            Message=named.message,
            Type=TYPE,
            Source="",
            Operation=OPERATION,
            Resource=event.direction.value.upper() if event.direction else "RULES",
            Data=_data(event, facts, found.quota),
            Action="Block" if denied else "Audit",
            Result="Permission denied" if denied else "Passed",
            ProcessName="",
            ParentProcessName="",
            Labels=subject.labels,
            ContainerImage=subject.image,
            Enforcer=self.enforcer,
            Rule=named.rule,
        )

    def _found(self, event: NetworkEvent, subject: Subject, facts: PeerFacts) -> _Found:
        if event.verdict == "tampered" or event.direction is None:
            return _Found(Named(OWN_POLICY, "tampered", _TAMPERED))
        if event.reason == "unattributed":
            return _Found(Named(OWN_POLICY, "unattributed", _UNATTRIBUTED))
        if event.detail == OTHERS:
            return _Found(Named(OWN_POLICY, "folded", _FOLDED))
        if subject.rule_set is None:
            return _Found(Named("", "", "the rules of this workload are not known (any more)"))
        asked = _peer(event, event.direction, facts)
        # the rule set itself is kept, so that its identity is no other one's
        key = (id(subject.rule_set), event.direction, event.verdict, event.reason, asked)
        found = self._cache.get(key)
        if found is None or found.rule_set is not subject.rule_set:
            if len(self._cache) >= _MAXIMUM_CACHED_DECISIONS:
                self._cache.clear()
            found = self._cache[key] = _ask(event, event.direction, asked, subject.rule_set)
        return found


@dataclass(frozen=True, slots=True)
class _Found:
    """Who decided, its quota (bytes, seconds, level), and the rules that were asked."""

    named: Named
    quota: tuple[int, int, str] | None = None
    rule_set: RuleSet | None = None


def _peer(event: NetworkEvent, direction: Section, facts: PeerFacts) -> Peer:
    return Peer(
        address=peer_of(event),
        protocol=event.protocol,
        port=event.destination_port,
        interface=event.interface_in if direction is Section.INGRESS else event.interface_out,
        icmp_type=event.icmp_type,
        names=facts.names,
        entities=facts.entities,
        labels=facts.labels,
        namespace=facts.namespace,
    )


def _ask(event: NetworkEvent, direction: Section, peer: Peer, rule_set: RuleSet) -> _Found:
    """Find the rule that decided, by deciding again."""
    of_quota = event.reason == "quota"
    matching = [
        rule
        for rule in rule_set.rules
        if rule.section is direction
        and isinstance(rule.match, PeerMatch)
        and (not of_quota or rule.quota is not None)
        and peers.matches(rule.match, peer)
    ]
    known = Circumstances(beyond_quota=of_quota, peer=peer, exemptions=())
    decision = decide(rule_set, matching, _OPERATIONS[direction], source=None, owner=False, known=known)
    expected = Verdict.DENY if event.verdict == "deny" else Verdict.AUDIT
    by_default = decision.rule is None
    if decision.verdict is not expected or by_default is not (event.reason == "default"):
        return _Found(Named("", "", _OTHERWISE), rule_set=rule_set)
    if decision.rule is None:
        return _Found(Named(DEFAULT_POSTURE, decision.reason), rule_set=rule_set)
    return _of_rule(decision.rule, rule_set)


def _of_rule(rule: Rule, rule_set: RuleSet) -> _Found:
    return _Found(named_after(rule, rule.message), rule.quota, rule_set)


def _data(event: NetworkEvent, facts: PeerFacts, quota: tuple[int, int, str] | None) -> str:
    """Give ``Data``: words of the form ``Name=value``, those that are known."""
    if event.verdict == "tampered":
        words: dict[str, object] = {"NetworkNamespace": event.namespace, "Found": printable(event.detail)}
        return " ".join(f"{name}={value}" for name, value in words.items() if value != "")
    words = {
        "SourceIP": event.source_address or None,
        "SourcePort": event.source_port,
        "DestinationIP": event.destination_address or None,
        "DestinationPort": event.destination_port,
        "Protocol": event.protocol.upper() or None,
        "ICMPType": event.icmp_type,
        "ICMPCode": event.icmp_code,
        "InInterface": printable(event.interface_in) or None,
        "OutInterface": printable(event.interface_out) or None,
        "QuotaLevel": quota[2] if quota else None,
        "QuotaBytes": quota[0] if quota else None,
        "QuotaSeconds": quota[1] if quota else None,
        "PeerNames": ",".join(facts.names[:_MAXIMUM_NAMES]) or None,
        "Count": event.count if event.count > 1 or event.detail == OTHERS else None,
    }
    return " ".join(f"{name}={value}" for name, value in words.items() if value is not None)
