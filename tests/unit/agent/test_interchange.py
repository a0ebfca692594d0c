# SPDX-License-Identifier: Apache-2.0
"""Rules between processes: they come back as they went, or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.workloads.interchange import rule_from_json, rule_set_from_json, rule_set_to_json, rule_to_json
from hauberk.policy.rules import Action, ObjectKind, Origin, Rule, RuleSet, Section, SyscallMatch, Verdict
from tests.unit.policy.normal_forms import rules

RULE_SETS = st.builds(
    RuleSet,
    st.lists(rules, max_size=3).map(tuple),
    st.sampled_from(Verdict),
    st.lists(st.tuples(st.sampled_from(Section), st.sampled_from(Verdict)), max_size=2).map(tuple),
)
RULE = Rule(
    Section.FILE,
    ObjectKind.PATH,
    "/x",
    Action.ALLOW,
    Origin("p", "spec.file.matchPaths[0]", "p.yaml", 3, 5),
    match=SyscallMatch(("unlink",), "/x", recursive=True, source_directories=(("/bin/", False),)),
)
FIELDS = len(rule_to_json(RULE))


@given(RULE_SETS)
def test_rules_come_back_as_they_went(rule_set: RuleSet) -> None:
    text = json.dumps(rule_set_to_json(rule_set))
    read = rule_set_from_json(json.loads(text))
    assert read == rule_set
    assert json.dumps(rule_set_to_json(read)) == text


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"rules": [], "posture": 1},
        {"rules": {}, "posture": 1, "postures": []},
        {"rules": [], "posture": 9, "postures": []},
        {"rules": [], "posture": True, "postures": []},
        {"rules": [], "posture": 1, "postures": [["file"]]},
        {"rules": [], "posture": 1, "postures": [["files", 1]]},
        {"rules": [], "posture": 1, "postures": [], "more": 1},
    ],
)
def test_what_is_no_rule_set_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"found|is not a valid"):
        rule_set_from_json(value)


FREE_TO_BE_NONE = (15, 16, 17)


@pytest.mark.parametrize("wrong", [None, 7, "abc", {"a": 1}, [1], 1.5, True])
@pytest.mark.parametrize("position", range(FIELDS))
def test_a_field_of_another_type_is_refused(position: int, wrong: object) -> None:
    fields = rule_to_json(RULE)
    if type(wrong) is type(fields[position]) or (wrong is None and position in FREE_TO_BE_NONE):
        wrong = {"b": 2}
    if position in (5, 6, 7, 13, 15, 17) and wrong is True:
        wrong = 1
    if position in (0, 1, 3) and isinstance(fields[position], str):
        wrong = "no such word"
    if position in (8, 10, 12, 14):
        wrong = [1]
    if position == 4:
        wrong = ["p", "f", "", True, 1]
    fields[position] = wrong
    with pytest.raises(ValueError, match=r"found|is not a valid"):
        rule_from_json(fields)


@pytest.mark.parametrize(
    "match",
    [
        ["device", "8", None, None, None],
        ["device", 8, None, None],
        ["device", True, None, None, None],
        ["peer", ["10.0.0.0/8"], [], [], [], [[1, 2]], [], None, False],
        ["peer", ["10.0.0.0/8"], [], [], [], [["1", 2, "tcp"]], [], None, False],
        ["peer", [], [], [], [], [], [], [1, 2], False],
        ["peer", [7], [], [], [], [], [], None, False],
        ["peer", [], [], [], [], [], [], None, 0],
        ["peer", [], [], [], [], [], [], None],
        ["peer", [], [], [], [], [], [[4]], None, False],
        ["peer", [], [], [], [], [], [["4", None]], None, False],
        ["peer", [], ["10.0.0.0/8"], [], [], [], [], None, False],
        ["peer", [], [], [["address", "x", None]], [], [], [], None, False],
        ["peer", [], [], [["name", 7, None]], [], [], [], None, False],
        ["peer", [], [], [["workloads", "x", [[], None]]], [], [], [], None, False],
        ["peer", [], [], [["workloads", "x", [[["app", "is", []]], None, []]]], [], [], [], None, False],
        ["peer", [], [], [["workloads", "x", [[["app", "In", "web"]], None, []]]], [], [], [], None, False],
        ["syscall", ["unlink"], None, 1, []],
        ["syscall", ["unlink"], 7, False, []],
        ["syscall", ["unlink"], None, False, [["/bin/"]]],
        ["syscall", ["unlink"], None, False, [["/bin/", 1]]],
        ["other", 1, 2, 3, 4],
        ["peer"],
        "peer",
    ],
)
def test_a_match_of_another_shape_is_refused(match: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"found"):
        rule_from_json([*rule_to_json(RULE)[:16], match, None])


def test_a_rule_has_all_its_fields() -> None:
    for fields in (rule_to_json(RULE)[:-1], [*rule_to_json(RULE), 0], "rule", None):
        with pytest.raises(ValueError, match=f"array of {FIELDS} fields"):
            rule_from_json(fields)
    for origin in (["p", "f", "", 1], ["p", "f", "", True, 1], ["p", "f", "", "1", 1]):
        with pytest.raises(ValueError, match="found"):
            rule_from_json([*rule_to_json(RULE)[:4], origin, *rule_to_json(RULE)[5:]])
