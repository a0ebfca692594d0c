# SPDX-License-Identifier: Apache-2.0
"""What is planned from what was known before is what is planned from nothing; and it is, where little changes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from itertools import permutations
from typing import TYPE_CHECKING

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from guest_agent.engines.network_port import Desired, Endpoint, Whole
from guest_agent.engines.nftables import boxes, matching, plan, revising
from guest_agent.engines.nftables.analysis import Analysis
from guest_agent.engines.nftables.ruleset import Ruleset, difference
from guest_agent.engines.nftables.steps import Sets
from hauberk.policy.rules import Action, PeerMatch, Rule, RuleSet, Section, Verdict
from tests.unit.engines.nftables.policies import GROUPS, rule, rule_sets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from guest_agent.engines.nftables.ranges import Range, Union
    from guest_agent.engines.nftables.steps import Part

SMALL = {"SHARED": 5, "SHARED_LISTS": 2, "LIST": 2, "HELD": 3, "MANY": 3, "SHARD": 4, "SPARSE": 2}


@pytest.fixture
def _small() -> Iterator[None]:
    """Parts so small that every change of their number is seen."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(boxes if hasattr(boxes, name) else matching, name, value)
        yield


def _network(number: int, length: int) -> str:
    return str(IPv4Network((0x0A000000 | number << 4, length), strict=False))


def _network6(number: int, length: int) -> str:
    return str(IPv6Network((0xFD << 120 | number << 60, length), strict=False))


networks = st.one_of(
    st.builds(_network, st.integers(0, 255), st.sampled_from((24, 25, 26, 28, 30, 32))),
    st.builds(_network, st.integers(0, 255), st.sampled_from((8, 23, 27, 32))),
    st.builds(_network6, st.integers(0, 15), st.sampled_from((8, 64, 66, 128))),
)
ports = st.one_of(
    st.just(()),
    st.sampled_from((((80, 80, "tcp"),), ((80, 90, "tcp"),), ((85, 99, "tcp"), (53, 53, "udp")), ((1, 9, "udp"),))),
    st.just(((1, 1, "tcp"), (3, 3, "tcp"), (5, 5, "tcp"))),
    st.just(((0, 65535, "tcp"),)),
)


@st.composite
def plain_rules(draw: st.DrawFn) -> Rule:
    """Draw a rule that can be revised, most times."""
    action = draw(st.sampled_from((Action.BLOCK, Action.BLOCK, Action.ALLOW, Action.AUDIT)))
    cidrs = draw(st.lists(networks, min_size=draw(st.sampled_from((0, 1, 1, 1, 1, 1, 1, 1))), max_size=4).map(tuple))
    odd = draw(st.integers(0, 30))
    interfaces = ("eth0",) if odd == 0 else ()
    exceptions = ("10.0.0.0/26",) if odd == 1 and cidrs else ()
    written = draw(ports)
    section = draw(st.sampled_from((Section.INGRESS, Section.INGRESS, Section.INGRESS, Section.EGRESS)))
    return rule(section, action, cidrs=cidrs, ports=written, interfaces=interfaces, exceptions=exceptions)


@st.composite
def successions(draw: st.DrawFn) -> list[RuleSet]:
    """Draw rule sets of which each differs from the one before by few rules or few networks."""
    rules = draw(st.lists(plain_rules(), max_size=40))
    posture = draw(st.sampled_from((Verdict.DENY, Verdict.ALLOW)))
    found = [RuleSet(tuple(rules), posture)]
    for _ in range(draw(st.integers(1, 4))):
        rules = list(rules)
        for _ in range(draw(st.integers(1, 2))):
            place = draw(st.integers(0, len(rules)))
            what = draw(st.sampled_from(("add", "remove", "extend", "reduce")))
            match = rules[place].match if place < len(rules) else None
            if what == "add" or not isinstance(match, PeerMatch):
                rules.insert(place, draw(plain_rules()))
            elif what == "remove":
                del rules[place]
            elif what == "extend":
                cidrs = (*match.cidrs, draw(networks))
                rules[place] = replace(rules[place], match=replace(match, cidrs=cidrs))
            else:
                cidrs = match.cidrs[1:]
                rules[place] = replace(rules[place], match=replace(match, cidrs=cidrs, exceptions=()))
        found.append(RuleSet(tuple(rules), posture))
    return found


def planned(rule_set: RuleSet, previous: Ruleset | None = None) -> Ruleset:
    return plan.plan(Desired((Endpoint(0, (rule_set,), Whole()),)), previous)


