# SPDX-License-Identifier: Apache-2.0
"""Names as container managers write them, and which policies they lead to."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.workloads.interchange import rule_from_json, rule_set_from_json, rule_set_to_json, rule_to_json
from guest_agent.workloads.selection import (
    Policy,
    PolicySet,
    SelectionError,
    Target,
    host_packets,
    identify,
    select,
    selected_by,
    selector_to_json,
)
from hauberk.policy.rules import (
    Action,
    LabelRequirement,
    ObjectKind,
    Operation,
    Origin,
    PeerMatch,
    Rule,
    RuleSet,
    Section,
    Verdict,
)
from hauberk.policy.selectors import Scope, Selector, WorkloadIdentity

RULE = Rule(
    Section.PROCESS,
    ObjectKind.PATH,
    "/bin/sh",
    Action.BLOCK,
    Origin("shell", "spec.process.matchPaths[0]", "p.yaml", 7, 3),
)


SELECTOR: dict[str, object] = json.loads(json.dumps(selector_to_json(Selector())))
POLICY: dict[str, object] = {
    "name": "a", "namespace": "", "selector": SELECTOR, "rules": [], "unenforced": 1,
}  # fmt: skip


def policies(default: str = "deny") -> PolicySet:
    policy = Policy("shell", "", Selector(labels=(("app", "secrets"),)), (RULE,))
    return PolicySet("d" * 64, "demo", 1, default, Verdict.DENY, "owner", (policy,))


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        (
            {
                "io.kubernetes.cri.container-name": "app",
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.sandbox-name": "pod-1",
                "io.kubernetes.cri.sandbox-namespace": "shop",
                "io.kubernetes.cri.image-name": "registry/app:1",
                "io.hauberk.label.app": "secrets",
            },
            WorkloadIdentity("pod-1", "shop", {"app": "secrets"}, "app", "registry/app:1"),
        ),
        (
            {
                "io.kubernetes.container.name": "app",
                "io.kubernetes.pod.name": "pod-1",
                "io.kubernetes.pod.namespace": "shop",
                "io.kubernetes.cri-o.ImageName": "registry/app:1",
                "io.kubernetes.cri-o.Labels": json.dumps({"app": "secrets"}),
            },
            WorkloadIdentity("pod-1", "shop", {"app": "secrets"}, "app", "registry/app:1"),
        ),
        (
            {"io.hauberk.label.app": "secrets", "io.hauberk.namespace": "shop", "io.hauberk.container-name": "vault"},
            WorkloadIdentity("", "shop", {"app": "secrets"}, "vault", ""),
        ),
        ({}, WorkloadIdentity(container_name="id-1")),
        ({"io.kubernetes.cri.container-type": "sandbox"}, WorkloadIdentity()),
        (
            {"io.container.manager": "libpod", "io.kubernetes.cri-o.TTY": "false"},
            WorkloadIdentity(container_name="id-1"),
        ),
    ],
    ids=["containerd", "CRI-O", "runc with our annotations", "plain runc", "pause", "podman"],
)
def test_names_are_read_as_managers_write_them(annotations: dict[str, str], expected: WorkloadIdentity) -> None:
    assert identify(annotations, "id-1") == expected


@pytest.mark.parametrize(
    "annotations",
    [
        {"io.kubernetes.cri.sandbox-namespace": "a", "io.hauberk.namespace": "b"},
        {"io.kubernetes.container.name": "a", "io.hauberk.container-name": "b"},
        {"io.hauberk.label.app": "a", "io.kubernetes.cri-o.Labels": '{"app":"b"}'},
    ],
)
def test_names_that_contradict_each_other_refuse(annotations: dict[str, str]) -> None:
    with pytest.raises(SelectionError, match=r"contradict|two values"):
        identify(annotations, "id-1")


@pytest.mark.parametrize("labels", ["{", "[]", '{"a":1}', '{"a":"b","a":"c"}', "[" * 100_000])
def test_labels_that_are_none_refuse(labels: str) -> None:
    with pytest.raises(SelectionError, match=r"io\.kubernetes\.cri-o\.Labels"):
        identify({"io.kubernetes.cri-o.Labels": labels}, "id-1")


def test_a_covered_container_gets_its_policys_rules_and_what_they_imply() -> None:
    chosen = select(policies(), identify({"io.hauberk.label.app": "secrets"}, "id-1"))
    assert chosen.policies == ("shell",)
    assert chosen.rule_set.rules[0] == RULE
    assert all(rule.implied for rule in chosen.rule_set.rules[1:])
    assert chosen.rule_set.posture is Verdict.DENY


def test_an_uncovered_container_gets_the_bundles_default() -> None:
    nobody = identify({}, "id-1")
    with pytest.raises(SelectionError, match="default is deny"):
        select(policies(), nobody)
    assert select(policies("allow"), nobody).rule_set == RuleSet((), Verdict.ALLOW)
    audited = select(policies("audit"), nobody).rule_set
    assert [rule.operations for rule in audited.rules] == [(Operation.EXECUTE,)]
    assert audited.rules[0].effect(Operation.EXECUTE, owner=False) is Verdict.AUDIT


@pytest.mark.parametrize(
    "change",
    [
        {"version": "1"}, {"version": True}, {"policies": {}}, {"posture": "maybe"}, {"posture": []}, {"default": "x"},
        {"policies": [3]}, {"policies": [{}]},
        {"policies": [{"name": "a", "namespace": "", "selector": [], "rules": []}]},
        {"policies": [{**POLICY, "unenforced": -1}]}, {"policies": [{**POLICY, "unenforced": True}]},
        {"policies": [{**POLICY, "selector": {**SELECTOR, "scope": "moon"}}]},
        {"policies": [{**POLICY, "selector": {**SELECTOR, "cluster": 1}}]},
        {"policies": [{**POLICY, "selector": {**SELECTOR, "within": 1}}]},
        {"policies": [{**POLICY, "selector": {**SELECTOR, "labels": 1}}]},
        {"policies": [{**POLICY, "selector": {"scope": "container"}}]},
        {"policies": [{**POLICY, "selector": {**SELECTOR, "requirements": [["a", "Maybe", []]]}}]},
        {"policies": [{**POLICY, "selector": {**SELECTOR, "requirements": ["a"]}}]},
        {"postures": None}, {"postures": [["file"]]}, {"postures": [["file", 1]]},
        {"unenforced": None}, {"unenforced": [3]}, {"unenforced": [["p", "f", "file", "x", 1, "r", "w", "i"]]},
        {"unenforced": [["p", "f", "file", 1, 1, "r", "w"]]},
    ],
)  # fmt: skip
def test_a_damaged_policy_set_is_refused(change: dict[str, object]) -> None:
    whole: dict[str, object] = {
        "digest": "d", "name": "n", "version": 1, "default": "deny", "posture": "block", "signedBy": "o",
        "policies": [POLICY], "unenforced": [["p", "f", "file", 1, 1, "r", "w", "i"]], "postures": [["file", "block"]],
    }  # fmt: skip
    assert PolicySet.from_json(whole).posture is Verdict.DENY
    with pytest.raises(ValueError, match=r"found|not enough|invalid literal|not a valid Scope"):
        PolicySet.from_json({**whole, **change})


TEXT = st.text(max_size=8)
ORIGINS = st.builds(Origin, TEXT, TEXT, TEXT, st.integers(0, 99), st.integers(0, 99))
RULES = st.builds(
    Rule,
    section=st.sampled_from(Section),
    kind=st.sampled_from(ObjectKind),
    value=TEXT,
    action=st.sampled_from(Action),
    origin=ORIGINS,
    recursive=st.booleans(),
    read_only=st.booleans(),
    owner_only=st.booleans(),
    sources=st.lists(TEXT, max_size=3).map(tuple),
    severity=st.integers(0, 10),
    tags=st.lists(TEXT, max_size=3).map(tuple),
    message=TEXT,
    operations=st.lists(st.sampled_from(Operation), max_size=2).map(tuple),
    implied=st.booleans(),
)


@given(st.lists(RULES, max_size=4), st.sampled_from(Verdict))
def test_rules_come_back_from_json_as_they_went(rules: list[Rule], posture: Verdict) -> None:
    rule_set = RuleSet(tuple(rules), posture)
    assert rule_set_from_json(json.loads(json.dumps(rule_set_to_json(rule_set)))) == rule_set


@given(st.integers(0, 13), st.sampled_from([None, 3.5, {}, "odd", -1]))
def test_a_damaged_rule_is_refused_or_read_as_it_stands(index: int, value: object) -> None:
    whole = rule_to_json(RULE)
    whole[index] = value
    try:
        found = rule_from_json(whole)
    except ValueError:
        return
    assert rule_to_json(found) == whole


def test_what_is_no_rule_set_is_refused() -> None:
    damaged: list[object] = [None, [], {}, {"rules": []}, {"rules": [], "posture": 7}, {"rules": [[]], "posture": 0}]
    for value in damaged:
        with pytest.raises(ValueError, match=r"found|is not a valid|rule"):
            rule_set_from_json(value)


IMAGE = f"sha256:{'a' * 64}"


def targeted(target: Target) -> PolicySet:
    return replace(policies(), target=target)


@pytest.mark.parametrize(
    ("annotations", "digest"),
    [
        ({}, ""),
        ({"io.hauberk.image-digest": IMAGE}, IMAGE),
        ({"io.kubernetes.cri.image-name": f"example.org/a@{IMAGE}"}, IMAGE),
        ({"io.kubernetes.cri-o.ImageName": f"a@{IMAGE}", "io.hauberk.image-digest": IMAGE}, IMAGE),
        ({"io.kubernetes.cri.image-name": "example.org/a:latest"}, ""),
        ({"io.kubernetes.cri.image-name": f"a@{IMAGE}0"}, ""),
        ({"io.kubernetes.cri.image-name": f"a@{IMAGE}\n"}, ""),
    ],
)
def test_the_digest_of_an_image_is_what_is_announced(annotations: dict[str, str], digest: str) -> None:
    assert identify(annotations, "c1").image_digest == digest


def test_two_digests_refuse_the_container() -> None:
    with pytest.raises(SelectionError, match="different digests"):
        identify({"io.kubernetes.cri.image-name": f"a@{IMAGE}", "io.hauberk.image-digest": "sha256:b"}, "c1")


def test_outside_the_target_is_the_default() -> None:
    covered = WorkloadIdentity(labels={"app": "secrets"}, container_name="c", image_digest=IMAGE)
    inside, outside = targeted(Target(image_digests=frozenset({IMAGE}))), targeted(Target(labels=(("tier", "x"),)))
    assert select(inside, covered).policies
    for identity in (replace(covered, image_digest=""), replace(covered, image_digest=IMAGE[:-1] + "b")):
        with pytest.raises(SelectionError, match="outside the target"):
            select(inside, identity)
    with pytest.raises(SelectionError, match="outside the target"):
        select(outside, covered)
    assert select(outside, replace(covered, labels={"app": "secrets", "tier": "x"})).policies
    assert not select(replace(outside, default="allow"), covered).policies


@pytest.mark.parametrize(
    "changes",
    [
        {"target": 1}, {"target": [[], []]}, {"target": [[IMAGE], [["a", "b"]]]}, {"target": [[IMAGE]]},
        {"target": [[], [["a"]]]},
        {"succession": 1}, {"succession": ["", "1", "", False]}, {"succession": ["", 1, ""]},
    ],
)  # fmt: skip
def test_a_malformed_target_or_succession_is_refused(changes: dict[str, object]) -> None:
    good = {"digest": "d", "name": "n", "version": 1, "default": "deny", "posture": "block", "signedBy": "o",
            "policies": [], "unenforced": [], "postures": []}  # fmt: skip
    PolicySet.from_json(good)
    with pytest.raises(ValueError, match=r"found|unpack"):
        PolicySet.from_json({**good, **changes})


def test_selectors_come_back_from_json_as_they_went() -> None:
    asked = (LabelRequirement("app", "In", ("a", "b")), LabelRequirement("canary", "DoesNotExist"))
    selector = Selector(labels=(("x", "y"),), requirements=asked)
    policy = {**POLICY, "selector": json.loads(json.dumps(selector_to_json(selector)))}
    found = PolicySet.from_json(
        {"digest": "d", "name": "n", "version": 1, "default": "deny", "posture": "block", "signedBy": "o",
         "policies": [policy], "unenforced": [], "postures": [["file", "block"], ["network", "audit"]]}
    )  # fmt: skip
    assert found.policies[0].selector == selector
    assert found.packet_postures == ((Section.NETWORK, Verdict.AUDIT),)


def test_rules_about_paths_and_about_packets_are_two_sets() -> None:
    peer = Rule(Section.EGRESS, ObjectKind.PEER, "any", Action.BLOCK, Origin("net", "f"), match=PeerMatch())
    both = replace(policies(), policies=(
        *policies().policies,
        Policy("net", "", Selector(labels=(("app", "secrets"),)), (peer,)),
        Policy("of hosts", "", Selector(scope=Scope.HOST), (peer,)),
    ), postures=(("network", "audit"),))  # fmt: skip
    chosen = select(both, WorkloadIdentity(labels={"app": "secrets"}))
    assert chosen.policies == ("shell", "net")
    assert [rule.section for rule in chosen.rule_set.rules if not rule.implied] == [RULE.section]
    assert chosen.packets == RuleSet((peer,), Verdict.DENY, ((Section.NETWORK, Verdict.AUDIT),))
    assert host_packets(both, WorkloadIdentity(host=True)).rules == (peer,)
    targeted = replace(both, target=Target(labels=(("app", "other"),)))
    assert [policy.name for policy in selected_by(targeted, WorkloadIdentity(host=True))] == ["of hosts"]
    with pytest.raises(SelectionError, match="outside the target"):
        select(targeted, WorkloadIdentity(labels={"app": "secrets"}))
