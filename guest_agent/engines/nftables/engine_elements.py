# SPDX-License-Identifier: Apache-2.0
"""Elements of sets: from the numbers of a plan to the bytes that the kernel compares with packets. Pure.

A set of intervals of one field holds, for each, where it starts and where it is over; a set of concatenated ones holds
both ends in one element. Fields of a concatenation fill whole 32-bit registers, with zeros behind them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from guest_agent.engines.nftables import netlink_table as kernel
from guest_agent.engines.nftables.ruleset import WIDTHS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from guest_agent.engines.nftables.ruleset import FieldType, Key, Set, Verdict

_HOST_ORDER: Final = frozenset({"cgroupsv2"})
_Encoding = tuple[tuple[int, str, bytes], ...]  # for each field: bytes, order, padding


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
    encoding = _encoding(described.fields)
    plain = described.interval and len(described.fields) == 1
    encoded: dict[bytes, int] = {}
    for key, verdict in chosen.items():
        time = times.get(key, 0)
        first = _bytes(encoding, (part[0] for part in key))
        words = verdict or (None,)
        target = words[1] if len(words) > 1 else ""
        if plain:
            beyond = key[0][1] + 1
            last = _bytes(encoding, (beyond,)) if beyond < 1 << WIDTHS[described.fields[0]] else None
        else:
            last = _bytes(encoding, (part[1] for part in key)) if described.interval else None
        encoded[kernel.element(first, last, words[0], target or "")] = time
    return encoded


def _encoding(fields: tuple[FieldType, ...]) -> _Encoding:
    order = sys.byteorder
    sizes = [(WIDTHS[field] // 8, order if field in _HOST_ORDER else "big") for field in fields]
    padded = len(fields) > 1
    return tuple((size, name, b"\0" * (-size % 4) if padded else b"") for size, name in sizes)


def _bytes(encoding: _Encoding, numbers: Iterable[int]) -> bytes:
    return b"".join(
        number.to_bytes(size, "little" if order == "little" else "big") + padding
        for number, (size, order, padding) in zip(numbers, encoding, strict=True)
    )
