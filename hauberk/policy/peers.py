# SPDX-License-Identifier: Apache-2.0
"""Which packets a rule of a network policy is about.

The reference for what the kernel is given: networks without exceptions, groups, ports, types of ICMP, interfaces. A
rule may list networks in the thousands, so the list is turned once into a table of prefixes by their length, and an
address is looked up once for each length that occurs.
"""

from __future__ import annotations

import functools
from socket import AF_INET, AF_INET6, inet_pton
from typing import TYPE_CHECKING

from hauberk.policy import globs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hauberk.policy.rules import Peer, PeerGroup, PeerMatch

LAST_PORT = 65535
ICMP_OF = {4: "icmp", 6: "icmpv6"}
"""The protocol that carries types of ICMP, by the family of addresses it belongs to."""
BITS = {4: 32, 6: 128}
"""The length of an address of each family in bits."""
_MAPPED = 0xFFFF  # ::ffff:0:0/96 without its last 32 bits
NAME_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")
"""What labels of domain names are made of, in lower case."""


def matches(match: PeerMatch, peer: Peer) -> bool:
    """Tell whether a rule is about the packets of this peer. Addresses of one family never match the other's."""
    return (
        not match.nothing
        and (not match.interfaces or on_interface(match, peer))
        and ((not match.ports and not match.icmp) or is_kind(match, peer))
        and ((not match.cidrs and not match.groups) or _is_peer(match, peer))
    )


def on_interface(match: PeerMatch, peer: Peer) -> bool:
    """Tell whether a rule that names interfaces names this one, by its whole name or by its beginning."""
    name = peer.interface
    return bool(name) and any(
        name.startswith(one[:-1]) if one.endswith("*") else name == one for one in match.interfaces
    )


def is_kind(match: PeerMatch, peer: Peer) -> bool:
    """Tell whether a rule that names ports or types of ICMP names those of the packet."""
    first_of_all, last_of_all = (0, LAST_PORT) if peer.port is None else (peer.port, peer.port)
    return any(
        protocol == peer.protocol and first <= first_of_all and last_of_all <= last
        for first, last, protocol in match.ports
    ) or (
        any(
            ICMP_OF[family] == peer.protocol and family == address(peer.address)[0] and kind in {None, peer.icmp_type}
            for family, kind in match.icmp
        )
    )


def _is_peer(match: PeerMatch, peer: Peer) -> bool:
    family, number = address(peer.address)
    return (
        _holds(match.cidrs, family, number) and not (match.exceptions and _holds(match.exceptions, family, number))
    ) or any(belongs(group, peer) for group in match.groups)


def belongs(group: PeerGroup, peer: Peer) -> bool:
    """Tell whether a peer is a member of a group, by what is said of it."""
    match group.kind:
        case "name":
            return any(name_matches(group.value, name) for name in peer.names)
        case "entity":
            return group.value in peer.entities
        case _:
            selected = group.selector is not None and peer.labels is not None
            return selected and group.selector.selects(dict(peer.labels or ()), peer.namespace)  # type: ignore[union-attr]


def name_matches(pattern: str, name: str) -> bool:
    """Tell whether a domain name is one of those that a group's value names; both in lower case, without a last dot.

    ``*`` stands for any part of one label, also for none of it (but no label is empty); ``**.`` at the beginning for
    one label or more, and ``*`` alone for every name.
    """
    if "*" not in pattern:
        return pattern == name
    octets = globs.to_bytes(name)
    return len(octets) in globs.simulate(name_tree(pattern), octets)


@functools.lru_cache(maxsize=4096)
def name_tree(pattern: str) -> globs.Node:
    """Give the names that a group's value names as a tree."""
    several = globs.Repeat(NAME_BYTES | frozenset(b"."), 1)
    if pattern == "*":
        return several
    parts: list[globs.Node] = []
    if pattern.startswith("**."):
        parts.append(several)
        pattern = pattern[2:]
    for number, label in enumerate(pattern.split(".")):
        parts += [globs.Literal(b".")] * bool(number)
        if label == "*":  # a name has no empty labels
            parts.append(globs.Repeat(NAME_BYTES, 1))
            continue
        first, *others = label.split("*")
        parts.append(globs.Literal(globs.to_bytes(first)))
        for piece in others:
            parts += (globs.Repeat(NAME_BYTES, 0), globs.Literal(globs.to_bytes(piece)))
    return globs.Sequence(tuple(parts))


@functools.lru_cache(maxsize=256)
def address(text: str) -> tuple[int, int]:
    """Give an address as family and number; one of IPv4 in the form of IPv6 is IPv4, which is what the packet is."""
    if ":" not in text:
        return 4, int.from_bytes(inet_pton(AF_INET, text), "big")
    number = int.from_bytes(inet_pton(AF_INET6, text), "big")
    return (4, number & (2**32 - 1)) if number >> BITS[4] == _MAPPED else (6, number)


def prefix(cidr: str) -> tuple[int, int, int]:
    """Give a network in canonical text as family, first address as a number, and length of the prefix."""
    text, _, length = cidr.partition("/")
    family, kind = (6, AF_INET6) if ":" in text else (4, AF_INET)
    return family, int.from_bytes(inet_pton(kind, text), "big"), int(length) if length else BITS[family]


def _holds(cidrs: tuple[str, ...], family: int, number: int) -> bool:
    return any(number >> shift in prefixes for shift, prefixes in _prefixes(cidrs)[family].items())


@functools.lru_cache(maxsize=1024)
def _prefixes(cidrs: tuple[str, ...]) -> Mapping[int, Mapping[int, set[int]]]:
    """Give for each family, and each number of bits behind a prefix, the prefixes without these bits."""
    found: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
    for cidr in cidrs:
        family, first, length = prefix(cidr)
        shift = BITS[family] - length
        found[family].setdefault(shift, set()).add(first >> shift)
    return found
