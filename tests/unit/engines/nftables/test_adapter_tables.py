# SPDX-License-Identifier: Apache-2.0
"""Bytes of netlink and the way from one table to another, without a kernel."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.engines.nftables import engine_reconcile, netlink
from guest_agent.engines.nftables import netlink_table as kernel
from guest_agent.engines.nftables.engine_elements import elements, encode
from guest_agent.engines.nftables.engine_reconcile import Change, differs, reconcile, with_usage
from guest_agent.engines.nftables.netlink import MalformedError
from guest_agent.engines.nftables.netlink_table import Chain, Quota, Set, Table
from guest_agent.engines.nftables.ruleset import Set as Described

NAMES = st.sampled_from(["a", "b", "c"])
HASH, TREE, BOXES = (netlink.u32(3, flags) for flags in (0, 4, 0x84))
KEYS = st.integers(0, 9).map(lambda number: kernel.element(struct.pack(">I", number)))


# ---- netlink ---------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.integers(1, 100), st.binary(max_size=50)))
def test_attributes_come_back(parts: dict[int, bytes]) -> None:
    data = b"".join(netlink.attribute(kind, payload) for kind, payload in parts.items())
    assert len(data) % 4 == 0
    assert netlink.attributes(data) == parts


@given(st.binary(max_size=100))
def test_reading_attributes_and_messages_is_total(data: bytes) -> None:
    for read in (netlink.walk, netlink.decode):
        found: list[object] = []
        with contextlib.suppress(MalformedError):
            found.extend(read(data))
        assert len(found) <= 1 + len(data) // 4


def test_an_attribute_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="less than 64 KiB"):
        netlink.attribute(1, b"x" * 65536)


@given(st.lists(st.binary(min_size=1, max_size=40)), st.integers(1, 100))
def test_pieces_hold_everything_in_order(items: list[bytes], limit: int) -> None:
    pieces = list(netlink.split(items, limit))
    assert b"".join(pieces) == b"".join(items)
    assert all(len(piece) <= max(limit, *map(len, items)) for piece in pieces)


def test_a_message_comes_back() -> None:
    made = netlink.netfilter(10, 3, 1, netlink.text(1, "name"), resource=7)
    ((found, flags, sequence),) = netlink.decode(netlink.encode(made, 9, 4))
    assert (found.kind, flags, sequence) == (10 << 8 | 3, 5, 9)
    assert netlink.read_text(netlink.netfilter_attributes(found)[1]) == "name"


# ---- elements --------------------------------------------------------------------------------------------------------


def values(encoded: bytes) -> tuple[bytes, bytes | None]:
    read = netlink.attributes(encoded)
    end = netlink.attributes(read[10])[1] if 10 in read else None
    return netlink.attributes(read[1])[1], end


def test_fields_of_a_concatenation_fill_whole_words() -> None:
    key = ((0x0A000000, 0x0A0000FF), (6, 6), (80, 90))
    (encoded,) = encode(Described("s", ("ipv4_addr", "inet_proto", "inet_service"), interval=True), {key: None})
    first, last = values(encoded)
    assert first == bytes([10, 0, 0, 0, 6, 0, 0, 0, 0, 80, 0, 0])
    assert last == bytes([10, 0, 0, 255, 6, 0, 0, 0, 0, 90, 0, 0])


def test_an_interval_ends_behind_its_last_address() -> None:
    described = Described("s", ("inet_service",), interval=True)
    (inner,) = encode(described, {((80, 90),): None})
    assert values(inner) == (b"\0\x50", b"\0\x5b")
    (outer,) = encode(described, {((80, 65535),): None})
    assert values(outer) == (b"\0\x50", None)


def test_a_cgroup_is_a_number_in_the_machines_order() -> None:
    described = Described("m", ("cgroupsv2",), verdicts=True)
    (encoded,) = encode(described, {((4711, 4711),): ("jump", "c")})
    assert values(encoded)[0] == struct.pack("=Q", 4711)
    verdict = netlink.attributes(netlink.attributes(netlink.attributes(encoded)[2])[2])
    assert verdict == {1: struct.pack(">i", -3), 2: b"c\0"}


def test_what_has_a_time_is_kept_apart() -> None:
    stays, ends = ((1, 1),), ((2, 2),)
    described = Described("s", ("ipv4_addr",), timeout=True, elements={stays: None, ends: None}, timeouts={ends: 7})
    lasting, timed = elements(described)
    assert [values(one)[0] for one in lasting] == [b"\0\0\0\1"]
    assert {values(one)[0]: time for one, time in timed.items()} == {b"\0\0\0\2": 7000}


# ---- from one table to another -----------------------------------------------------------------------------------


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Draw a table; a definition tells what a chain or set is."""
    chains = draw(
        st.dictionaries(
            NAMES,
            st.builds(
                Chain, st.sampled_from([b"", b"hook"]), st.lists(st.sampled_from([b"r", b"s"]), max_size=3).map(tuple)
            ),
            max_size=3,
        )
    )
    some = st.builds(
        Set,
        st.sampled_from([HASH, TREE, BOXES]),
        st.frozensets(KEYS, max_size=5),
        st.dictionaries(KEYS, st.integers(1, 99999), max_size=2),
    )
    sets = {
        name: replace(one, elements=one.elements - one.timed.keys())
        for name, one in draw(st.dictionaries(NAMES, some, max_size=3)).items()
    }
    quota = st.builds(Quota, st.sampled_from([10, 20]), st.booleans(), st.integers(0, 9))
    return Table(chains, sets, draw(st.dictionaries(NAMES, quota, max_size=2)), draw(st.sampled_from([0, 0, 0, 1])))


