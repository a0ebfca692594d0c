# SPDX-License-Identifier: Apache-2.0
"""Which packets rules are about, as look-ups whose cost does not depend on how many rules there are.

Rules of one action need not be told apart by the kernel: which of them it was, ``decide`` says later. So all of them
are one set of packets, a union of boxes *addresses x kinds* (a kind is a destination port, a whole protocol, a type of
ICMP), and what is to be found is a cover of that set by few look-ups. What these cost was measured (docs/network.md):

* A set of one field is a tree: its cost grows with the logarithm of its size, by cache misses above all.
* A set of several fields with ranges costs next to nothing up to some ten thousand elements, then grows with their
  number; and it grows with the number of elements that hold the packet's *first* field. So the address comes first, few
  elements may hold one address (:data:`HELD`), and a large set is cut along the addresses (:data:`SHARD`): a map
  leads to the part.

Hence:

* Networks of any kind are ranges in a tree, and where there are many (:data:`MANY`) such parts.
* Whole protocols and types of ICMP are few: a map leads from the value to the networks it goes with. So does a map of
  ports where many networks share them (:data:`SHARED`) or where any address goes with them.
* A network with a long list of ports of its own (:data:`LIST`) is found in a map of networks that leads to the list.
* All other ports are boxes of network, protocol and ports. The kernel refuses boxes that overlap; networks lie within
  each other or apart, so each network's box is left without the ports of those around it.

Rules limited to interfaces form unions of their own behind a map of interfaces.
"""

from __future__ import annotations

import functools
import hashlib
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal

from guest_agent.engines.nftables import protocols, ranges
from guest_agent.engines.nftables.ruleset import MAXIMUM_NAME, WIDTHS, FieldType, Key, Set
from hauberk.errors import HauberkError
from hauberk.policy import peers
from hauberk.policy.rules import Action, PeerMatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from guest_agent.engines.nftables.ranges import Range, Union
    from hauberk.policy.rules import PeerGroup, Rule

SHARED: Final = 64
"""So many networks with the same ports are reached from the ports."""
SHARED_LISTS: Final = 64
"""So many lists of ports are at most, those with the most networks first: each takes a chain or more."""
LIST: Final = 8
"""Ranges of ports beyond which a network's list is a set of its own."""
HELD: Final = 32
"""Most boxes that may hold one address: each costs what a rule costs."""
MANY: Final = 256
"""Ranges of addresses beyond which a tree is slower than boxes."""
SHARD: Final = 2048
"""Most boxes of one set before it is cut along the addresses."""
SPARSE: Final = 256
"""Parts with fewer boxes stay together in a set beside them: most new networks then need no new part."""
MAXIMUM_ELEMENTS: Final = 1 << 20
"""Most boxes or ranges that the rules of one action and direction may come to."""
MAXIMUM_CHAINS: Final = 1 << 14
"""Most ways that one map may lead to."""

_FAMILIES: Final = (4, 6)
_PORT_BITS: Final = 16
_PORT_MASK: Final = (1 << _PORT_BITS) - 1
_ALL_TYPES: Final = (0, 255)
_ANY_PROTOCOL: Final = ((0, 255),)

Part = Literal["address4", "address6", "protocol", "port", "source_port", "icmp4", "icmp6", "interface"]
"""What of a packet is looked up. Address, port and interface are the peer's side: which field, the direction says."""
_FIELDS: Final[Mapping[Part, FieldType]] = {
    "address4": "ipv4_addr", "address6": "ipv6_addr", "protocol": "inet_proto", "port": "inet_service",
    "source_port": "inet_service", "icmp4": "icmp_type", "icmp6": "icmpv6_type", "interface": "ifname",
}  # fmt: skip
_ADDRESS: Final[Mapping[int, Part]] = {4: "address4", 6: "address6"}
_ICMP: Final[Mapping[int, Part]] = {4: "icmp4", 6: "icmp6"}


class PlanError(HauberkError):
    """Rules cannot become a ruleset; the message says which rule or which limit, and what to do."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """A packet's parts are in a set. ``protocol`` is what its ports are of, where they are looked up alone."""

    parts: tuple[Part, ...]
    set_name: str
    protocol: int | None = None


