# SPDX-License-Identifier: Apache-2.0
"""Which packets rules are about, as look-ups whose cost does not depend on how many rules there are.

Rules of one action need not be told apart by the kernel: which of them it was, ``decide`` says later. So all of them
are one set of packets, a union of boxes *addresses x kinds* (a kind is a destination port, a whole protocol, a type of
ICMP), and what is to be found is a cover of that set by few look-ups. What these cost is measured
(``benchmarks/bench_network_sets.py``):

* A set of one field is a tree: its cost grows with the logarithm of its size, by cache misses above all.
* A set of several fields with ranges costs next to nothing up to some ten thousand elements, then grows with their
  number; and it grows with the number of elements that hold the packet's *first* field. So the address comes first,
  few elements may hold one address, and a large set is cut along the addresses (the module ``boxes``).

Hence:

* Networks of any kind are ranges in a tree, or boxes where there are many (:data:`MANY`).
* Whole protocols and types of ICMP are few: a map leads from the value to the networks it goes with. So do a map of
  protocols and one of ports for each, where many networks share the ports (:data:`SHARED`), where any address goes with
  them, or members of groups.
* A network with a long list of ports of its own is found in a map of networks that leads to the list.
* All other ports are boxes of network, protocol and ports.

Rules limited to interfaces form unions of their own behind a map of interfaces.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from guest_agent.engines.nftables import boxes, protocols, ranges
from guest_agent.engines.nftables.boxes import ANY_PROTOCOL, PORT_BITS, PORT_MASK
from guest_agent.engines.nftables.steps import ADDRESS, ALWAYS, ICMP, Dispatch, Enter, Lookup, PlanError, Step, short
from hauberk.policy import peers
from hauberk.policy.rules import Action, PeerMatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from guest_agent.engines.nftables.boxes import Network
    from guest_agent.engines.nftables.ranges import Range, Union
    from guest_agent.engines.nftables.steps import Part, Sets
    from hauberk.policy.rules import PeerGroup, Rule

SHARED: Final = 64
"""So many networks with the same ports are reached from the ports."""
SHARED_LISTS: Final = 512
"""So many lists of ports are at most, those with the most networks first: each takes a chain or more."""
MANY: Final = 63
"""Networks beyond which a tree is slower than boxes."""
MAXIMUM_CHAINS: Final = 1 << 14
"""Most ways that one map may lead to."""
EVERYTHING: Final = "a"
PORTS: Final = "p"
"""The roles of what is looked up for packets of every kind, and by ports."""

_FAMILIES: Final = (4, 6)
_ALL_TYPES: Final = (0, 255)


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
            ranged.append((number << PORT_BITS | first, number << PORT_BITS | last))
        else:
            message = f"found ports of {protocol}, expected tcp, udp or sctp, or the whole protocol"
            raise ValueError(message)
    if not whole and not icmp:
        return Kinds(everything=False, ports=ranges.merge(ranged))
    types = tuple(
        ranges.merge(_ALL_TYPES if kind is None else (kind, kind) for family, kind in icmp if family == wanted)
        for wanted in _FAMILIES
    )
    covered = tuple((number << PORT_BITS, number << PORT_BITS | PORT_MASK) for number, _ in sorted(whole))
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
            return (ALWAYS,)
        found: list[Step] = []
        for family in families:
            networks = self.of(family)
            if len(networks) > MANY and not flat:
                table: dict[Network, list[Range]] = {}
                for first, last in networks:
                    for block in ranges.blocks(first, last):
                        table.setdefault(block, []).extend(ANY_PROTOCOL)
                found += boxes.build(table, sets, f"{role}{family}", (ADDRESS[family], "protocol"), {})
            elif merged := ranges.merge(networks):
                found.append(sets.add(f"{role}{family}", (ADDRESS[family],), ((one,) for one in merged)))
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
        names = match.interfaces and tuple(sorted(match.interfaces))
        cell = cells.get(names)
        if cell is None:
            cell = cells[names] = _Cell()
        try:
            cell.take(match, groups)
        except (ValueError, OSError) as error:
            raise located(rule, str(error)) from error
    anywhere = cells.pop((), _Cell()).steps(sets, stage)
    if ALWAYS in anywhere:
        return (ALWAYS,)
    named: list[_Item] = []
    begun: list[Step] = []
    for names, cell in sorted(cells.items()):
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
    by_address = [() if step == ALWAYS else (step,) for step in addresses.lookups(sets, f"{role}a", flat=True)]
    by_kind: list[tuple[Step, ...]] = [()] if kinds.everything else []
    by_kind += [(lookup,) for lookup in _port_lists(kinds.ports, sets, f"{role}p")]
    if kinds.protocols:
        by_kind.append((sets.add(f"{role}q", ("protocol",), ((one,) for one in kinds.protocols)),))
    for family, types in zip(_FAMILIES, kinds.icmp, strict=True):
        if types:
            by_kind.append((sets.add(f"{role}t{family}", (ICMP[family],), ((one,) for one in types)),))
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
        found.setdefault(first >> PORT_BITS, []).append((first & PORT_MASK, last & PORT_MASK))
    return found


def _port_lists(ports: Union, sets: Sets, role: str) -> tuple[Lookup, ...]:
    """Give the look-ups of ports alone, one for each protocol."""
    return tuple(
        replace(sets.add(f"{role}{protocol}", ("port",), ((one,) for one in found)), protocol=protocol)
        for protocol, found in _by_protocol(ports).items()
    )


def _dispatch(role: str, parts: tuple[Part, ...], items: Sequence[_Item]) -> tuple[Dispatch, ...]:
    """Give a map that leads to what holds at each place, whatever the order of the items."""
    items = sorted(items, key=_tag)
    decided = ranges.merge(one for _, where, steps in items if ALWAYS in steps for one in where)
    open_items = {
        index: ranges.subtract(where, decided) for index, (_, where, steps) in enumerate(items) if ALWAYS not in steps
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


def _tag(item: _Item) -> str:
    return item[0]


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
        everything, ported, whole = self._by(_everything), self._by(_ports_of), self._by(_protocols)
        four, six = self._by(_icmp4), self._by(_icmp6)
        every_kind = everything.get((), Addresses()).lookups(sets, role + EVERYTHING)
        if ALWAYS in every_kind:
            return every_kind
        by_protocol = _items(whole, sets, f"{role}q", _FAMILIES)
        ports, others = _ports(ported, sets, role + PORTS)
        _note(everything, sets, role + EVERYTHING)
        _note(ported, sets, role + PORTS)
        return (
            *every_kind,
            *_dispatch(f"{role}q", ("protocol",), [*by_protocol, *ports]),
            *_dispatch(f"{role}t4", ("icmp4",), _items(four, sets, f"{role}t4", (4,))),
            *_dispatch(f"{role}t6", ("icmp6",), _items(six, sets, f"{role}t6", (6,))),
            *others,
        )

    def _by(self, places: Callable[[Kinds], Union | None]) -> dict[Union, Addresses]:
        """Give what goes with each list of places of one sort."""
        found: dict[Union, Addresses] = {}
        for kinds, addresses in self._written.values():
            where = places(kinds)
            if where is not None:
                held = found.get(where)
                found[where] = addresses if held is None else held.joined(addresses)
        return found


def _everything(kinds: Kinds) -> Union | None:
    return () if kinds.everything else None


def _ports_of(kinds: Kinds) -> Union | None:
    return kinds.ports or None


def _protocols(kinds: Kinds) -> Union | None:
    return kinds.protocols or None


def _icmp4(kinds: Kinds) -> Union | None:
    return kinds.icmp[0] or None


def _icmp6(kinds: Kinds) -> Union | None:
    return kinds.icmp[1] or None


def _note(found: Mapping[Union, Addresses], sets: Sets, role: str) -> None:
    """Note how many networks there are of what, for whoever revises the sets."""
    for where, addresses in found.items():
        if addresses.everywhere:
            sets.everywhere.add((role, where))
        for family in _FAMILIES:
            sets.counts[role, family, where] = len(addresses.of(family))


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
    listed: dict[int, dict[Union, list[Range]]] = {4: defaultdict(list), 6: defaultdict(list)}
    boxed: dict[int, dict[Network, list[Range]]] = {4: {}, 6: {}}
    for ports, addresses in found.items():
        if addresses.everywhere:
            mapped[ports] = addresses
            continue
        kept = Addresses(groups=addresses.groups)
        for family, networks in ((4, addresses.four), (6, addresses.six)):
            if (family, ports) in shared:
                kept.of(family).extend(networks)
            elif len(ports) > boxes.LIST and networks:
                listed[family][ports] += networks
            else:
                table = boxed[family]
                for first, last in networks:
                    for block in ranges.blocks(first, last):
                        table.setdefault(block, []).extend(ports)
        if kept.groups or kept.four or kept.six:
            mapped[ports] = kept
    steps: list[Step] = []
    for family in _FAMILIES:
        fields: tuple[Part, ...] = (ADDRESS[family], "protocol", "port")
        steps += boxes.build(boxed[family], sets, f"{role}{family}", fields, listed[family])
        items = [
            (tag := short(*ports), ranges.merge(networks), _port_lists(ports, sets, f"{role}l{family}{tag}-"))
            for ports, networks in listed[family].items()
        ]
        steps += _dispatch(f"{role}l{family}", (ADDRESS[family],), items)
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
