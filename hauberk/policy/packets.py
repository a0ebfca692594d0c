# SPDX-License-Identifier: Apache-2.0
"""What the kinds of policies about packets share: networks with exceptions as rules have them, and rules as text.

Cilium and Kubernetes except parts from a network, and from that network alone; a rule of the normal form has one list
of exceptions for all its networks. Where a network with exceptions shares no address with another of its list, that is
the same; each of the others becomes a match of its own. So the lists in the thousands that are used stay one rule.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from hauberk.policy import traffic
from hauberk.policy.inheritance import rule
from hauberk.policy.peers import ICMP_OF
from hauberk.policy.rules import ObjectKind, PeerMatch, Section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from hauberk.policy.models import Policy
    from hauberk.policy.rules import PeerGroup, Rule
    from hauberk.policy.traffic import Network

PORTS = ("tcp", "udp", "sctp")
"""The protocols that have ports."""
DIRECTIONS = ((Section.INGRESS, "ingress"), (Section.EGRESS, "egress"))
_SHOWN_ELEMENTS = 8
_Element = TypeVar("_Element")


def of_kubearmor(policy: Policy) -> Iterator[Rule]:
    """Give the rules of a KubeArmorNetworkPolicy."""
    spec: Any = policy.model.spec
    for section, list_name, field in ((Section.INGRESS, "ingress", "from_"), (Section.EGRESS, "egress", "to")):
        for index, entry in enumerate(getattr(spec, list_name)):
            quota = None
            if entry.limit is not None:
                seconds = traffic.duration_seconds(entry.duration)
                quota = (traffic.quota_bytes(entry.limit), seconds, spec.level.lower())
            match = PeerMatch(
                cidrs=_unique(str(traffic.network(peer.ipBlock.cidr)) for peer in getattr(entry, field)),
                interfaces=_unique(entry.iface),
                ports=tuple(dict.fromkeys(map(_port_range, entry.ports))),
                quota=quota,
            )
            yield rule(
                policy,
                ("spec", list_name, index),
                (entry, spec),
                section=section,
                kind=ObjectKind.PEER,
                value=text(match),
                match=match,
            )


def _port_range(entry: Any) -> tuple[int, int, str]:  # noqa: ANN401 - a model, which is not imported here
    first = traffic.port_number(entry.port)
    return (first, first if entry.endPort is None else entry.endPort, entry.protocol.lower())


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def with_peers(
    kinds: PeerMatch, blocks: Iterable[tuple[str, Sequence[str]]], groups: Iterable[PeerGroup] = ()
) -> Iterator[PeerMatch]:
    """Give what matches these kinds of packets from or to peers that some network or group has.

    ``blocks`` are networks, each with its exceptions. Without networks and groups there is nothing to give: a list of
    peers that is empty is no peer.
    """
    networks = [(traffic.network(cidr), [traffic.network(part) for part in parts]) for cidr, parts in blocks]
    alone = _alone(networks)
    together = [block for index, block in enumerate(networks) if index not in alone]
    groups = tuple(dict.fromkeys(groups))
    if together or groups:
        yield _with(kinds, together, groups)
    for index in sorted(alone):
        yield _with(kinds, [networks[index]])


def number_alone(blocks: Iterable[tuple[str, Sequence[str]]]) -> int:
    """Give how many of these networks become matches of their own."""
    blocks = tuple(blocks)
    if not any(parts for _, parts in blocks):
        return 0
    return len(_alone([(traffic.network(cidr), [traffic.network(part) for part in parts]) for cidr, parts in blocks]))


def _alone(blocks: Sequence[tuple[Network, Sequence[Network]]]) -> set[int]:
    """Give the indices of networks with exceptions that share an address with another one."""
    if not any(parts for _, parts in blocks):
        return set()
    return {index for index in _overlapping([network for network, _ in blocks]) if blocks[index][1]}


def _with(
    kinds: PeerMatch, blocks: Sequence[tuple[Network, Sequence[Network]]], groups: tuple[PeerGroup, ...] = ()
) -> PeerMatch:
    return replace(
        kinds,
        cidrs=_unique(str(network) for network, _ in blocks),
        exceptions=_unique(str(part) for _, parts in blocks for part in parts),
        groups=groups,
    )


def _overlapping(networks: Sequence[Network]) -> set[int]:
    """Give the indices of networks that share an address with another one: of two such, one holds the other."""
    keys = [(network.version, int(network.network_address), network.prefixlen) for network in networks]
    found: set[int] = set()
    around: list[int] = []
    for index in sorted(range(len(networks)), key=keys.__getitem__):
        while around and not traffic.holds(networks[around[-1]], networks[index]):
            around.pop()
        if around:
            found |= {index, around[-1]}
        around.append(index)
    return found


def text(match: PeerMatch) -> str:
    """Name the packets of a rule for people: ``10.0.0.0/8 tcp/443 on eth0``. Of long lists the beginning is named."""
    if match.nothing:
        return "nothing"
    words = [_some((*match.cidrs, *match.groups)) or "any"]
    if match.exceptions:
        words.append(f"except {_some(match.exceptions)}")
    words += [kinds for kinds in (_some(match.ports, _of_ports), _some(match.icmp, _of_icmp)) if kinds]
    if match.interfaces:
        words.append(f"on {_some(match.interfaces)}")
    if match.quota is not None:
        words.append(f"up to {match.quota[0]} bytes in {match.quota[1]} s for each {match.quota[2]}")
    return " ".join(words)


def _of_ports(ports: tuple[int, int, str]) -> str:
    first, last, protocol = ports
    if (first, last) == (0, traffic.MAXIMUM_PORT):
        return protocol
    return f"{protocol}/{first}" if first == last else f"{protocol}/{first}-{last}"


def _of_icmp(icmp: tuple[int, int | None]) -> str:
    family, number = icmp
    return ICMP_OF[family] + ("" if number is None else f"/{number}")


def _some(elements: Sequence[_Element], render: Callable[[_Element], str] = str) -> str:
    """Name the first elements, and say how many more there are."""
    shown = ", ".join(map(render, elements[:_SHOWN_ELEMENTS]))
    return shown if len(elements) <= _SHOWN_ELEMENTS else f"{shown} and {len(elements) - _SHOWN_ELEMENTS} more"
