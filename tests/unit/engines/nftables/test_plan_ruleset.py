# SPDX-License-Identifier: Apache-2.0
"""A ruleset as data: marks of log prefixes, commands, digests, differences."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.engines.nftables import protocols
from guest_agent.engines.nftables.ruleset import Chain, LogMark, Quota, Reason, Rule, Ruleset, Set, difference
from hauberk.policy.rules import Section

MARKS = st.builds(
    LogMark,
    st.integers(0, 2**32 - 1),
    st.sampled_from((Section.INGRESS, Section.EGRESS)),
    st.sampled_from(("audit", "deny")),
    st.sampled_from(get_args(Reason)),
)
KEY = ((1, 2),)


@given(MARKS)
def test_a_log_prefix_says_what_was_marked_and_fits(mark: LogMark) -> None:
    assert LogMark.read(mark.text()) == mark
    assert len(mark.text()) <= 30


@pytest.mark.parametrize(
    "text",
    ["", "hb", "hb 2a", "hb 2a id", "hb 2a xdr", "hb g idr", "hb 02a idr", "hb 2A idr", "xx 2a idr", "hb -1 idr "],
)
def test_other_peoples_prefixes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="found the log prefix"):
        LogMark.read(text)


@given(st.text())
def test_no_prefix_is_read_as_another(text: str) -> None:
    try:
        mark = LogMark.read(text)
    except ValueError:
        return
    assert mark.text() == text


def small(**changes: object) -> Ruleset:
    parts: dict[str, object] = {
        "chains": (Chain("c.input", "input"), Chain("d")),
        "rules": (Rule("c.input", ({"quota": "q1"}, {"goto": {"target": "d"}})), Rule("d", ({"drop": None},))),
        "sets": {
            "m": Set("m", ("ipv4_addr",), interval=True, verdicts=True,
                     elements={KEY: ("drop",), ((4, 4),): ("accept",)}),
            "s": Set("s", ("ipv4_addr",), interval=True, timeout=True, elements={KEY: None, ((9, 9),): None},
                     timeouts={((9, 9),): 30}),
        },
        "quotas": {"q1": Quota("q1", 100, 60, None, Section.EGRESS, "p")},
    }  # fmt: skip
    return Ruleset(**(parts | changes))  # type: ignore[arg-type]


def test_commands_name_nothing_before_it_is_there() -> None:
    there: set[str] = set()
    for command in small().commands():
        ((kind, body),) = command["add"].items()
        if kind == "rule":
            assert body["chain"] in there
            assert {"q1", "d"} <= there
        else:
            there.add(body["name"])
    assert there == {"c.input", "d", "m", "s", "q1"}
    assert small().rules_of("d") == [Rule("d", ({"drop": None},))]
    assert small().rules_of("nothing") == ()


def test_digests_do_not_depend_on_an_order_or_on_what_ends_by_itself() -> None:
    base = small()
    sets = dict(base.sets)
    turned = replace(sets["m"], elements=dict(reversed(list(sets["m"].elements.items()))))
    ended = replace(sets["s"], elements={KEY: None}, timeouts={})
    assert small(sets={"s": ended, "m": turned}).digest != base.digest  # the order of sets is of the structure
    assert small(sets={"m": turned, "s": ended}).digest == base.digest
    other = replace(sets["m"], elements={KEY: ("accept",), ((4, 4),): ("accept",)})
    assert small(sets={"m": other, "s": sets["s"]}).digest != base.digest
    assert small(sets={"m": other, "s": sets["s"]}).structure_digest == base.structure_digest
    assert small(chains=()).structure_digest != base.structure_digest


def test_a_difference_is_of_elements_alone() -> None:
    base = small()
    assert difference(base, base) == ()
    assert difference(base, small()) == ()
    assert difference(base, small(chains=())) is None
    sets = dict(base.sets)
    sets["m"] = replace(sets["m"], elements={KEY: ("accept",), ((5, 5),): ("drop",)})
    sets["s"] = replace(sets["s"], elements={KEY: None, ((9, 9),): None}, timeouts={((9, 9),): 60})
    changes = difference(base, small(sets=sets))
    assert changes is not None
    by_name = {change.set.name: change for change in changes}
    assert by_name["m"].removed == (KEY, ((4, 4),))
    assert by_name["m"].added == {KEY: ("accept",), ((5, 5),): ("drop",)}
    assert by_name["s"].removed == (((9, 9),),)
    assert by_name["s"].added == {((9, 9),): None}
    assert by_name["s"].timeouts == {((9, 9),): 60}


def test_a_quota_tells_its_usage() -> None:
    usage = Quota("q1", 100, 60, 7, Section.EGRESS, "p").usage(40)
    assert (usage.name, usage.endpoint, usage.used_bytes, usage.limit_bytes, usage.seconds) == ("q1", 7, 40, 100, 60)


def test_protocols_by_name_and_number() -> None:
    assert all(protocols.name(protocols.number(name)) == name for name in protocols.NUMBERS)
    assert protocols.number("89") == 89
    assert protocols.name(89) == "89"
    for text in ("256", "x", "", "-1", "٣"):
        with pytest.raises(ValueError, match="found the protocol"):
            protocols.number(text)
