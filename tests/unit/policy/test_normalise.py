# SPDX-License-Identifier: Apache-2.0
"""Policies become rules: inheritance, origins, and which rules a workload gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hauberk.policy import models, normalise
from hauberk.policy.rules import Action, ObjectKind, Section, Verdict
from hauberk.policy.selectors import Selector, WorkloadIdentity
from tests.unit.policy.test_models import VALID

if TYPE_CHECKING:
    from hauberk.policy.models import Policy


def load(text: str) -> tuple[Policy, ...]:
    return models.load([("p.yaml", text.encode())])


def test_the_normal_form_of_a_policy_with_every_field() -> None:
    (policy,) = load(VALID)
    rules = normalise.rules(policy)
    assert [(rule.section, rule.kind, rule.value) for rule in rules] == [
        (Section.PROCESS, ObjectKind.PATH, "/bin/sh"),
        (Section.PROCESS, ObjectKind.EXECNAME, "bash"),
        (Section.PROCESS, ObjectKind.DIRECTORY, "/tmp/"),
        (Section.PROCESS, ObjectKind.PATTERN, "/home/*/bin/**"),
        (Section.FILE, ObjectKind.PATH, "/etc/shadow"),
        (Section.FILE, ObjectKind.DIRECTORY, "/"),
        (Section.FILE, ObjectKind.PATTERN, "/**/*.key"),
    ]
    assert [rule.origin.line for rule in rules] == [27, 35, 37, 40, 43, 46, 50]
    assert [rule.origin.column for rule in rules] == [9] * 7
    assert {rule.origin.file for rule in rules} == {"p.yaml"}
    assert {rule.origin.policy for rule in rules} == {"prod/everything"}
    assert rules[1].origin.field == "spec.process.matchPaths[1]"
    assert rules[6].origin.field == "spec.file.matchPatterns[0]"
    assert [rule.sources for rule in rules] == [("/usr/bin/nginx",), (), (), (), (), ("/bin/cat",), ()]
    assert [rule.recursive for rule in rules] == [False, False, True, False, False, False, False]
    assert [rule.read_only for rule in rules] == [False, False, False, False, True, False, True]
    assert [rule.owner_only for rule in rules] == [True, False, False, False, False, False, True]


def test_inheritance_rule_then_section_then_spec() -> None:
    (policy,) = load(VALID)
    rules = normalise.rules(policy)
    own, section, spec = rules[0], rules[1], rules[4]
    assert (own.action, own.severity, own.tags, own.message) == (Action.ALLOW, 10, ("z",), "rule")
    assert (section.action, section.severity, section.tags, section.message) == (Action.BLOCK, 6, ("x", "y"), "spec")
    assert (spec.action, spec.severity, spec.tags, spec.message) == (Action.AUDIT, 5, ("x", "y"), "spec")


SHORT = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: NAME}
spec:
  selector: {matchLabels: {app: web}}
  file: {matchPaths: [{path: /x, fromSource: [{path: /a}, {path: /a}]}]}
"""


def test_an_action_nobody_gives_is_block_and_sources_are_listed_once() -> None:
    (policy,) = load(SHORT)
    (rule,) = normalise.rules(policy)
    assert (rule.action, rule.severity, rule.tags, rule.message) == (Action.BLOCK, 0, (), "")
    assert rule.sources == ("/a",)
    assert rule.origin.policy == "NAME"


def test_an_empty_tag_list_overrides_an_inherited_one() -> None:
    (policy,) = load(SHORT.replace("spec:\n", "spec:\n  tags: [a]\n").replace("path: /x,", "path: /x, tags: [],"))
    assert normalise.rules(policy)[0].tags == ()


def test_the_selector() -> None:
    (policy,) = load(VALID)
    assert normalise.selector(policy.model) == Selector((("app", "web"),), (), ("tier=test",), "[a, b]")


def test_a_workload_gets_the_rules_of_the_policies_that_cover_it() -> None:
    policies = load(SHORT + "---\n" + SHORT.replace("NAME", "OTHER").replace("app: web", "app: api"))
    found = normalise.rule_set(policies, WorkloadIdentity(labels={"app": "web"}), Verdict.AUDIT)
    assert found is not None
    assert {rule.origin.policy for rule in found.rules} == {"NAME", "(implied)"}
    assert found.posture is Verdict.AUDIT


def test_an_uncovered_workload_gets_none_instead_of_an_empty_rule_set() -> None:
    assert normalise.rule_set(load(SHORT), WorkloadIdentity(labels={"app": "api"})) is None


def test_implied_rules_are_added_to_those_of_all_policies_together() -> None:
    granting = SHORT.replace("path: /x,", "path: /x, action: Allow,")
    found = normalise.build(load(granting + "---\n" + SHORT.replace("NAME", "OTHER")))
    assert found.posture is Verdict.DENY
    assert found.privileged_sources() == {"/a"}
    assert any(rule.implied and rule.value == "/a" and rule.read_only for rule in found.rules)


@pytest.mark.parametrize(
    ("word", "verdict"), [("block", Verdict.DENY), ("audit", Verdict.AUDIT), ("allow", Verdict.ALLOW)]
)
def test_the_words_for_a_posture(word: str, verdict: Verdict) -> None:
    assert normalise.POSTURES[word] is verdict
