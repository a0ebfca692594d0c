# SPDX-License-Identifier: Apache-2.0
"""Who is a member of which group of peers on this machine, and what becomes of rules about groups nobody can know.

Pure. Groups are entities (``host``, ``world``, what the configuration says of others), workloads of this machine by
their labels, and domain names (:mod:`guest_agent.network.learning`).

A group that the configuration does not resolve makes a machine stricter, never more open: an Allow rule then matches
nobody by it, a Block rule refuses every peer. :func:`held` writes rules so, before an engine or an alert sees them, and
:func:`report` says why. What no machine can resolve, ``hauberk.policy.coverage`` has written out before.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hauberk.policy import coverage
from hauberk.policy.coverage import Unenforced
from hauberk.policy.rules import Action, PeerMatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from guest_agent.engines.network_port import GroupMembers
    from hauberk.policy.rules import PeerGroup, Rule

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


def unresolved(group: PeerGroup, known: Known) -> str | None:
    """Say why a group's members are not known on this machine; None if they are."""
    if group.kind == "entity" and group.value not in known.entities | {HOST, WORLD}:
        return f"the configuration does not say what the entity {group.value} is (networkEntities)"
    if group.kind == "name" and not known.resolvers:
        return "there is no resolver to learn addresses from (networkResolvers, /etc/resolv.conf)"
    return None


def report(rules: Iterable[Rule], known: Known) -> tuple[Unenforced, ...]:
    """Tell of every rule with a group whose members are not known on this machine."""
    return tuple(
        Unenforced(rule.origin, coverage.said(rule), reason, _instead(rule))
        for rule in rules
        if (reason := next(filter(None, (unresolved(group, known) for group in _groups(rule))), None)) is not None
    )


def held(rules: Iterable[Rule], known: Known) -> tuple[Rule, ...]:
    """Give rules as an engine is to hold them: none is looser than what is written."""
    return tuple(
        coverage.without(rule, [group for group in _groups(rule) if unresolved(group, known)]) for rule in rules
    )


def _groups(rule: Rule) -> tuple[PeerGroup, ...]:
    return rule.match.groups if isinstance(rule.match, PeerMatch) else ()


def _instead(rule: Rule) -> str:
    return "it refuses every peer" if rule.action is Action.BLOCK else "nobody is matched by that"


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
    return outside(_inside(peers)) if entity == WORLD else None


def _inside(peers: Peers) -> tuple[str, ...]:
    """Give the networks that are not the world."""
    configured = peers.entities.get(CLUSTER)
    if configured is not None:
        return configured
    return (*peers.host, *(address for _, _, addresses in peers.workloads for address in addresses))


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


def _holds(networks: Iterable[str], address: str) -> bool:
    found = ipaddress.ip_address(address)
    return any(found in ipaddress.ip_network(one) for one in networks)


def facts_of(address: str, peers: Peers) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...] | None, str]:
    """Tell what is known of an address: the entities it is, and of a workload of this machine labels and namespace."""
    known = {HOST: peers.host, **peers.entities}
    entities = [name for name, networks in known.items() if _holds(networks, address)]
    if WORLD not in known and not _holds(_inside(peers), address):
        entities.append(WORLD)
    for labels, namespace, addresses in peers.workloads:
        if address in addresses:
            return tuple(entities), labels, namespace
    return tuple(entities), None, ""
