# SPDX-License-Identifier: Apache-2.0
"""Annotations: what they make of decisions, and which are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.errors import PolicyError
from hauberk.policy.annotations import MODE, POSTURES, Mode, Settings, read
from hauberk.policy.rules import Decision, RuleSet, Section, Verdict

ALLOW, AUDIT, DENY = Verdict.ALLOW, Verdict.AUDIT, Verdict.DENY


def test_without_annotations_policies_are_as_they_are() -> None:
    for said in ({}, {"team": "a"}, {"kubearmor-visibility": "process,file"}):
        assert read(said) == Settings()
    rule_set = RuleSet((), DENY, ((Section.FILE, AUDIT),))
    assert Settings().apply(rule_set) == rule_set


@pytest.mark.parametrize(
    ("word", "mode"),
    [
        ("enabled", Mode.ENABLED),
        ("patched", Mode.ENABLED),
        ("audited", Mode.AUDITED),
        ("disabled", Mode.DISABLED),
    ],
)
def test_the_words_for_a_mode(word: str, mode: Mode) -> None:
    assert read({MODE: word}).mode is mode


@pytest.mark.parametrize(
    ("mode", "verdicts"),
    [(Mode.ENABLED, [ALLOW, AUDIT, DENY]), (Mode.AUDITED, [ALLOW, AUDIT, AUDIT]), (Mode.DISABLED, [ALLOW] * 3)],
)
def test_what_a_mode_makes_of_decisions(mode: Mode, verdicts: list[Verdict]) -> None:
    found = [mode.apply(Decision(verdict, None, "reason")) for verdict in (ALLOW, AUDIT, DENY)]
    assert [decision.verdict for decision in found] == verdicts
    for before, after in zip((ALLOW, AUDIT, DENY), found, strict=True):
        assert ("reason" in after.reason) is (before is after.verdict)


def test_postures_of_a_namespace_reach_every_section_of_their_class() -> None:
    said = {"kubearmor-file-posture": "audit", "kubearmor-network-posture": "block"}
    rule_set = read(said).apply(RuleSet((), ALLOW, ((Section.FILE, DENY), (Section.DEVICE, DENY))))
    verdicts = {section: rule_set.posture_of(section) for section in Section}
    assert {section for section, verdict in verdicts.items() if verdict is AUDIT} == {Section.PROCESS, Section.FILE}
    assert {section for section, verdict in verdicts.items() if verdict is DENY} == {
        Section.NETWORK, Section.DNS, Section.INGRESS, Section.EGRESS, Section.DEVICE,
    }  # fmt: skip
    assert rule_set.posture_of(Section.CAPABILITIES) is ALLOW


@pytest.mark.parametrize(
    ("name", "value", "expected", "advice"),
    [
        (MODE, "audit", "enabled, audited or disabled", "Did you mean 'audited'?"),
        (MODE, "", "enabled, audited or disabled", "Write enabled or audited or disabled"),
        ("kubearmor-file-posture", "allow", "audit or block", "Write audit or block"),
        ("kubearmor-file-posture", "Block", "audit or block", "Did you mean 'block'?"),
        ("kubearmor-capabilities-posture", "blocked", "audit or block", "Did you mean 'block'?"),
        ("kubearmor-files-posture", "block", "one of kubearmor-policy, ", "Did you mean 'kubearmor-file-posture'?"),
        ("kubearmor-" + "z" * 40, "block", "one of kubearmor-policy, ", "Write kubearmor-policy or "),
    ],
)
def test_invalid_values_are_told_with_their_place(name: str, value: str, expected: str, advice: str) -> None:
    with pytest.raises(PolicyError) as caught:
        read({"other": "x", name: value}, lambda key: (7, len(key)), "pod.yaml")
    (problem,) = caught.value.problems
    assert (problem.file, problem.line, problem.column) == ("pod.yaml", 7, len(name))
    assert problem.field == f"metadata.annotations.{name}"
    assert problem.expected.startswith(expected)
    assert problem.advice.startswith(advice)


def test_every_invalid_value_is_told() -> None:
    with pytest.raises(PolicyError) as caught:
        read(dict.fromkeys((MODE, *POSTURES), "no"))
    assert len(caught.value.problems) == 1 + len(POSTURES)
    assert str(caught.value).startswith("annotations: metadata.annotations.kubearmor-policy: found 'no'")


@given(st.dictionaries(st.sampled_from([MODE, *POSTURES, "a"]), st.sampled_from(["audit", "block", "enabled", "x"])))
def test_annotations_are_read_or_refused(said: dict[str, str]) -> None:
    valid = all(
        value in {MODE: ("enabled",), "a": (value,)}.get(name, ("audit", "block")) for name, value in said.items()
    )
    if valid:
        settings = read(said)
        assert len(settings.postures) == sum(len(POSTURES[name]) for name in said if name in POSTURES)
    else:
        with pytest.raises(PolicyError):
            read(said)
