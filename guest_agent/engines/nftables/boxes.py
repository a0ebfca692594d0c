# SPDX-License-Identifier: Apache-2.0
"""Networks and the ports that go with them, as sets of boxes that the kernel looks up in next to no time.

The kernel refuses boxes that overlap. Networks lie within each other or apart, so each network's box is left without
the ports of those around it. More than :data:`SHARD` boxes are cut in halves along the addresses until a part has no
more; small parts, and networks that do not fit in any, stay in one set beside them.

Which part a network is in depends on the boxes alone, never on what was before. But as long as no part becomes too
large or too small, a change of few networks changes only their parts: :meth:`Boxes.revised` finds that out in a time
that hardly grows with the number of networks, and gives up where it cannot be sure.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from guest_agent.engines.nftables import ranges
from guest_agent.engines.nftables.ruleset import WIDTHS
from guest_agent.engines.nftables.steps import FIELDS, Dispatch, Enter, PlanError, Sets, name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from guest_agent.engines.nftables.ranges import Range, Union
    from guest_agent.engines.nftables.ruleset import Key, Set
    from guest_agent.engines.nftables.steps import Part, Step

LIST: Final = 8
"""Ranges of ports beyond which a network's list is a set of its own."""
HELD: Final = 32
"""Most boxes that may hold one address: each costs what a rule costs."""
SHARD: Final = 2048
"""Most boxes of one set before it is cut along the addresses."""
SPARSE: Final = 256
"""Parts with fewer boxes stay together in a set beside them: most new networks then need no new part."""
MAXIMUM_ELEMENTS: Final = 1 << 20
"""Most boxes that the rules of one action and direction may come to."""
ANY_PROTOCOL: Final = ((0, 255),)
"""What goes with a network of any kind of packets, in place of ports."""
PORT_BITS: Final = 16
PORT_MASK: Final = (1 << PORT_BITS) - 1

Network = tuple[int, int]
"""First address and number of free bits."""
Table = dict[Network, tuple["Range", ...]]
"""The ports of each network, ``protocol << 16 | port``, as rules have them: they may overlap or be there twice."""
Box = tuple[int, int, "Union"]
"""First address, free bits, and the ports that no network around has."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes of one role, and how they were cut.

    ``order`` are the networks, wider ones first where they begin alike (free bits are negative there). ``parts`` has
    for each part that was not cut further the role of its set and how many boxes it has, but for those of which a box
    had to go; ``halved`` has for each that was cut how many were to be divided.
    """

    role: str
    fields: tuple[Part, ...]
    table: Table
    order: tuple[tuple[int, int], ...]
    parts: Mapping[Network, tuple[str, int]]
    halved: Mapping[Network, int]

    def revised(self, sets: Sets, without: Table, more: Table) -> tuple[Boxes, dict[str, Set]] | None:
        """Give the boxes with some networks' ports gone and others added, and the sets that differ, by name.

        None: so much changes that everything is to be made anew. ``without`` must be in the table.
        """
        table, order = self._tabled(without, more)
        parts, halved = dict(self.parts), dict(self.halved)
        changed: dict[str, Set] = {}
        for part in {self._part_of(network) for network in (*without, *more)}:
            if part not in parts:
                return None
            before = _boxes_in(self.table, self.order, part, self._width)
            after = _boxes_in(table, order, part, self._width)
            if before is None or after is None:
                return None
            role, count = parts[part]
            change = _number(after) - _number(before)
            parts[part] = (role, count + change)
            if not self._stays(part, role, count + change, change, halved):
                return None
            set_name = name(sets.owner, role)
            held = changed.get(set_name, sets.known[set_name])
            old, new = set(_keys(before, self.fields)), dict.fromkeys(_keys(after, self.fields))
            elements = dict(held.elements)
            for key in old - new.keys():
                del elements[key]
            elements.update(new)
            changed[set_name] = replace(held, elements=elements)
        return replace(self, table=table, order=tuple(order), parts=parts, halved=halved), changed

    def _tabled(self, without: Table, more: Table) -> tuple[Table, list[tuple[int, int]]]:
        """Give the table and the order with some networks' ports gone and others added."""
        table, order = dict(self.table), list(self.order)
        for network, gone in without.items():
            left = list(table[network])
            for one in gone:
                left.remove(one)
            table[network] = tuple(left)
        for network, added in more.items():
            table[network] = (*table.get(network, ()), *added)
        for network in without.keys() | more.keys():
            place = (network[0], -network[1])
            if not table[network]:
                del table[network]
                del order[bisect_left(order, place)]
            elif network not in self.table:
                insort(order, place)
        return table, order

    @property
    def _width(self) -> int:
        return WIDTHS[FIELDS[self.fields[0]]]

    def _part_of(self, network: Network) -> Network:
        """Give the part that a network is in; for one that is wider than the parts, one that was halved."""
        first, bits = network
        start, free = 0, self._width
        while (start, free) in self.halved:
            if bits >= free:
                break
            free -= 1
            start = first >> free << free
        return start, free

    def _stays(self, part: Network, role: str, count: int, change: int, halved: dict[Network, int]) -> bool:
        """Tell whether a part is still what it was, and note the change in those around that were cut in halves."""
        start, free = part
        if role == self.role:
            fits = 0 < count <= SHARD if free == self._width else count < SPARSE
        else:
            fits = SPARSE <= count <= SHARD
        while free < self._width:
            free += 1
            start = start >> free << free
            halved[start, free] += change
            fits = fits and halved[start, free] > SHARD
        return fits


