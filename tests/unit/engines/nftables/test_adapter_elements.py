# SPDX-License-Identifier: Apache-2.0
"""Elements of sets as the kernel takes them: made from frames, they are what they are attribute by attribute."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from guest_agent.engines.nftables import netlink_table as kernel
from guest_agent.engines.nftables.engine_elements import elements, encode
from guest_agent.engines.nftables.ruleset import WIDTHS, Set

if TYPE_CHECKING:
    from guest_agent.engines.nftables.ruleset import FieldType, Key, Verdict

VERDICTS: tuple[Verdict, ...] = (("accept",), ("drop",), ("jump", "c1"), ("goto", "w7.0i"))


@st.composite
def sets(draw: st.DrawFn) -> Set:
    fields: tuple[FieldType, ...] = tuple(draw(st.lists(st.sampled_from([*WIDTHS]), min_size=1, max_size=3)))
    if len(fields) > 1:
        fields = tuple(field for field in fields if field != "cgroupsv2") or ("ifname",)
    interval = draw(st.booleans())
    verdicts = draw(st.booleans())
    ranges = []
    for field in fields:
        ends = st.sampled_from((0, 1, 2 ** WIDTHS[field] - 1)) | st.integers(0, 2 ** WIDTHS[field] - 1)
        pairs = st.tuples(ends, ends) if interval else ends.map(lambda one: (one, one))
        ranges.append(pairs.map(lambda pair: (min(pair), max(pair))))
    keys = st.tuples(*ranges)
    values = st.sampled_from(VERDICTS) if verdicts else st.none()
    held: dict[Key, Verdict | None] = draw(st.dictionaries(keys, values, max_size=5))
    timed = draw(st.sets(st.sampled_from([*held]))) if held else set()
    timeouts = {key: draw(st.integers(1, 1000)) for key in sorted(timed)}
    return Set("s", fields, interval, bool(timeouts), verdicts, held, timeouts)


def attribute_by_attribute(described: Set, key: Key, verdict: Verdict | None) -> bytes:
    several = len(described.fields) > 1

    def octets(numbers: list[int]) -> bytes:
        made = b""
        for number, field in zip(numbers, described.fields, strict=True):
            size = WIDTHS[field] // 8
            here = field == "cgroupsv2"
            made += number.to_bytes(size, sys.byteorder if here else "big") + bytes(-size % 4 if several else 0)
        return made

    first = octets([low for low, _ in key])
    last: bytes | None = None
    if described.interval and several:
        last = octets([high for _, high in key])
    elif described.interval and key[0][1] + 1 < 2 ** WIDTHS[described.fields[0]]:
        last = octets([key[0][1] + 1])
    return kernel.element(first, last, *(verdict or ()))


@given(sets())
def test_elements_are_what_they_are_attribute_by_attribute(described: Set) -> None:
    expected = {attribute_by_attribute(described, key, verdict): key for key, verdict in described.elements.items()}
    assert encode(described, described.elements) == dict.fromkeys(expected, 0)
    stay, end = elements(described)
    assert stay == {encoded for encoded, key in expected.items() if key not in described.timeouts}
    assert end == {
        encoded: 1000 * described.timeouts[key] for encoded, key in expected.items() if key in described.timeouts
    }