@pytest.mark.usefixtures("_small")
@settings(max_examples=120)
@given(successions())
def test_whatever_was_known_before_the_plan_is_the_same(found: list[RuleSet]) -> None:
    known = planned(found[0])
    for rule_set in found[1:]:
        known = planned(rule_set, known)
        alone = planned(rule_set)
        assert known.sets == alone.sets
        assert known == alone
        assert known.digest == alone.digest


_FIELDS: tuple[Part, ...] = ("address4", "protocol", "port")
_RANGES = ((5, 9), (7, 12), (20, 20), (14, 16), (30, 31))
_ported = st.lists(st.sampled_from([(6 << 16 | low, 6 << 16 | high) for low, high in _RANGES]), min_size=1, max_size=2)
_blocks = st.builds(
    lambda number, bits: (0x0A000000 | number >> bits << bits, bits),
    st.integers(0, 255),
    st.sampled_from((0, 0, 0, 1, 2, 3, 5, 8)),
)
_tables = st.dictionaries(_blocks, _ported.map(tuple), min_size=1, max_size=40)


def _built(table: boxes.Table) -> tuple[Sets, dict[Union, list[Range]]]:
    sets = Sets("s")
    listed: dict[Union, list[Range]] = defaultdict(list)
    boxes.build(table, sets, "x", _FIELDS, listed)
    return sets, listed


@pytest.mark.usefixtures("_small")
@settings(max_examples=300)
@given(_tables)
def test_boxes_and_lists_hold_what_the_table_holds(table: boxes.Table) -> None:
    sets, listed = _built(table)
    held = [key for one in sets.known.values() for key in one.elements]
    addresses = {
        edge for first, bits in table for edge in (first - 1, first, first + (1 << bits) - 1, first + (1 << bits))
    }
    for address in addresses:
        in_table = [found for (first, bits), found in table.items() if first <= address < first + (1 << bits)]
        in_lists = [where for where, found in listed.items() if any(low <= address <= high for low, high in found)]
        for port in {edge for low, high in _RANGES for edge in (low - 1, low, high, high + 1)}:
            value = 6 << 16 | port
            expected = any(low <= value <= high for found in in_table for low, high in found)
            by_box = [
                key for key in held if all(a <= b <= c for (a, c), b in zip(key, (address, 6, port), strict=True))
            ]
            by_list = any(low <= value <= high for where in in_lists for low, high in where)
            assert (bool(by_box) or by_list) == expected
            assert len(by_box) <= 1


@pytest.mark.usefixtures("_small")
@settings(max_examples=600)
@given(_tables, _tables, st.data())
def test_revised_boxes_are_those_that_are_built_anew(
    table: boxes.Table, more: boxes.Table, data: st.DataObject
) -> None:
    sets, listed = _built(table)
    most = data.draw(st.integers(0, 2))
    gone = data.draw(st.lists(st.sampled_from(sorted(table)), max_size=2, unique=True))
    without = {network: table[network][:1] for network in gone}
    added = {network: more[network] for network in sorted(more)[:most]}
    if "x" not in sets.boxes:
        assert not sets.known
        return
    revised = sets.boxes["x"].revised(sets, without, added)
    after = {network: list(found) for network, found in table.items()}
    for network, found in without.items():
        after[network].remove(found[0])
    for network, found in added.items():
        after.setdefault(network, []).extend(found)
    fresh, others = _built({network: tuple(found) for network, found in after.items() if found})
    event(f"revised: {revised is not None}")
    if revised is not None:
        assert {**sets.known, **revised[1]} == fresh.known
        assert revised[0] == fresh.boxes["x"]
        assert listed == others


def _many(count: int) -> tuple[Rule, ...]:
    return tuple(
        rule(
            Section.INGRESS,
            Action.BLOCK,
            cidrs=(f"10.{number >> 8}.{number & 255}.0/25",),
            ports=((1000 + number, 1003 + number, "tcp"),),
        )
        for number in range(count)
    )