@given(tables())
def test_what_is_the_same_needs_nothing(table: Table) -> None:
    change = reconcile(table, table)
    assert change == Change("nothing")
    assert differs(table, table) == ""


@given(tables(), tables())
def test_whatever_differs_needs_something(held: Table, wanted: Table) -> None:
    change = reconcile(held, wanted)
    if differs(held, wanted):
        assert change.steps
    if change.kind == "elements":
        assert (held.chains, held.quotas.keys(), held.sets.keys(), held.flags) == (
            wanted.chains, wanted.quotas.keys(), wanted.sets.keys(), wanted.flags,
        )  # fmt: skip
        assert {step.message.kind & 0xFF for step in change.steps} <= {kernel.NEW_ELEMENTS, kernel.DELETE_ELEMENTS}


@given(tables() | st.none(), tables())
def test_removals_come_before_additions_and_rules_last(held: Table | None, wanted: Table) -> None:
    order = [
        kernel.NEW_TABLE, kernel.DELETE_RULE, kernel.DELETE_ELEMENTS, kernel.DELETE_SET, kernel.DELETE_CHAIN,
        kernel.DELETE_OBJECT, kernel.NEW_OBJECT, kernel.NEW_CHAIN, kernel.NEW_SET, kernel.NEW_ELEMENTS, kernel.NEW_RULE,
    ]  # fmt: skip
    places = [order.index(step.message.kind & 0xFF) for step in reconcile(held, wanted).steps]
    assert places == sorted(places)
    assert held is not None or places[0] == 0


@given(tables(), tables())
def test_usage_is_never_sent_for_a_quota_that_stays(held: Table, wanted: Table) -> None:
    for step in reconcile(held, with_usage(wanted, {})).steps:
        if step.message.kind & 0xFF == kernel.NEW_OBJECT:
            name = netlink.read_text(netlink.netfilter_attributes(step.message)[2])
            found, expected = held.quotas.get(name), wanted.quotas[name]
            assert found is None or (found.limit, found.over) != (expected.limit, expected.over)


def test_a_table_that_is_made_anew_goes_on_counting() -> None:
    wanted = Table(quotas={"q": Quota(10, over=True), "new": Quota(5, over=True)})
    after = with_usage(wanted, {"q": Quota(20, over=True, used=7)})
    assert after.quotas == {"q": Quota(10, over=True, used=7), "new": Quota(5, over=True)}


