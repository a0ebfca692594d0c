# SPDX-License-Identifier: Apache-2.0
"""Packets that no network policy is about: they pass before any rule is asked.

A default that refuses everything would otherwise cut a machine from its own network: an address is found by neighbour
discovery, kept by DHCP, and multicast reaches nobody without MLD. What an administrator reaches the machine by
(``networkManagement`` in the agent's configuration) must survive a mistake in a policy, too.

Which of these hold depends on whose packets are filtered, since every exemption is a way out for whoever may use it.
The loopback interface is exempt everywhere: policies are about peers. Neighbour discovery is the kernel's own and holds
where the packets of a whole network namespace are filtered; a container that shares one has no part in it. DHCP and
what the configuration lists hold for the machine alone: a container that may bind port 68 would reach every host by it.

Both ``explain`` and the planner of the engine take the exemptions from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hauberk.policy import peers
from hauberk.policy.rules import PeerMatch, Section

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hauberk.policy.rules import Peer


@dataclass(frozen=True, slots=True)
class Exemption:
    """Packets that pass, and why, for people.

    ``match`` says which, as in a rule (never with a quota or groups). ``direction`` None: both. ``source_port`` and
    ``hop_limit`` None: any; the hop limit is not part of a question, since what arrives with another is no neighbour
    discovery (RFC 4861, 7.1), and the kernel refuses it itself.
    """

    reason: str
    match: PeerMatch
    direction: Section | None = None
    source_port: int | None = None
    hop_limit: int | None = None

    def covers(self, peer: Peer, direction: Section) -> bool:
        """Tell whether a packet of a direction passes by this."""
        return (
            self.direction in {None, direction}
            and self.source_port in {None, peer.source_port}
            and peers.matches(self.match, peer)
        )


def _upkeep(what: str, match: PeerMatch, direction: Section | None = None, **parts: int) -> Exemption:
    return Exemption(f"{what} keeps the machine on its network: no policy is about it", match, direction, **parts)


def _icmpv6(first: int, last: int) -> tuple[tuple[int, int], ...]:
    return tuple((6, kind) for kind in range(first, last + 1))


LOOPBACK: Final = Exemption("no policy is about packets on the loopback interface", PeerMatch(interfaces=("lo",)))
"""What never leaves the machine; exempt everywhere."""

DISCOVERY: Final = (
    _upkeep("neighbour discovery", PeerMatch(icmp=_icmpv6(133, 137)), hop_limit=255),
    _upkeep("multicast listener discovery", PeerMatch(icmp=(*_icmpv6(130, 132), (6, 143)))),
)
"""What every network namespace needs of its network: RFC 4861, 2710, 3810."""

CONFIGURATION: Final = (
    _upkeep("DHCP", PeerMatch(cidrs=("0.0.0.0/0",), ports=((67, 67, "udp"),)), Section.EGRESS, source_port=68),
    _upkeep("DHCP", PeerMatch(cidrs=("0.0.0.0/0",), ports=((68, 68, "udp"),)), Section.INGRESS, source_port=67),
    _upkeep("DHCPv6", PeerMatch(cidrs=("::/0",), ports=((547, 547, "udp"),)), Section.EGRESS, source_port=546),
    _upkeep("DHCPv6", PeerMatch(cidrs=("::/0",), ports=((546, 546, "udp"),)), Section.INGRESS, source_port=547),
)
"""How a machine gets and keeps its addresses: RFC 2131, 8415."""


def management(match: PeerMatch, direction: Section | None = None) -> Exemption:
    """Give the exemption of one entry of the configuration's ``networkManagement``."""
    return Exemption("the agent's configuration lists this under networkManagement", match, direction)


def holding(*, whole: bool, machine: bool, listed: Iterable[Exemption] = ()) -> tuple[Exemption, ...]:
    """Give the exemptions for an endpoint, in the order in which they are asked.

    ``whole``: all packets of a network namespace, or of an interface, are filtered, rather than those of a cgroup;
    ``machine``: they are the machine's own, not a workload's; ``listed`` are those for management, the machine's too.
    """
    discovery = DISCOVERY if whole else ()
    return (LOOPBACK, *discovery, *((*CONFIGURATION, *listed) if whole and machine else ()))


def exempting(peer: Peer, direction: Section, exemptions: Iterable[Exemption] | None = None) -> Exemption | None:
    """Give the exemption that a packet passes by, if there is one. By default those that hold for every endpoint."""
    held = (LOOPBACK,) if exemptions is None else exemptions
    return next((exemption for exemption in held if exemption.covers(peer, direction)), None)