@dataclass(frozen=True, slots=True)
class Enter:
    """Further steps, which stand once and are entered from several places."""

    role: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A map from parts of a packet to further steps; no steps behind a key mean that the key decides."""

    role: str
    parts: tuple[Part, ...]
    entries: tuple[tuple[Key, Enter | None], ...]

    @property
    def fields(self) -> tuple[FieldType, ...]:
        """The types of the map's key."""
        return tuple(_FIELDS[part] for part in self.parts)


@dataclass(frozen=True, slots=True)
class Always:
    """Every packet."""


Step = Lookup | Enter | Dispatch | Always
_ALWAYS: Final = Always()


@dataclass(frozen=True, slots=True)
class Dynamic:
    """A set whose elements are members of groups, of one family."""

    name: str
    family: int
    groups: tuple[PeerGroup, ...]


@dataclass(slots=True)
class Sets:
    """The sets that look-ups need: those known now, and those whose elements are members of groups.

    ``owner`` begins every name.
    """

    owner: str
    known: dict[str, Set] = field(default_factory=dict)
    dynamic: dict[str, Dynamic] = field(default_factory=dict)

    def add(self, role: str, parts: tuple[Part, ...], elements: Iterable[Key]) -> Lookup:
        """Make an interval set and give the look-up in it."""
        fields = tuple(_FIELDS[part] for part in parts)
        one = Set(name(self.owner, role), fields, interval=True, elements=dict.fromkeys(elements))
        self.known[one.name] = one
        return Lookup(parts, one.name)

    def add_groups(self, role: str, family: int, groups: Iterable[PeerGroup]) -> Lookup:
        """Make a set for members of groups and give the look-up in it."""
        one = Dynamic(name(self.owner, role), family, tuple(sorted(set(groups), key=str)))
        self.dynamic[one.name] = one
        return Lookup((_ADDRESS[family],), one.name)


def name(owner: str, role: str) -> str:
    """Give a name that the kernel takes: the role itself where that is short, else its hash."""
    plain = f"{owner}.{role}"
    return plain if len(plain) <= MAXIMUM_NAME else f"{owner}.{short(role)}"


