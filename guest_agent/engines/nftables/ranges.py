# SPDX-License-Identifier: Apache-2.0
"""Ranges of whole numbers: addresses, ports, protocols and names of interfaces as the kernel's interval sets have them.

A range is a pair of its first and its last number. A *union* is a tuple of ranges in order that neither overlap nor
touch, so equal unions are equal tuples. Everything here takes time in proportion to what it is given, but for sorting.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final, TypeVar

from hauberk.policy import peers

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping

    Item = TypeVar("Item", bound=Hashable)

Range = tuple[int, int]
Union = tuple[Range, ...]

NAME_BYTES: Final = 16
"""What the kernel keeps the name of an interface in (IFNAMSIZ), zeros behind it."""
_REMEMBERED: Final = 1 << 15  # networks: about 8 MiB at most


@functools.lru_cache(maxsize=_REMEMBERED)
def network(text: str) -> tuple[int, int, int]:
    """Give family, first and last address of a network or an address in canonical text. Raises ValueError, OSError."""
    family, first, length = peers.prefix(text)
    return family, first, first | ((1 << peers.BITS[family] - length) - 1)


def interface(text: str) -> Range:
    """Give the names that ``eth0`` or ``eth*`` stands for as numbers."""
    name = text.removesuffix("*").encode(errors="surrogateescape")
    first = int.from_bytes(name.ljust(NAME_BYTES, b"\0"), "big")
    free = 8 * (NAME_BYTES - len(name)) if text.endswith("*") else 0
    return first, first | ((1 << free) - 1)


def merge(ranges: Iterable[Range]) -> Union:
    """Give the union of ranges."""
    ordered = sorted(ranges)
    if len(ordered) < 2:  # noqa: PLR2004 - the usual case, and nothing to join
        return tuple(ordered)
    merged: list[Range] = []
    start, end = -2, -2
    for first, last in ordered:
        if first > end + 1:
            if end >= 0:
                merged.append((start, end))
            start, end = first, last
        elif last > end:
            end = last
    merged.append((start, end))
    return tuple(merged)


def subtract(union: Union, without: Union) -> Union:
    """Give what is in one union and not in another."""
    left: list[Range] = []
    holes = iter(without)
    hole = next(holes, None)
    for first, last in union:
        start = first
        while hole is not None and hole[1] < start:
            hole = next(holes, None)
        while hole is not None and hole[0] <= last:
            if hole[0] > start:
                left.append((start, hole[0] - 1))
            start = hole[1] + 1
            if hole[1] > last:
                break
            hole = next(holes, None)
        if start <= last:
            left.append((start, last))
    return tuple(left)


def blocks(first: int, last: int) -> Iterable[tuple[int, int]]:
    """Give the aligned blocks that a range consists of, as first number and number of free bits, in order."""
    size = last - first + 1
    if not (size & (size - 1) or first & (size - 1)):  # the usual case: a network as it was written
        return ((first, size.bit_length() - 1),)
    return _blocks(first, last)


def _blocks(first: int, last: int) -> Iterator[tuple[int, int]]:
    while first <= last:
        bits = (last - first + 1).bit_length() - 1
        if first:
            bits = min(bits, (first & -first).bit_length() - 1)
        yield first, bits
        first += 1 << bits


def atoms(items: Mapping[Item, Union]) -> list[tuple[Range, frozenset[Item]]]:
    """Cut the numbers that items cover into ranges within which the same items hold, in order."""
    edges: dict[int, tuple[list[Item], list[Item]]] = {}
    for item, union in items.items():
        for first, last in union:
            edges.setdefault(first, ([], []))[0].append(item)
            edges.setdefault(last + 1, ([], []))[1].append(item)
    cut: list[tuple[Range, frozenset[Item]]] = []
    present: frozenset[Item] = frozenset()
    start = 0
    for edge in sorted(edges):
        begin, end = edges[edge]
        following = present.difference(end).union(begin)
        if following == present:
            continue
        if present:
            cut.append(((start, edge - 1), present))
        present, start = following, edge
    return cut
