# SPDX-License-Identifier: Apache-2.0
"""Which workloads a policy covers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.policy import globs
from hauberk.policy.rules import LabelRequirement
from hauberk.policy.selectors import (
    ExpressionError,
    Scope,
    Selector,
    WorkloadIdentity,
    check_container_name,
    parse_expression,
)

WEB = WorkloadIdentity("pod", "prod", {"app": "web", "tier": "front", "empty": ""}, "nginx", "nginx:1")
NAMELESS = WorkloadIdentity()


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (Selector((("app", "web"),)), True),
        (Selector((("app", "web"), ("tier", "front"))), True),
        (Selector((("app", "web"), ("tier", "back"))), False),
        (Selector((("app", "we"),)), False),
        (Selector((("empty", ""),)), True),
        (Selector((("absent", ""),)), False),
        (Selector(), True),
        (Selector(within=("app=web",)), True),
        (Selector(within=("app=api", "tier=front")), True),
        (Selector(within=("app=api",)), False),
        (Selector(without=("app=api",)), True),
        (Selector(without=("app=api", "app=web")), False),
        (Selector(within=("app=web",), without=("tier=front",)), False),  # both must hold
        (Selector(within=("app=web",), without=("tier=back",)), True),
        (Selector(within=("app=api",), without=("tier=back",)), False),
        (Selector((("app", "web"),), without=("tier=front",)), False),
        (Selector((("app", "api"),), within=("tier=front",)), False),
        (Selector(container_name="nginx"), True),
        (Selector(container_name="ngin"), False),
        (Selector(container_name="ngin.*"), True),
        (Selector(container_name="[nginx, other]"), True),
        (Selector(container_name="[ other ,nginx ]"), True),
        (Selector(container_name="[other]"), False),
        (Selector(container_name="[nginx.*]"), False),
        (Selector((("app", "api"),), container_name=".*"), False),
    ],
)
def test_what_a_selector_matches(selector: Selector, expected: bool) -> None:  # noqa: FBT001
    assert selector.matches("prod", WEB) is expected


@pytest.mark.parametrize(
    ("policy", "workload", "expected"),
    [
        ("prod", "prod", True),
        ("prod", "test", False),
        ("", "default", True),  # as in Kubernetes
        ("", "prod", False),
        ("prod", "", True),  # not known: not compared
        ("", "", True),
    ],
)
def test_namespaces(policy: str, workload: str, expected: bool) -> None:  # noqa: FBT001
    selector = Selector(container_name=".*")
    assert selector.matches(policy, WorkloadIdentity(namespace=workload, container_name="x")) is expected


def test_a_workload_of_which_nothing_is_known_matches_only_what_asks_for_nothing() -> None:
    assert Selector(container_name=".*").matches("", NAMELESS)
    assert not Selector(container_name=".+").matches("", NAMELESS)
    assert not Selector(container_name="[a]").matches("", NAMELESS)
    assert Selector(without=("app=web",)).matches("", NAMELESS)  # what has no labels has not this one
    assert not Selector((("app", "web"),)).matches("", NAMELESS)


@pytest.mark.parametrize("value", ["", " ", "[]", "[ , ]"])
def test_a_container_name_that_names_none_covers_every_container(value: str) -> None:
    check_container_name(value)
    assert Selector(container_name=value).matches("", NAMELESS)
    assert Selector(container_name=value).matches("prod", WEB)


CLUSTER = Selector(cluster=True)


@pytest.mark.parametrize(
    ("selector", "namespace", "expected"),
    [
        (CLUSTER, "prod", True),
        (CLUSTER, "", True),
        (Selector(cluster=True, namespaces=("prod", "test")), "prod", True),
        (Selector(cluster=True, namespaces=("test",)), "prod", False),
        (Selector(cluster=True, namespaces=("test",)), "", True),  # not known: not compared
        (Selector(cluster=True, excluded_namespaces=("kube-system",)), "prod", True),
        (Selector(cluster=True, excluded_namespaces=("prod",)), "prod", False),
        (Selector(cluster=True, excluded_namespaces=("prod",)), "", True),
        (Selector(cluster=True, namespaces=("prod",), excluded_namespaces=("prod",)), "prod", False),
        (Selector(cluster=True, within=("app=web",)), "prod", True),
        (Selector(cluster=True, without=("app=web",)), "prod", False),
        (Selector(cluster=True, namespaces=("prod",), within=("app=api",)), "prod", False),
    ],
)
def test_cluster_policies_select_namespaces(selector: Selector, namespace: str, expected: bool) -> None:  # noqa: FBT001
    workload = replace(WEB, namespace=namespace)
    assert selector.matches("elsewhere", workload) is expected


NODE = WorkloadIdentity(labels={"kubernetes.io/os": "linux"}, host=True, host_name="node-1")


def host(*, name: str = "", expression: str = "", label: str = "kubearmor.io/hostname", **labels: str) -> Selector:
    return Selector(
        tuple((key.replace("_", "/"), value) for key, value in labels.items()),
        scope=Scope.HOST,
        host_names=((label, name),) if name else (),
        host_expressions=((label, expression),) if expression else (),
    )


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (host(name="*"), True),
        (host(name="node-1"), True),
        (host(name="node-1", label="kubernetes.io/hostname"), True),
        (host(name="node"), False),
        (host(name="node-2, node-1"), True),
        (host(name="node-2,node-3"), False),
        (host(name="node-2,*"), True),
        (host(expression="node-*"), True),
        (host(expression="node-.*"), True),
        (host(expression="*"), True),
        (host(expression="node"), False),  # the whole name
        (host(expression="ode-*"), False),
        (host(expression="(node|edge)-[0-9]"), True),
        (host(expression="edge-*"), False),
        (host(expression=r"node-\*"), False),  # the character
        (host(expression=r"node\.*"), False),  # a dot, and anything
        (host(expression=r"node\-*"), True),
        (host(name="*", expression="edge-*"), False),
        (Selector((("kubernetes.io/os", "linux"),), scope=Scope.HOST), True),
        (Selector((("kubernetes.io/os", "plan9"),), scope=Scope.HOST), False),
        (Selector((("kubernetes.io/os", "linux"),)), False),  # a policy for containers
    ],
)
def test_host_policies_select_hosts_by_name(selector: Selector, expected: bool) -> None:  # noqa: FBT001
    assert selector.matches("", NODE) is expected


def test_a_host_s_label_is_its_name_where_it_has_one() -> None:
    labelled = replace(NODE, labels={"kubernetes.io/hostname": "edge-7"})
    assert host(name="edge-7", label="kubernetes.io/hostname").matches("", labelled)
    assert not host(name="node-1", label="kubernetes.io/hostname").matches("", labelled)
    assert host(name="node-1").matches("", labelled)  # the other label says nothing


@given(st.sampled_from([CLUSTER, Selector(), host(name="*"), Selector(container_name=".*"), host(expression="*")]))
def test_no_policy_covers_a_host_and_a_container(selector: Selector) -> None:
    covered = [selector.matches("prod", workload) for workload in (WEB, NODE)]
    assert sorted(covered) == [False, True]


def test_the_dot_of_a_host_name_is_any_character() -> None:
    assert host(expression="node.1").matches("", NODE)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (Selector(), True),
        (Selector(container_name=".*"), True),
        (Selector(container_name="[]"), True),
        (Selector(container_name="a"), False),
        (CLUSTER, True),
        (Selector(cluster=True, namespaces=("a",)), False),
        (Selector(cluster=True, excluded_namespaces=("a",)), False),
        (Selector(without=("a=b",)), False),
        (Selector((("a", "b"),)), False),
        (host(name="*"), False),
    ],
)
def test_what_leaves_the_one_who_names_containers_no_choice(selector: Selector, expected: bool) -> None:  # noqa: FBT001
    assert selector.covers_every_container is expected


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("^$", "empty expression"),
        ("a{2}", "counted repetition"),
        ("(a", "'(' without ')'"),
        ("a)", "')' without '('"),
        ("(a+)+", "repeated group"),
        ("(?=a)", "'(?'"),
        ("[a", "'[' without"),
        ("a[]", "'[' without"),
        ("[z-a]x", "backwards"),
        ("*a", "repeats or anchors nothing"),
        ("a**", "two repetitions"),
        (r"\1", "escape"),
        ("a\\", "escape"),
        ("a$b", "anchors nothing"),
        ("ä*", "outside of ASCII"),
        ("x[ä]", "outside of ASCII"),
        ("(" * 40 + "a" + ")" * 40, "nested"),
        ("a" * 2000, "1024"),
        (r"[^\w\W]x", "matches nothing"),
    ],
)
def test_what_cannot_be_used_is_refused(expression: str, words: str) -> None:
    with pytest.raises(ExpressionError, match=re.escape(words)):
        check_container_name(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "a",
        "^a$",
        "a.b",
        "a*b+c?",
        "(a|b)c",
        "(?:a|bc)?d",
        r"\d+-\w*",
        "x[a-c_]y",
        "[^a]b",
        r"a\.b",
        "a|",
        "(a|(b|c))",
        r"a\$",
    ],
)
@given(name=st.text(alphabet="abcdxy01-_.$", max_size=6))
def test_expressions_mean_what_they_mean_to_python(expression: str, name: str) -> None:
    octets = name.encode()
    found = len(octets) in globs.simulate(parse_expression(expression), octets)
    assert found is (re.fullmatch(f"(?:{expression})".encode(), octets) is not None)


def test_a_hostile_name_is_matched_in_linear_time() -> None:
    selector = Selector(container_name=".*a" * 100 + "b")
    assert not selector.matches("", WorkloadIdentity(container_name="a" * 2000))


@given(st.text(max_size=20))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    error: ExpressionError | None = None
    try:
        check_container_name(text.replace("\0", ""))
    except ExpressionError as caught:
        error = caught
    assert error is None or error.message


def test_requirements_of_labels_must_all_hold() -> None:
    exists, not_canary = LabelRequirement("app", "Exists"), LabelRequirement("track", "NotIn", ("canary",))
    selector = Selector(requirements=(exists, not_canary))
    assert selector.matches("", WorkloadIdentity(labels={"app": "x"}))
    assert not selector.matches("", WorkloadIdentity(labels={"app": "x", "track": "canary"}))
    assert not selector.matches("", WorkloadIdentity(labels={"track": "stable"}))
    assert not selector.covers_every_container
    on_hosts = Selector(scope=Scope.HOST, requirements=(not_canary,))
    assert on_hosts.matches("", WorkloadIdentity(host=True))
    assert not on_hosts.matches("", WorkloadIdentity(host=True, labels={"track": "canary"}))