def short(*words: object) -> str:
    """Give 16 hexadecimal digits that stand for words."""
    return hashlib.blake2s("\0".join(map(str, words)).encode(errors="surrogateescape"), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Kinds:
    """Kinds of packets: all of them, or some ports, whole protocols and types of ICMP of each family.

    A port is a number with its protocol in front, ``protocol << 16 | port``.
    """

    everything: bool
    ports: Union = ()
    protocols: Union = ()
    icmp: tuple[Union, Union] = ((), ())


@functools.lru_cache(maxsize=1 << 14)
def kinds_of(ports: tuple[tuple[int, int, str], ...], icmp: tuple[tuple[int, int | None], ...]) -> Kinds:
    """Give the kinds that a rule names. Raises ValueError for a protocol without a number, or without ports."""
    if not ports and not icmp:
        return Kinds(everything=True)
    ranged: list[Range] = []
    whole: list[Range] = []
    for first, last, protocol in ports:
        number = protocols.number(protocol)
        if (first, last) == (0, peers.LAST_PORT):
            whole.append((number, number))
        elif number in protocols.PORTED:
            ranged.append((number << _PORT_BITS | first, number << _PORT_BITS | last))
        else:
            message = f"found ports of {protocol}, expected tcp, udp or sctp, or the whole protocol"
            raise ValueError(message)
    if not whole and not icmp:
        return Kinds(everything=False, ports=ranges.merge(ranged))
    types = tuple(
        ranges.merge(_ALL_TYPES if kind is None else (kind, kind) for family, kind in icmp if family == wanted)
        for wanted in _FAMILIES
    )
    covered = tuple((number << _PORT_BITS, number << _PORT_BITS | _PORT_MASK) for number, _ in sorted(whole))
    return Kinds(
        everything=False,
        ports=ranges.subtract(ranges.merge(ranged), covered),
        protocols=ranges.merge(whole),
        icmp=(types[0], types[1]),
    )


@dataclass(slots=True)
class Addresses:
    """Addresses of both families that go with some kind; ``everywhere``: all of them."""

    everywhere: bool = False
    four: list[Range] = field(default_factory=list)
    six: list[Range] = field(default_factory=list)
    groups: set[PeerGroup] = field(default_factory=set)

    def take(self, match: PeerMatch, groups: Iterable[PeerGroup]) -> None:
        """Add the peers of a rule; ``groups`` are those of its groups that can have members."""
        if not match.cidrs and not match.groups:
            self.everywhere = True
            return
        self.groups.update(groups)
        if match.exceptions:
            for family, found in self._split(match.cidrs).items():
                without = ranges.merge(self._split(match.exceptions)[family])
                self.of(family).extend(ranges.subtract(ranges.merge(found), without))
            return
        for cidr in match.cidrs:
            family, first, last = ranges.network(cidr)
            (self.four if family == 4 else self.six).append((first, last))  # noqa: PLR2004 - IPv4

    def of(self, family: int) -> list[Range]:
        """Give the ranges of a family, in any order."""
        return self.four if family == 4 else self.six  # noqa: PLR2004 - IPv4

    @staticmethod
    def _split(cidrs: Iterable[str]) -> dict[int, list[Range]]:
        found: dict[int, list[Range]] = {4: [], 6: []}
        for cidr in cidrs:
            family, first, last = ranges.network(cidr)
            found[family].append((first, last))
        return found

    def joined(self, other: Addresses) -> Addresses:
        """Give these addresses and another's."""
        return Addresses(
            self.everywhere or other.everywhere,
            [*self.four, *other.four],
            [*self.six, *other.six],
            {*self.groups, *other.groups},
        )

    def lookups(
        self, sets: Sets, role: str, families: tuple[int, ...] = _FAMILIES, *, flat: bool = False
    ) -> tuple[Step, ...]:
        """Give the look-ups that find these addresses, without maps if ``flat``; a family without any gives none."""
        if self.everywhere:
            return (_ALWAYS,)
        found: list[Step] = []
        for family in families:
            merged = ranges.merge(self.of(family))
            if len(merged) > MANY and not flat:
                blocks = (block for first, last in merged for block in ranges.blocks(first, last))
                boxes = [(first, bits, _ANY_PROTOCOL) for first, bits in blocks]
                found += _boxes(boxes, sets, f"{role}{family}", (_ADDRESS[family], "protocol"))
            elif merged:
                found.append(sets.add(f"{role}{family}", (_ADDRESS[family],), ((one,) for one in merged)))
            if self.groups:
                found.append(sets.add_groups(f"{role}g{family}", family, self.groups))
        return tuple(found)


def located(rule: Rule, what: str) -> PlanError:
    """Give the error about a rule, with its place."""
    origin = rule.origin
    place = f"{origin.file}:{origin.line}:{origin.column}: " if origin.file else ""
    return PlanError(f"{place}{origin.policy} {origin.field}: {what}")


def members_of(rule: Rule, match: PeerMatch, resolved: Mapping[PeerGroup, object]) -> tuple[PeerMatch, list[PeerGroup]]:
    """Give a rule's match and those of its groups that have members or can get them.

    A Block rule with a group that nothing is known of is about every peer.
    """
    known = [group for group in match.groups if group.kind == "name" or group in resolved]
    if rule.action is Action.BLOCK and match.groups:
        if any(group.kind == "name" for group in match.groups):
            raise located(rule, "names of peers can only allow, since a name that was not seen yet would pass")
        if len(known) < len(match.groups):
            return PeerMatch(interfaces=match.interfaces, ports=match.ports, icmp=match.icmp, quota=match.quota), []
    return match, known


def union(rules: Iterable[Rule], sets: Sets, stage: str, resolved: Mapping[PeerGroup, object]) -> tuple[Step, ...]:
    """Give the steps that find exactly the packets that one of the rules is about, quotas apart.

    ``stage`` begins the roles of all that this takes. Raises PlanError for what does not fit.
    """
    cells: dict[tuple[str, ...], _Cell] = {}
    for rule in rules:
        match = rule.match
        if not isinstance(match, PeerMatch) or match.nothing:
            continue
        groups: list[PeerGroup] = []
        if match.groups:
            match, groups = members_of(rule, match, resolved)
        cell = cells.get(match.interfaces)
        if cell is None:
            cell = cells[match.interfaces] = _Cell()
        try:
            cell.take(match, groups)
        except (ValueError, OSError) as error:
            raise located(rule, str(error)) from error
    anywhere = cells.pop((), _Cell()).steps(sets, stage)
    if _ALWAYS in anywhere:
        return (_ALWAYS,)
    named: list[_Item] = []
    begun: list[Step] = []
    for names, cell in cells.items():
        tag = f"i{short(*names)}-"
        steps = cell.steps(sets, stage + tag)
        if not steps:
            continue
        inner = (Enter(stage + tag, steps),)
        whole = ranges.merge(ranges.interface(one) for one in names if not one.endswith("*"))
        beginnings = ranges.merge(ranges.interface(one) for one in names if one.endswith("*"))
        named += [(tag, whole, inner)] if whole else []
        # A map of its own: where beginnings were cut up by whole names, what nft lists would be unreadable bytes.
        begun += _dispatch(f"{stage}{tag}b", ("interface",), [(tag, beginnings, inner)]) if beginnings else ()
    return (*anywhere, *_dispatch(f"{stage}if", ("interface",), named), *begun)


_Item = tuple[str, "Union", tuple[Step, ...]]
"""A part of names, where it holds, and what is looked up there."""
Alternative = tuple[Lookup, ...]
"""Look-ups that all have to find the packet."""


def product(match: PeerMatch, groups: Iterable[PeerGroup], sets: Sets, role: str) -> tuple[Alternative, ...]:
    """Give alternatives of which one finds the packet exactly if the match is about it; there are few of them.

    Unlike the steps of a union they stand in one chain, so that something can be done once for each packet. Raises
    ValueError, OSError.
    """
    if match.nothing:
        return ()
    kinds = kinds_of(match.ports, match.icmp)
    addresses = Addresses()
    addresses.take(match, groups)
    by_address = [() if step == _ALWAYS else (step,) for step in addresses.lookups(sets, f"{role}a", flat=True)]
    by_kind: list[tuple[Step, ...]] = [()] if kinds.everything else []
    by_kind += [(lookup,) for lookup in _port_lists(kinds.ports, sets, f"{role}p")]
    if kinds.protocols:
        by_kind.append((sets.add(f"{role}q", ("protocol",), ((one,) for one in kinds.protocols)),))
    for family, types in zip(_FAMILIES, kinds.icmp, strict=True):
        if types:
            by_kind.append((sets.add(f"{role}t{family}", (_ICMP[family],), ((one,) for one in types)),))
    named = ranges.merge(map(ranges.interface, match.interfaces))
    by_interface = (sets.add(f"{role}if", ("interface",), ((one,) for one in named)),) if named else ()
    return tuple(
        tuple(step for step in (*by_interface, *address, *kind) if isinstance(step, Lookup))
        for address in by_address
        for kind in by_kind
    )


def _by_protocol(ports: Iterable[Range]) -> dict[int, list[Range]]:
    """Give the ranges of ports of each protocol, without it."""
    found: dict[int, list[Range]] = {}
    for first, last in ports:
        found.setdefault(first >> _PORT_BITS, []).append((first & _PORT_MASK, last & _PORT_MASK))
    return found


def _port_lists(ports: Union, sets: Sets, role: str) -> tuple[Lookup, ...]:
    """Give the look-ups of ports alone, one for each protocol."""
    return tuple(
        replace(sets.add(f"{role}{protocol}", ("port",), ((one,) for one in found)), protocol=protocol)
        for protocol, found in _by_protocol(ports).items()
    )


def _dispatch(role: str, parts: tuple[Part, ...], items: Sequence[_Item]) -> tuple[Dispatch, ...]:
    """Give a map that leads to what holds at each place. Items are a role, where they hold, and their steps."""
    decided = ranges.merge(one for _, where, steps in items if _ALWAYS in steps for one in where)
    open_items = {
        index: ranges.subtract(where, decided) for index, (_, where, steps) in enumerate(items) if _ALWAYS not in steps
    }
    entries: list[tuple[Range, Enter | None]] = [(one, None) for one in decided]
    entered: dict[frozenset[int], Enter] = {}
    for one, present in ranges.atoms(open_items):
        if present not in entered:
            order = sorted(present)
            tag = short(*(items[index][0] for index in order))
            steps = tuple(step for index in order for step in items[index][2])
            entered[present] = Enter(f"{role}{tag}", steps)
        entries.append((one, entered[present]))
    if len(entered) > MAXIMUM_CHAINS:
        message = (
            f"found {len(entered)} combinations of rules for different ports, protocols or interfaces, expected at most"
            f" {MAXIMUM_CHAINS}; write rules that name the same lists of ports and interfaces"
        )
        raise PlanError(message)
    if not entries:
        return ()
    return (Dispatch(role, parts, tuple(((one,), enter) for one, enter in sorted(entries, key=_place))),)


def _place(entry: tuple[Range, Enter | None]) -> Range:
    return entry[0]


class _Cell:
    """One union of boxes, all for the same interfaces."""

    def __init__(self) -> None:
        self._written: dict[tuple[object, object], tuple[Kinds, Addresses]] = {}

    def take(self, match: PeerMatch, groups: Iterable[PeerGroup]) -> None:
        """Add a rule's boxes. Raises ValueError, OSError."""
        written = (match.ports, match.icmp)
        found = self._written.get(written)
        if found is None:
            found = self._written[written] = (kinds_of(*written), Addresses())
        found[1].take(match, groups)

    def steps(self, sets: Sets, role: str) -> tuple[Step, ...]:
        """Give the steps that find the union."""
        everything: dict[Union, Addresses] = {}
        whole: dict[Union, Addresses] = {}
        types: tuple[dict[Union, Addresses], dict[Union, Addresses]] = ({}, {})
        ported: dict[Union, Addresses] = {}
        for kinds, addresses in self._written.values():
            if kinds.ports:
                _join(ported, kinds.ports, addresses)
            if kinds.everything:
                _join(everything, (), addresses)
            if kinds.protocols:
                _join(whole, kinds.protocols, addresses)
            for target, where in zip(types, kinds.icmp, strict=True):
                if where:
                    _join(target, where, addresses)
        every_kind = everything.get((), Addresses()).lookups(sets, f"{role}a")
        if _ALWAYS in every_kind:
            return every_kind
        by_protocol = _items(whole, sets, f"{role}q", _FAMILIES)
        ports, boxes = _ports(ported, sets, f"{role}p")
        return (
            *every_kind,
            *_dispatch(f"{role}q", ("protocol",), [*by_protocol, *ports]),
            *_dispatch(f"{role}t4", ("icmp4",), _items(types[0], sets, f"{role}t4", (4,))),
            *_dispatch(f"{role}t6", ("icmp6",), _items(types[1], sets, f"{role}t6", (6,))),
            *boxes,
        )


def _join(found: dict[Union, Addresses], where: Union, addresses: Addresses) -> None:
    """Add what goes with a list of places, without a copy where it is alone there."""
    held = found.get(where)
    found[where] = addresses if held is None else held.joined(addresses)


def _items(found: Mapping[Union, Addresses], sets: Sets, role: str, families: tuple[int, ...]) -> list[_Item]:
    """Give for each list of places what is looked up there."""
    items = []
    for where, addresses in found.items():
        tag = short(*where)
        steps = addresses.lookups(sets, f"{role}{tag}-", families)
        if steps:
            items.append((tag, where, steps))
    return items


def _ports(found: Mapping[Union, Addresses], sets: Sets, role: str) -> tuple[list[_Item], list[Step]]:
    """Give what is reached from the protocol and its ports, and the steps that begin at the address."""
    sizes = [
        (-size, family, ports)
        for ports, addresses in found.items()
        for family in _FAMILIES
        if (size := len(addresses.of(family))) >= SHARED
    ]
    shared = {(family, ports) for _, family, ports in sorted(sizes)[:SHARED_LISTS]}
    mapped: dict[Union, Addresses] = {}
    listed: dict[int, dict[Union, list[Range]]] = {4: {}, 6: {}}
    boxed: dict[int, dict[tuple[int, int], list[Range]]] = {4: {}, 6: {}}
    for ports, addresses in found.items():
        if addresses.everywhere:
            mapped[ports] = addresses
            continue
        kept = Addresses(groups=addresses.groups)
        for family, networks in ((4, addresses.four), (6, addresses.six)):
            if (family, ports) in shared:
                kept.of(family).extend(networks)
            elif len(ports) > LIST and networks:
                listed[family].setdefault(ports, []).extend(networks)
            else:
                table = boxed[family]
                for first, last in ranges.merge(networks):
                    for block in ranges.blocks(first, last):
                        table.setdefault(block, []).extend(ports)
        if kept.groups or kept.four or kept.six:
            mapped[ports] = kept
    steps: list[Step] = []
    for family in _FAMILIES:
        boxes = _disjoint(boxed[family], listed[family])
        items = [
            (tag := short(*ports), ranges.merge(networks), _port_lists(ports, sets, f"{role}l{family}{tag}-"))
            for ports, networks in listed[family].items()
        ]
        steps += _dispatch(f"{role}l{family}", (_ADDRESS[family],), items)
        steps += _boxes(boxes, sets, f"{role}{family}", (_ADDRESS[family], "protocol", "port"))
    return _by_port(_items(mapped, sets, role, _FAMILIES), role), steps


def _by_port(items: Sequence[_Item], role: str) -> list[_Item]:
    """Turn what holds for ports into what holds for their protocols: a map of ports each."""
    split: dict[int, list[_Item]] = {}
    for tag, where, steps in items:
        for protocol, ports in _by_protocol(where).items():
            split.setdefault(protocol, []).append((tag, tuple(ports), steps))
    return [
        (f"{role}d{protocol}", ((protocol, protocol),), _dispatch(f"{role}d{protocol}", ("port",), found))
        for protocol, found in split.items()
    ]


Box = tuple[int, int, "Union"]
"""First address, free bits of the network, and ports with their protocols."""


def _disjoint(table: Mapping[tuple[int, int], list[Range]], listed: dict[Union, list[Range]]) -> list[Box]:
    """Give boxes that do not overlap, in the order of their addresses; what would be held too often goes to lists."""
    boxes: list[Box] = []
    around: list[tuple[int, Union, int]] = []  # networks around: last address; all their ports; boxes that hold it
    for (first, bits), found in sorted(table.items(), key=_wide_first):
        last = first | ((1 << bits) - 1)
        while around and around[-1][0] < first:
            around.pop()
        ports = ranges.merge(found)  # different rules', of the same network
        _, covered, held = around[-1] if around else (0, (), 0)
        left = ranges.subtract(ports, covered) if covered else ports
        if len(ports) > LIST or held + len(left) > HELD:
            listed.setdefault(ports, []).append((first, last))
        elif left:
            boxes.append((first, bits, left))
            around.append((last, ranges.merge((*covered, *ports)) if covered else ports, held + len(left)))
    return boxes


def _wide_first(entry: tuple[tuple[int, int], list[Range]]) -> tuple[int, int]:
    return entry[0][0], -entry[0][1]


def _boxes(layer: Sequence[Box], sets: Sets, role: str, parts: tuple[Part, ...]) -> list[Step]:
    """Give the look-ups for boxes that do not overlap and come in the order of their addresses."""
    width = WIDTHS[_FIELDS[parts[0]]]
    sums = [0, *accumulate(len(ports) for _, _, ports in layer)]
    if sums[-1] > MAXIMUM_ELEMENTS:
        message = (
            f"found {sums[-1]} pairs of a network and a range of ports in one list of rules, expected at most"
            f" {MAXIMUM_ELEMENTS}; write rules whose networks name the same ports"
        )
        raise PlanError(message)
    firsts = [first for first, _, _ in layer]
    wide: list[Box] = []
    entries: list[tuple[Key, Enter | None]] = []
    pending = [(0, len(layer), 0, width)]
    while pending:
        low, high, start, free = pending.pop()
        while low < high and sums[high] - sums[low] > SHARD and layer[low][1] >= free:
            wide.append(layer[low])  # as wide as the part itself: it cannot be in one half
            low += 1
        if low == high:
            continue
        if sums[high] - sums[low] > SHARD and free:
            middle = start | 1 << free - 1
            cut = bisect_left(firsts, middle, low, high)
            pending += [(cut, high, middle, free - 1), (low, cut, start, free - 1)]
            continue
        if free == width or sums[high] - sums[low] < SPARSE:
            wide += layer[low:high]
            continue
        tag = f"{role}-{start:x}-{free}"
        lookup = sets.add(tag, parts, _box_keys(layer[low:high], parts))
        entries.append((((start, start | ((1 << free) - 1)),), Enter(tag, (lookup,))))
    steps: list[Step] = [sets.add(role, parts, _box_keys(wide, parts))] if layer else []
    if entries:
        steps.append(Dispatch(f"{role}m", parts[:1], tuple(entries)))
    return steps


def _box_keys(boxes: Iterable[Box], parts: tuple[Part, ...]) -> Iterator[Key]:
    for first, bits, ports in boxes:
        network = (first, first | ((1 << bits) - 1))
        if len(parts) < 3:  # noqa: PLR2004 - no ports
            yield network, _ANY_PROTOCOL[0]
            continue
        for start, end in ports:
            protocol = start >> _PORT_BITS
            yield network, (protocol, protocol), (start & _PORT_MASK, end & _PORT_MASK)