LISTED = tuple(f"10.{number >> 8}.{number & 255}.0/25" for number in range(3000))
RULES = _many(3000)
ADDED = rule(Section.INGRESS, Action.BLOCK, cidrs=("10.9.9.128/26",), ports=((7, 7, "tcp"),))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (RULES, (*RULES, ADDED)),
        (RULES, (RULES[0], ADDED, *RULES[1:])),
        (RULES, (ADDED, *RULES[1:])),
        (RULES, RULES[:1000] + RULES[1001:]),
        *(
            (
                (rule(Section.INGRESS, Action.BLOCK, cidrs=LISTED, ports=written),),
                (rule(Section.INGRESS, Action.BLOCK, cidrs=(*LISTED[1:], "10.9.9.128/26"), ports=written),),
            )
            for written in ((), ((80, 80, "tcp"),))
        ),
    ],
)
def test_few_networks_among_thousands_are_not_a_new_analysis(
    before: tuple[Rule, ...], after: tuple[Rule, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = planned(RuleSet(before))
    alone = planned(RuleSet(after))
    monkeypatch.delattr(plan, "analyse")
    revised = planned(RuleSet(after), known)
    assert revised == alone
    changes = difference(known, revised)
    assert changes is not None
    assert sum(len(change.added) + len(change.removed) for change in changes) in {1, 2}
    assert sum(one is not known.sets[name] for name, one in revised.sets.items()) == len(changes)


@pytest.mark.parametrize(
    "after",
    [
        RuleSet(RULES[:-65]),
        RuleSet(RULES, Verdict.AUDIT),
        RuleSet((*RULES, replace(ADDED, match=PeerMatch(cidrs=LISTED[:70], ports=((7, 7, "tcp"),))))),
        RuleSet((*RULES, replace(ADDED, match=PeerMatch(cidrs=("10.0.0.0/8",), ports=((7, 7, "tcp"),))))),
        RuleSet((*RULES, replace(ADDED, match=PeerMatch(cidrs=LISTED[:1], quota=(5, 5, "pod"))))),
        RuleSet((*RULES, replace(ADDED, action=Action.ALLOW))),
        RuleSet((*RULES, replace(ADDED, match=PeerMatch(cidrs=LISTED[:1], icmp=((4, 8),))))),
    ],
)
def test_what_is_not_so_easy_is_left_to_the_whole(after: RuleSet) -> None:
    held = planned(RuleSet(RULES)).analyses["sw0.0i"]
    assert isinstance(held, Analysis)
    assert revising.revise(held, after, Section.INGRESS) is None


def test_networks_whose_ports_go_with_any_address_are_not_looked_up_after_a_change_either() -> None:
    before = (*RULES, rule(Section.INGRESS, Action.BLOCK, ports=((7, 7, "tcp"),)))
    known = planned(RuleSet(before))
    after = RuleSet((*before, ADDED))
    assert planned(after, known) == planned(after)


def test_which_lists_of_ports_have_sets_of_their_own_is_decided_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "SHARED_LISTS", 1)

    def lists(first: int) -> RuleSet:
        return RuleSet(
            tuple(
                rule(Section.INGRESS, Action.BLOCK, cidrs=LISTED[start:end], ports=((port, port, "tcp"),))
                for start, end, port in ((0, first, 80), (1000, 1070, 81))
            )
        )

    known = planned(lists(80))
    for count in (75, 68):
        assert planned(lists(count), known) == planned(lists(count))


def test_step_by_step_networks_come_to_have_a_set_of_their_own_and_lose_it() -> None:
    def listed(count: int) -> RuleSet:
        own = (rule(Section.INGRESS, Action.BLOCK, cidrs=(cidr,), ports=((80, 80, "tcp"),)) for cidr in LISTED[:count])
        return RuleSet((*RULES[:300], *own))

    known = planned(listed(60))
    for count in (62, 63, 65, 66, 64, 63, 61):
        known = planned(listed(count), known)
        assert known == planned(listed(count))


@settings(max_examples=60)
@given(rule_sets(8, quotas=False), st.randoms(use_true_random=False))
def test_the_order_of_rules_decides_nothing(rule_set: RuleSet, random: Random) -> None:
    turned = list(rule_set.rules)
    random.shuffle(turned)
    assert planned(replace(rule_set, rules=tuple(turned))) == planned(rule_set)


def test_the_order_of_rules_that_hold_the_same_ports_decides_nothing() -> None:
    rules = [
        rule(Section.EGRESS, Action.ALLOW, groups=(group,), ports=((low, low + 9, "tcp"), (low, low, "udp")))
        for group, low in zip(GROUPS[:3], (80, 85, 82), strict=True)
    ]
    known = dict.fromkeys(GROUPS[:3], (("10.0.0.1", None),))
    first, *others = (
        plan.plan(Desired((Endpoint(0, (RuleSet(tuple(found)),), Whole()),), groups=known))
        for found in permutations(rules)
    )
    assert all(other == first for other in others)