def test_many_that_go_from_concatenated_intervals_are_a_new_set() -> None:
    keys = [kernel.element(struct.pack(">I", number)) for number in range(10)]
    one, other = (
        Table(sets={"s": Set(BOXES, frozenset(keys))}, chains={"c": Chain(b"hook", (b"r",))}),
        Table(sets={"s": Set(BOXES, frozenset(keys[:5]))}, chains={"c": Chain(b"hook", (b"r",))}),
    )
    change = reconcile(one, other)
    assert change.kind == "table"
    assert [step.what for step in change.steps] == [
        "the rules of chain c", "set s", "set s", "elements of set s", "rule 1 of chain c",
    ]  # fmt: skip
    one, other = (replace(table, sets={"s": replace(table.sets["s"], definition=TREE)}) for table in (one, other))
    assert reconcile(one, other).kind == "elements"


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (None, "the table was deleted"),
        (Table(flags=1), "the table has the flags 1"),
        (Table({"c": Chain(b"")}), "chain c was added"),
        (Table(sets={"s": Set(HASH)}), "set s was added"),
        (Table(quotas={"q": Quota(1, over=True)}), "quota q was added"),
    ],
)
def test_differences_are_said(held: Table | None, said: str) -> None:
    assert differs(held, Table()) == said


def test_differences_of_what_was_there() -> None:
    key = kernel.element(b"\0\0\0\1")
    wanted = Table({"c": Chain(b"", (b"r",))}, {"s": Set(HASH, frozenset([key])), "t": Set(HASH, timed={key: 5000})})
    assert differs(replace(wanted, chains={"c": Chain(b"")}), wanted) == "chain c was changed"
    assert differs(replace(wanted, chains={}), wanted) == "chain c was deleted"
    gone = {**wanted.sets, "s": Set(HASH)}
    assert differs(replace(wanted, sets=gone), wanted) == "elements of set s were changed"
    ended = {**wanted.sets, "t": Set(HASH)}
    assert differs(replace(wanted, sets=ended), wanted) == ""
    other = {**wanted.sets, "t": Set(HASH, timed={kernel.element(b"\0\0\0\2"): 5000})}
    assert differs(replace(wanted, sets=other), wanted) == "elements of set t were changed"
    turned = {**wanted.sets, "s": Set(TREE, frozenset([key]))}
    assert differs(replace(wanted, sets=turned), wanted) == "set s was changed"


def test_members_keep_their_time_unless_it_is_another() -> None:
    one, two, three, four = (kernel.element(bytes([0, 0, 0, number])) for number in range(4))
    held = Set(HASH, frozenset([one]), {two: 10_000, three: 10_000})
    steps = engine_reconcile.members(held, {one: 0, two: 10_500, three: 60_000, four: 0}, "s")
    counts = [(step.message.kind & 0xFF, _count(step.message)) for step in steps]
    assert counts == [(kernel.DELETE_ELEMENTS, 1), (kernel.NEW_ELEMENTS, 2)]


def _count(message: netlink.Message) -> int:
    """Give how many elements a message has."""
    return len(list(netlink.walk(netlink.netfilter_attributes(message)[3])))


@given(st.frozensets(KEYS, max_size=9), st.frozensets(KEYS, max_size=9))
def test_a_sum_follows_what_comes_and_goes(one: frozenset[bytes], other: frozenset[bytes]) -> None:
    total = kernel.element_sum(one)
    assert kernel.changed_sum(total, one - other, other - one) == kernel.element_sum(other)
    assert (kernel.element_sum(one) == kernel.element_sum(other)) == (one == other)


@given(tables(), tables())
def test_digests_tell_tables_apart(one: Table, other: Table) -> None:
    lasting = [
        (
            table.chains,
            {name: (found.definition, found.elements) for name, found in table.sets.items()},
            {name: (quota.limit, quota.over) for name, quota in table.quotas.items()},
            table.flags,
        )
        for table in (one, other)
    ]
    assert (one.digest() == other.digest()) == (lasting[0] == lasting[1])
