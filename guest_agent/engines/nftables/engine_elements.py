# SPDX-License-Identifier: Apache-2.0
"""Elements of sets: from the numbers of a plan to the bytes that the kernel compares with packets. Pure.

A set of intervals of one field holds, for each, where it starts and where it is over; a set of concatenated ones holds
both ends in one element. Fields of a concatenation fill whole 32-bit registers, with zeros behind them.
"""

from __future__ import annotations

import sys
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal

from guest_agent.engines.nftables import netlink_table as kernel
from guest_agent.engines.nftables.ruleset import WIDTHS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guest_agent.engines.nftables.ruleset import FieldType, Key, Set, Verdict

_HOST_ORDER: Final = frozenset({"cgroupsv2"})


def elements(described: Set) -> tuple[frozenset[bytes], dict[bytes, int]]:
    """Give a set's elements: those that stay, and those that end with their time in milliseconds."""
    stay = {key: verdict for key, verdict in described.elements.items() if key not in described.timeouts}
    end = {key: 1000 * seconds for key, seconds in described.timeouts.items()}
    return frozenset(encode(described, stay)), encode(described, {key: described.elements[key] for key in end}, end)


def encode(
    described: Set, chosen: Mapping[Key, Verdict | None], milliseconds: Mapping[Key, int] | None = None
) -> dict[bytes, int]:
    """Encode some elements of a set, each with its time (0: it stays)."""
    times = milliseconds or {}
    fields = described.fields
    order, size, shifts = _layout(fields)
    # What surrounds the numbers of an element is the same throughout the set: it is made once, not for each.
    before_key, before_end, behind = kernel.frames(size)
    data = {verdict: kernel.mapped(*verdict) if verdict else b"" for verdict in {*chosen.values()}}
    last_of_all = (1 << WIDTHS[fields[0]]) - 1
    plain = described.interval and len(fields) == 1
    encoded: dict[bytes, int] = {}
    for key, verdict in chosen.items():
        first = last = 0
        for (low, high), shift in zip(key, shifts, strict=True):
            first |= low << shift
            last |= high << shift
        if plain:
            last = last + 1 if last < last_of_all else first
        made = before_key + first.to_bytes(size, order) + behind + data[verdict]
        if described.interval and last != first:
            made += before_end + last.to_bytes(size, order) + behind
        encoded[made] = times.get(key, 0)
    return encoded


def _layout(fields: tuple[FieldType, ...]) -> tuple[Literal["little", "big"], int, list[int]]:
    """Give the order of the bytes of a key, how many there are, and how far from its end each field stands, in bits."""
    if len(fields) == 1:
        return sys.byteorder if fields[0] in _HOST_ORDER else "big", WIDTHS[fields[0]] // 8, [0]
    registers = [-(-WIDTHS[field] // 32) * 32 for field in fields]
    ends = list(accumulate(registers))
    shifts = [
        ends[-1] - end + register - WIDTHS[field] for field, register, end in zip(fields, registers, ends, strict=True)
    ]
    return "big", ends[-1] // 8, shifts