def build(
    table: Mapping[Network, Sequence[Range]], sets: Sets, role: str, fields: tuple[Part, ...],
    listed: dict[Union, list[Range]],
) -> list[Step]:  # fmt: skip
    """Give the look-ups for a table. What one set would hold too often goes to ``listed``. Raises PlanError."""
    width = WIDTHS[FIELDS[fields[0]]]
    order = sorted([(first, -bits) for first, bits in table])
    boxes = _disjoint(table, order, listed)
    if not boxes:
        return []
    sums = [0, *accumulate([len(ports) for _, _, ports in boxes])]
    if sums[-1] > MAXIMUM_ELEMENTS:
        message = (
            f"found {sums[-1]} pairs of a network and a range of ports in one list of rules, expected at most"
            f" {MAXIMUM_ELEMENTS}; write rules whose networks name the same ports"
        )
        raise PlanError(message)
    firsts = [first for first, _, _ in boxes]
    beside: list[Box] = []
    entries: list[tuple[Key, Enter | None]] = []
    parts: dict[Network, tuple[str, int]] = {}
    halved: dict[Network, int] = {}
    pending = [(0, len(boxes), 0, width)]
    while pending:
        low, high, start, free = pending.pop()
        whole = low
        while low < high and sums[high] - sums[low] > SHARD and boxes[low][1] >= free:
            beside.append(boxes[low])  # as wide as the part itself: it cannot be in one half
            low += 1
        count = sums[high] - sums[low]
        if count > SHARD and free:
            halved[start, free] = count
            middle = start | 1 << free - 1
            cut = bisect_left(firsts, middle, low, high)
            pending += [(cut, high, middle, free - 1), (low, cut, start, free - 1)]
        elif free == width or count < SPARSE:
            beside += boxes[low:high]
            if low == whole:
                parts[start, free] = (role, count)
        else:
            tag = f"{role}-{start:x}-{free}"
            if low == whole:
                parts[start, free] = (tag, count)
            lookup = sets.add(tag, fields, _keys(boxes[low:high], fields))
            entries.append((((start, start | ((1 << free) - 1)),), Enter(tag, (lookup,))))
    sets.boxes[role] = Boxes(
        role, fields, {one: tuple(ports) for one, ports in table.items()}, tuple(order), parts, halved
    )
    steps: list[Step] = [sets.add(role, fields, _keys(beside, fields))]
    if entries:
        steps.append(Dispatch(f"{role}m", fields[:1], tuple(entries)))
    return steps


def _disjoint(
    table: Mapping[Network, Sequence[Range]], order: Iterable[tuple[int, int]], listed: dict[Union, list[Range]]
) -> list[Box]:
    """Give boxes that do not overlap, in the order of their addresses."""
    boxes: list[Box] = []
    around: list[tuple[int, Union, int]] = []  # networks around: last address; all their ports; boxes that hold it
    for first, negative in order:
        last = first | ((1 << -negative) - 1)
        while around and around[-1][0] < first:
            around.pop()
        ports = ranges.merge(table[first, -negative])
        _, covered, held = around[-1] if around else (0, (), 0)
        left = ranges.subtract(ports, covered) if covered else ports
        if len(ports) > LIST or held + len(left) > HELD:
            listed[ports].append((first, last))
        elif left:
            boxes.append((first, -negative, left))
            around.append((last, ranges.merge((*covered, *ports)) if covered else ports, held + len(left)))
    return boxes


def _boxes_in(
    table: Mapping[Network, Sequence[Range]], order: Sequence[tuple[int, int]], part: Network, width: int
) -> list[Box] | None:
    """Give the boxes of a part; None where one of its networks, or one around, has its ports in a list."""
    start, free = part
    around = [
        (start >> bits << bits, -bits) for bits in range(width, free, -1) if (start >> bits << bits, bits) in table
    ]
    inside = order[bisect_left(order, (start, -free)) : bisect_left(order, (start + (1 << free), -width - 1))]
    listed: dict[Union, list[Range]] = defaultdict(list)
    boxes = _disjoint(table, [*around, *inside], listed)
    return None if listed else [box for box in boxes if box[1] <= free]


def _number(boxes: Iterable[Box]) -> int:
    return sum(len(ports) for _, _, ports in boxes)


def _keys(boxes: Iterable[Box], fields: tuple[Part, ...]) -> Iterator[Key]:
    """Give the elements of boxes."""
    ported = "port" in fields
    for first, bits, ports in boxes:
        network = (first, first | ((1 << bits) - 1))
        for start, end in ports:
            if ported:
                protocol = start >> PORT_BITS
                yield network, (protocol, protocol), (start & PORT_MASK, end & PORT_MASK)
            else:
                yield network, (start, end)
