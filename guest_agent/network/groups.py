# SPDX-License-Identifier: Apache-2.0
"""Who is a member of which group of peers on this machine, and what becomes of rules about groups nobody can know.

Pure. Groups are entities (``host``, ``world``, what the configuration says of others), workloads of this machine by
their labels, and domain names (:mod:`guest_agent.network.learning`).

What cannot be resolved makes a machine stricter, never more open: an Allow rule then matches nobody by that group; a
Block rule blocks every peer, and so does one that selects workloads, since those on other machines are not known here.
:func:`held` writes rules so, before an engine, a record or an alert sees them; :func:`unresolved` says why.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from hauberk.policy import coverage
from hauberk.policy.coverage import Unenforced
from hauberk.policy.rules import Action, PeerMatch, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from guest_agent.engines.network_port import GroupMembers
    from hauberk.policy.rules import PeerGroup

HOST: Final = "host"
WORLD: Final = "world"
CLUSTER: Final = "cluster"
_FAMILIES: Final[tuple[tuple[int, int, Callable[[int], ipaddress.IPv4Address | ipaddress.IPv6Address]], ...]] = (
    (4, 32, ipaddress.IPv4Address), (6, 128, ipaddress.IPv6Address),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Known:
    """What a machine's configuration makes known: the entities it names, and whether it has resolvers."""

    entities: frozenset[str] = frozenset()
    resolvers: bool = False


@dataclass(frozen=True, slots=True)
class Peers:
    """Who is there now. ``workloads`` are those of this machine as (labels, namespace, addresses)."""

    host: tuple[str, ...] = ()
    entities: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    workloads: tuple[tuple[tuple[tuple[str, str], ...], str, tuple[str, ...]], ...] = ()


def unresolved(rule: Rule, known: Known) -> str | None:
    """Say why a rule's groups have not the members it means; None if they have."""
    if not isinstance(rule.match, PeerMatch):
        return None
    for group in rule.match.groups:
        if group.kind == "entity" and group.value not in known.entities | {HOST, WORLD}:
            return f"the configuration does not say what the entity {group.value} is (networkEntities)"
        if group.kind == "name" and not known.resolvers:
            return "there is no resolver to learn addresses from (networkResolvers, /etc/resolv.conf)"
        if group.kind == "workloads" and rule.action is Action.BLOCK:
            return "workloads on other machines are not known here, so they cannot be told from the rest"
    return None


def report(rules: Iterable[Rule], known: Known) -> tuple[Unenforced, ...]:
    """Tell of every rule whose groups have not the members it means."""
    return tuple(
        Unenforced(rule.origin, coverage.said(rule), reason, _instead(rule))
        for rule in rules
        if (reason := unresolved(rule, known)) is not None
    )


def held(rules: Iterable[Rule], known: Known) -> tuple[Rule, ...]:
    """Give rules as an engine is to hold them: none is looser than what is written."""
    return tuple(_strictest(rule) if unresolved(rule, known) else rule for rule in rules)


def _strictest(rule: Rule) -> Rule:
    if rule.action is not Action.BLOCK or not isinstance(rule.match, PeerMatch):
        return rule  # nobody is a member
    everybody = replace(rule.match, cidrs=(), exceptions=(), groups=())
    return replace(rule, match=everybody, message=rule.message or "whom it means is not known: every peer is blocked")


def _instead(rule: Rule) -> str:
    return "it blocks every peer" if rule.action is Action.BLOCK else "nobody is matched by it"


def members(group: PeerGroup, peers: Peers) -> GroupMembers | None:
    """Give a group's members; None where they are not known, or learned elsewhere (names)."""
    if group.kind == "workloads" and group.selector is not None:
        found: dict[str, None] = {}
        for labels, namespace, addresses in peers.workloads:
            if group.selector.selects(dict(labels), namespace):
                found |= dict.fromkeys(addresses)
        return tuple((address, None) for address in found)
    if group.kind != "entity":
        return None
    networks = networks_of(group.value, peers)
    return None if networks is None else tuple((one, None) for one in networks)


def networks_of(entity: str, peers: Peers) -> tuple[str, ...] | None:
    """Give the networks that an entity is, None where nothing says so.

    ``host`` is the machine's own addresses; ``world`` everything outside of ``cluster``, and without a configured
    cluster everything but this machine and its workloads. What the configuration says stands before both.
    """
    if entity in peers.entities:
        return peers.entities[entity]
    if entity == HOST:
        return peers.host
    if entity != WORLD:
        return None
    inside = peers.entities.get(CLUSTER)
    if inside is None:
        inside = (*peers.host, *(address for _, _, addresses in peers.workloads for address in addresses))
    return outside(inside)


def outside(networks: Iterable[str]) -> tuple[str, ...]:
    """Give the networks that hold every address, of both families, that none of ``networks`` holds."""
    read = [ipaddress.ip_network(one) for one in networks]
    found: list[str] = []
    for version, bits, kind in _FAMILIES:
        spans = sorted((int(one[0]), int(one[-1])) for one in read if one.version == version)
        following = 0
        for first, last in (*spans, ((1 << bits), 0)):
            if first > following:
                found += map(str, ipaddress.summarize_address_range(kind(following), kind(first - 1)))
            following = max(following, last + 1)
    return tuple(found)


def facts_of(address: str, peers: Peers) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...] | None, str]:
    """Tell what is known of an address: the entities it is, and of a workload of this machine labels and namespace."""
    found = ipaddress.ip_address(address)
    entities = [
        name
        for name in dict.fromkeys((HOST, WORLD, *peers.entities))
        if any(found in ipaddress.ip_network(one) for one in networks_of(name, peers) or ())
    ]
    for labels, namespace, addresses in peers.workloads:
        if address in addresses:
            return tuple(entities), labels, namespace
    return tuple(entities), None, ""
