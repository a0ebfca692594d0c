# SPDX-License-Identifier: Apache-2.0
"""Ranges of numbers against plain sets of numbers."""

from __future__ import annotations

import ipaddress
import itertools

from hypothesis import given
from hypothesis import strategies as st

from guest_agent.engines.nftables import ranges

some = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda one: (one[0], one[0] + one[1])), max_size=8
)


def numbers(found: object) -> set[int]:
    return {number for first, last in found for number in range(first, last + 1)}  # type: ignore[attr-defined]


def apart(union: ranges.Union) -> bool:
    return all(before[1] + 1 < after[0] for before, after in itertools.pairwise(union))


@given(some)
def test_a_union_holds_the_same_numbers_in_ranges_apart(found: list[ranges.Range]) -> None:
    union = ranges.merge(found)
    assert numbers(union) == numbers(found)
    assert apart(union)
    assert ranges.merge(reversed(union)) == union


@given(some, some)
def test_subtracting_leaves_what_only_the_first_holds(first: list[ranges.Range], second: list[ranges.Range]) -> None:
    left = ranges.subtract(ranges.merge(first), ranges.merge(second))
    assert numbers(left) == numbers(first) - numbers(second)
    assert apart(left)


@given(st.integers(0, 300), st.integers(0, 300))
def test_blocks_are_networks_and_hold_the_range(first: int, size: int) -> None:
    found = list(ranges.blocks(first, first + size))
    assert numbers((start, start + (1 << bits) - 1) for start, bits in found) == set(range(first, first + size + 1))
    assert sum(1 << bits for _, bits in found) == size + 1
    assert all(start % (1 << bits) == 0 for start, bits in found)


@given(st.dictionaries(st.integers(0, 5), some.map(ranges.merge)))
def test_atoms_say_which_items_hold_where(items: dict[int, ranges.Union]) -> None:
    atoms = ranges.atoms(items)
    told = {number: present for (first, last), present in atoms for number in range(first, last + 1)}
    expected: dict[int, set[int]] = {}
    for item, union in items.items():
        for number in numbers(union):
            expected.setdefault(number, set()).add(item)
    assert told == expected
    assert [one for one, _ in atoms] == sorted(one for one, _ in atoms)


@given(st.ip_addresses().flatmap(lambda one: st.tuples(st.just(one), st.integers(0, one.max_prefixlen))))
def test_networks_as_the_standard_library_reads_them(
    drawn: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int],
) -> None:
    network = ipaddress.ip_network(drawn, strict=False)
    expected = (network.version, int(network.network_address), int(network.broadcast_address))
    assert ranges.network(str(network)) == expected
    assert ranges.network(str(drawn[0]))[1:] == (int(drawn[0]), int(drawn[0]))


def test_names_of_interfaces_are_sixteen_bytes_with_zeros_behind() -> None:
    assert ranges.interface("eth0") == (int.from_bytes(b"eth0" + bytes(12), "big"),) * 2
    first, last = ranges.interface("eth*")
    assert first <= ranges.interface("eth")[0] <= ranges.interface("eth0123456789ab")[0] <= last
    assert not first <= ranges.interface("etg9")[0] <= last
    assert not first <= ranges.interface("eti")[0] <= last
    assert ranges.interface("*") == (0, (1 << 128) - 1)
