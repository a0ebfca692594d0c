# SPDX-License-Identifier: Apache-2.0
"""Packets that stand for all, for rules about packets: each with the rules that are about it.

A rule about packets looks at their kind (ports, types of ICMP), at their interface, and at the peer: its address, its
names, what it is to the machine, its labels where it is a workload. Each of these is looked at on its own; so the sets
of rules are found property by property: of each only those values are tried that some rule tells apart, and packets
that the rules have told apart nowhere so far are carried on as one.

A peer can have many names and be many things to the machine, so sets of rules could be had in every combination. Not
all are needed. Of the rules about a packet, the one with the strongest action decides, whatever others there are
(:mod:`hauberk.policy.rules`). Let a packet get one answer by the rule *r* before and another by *s* after, or by no
rule. Each of the two is about it by its address, by one name, by one thing that it is, or by its labels. A packet that
is like it but of which only these two are known gets the same answers by the same rules: the others of its rules are
all among those about the first, where they did not decide either. So it suffices to say two things of a peer.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from socket import AF_INET, AF_INET6, inet_ntop
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hauberk.errors import HauberkError
from hauberk.policy import peers
from hauberk.policy.path_classes import name_classes
from hauberk.policy.rules import DEFAULT_NAMESPACE, NAMESPACE_NAME_LABEL, Peer, PeerMatch
from hauberk.policy.workload_classes import another

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from hauberk.policy.rules import PeerGroup, PeerSelector

MAXIMUM_CLASSES: Final = 100_000
"""Most classes of packets that are carried on."""

_WITH_PORTS: Final = ("tcp", "udp", "sctp")
_LAST_TYPE: Final = 255
_EVERYWHERE: Final = ("0.0.0.0/0", "::/0", "::ffff:0:0/96")
"""Networks that are there without being mentioned: everything, and the part of IPv6 that means IPv4."""


class TooManyPeersError(HauberkError):
    """Rules tell apart too many kinds of packets to look at each."""

    exit_code = 3


class _Value(NamedTuple):
    """One value of a property: what it says of a peer, and sets of rules, as bits.

    ``left`` are those that it does not exclude, ``met`` those whose peers it makes this one of.
    """

    said: dict[str, Any]
    left: int
    met: int


_States = dict[tuple[int, int], dict[str, Any]]  # (left, met) -> what is said


def peer_classes(matches: Sequence[PeerMatch], relevant: Iterable[int] | None = None) -> dict[frozenset[int], Peer]:
    """Give sets of rules (by their numbers) that are about some packet, each with such a packet.

    For every packet and any two rules about it, there is a packet in the answer that both are about, and else only
    rules about the first. With ``relevant``, only sets that hold at least one of these numbers. Raises
    :class:`TooManyPeersError`, and :class:`hauberk.policy.path_classes.TooManyStatesError`.
    """
    rules = _Rules(matches)
    wanted = None if relevant is None else sum(1 << number for number in set(relevant))
    found: dict[int, dict[str, Any]] = {}
    for family in peers.BITS:
        states: _States = {(rules.possible, rules.of_any_peer): {}}
        for values in (rules.kinds(family), rules.interfaces(), rules.addresses(family)):
            states = _part(states, values, wanted)
        # what this address is not of, and what no group can add
        states = {(left & (met | rules.of_groups), met): said for (left, met), said in states.items()}
        for (left, met), said in _part(states, rules.groups(), wanted).items():
            if wanted is None or left & met & wanted:
                found.setdefault(left & met, said)
    return {frozenset(_numbers(bits)): Peer(**said) for bits, said in found.items()}


def _part(states: _States, values: list[_Value], wanted: int | None) -> _States:
    """Part each class of packets by one more property."""
    parted: _States = {}
    for (left, met), said in states.items():
        for value in values:
            remaining = left & value.left
            if wanted is not None and not remaining & wanted:
                continue
            key = (remaining, (met | value.met) & remaining)
            if key not in parted:
                parted[key] = said | value.said
        if len(parted) > MAXIMUM_CLASSES:
            message = (
                f"found more than {MAXIMUM_CLASSES} kinds of packets that the rules tell apart, expected fewer. "
                "Compare fewer policies at a time"
            )
            raise TooManyPeersError(message)
    return parted


def _numbers(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


class _Rules:
    """The rules as sets of bits, and the values that they tell apart."""

    def __init__(self, matches: Sequence[PeerMatch]) -> None:
        self._matches = matches
        self._all = (1 << len(matches)) - 1
        self.possible = self._those(lambda match: not match.nothing)
        self.of_any_peer = self._those(lambda match: not match.cidrs and not match.groups)
        self.of_groups = self._those(lambda match: bool(match.groups))

    def _those(self, holds: Callable[[PeerMatch], bool]) -> int:
        return sum(1 << number for number, match in enumerate(self._matches) if holds(match))

    def _by(self, key: Callable[[PeerMatch], Any]) -> dict[Any, tuple[PeerMatch, int]]:
        """Give for each different part of rules one that has it, and all that do."""
        found: dict[Any, tuple[PeerMatch, int]] = {}
        for number, match in enumerate(self._matches):
            example, bits = found.get(key(match), (match, 0))
            found[key(match)] = (example, bits | 1 << number)
        return found

    def kinds(self, family: int) -> list[_Value]:
        """Give kinds of packets: a port of each piece that the ends of ranges cut out, types of ICMP, protocols."""
        by_kind = self._by(lambda match: (match.ports, match.icmp)).values()
        values: dict[int, dict[str, Any]] = {}
        for said in self._said_kinds(family):
            peer = Peer("0.0.0.0" if family == 4 else "::", **said)  # noqa: PLR2004, S104 - of this family, and no matter which
            about = (bits for match, bits in by_kind if not (match.ports or match.icmp) or peers.is_kind(match, peer))
            values.setdefault(_union(about), said)
        return [_Value(said, left, 0) for left, said in values.items()]

    def _said_kinds(self, family: int) -> Iterator[dict[str, Any]]:
        ranges = {one for match in self._matches for one in match.ports}
        icmp = {kind for match in self._matches for of, kind in match.icmp if of == family and kind is not None}
        yield {}
        for protocol in dict.fromkeys((*_WITH_PORTS, peers.ICMP_OF[family], *sorted(of for _, _, of in ranges))):
            if protocol not in set(peers.ICMP_OF.values()) - {peers.ICMP_OF[family]}:
                yield {"protocol": protocol}
        for protocol in _WITH_PORTS:
            ends = {0}
            for first, last, of in ranges:
                ends |= {first, last + 1} if of == protocol else set()
            yield from ({"protocol": protocol, "port": port} for port in sorted(ends) if port <= peers.LAST_PORT)
        other = next((kind for kind in range(_LAST_TYPE + 1) if kind not in icmp), None)
        for kind in (*sorted(icmp), *(() if other is None else (other,))):
            yield {"protocol": peers.ICMP_OF[family], "icmp_type": kind}

    def interfaces(self) -> list[_Value]:
        """Give interfaces: each that is named, and for each beginning of names one that goes on as no other does."""
        by_interface = self._by(lambda match: match.interfaces).values()
        values: dict[int, dict[str, Any]] = {}
        for name in ("", *_names({name for match in self._matches for name in match.interfaces})):
            if name == "lo":
                continue  # no rule is asked about the loopback interface
            peer = Peer("::", interface=name)
            about = (bits for match, bits in by_interface if not match.interfaces or peers.on_interface(match, peer))
            values.setdefault(_union(about), {"interface": name} if name else {})
        return [_Value(said, left, 0) for left, said in values.items()]

    def addresses(self, family: int) -> list[_Value]:
        """Give an address for each set of networks and exceptions that holds one."""
        table: dict[int, dict[int, list[int]]] = defaultdict(dict)
        networks = {peers.prefix(cidr) for cidr in _EVERYWHERE}
        for number, match in enumerate(self._matches):
            for place, cidrs in enumerate((match.cidrs, match.exceptions)):
                for cidr in cidrs:
                    network = peers.prefix(cidr)
                    networks.add(network)
                    of, first, length = network
                    if of == family:
                        shift = peers.BITS[of] - length
                        table[shift].setdefault(first >> shift, [0, 0])[place] |= 1 << number
        values: dict[int, dict[str, Any]] = {}
        for number in _apart(sorted((first, length) for of, first, length in networks if of == family), family):
            text = inet_ntop(AF_INET if family == 4 else AF_INET6, number.to_bytes(peers.BITS[family] // 8, "big"))  # noqa: PLR2004
            if peers.address(text)[0] != family:
                continue  # it is the other family's
            holding = [entry for shift, of in table.items() if (entry := of.get(number >> shift))]
            met = _union(entry[0] for entry in holding) & ~_union(entry[1] for entry in holding)
            values.setdefault(met, {"address": text})
        return [_Value(said, self._all, met) for met, said in values.items()]

    def groups(self) -> list[_Value]:
        """Give what else can be said of a peer: nothing, one thing, or two."""
        one = self._said_once()
        values: dict[int, dict[str, Any]] = {0: {}}
        for _, met, said in one:
            values.setdefault(met, said)
        for (kind, met, said), (other_kind, other_met, other) in itertools.combinations(one, 2):
            if kind != other_kind:
                values.setdefault(met | other_met, said | other)
            elif kind != "labels":  # a peer is one workload at most
                values.setdefault(met | other_met, {kind: (*said[kind], *other[kind])})
        return [_Value(said, self._all, met) for met, said in values.items()]

    def _said_once(self) -> list[tuple[str, int, dict[str, Any]]]:
        """Give single things that can be said of a peer, and the rules of whose groups it is then a member."""
        members: dict[PeerGroup, int] = defaultdict(int)
        for number, match in enumerate(self._matches):
            for group in match.groups:
                members[group] |= 1 << number
        found: dict[tuple[str, int], dict[str, Any]] = {}
        named = [(peers.name_tree(group.value), bits) for group, bits in members.items() if group.kind == "name"]
        for matching, name in name_classes([tree for tree, _ in named]).items():
            found.setdefault(("names", _union(named[index][1] for index in matching)), {"names": (name,)})
        for group, bits in members.items():
            if group.kind == "entity":
                found.setdefault(("entities", bits), {"entities": (group.value,)})
        selectors = [(group.selector, bits) for group, bits in members.items() if group.selector is not None]
        for selecting, said in _workloads([selector for selector, _ in selectors]).items():
            found.setdefault(("labels", _union(selectors[index][1] for index in _numbers(selecting))), said)
        return [(kind, met, said) for (kind, met), said in found.items()]


def _union(sets: Iterable[int]) -> int:
    found = 0
    for bits in sets:
        found |= bits
    return found


def _apart(networks: list[tuple[int, int]], family: int) -> Iterator[int]:
    """Give for each network, in their order, one address that lies in none of the networks within it, if there is."""
    for index, (first, length) in enumerate(networks):
        candidate, last = first, first | (1 << (peers.BITS[family] - length)) - 1
        for inner, inner_length in itertools.islice(networks, index + 1, None):
            if inner > candidate:
                break
            candidate = max(candidate, (inner | (1 << (peers.BITS[family] - inner_length)) - 1) + 1)
        if candidate <= last:
            yield candidate


def _names(names: set[str]) -> Iterator[str]:
    plain = {name.removesuffix("*") for name in names}
    for name in sorted(plain):
        if name:
            yield name
        following = {longer[len(name) : len(name) + 1] for longer in plain if longer.startswith(name)}
        yield name + next(character for character in _CHARACTERS if character not in following)


_CHARACTERS: Final = ("x", *map(str, range(10)), *map(chr, range(0x3B1, 0x10000)))
"""More characters than a policy can name interfaces."""


def _workloads(selectors: Sequence[PeerSelector]) -> dict[int, dict[str, Any]]:
    """Give sets of selectors, as bits, that select some workload exactly, each with labels and namespace of one."""
    if not selectors:
        return {}
    mentioned: dict[str, None] = {DEFAULT_NAMESPACE: None}
    keys: dict[str, dict[str, None]] = {}
    for selector in selectors:
        mentioned |= dict.fromkeys(selector.namespaces or ())
        for asked in selector.namespace_labels:
            mentioned |= dict.fromkeys(asked.values if asked.key == NAMESPACE_NAME_LABEL else ())
        for asked in selector.labels:
            keys.setdefault(asked.key, {}).update(dict.fromkeys(asked.values))
    states: dict[int, dict[str, Any]] = {}
    for namespace in (*mentioned, another(mentioned)):
        inside = (bool(selector.selects_namespace(namespace)) << bit for bit, selector in enumerate(selectors))
        states.setdefault(_union(inside), {"labels": (), "namespace": namespace})
    for key, values in keys.items():
        asking = [
            (sum(1 << bit for bit, selector in enumerate(selectors) if asked in selector.labels), asked)
            for asked in dict.fromkeys(asked for selector in selectors for asked in selector.labels if asked.key == key)
        ]
        parted: dict[int, dict[str, Any]] = {}
        for labels in ({}, *({key: value} for value in (*values, another(values)))):
            refused = _union(bits for bits, asked in asking if not asked.holds(labels))
            for alive, said in states.items():
                parted.setdefault(alive & ~refused, said | {"labels": (*said["labels"], *labels.items())})
        if len(parted) > MAXIMUM_CLASSES:
            message = (
                f"found more than {MAXIMUM_CLASSES} sets of peers' selectors that can select one workload, expected "
                "fewer. Compare fewer policies at a time"
            )
            raise TooManyPeersError(message)
        states = parted
    return states
