# SPDX-License-Identifier: Apache-2.0
"""Which packets a rule of a network policy is about, and how exactly it names them.

A rule may list several networks and ranges of ports. How exactly it names a packet is then a matter of the element
that the packet falls under, not of the rule: the longest prefix, the smallest range. Networks that hold one address
lie within each other, so there is always one longest; no order is left to chance.
"""

from __future__ import annotations

import functools
import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hauberk.policy.rules import Peer, PeerMatch

_EVERY_PORT = 1 << 20  # more than a protocol has
_NO_NETWORK = -1


def matches(match: PeerMatch, peer: Peer) -> bool:
    """Tell whether a rule is about the packets of this peer. Addresses of one family never match the other's."""
    return (
        (not match.cidrs or _prefix(match, peer) != _NO_NETWORK)
        and (not match.ports or _ports(match, peer) != _EVERY_PORT)
        and (not match.interfaces or _interface(match, peer) != 0)
    )


def specificity(match: PeerMatch, peer: Peer) -> tuple[int, int, int]:
    """Give how exactly a rule that matches names the peer; larger is more exact."""
    return (_prefix(match, peer), -_ports(match, peer), _interface(match, peer))


def _prefix(match: PeerMatch, peer: Peer) -> int:
    """Give the length of the longest prefix that holds the peer's address."""
    address = _address(peer.address)
    networks = (_network(cidr) for cidr in match.cidrs)
    return max(
        (network.prefixlen for network in networks if network.version == address.version and address in network),
        default=_NO_NETWORK,
    )


def _ports(match: PeerMatch, peer: Peer) -> int:
    """Give the size of the smallest range that holds the port."""
    return min(
        (
            last - first + 1
            for first, last, protocol in match.ports
            if peer.port is not None and protocol == peer.protocol and first <= peer.port <= last
        ),
        default=_EVERY_PORT,
    )


def _interface(match: PeerMatch, peer: Peer) -> int:
    """Give 2 for the interface's own name, 1 for a name with ``*`` at its end, 0 for neither."""
    if peer.interface in match.interfaces:
        return 2
    prefixes = (name.removesuffix("*") for name in match.interfaces if name.endswith("*"))
    return int(bool(peer.interface) and any(peer.interface.startswith(prefix) for prefix in prefixes))


@functools.lru_cache(maxsize=4096)
def _network(cidr: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(cidr)


@functools.lru_cache(maxsize=256)
def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Give an address; one of IPv4 in the form of IPv6 counts as IPv4, which is what the packet is."""
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
