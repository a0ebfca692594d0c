# SPDX-License-Identifier: Apache-2.0
"""By what each workload's packets are known: pure, from where every registered workload is.

* A workload in the agent's own network namespace (a container of the host's network, every container of a Kata guest)
  is known by its cgroup.
* In another namespace the table stands inside of it: for all its packets where the workload is alone there, by cgroup
  where it has neighbours, registered ones with or without rules.
* A workload that may change the tables of its own namespace (``exposed``) is known from outside as well, by the end of
  its virtual Ethernet pair that the agent's namespace has. Only where the pair belongs to one set of rules (one
  workload, or neighbours with equal rules), where that end is no bridge port (its packets would not pass the hooks of
  IP), and where no rule names an interface (these are names inside). Nobody else is judged twice: where the host
  translates addresses, a packet has others outside than those its sender's rules are about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from guest_agent.engines.network_port import HOST_ENDPOINT, Cgroup, Endpoint, Interface, Whole
from hauberk.policy.rules import PeerMatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hauberk.policy.rules import RuleSet


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a workload is: the inode of its network namespace, and its cgroup with its depth below the root."""

    namespace: int
    cgroup: Cgroup


@dataclass(frozen=True, slots=True)
class Member:
    """A registered workload. ``rule_sets`` are those about packets that hold now; each packet must pass them all.

    ``exposed``: it may have rights to change what holds inside of its namespace, which nothing refuses it.
    """

    workload_id: int
    placement: Placement
    rule_sets: tuple[RuleSet, ...] = ()
    exposed: bool = False

    @property
    def effective(self) -> tuple[RuleSet, ...]:
        """The rule sets that say anything, each once."""
        return effective(self.rule_sets)


def effective(rule_sets: Iterable[RuleSet]) -> tuple[RuleSet, ...]:
    """Give the rule sets that have rules, each once."""
    found: list[RuleSet] = []
    for rule_set in rule_sets:
        if rule_set.rules and rule_set not in found:
            found.append(rule_set)
    return tuple(found)


def endpoints(
    members: Iterable[Member], own: int, host: Sequence[RuleSet] = (), links: Mapping[int, str] | None = None
) -> dict[int, tuple[Endpoint, ...]]:
    """Give the endpoints of each namespace that has any, by its inode.

    ``own`` is the agent's namespace, ``host`` the rule sets of the machine itself, ``links`` the routed ends of virtual
    Ethernet pairs in ``own``, by the namespace at their other end.
    """
    neighbours: dict[int, list[Member]] = {}
    for member in members:
        neighbours.setdefault(member.placement.namespace, []).append(member)
    found: dict[int, list[Endpoint]] = {}
    if of_host := effective(host):
        found[own] = [Endpoint(HOST_ENDPOINT, of_host, Whole())]
    for namespace, there in neighbours.items():
        alone = namespace != own and len(there) == 1
        for member in there:
            if rule_sets := member.effective:
                attachment = Whole() if alone else member.placement.cgroup
                found.setdefault(namespace, []).append(Endpoint(member.workload_id, rule_sets, attachment))
        name = None if namespace == own else (links or {}).get(namespace)
        if name is not None and _may_be_seen_from_outside(there):
            found.setdefault(own, []).append(Endpoint(there[0].workload_id, there[0].effective, Interface(name)))
    return {namespace: tuple(listed) for namespace, listed in found.items()}


def _may_be_seen_from_outside(there: list[Member]) -> bool:
    """Whether it needs to be, and all the pair carries is subject to one set of rules without names of interfaces."""
    rule_sets = there[0].effective
    return (
        bool(rule_sets)
        and any(member.exposed for member in there)
        and all(other.effective == rule_sets for other in there[1:])
        and not any(
            isinstance(rule.match, PeerMatch) and rule.match.interfaces
            for rule_set in rule_sets
            for rule in rule_set.rules
        )
    )


def shared_quotas(members: Iterable[Member], own: int, host: Sequence[RuleSet] = ()) -> tuple[str, ...]:
    """Name the policies with a quota for all of their workloads together whose workloads are in several namespaces.

    The kernel counts within a namespace, so such a quota would be one for each.
    """
    where: dict[str, set[int]] = {}
    held = [(member.placement.namespace, member.rule_sets) for member in members]
    for namespace, rule_sets in (*held, (own, host)):
        for rule_set in rule_sets:
            for rule in rule_set.rules:
                if rule.quota is not None and rule.quota[2] == "policy":
                    where.setdefault(rule.origin.policy, set()).add(namespace)
    return tuple(sorted(policy for policy, namespaces in where.items() if len(namespaces) > 1))
