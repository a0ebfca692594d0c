# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' NetworkPolicy means what Kubernetes documents."""

from __future__ import annotations

import ipaddress
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.policy import models, normalise, peers
from hauberk.policy.rules import (
    Action,
    Circumstances,
    LabelRequirement,
    Operation,
    Peer,
    PeerSelector,
    Rule,
    Section,
    Verdict,
    decide,
)
from hauberk.policy.selectors import WorkloadIdentity
from tests.unit.policy.documents_of_each_kind import KUBERNETES
from tests.unit.policy.yaml_with_lines import Written

if TYPE_CHECKING:
    from hauberk.errors import Problem

OWN = {"app": "web", "tier": "front"}


def policy(spec: dict[str, Any], **metadata: str) -> str:
    return json.dumps(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "p"} | metadata,
            "spec": {"podSelector": {}} | spec,
        }
    )


def rules_of(text: str) -> tuple[Rule, ...]:
    return tuple(rule for one in models.load([("p.yaml", text.encode())]) for rule in normalise.rules(one))


def problems_of(text: str) -> list[Problem]:
    return models.examine([("p.yaml", text.encode())])[1]


def verdict(text: str, operation: Operation, peer: Peer) -> Verdict:
    policies = models.load([("p.yaml", text.encode())])
    rules = normalise.build(policies)
    section = Section.INGRESS if operation is Operation.RECEIVE else Section.EGRESS
    matching = [rule for rule in rules.rules if rule.section is section and peers.matches(rule.match, peer)]  # type: ignore[arg-type] # rules about packets have one
    return decide(rules, matching, operation, source=None, owner=True, known=Circumstances(peer=peer)).verdict


def test_every_field_becomes_a_rule() -> None:
    first, second, third = rules_of(KUBERNETES)
    assert {(rule.action, rule.default_deny, rule.origin.policy) for rule in (first, second, third)} == {
        (Action.ALLOW, True, "shop/pods")
    }
    assert [rule.section for rule in (first, second, third)] == [Section.INGRESS, Section.EGRESS, Section.EGRESS]
    assert [rule.origin.field for rule in (first, second, third)] == [
        "spec.ingress[0]", "spec.egress[0]", "spec.egress[1]",
    ]  # fmt: skip
    match: Any = first.match
    assert (match.cidrs, match.exceptions) == (("172.17.0.0/16",), ("172.17.1.0/24",))
    assert [group.selector for group in match.groups] == [
        PeerSelector((LabelRequirement("role", "In", ("frontend",)),), namespaces=("shop",)),
        PeerSelector(
            (LabelRequirement("scrape", "Exists"),),
            namespace_labels=(LabelRequirement("kubernetes.io/metadata.name", "In", ("monitoring",)),),
        ),
    ]
    assert match.ports == ((6379, 6379, "tcp"), (32000, 32768, "tcp"), (0, 65535, "sctp"))
    assert second.value == "10.0.0.0/24 udp/53"
    assert third.value == "any"
    assert first.origin.line == KUBERNETES.splitlines().index("    - from:") + 1


@pytest.mark.parametrize(
    ("labels", "namespace", "covered"),
    [
        (OWN, "shop", True), ({"app": "web", "tier": "back"}, "", True), (OWN, "default", False),
        ({"app": "web"}, "shop", False), ({"app": "db", "tier": "front"}, "shop", False),
    ],
)  # fmt: skip
def test_whom_a_policy_covers(labels: dict[str, str], namespace: str, covered: bool) -> None:  # noqa: FBT001
    (one,) = models.load([("p.yaml", KUBERNETES.encode())])
    assert (
        normalise.selector(one.model).matches("shop", WorkloadIdentity(namespace=namespace, labels=labels)) is covered
    )


ANY = Peer("198.51.100.7", "tcp", 443)


@pytest.mark.parametrize(
    ("spec", "receives", "sends"),
    [
        ({}, Verdict.DENY, Verdict.ALLOW),
        ({"ingress": []}, Verdict.DENY, Verdict.ALLOW),
        ({"ingress": [{}]}, Verdict.ALLOW, Verdict.ALLOW),
        ({"egress": []}, Verdict.DENY, Verdict.ALLOW),
        ({"egress": [{}]}, Verdict.DENY, Verdict.ALLOW),
        ({"egress": [{"ports": [{"port": 80}]}]}, Verdict.DENY, Verdict.DENY),
        ({"policyTypes": ["Egress"]}, Verdict.ALLOW, Verdict.DENY),
        ({"policyTypes": ["Egress"], "ingress": [{"ports": [{"port": 80}]}]}, Verdict.ALLOW, Verdict.DENY),
        ({"policyTypes": ["Ingress", "Egress"]}, Verdict.DENY, Verdict.DENY),
        ({"policyTypes": ["Ingress"], "egress": [{"ports": [{"port": 80}]}]}, Verdict.DENY, Verdict.ALLOW),
        ({"policyTypes": []}, Verdict.DENY, Verdict.ALLOW),
        ({"ingress": [{"from": [], "ports": []}]}, Verdict.ALLOW, Verdict.ALLOW),
        ({"ingress": [{"ports": [{}]}]}, Verdict.ALLOW, Verdict.ALLOW),
        ({"ingress": [{"ports": [{"protocol": "UDP"}]}]}, Verdict.DENY, Verdict.ALLOW),
        ({"ingress": None, "egress": None}, Verdict.DENY, Verdict.ALLOW),
    ],
)
def test_which_directions_are_lists(spec: dict[str, Any], receives: Verdict, sends: Verdict) -> None:
    assert verdict(policy(spec), Operation.RECEIVE, ANY) is receives
    assert verdict(policy(spec), Operation.SEND, ANY) is sends


@st.composite
def entries(draw: st.DrawFn) -> dict[str, Any]:
    blocks = [
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
        {"ipBlock": {"cidr": "10.1.2.0/24"}},
        {"ipBlock": {"cidr": "fd00::/8"}},
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/9", "192.168.0.0/16"]}},
    ]
    ports = [{"port": 80}, {"port": 80, "endPort": 90}, {"protocol": "UDP"}, {"port": 80, "protocol": "UDP"}, {}]
    entry: dict[str, Any] = {}
    if draw(st.booleans()):
        entry["from"] = draw(st.lists(st.sampled_from(blocks), max_size=3))
    if draw(st.booleans()):
        entry["ports"] = draw(st.lists(st.sampled_from(ports), max_size=3))
    return entry


def allows(entry: dict[str, Any], peer: Peer) -> bool:
    """Tell what Kubernetes' definition says of an entry, in its own words."""
    address = ipaddress.ip_address(peer.address)

    def is_peer(one: dict[str, Any]) -> bool:
        block = one["ipBlock"]
        excepted = any(address in ipaddress.ip_network(part) for part in block.get("except", []))
        return address in ipaddress.ip_network(block["cidr"]) and not excepted

    def is_port(one: dict[str, Any]) -> bool:
        first = one.get("port")
        inside = first is None or (peer.port is not None and first <= peer.port <= one.get("endPort", first))
        return peer.protocol == one.get("protocol", "TCP").lower() and inside

    return (not entry.get("from") or any(map(is_peer, entry["from"]))) and (
        not entry.get("ports") or any(map(is_port, entry["ports"]))
    )


PEERS = st.builds(
    Peer,
    st.sampled_from(["10.0.0.1", "10.1.2.3", "10.1.3.3", "10.200.0.1", "192.168.1.1", "8.8.8.8", "fd00::1", "fe80::1"]),
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from([1, 79, 80, 85, 90, 91, 65535]),
) | st.builds(Peer, st.just("10.0.0.1"), st.just("icmp"), icmp_type=st.just(8))


@given(st.lists(entries(), max_size=4), PEERS)
def test_entries_allow_what_the_definition_says(written: list[dict[str, Any]], peer: Peer) -> None:
    expected = Verdict.ALLOW if any(allows(entry, peer) for entry in written) else Verdict.DENY
    assert verdict(policy({"ingress": written}), Operation.RECEIVE, peer) is expected


@given(st.lists(entries(), max_size=3), st.lists(entries(), max_size=3), PEERS)
def test_policies_add_up(one: list[dict[str, Any]], other: list[dict[str, Any]], peer: Peer) -> None:
    both = policy({"ingress": one}) + "\n---\n" + policy({"ingress": other}, name="q")
    expected = Verdict.ALLOW if any(allows(entry, peer) for entry in (*one, *other)) else Verdict.DENY
    assert verdict(both, Operation.RECEIVE, peer) is expected


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        (Peer("10.9.9.9", "tcp", 6379, labels=(("role", "frontend"),), namespace="shop"), True),
        (Peer("10.9.9.9", "tcp", 6379, labels=(("role", "frontend"),), namespace="prod"), False),
        (Peer("10.9.9.9", "tcp", 6379, labels=(("scrape", "x"),), namespace="monitoring"), True),
        (Peer("10.9.9.9", "tcp", 6379, labels=(("role", "frontend"),), namespace="monitoring"), False),
        (Peer("10.9.9.9", "tcp", 6380, labels=(("role", "frontend"),), namespace="shop"), False),
        (Peer("10.9.9.9", "tcp", 6379), False),
    ],
)
def test_pods_as_peers(peer: Peer, allowed: bool) -> None:  # noqa: FBT001
    assert verdict(KUBERNETES, Operation.RECEIVE, peer) is (Verdict.ALLOW if allowed else Verdict.DENY)


BLOCK: dict[str, Any] = {"ipBlock": {"cidr": "10.0.0.0/8"}}


@pytest.mark.parametrize(
    ("entry", "field", "words"),
    [
        ({"from": [BLOCK | {"podSelector": {}}]}, "from[0].ipBlock", "ipBlock or selectors"),
        ({"from": [{}]}, "from[0]", "ipBlock, podSelector or namespaceSelector"),
        ({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}]}, "from[0].ipBlock.except[0]",
         "a part of 10.0.0.0/8"),
        ({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["fd00::/16"]}}]}, "from[0].ipBlock.except[0]",
         "a part of 10.0.0.0/8"),
        ({"from": [{"ipBlock": {"cidr": "localhost"}}]}, "from[0].ipBlock.cidr", "network"),
        ({"from": [{"podSelector": {"matchLabels": {"a b": "c"}}}]}, "from[0].podSelector.matchLabels.a b",
         "the name of a label"),
        ({"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}]},
         "from[0].podSelector.matchExpressions[0].values", "no values with Exists"),
        ({"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "NotIn"}]}}]},
         "from[0].podSelector.matchExpressions[0].values", "values with NotIn"),
        ({"ports": [{"port": "443"}]}, "ports[0].port", "without quotes"),
        ({"ports": [{"port": "api-port"}]}, "ports[0].port", "well-known service"),
        ({"ports": [{"port": "htpps"}]}, "ports[0].port", "Did you mean 'https'?"),
        ({"ports": [{"port": 0}]}, "ports[0].port", "1 to 65535"),
        ({"ports": [{"port": 90, "endPort": 80}]}, "ports[0].endPort", "Swap port and endPort"),
        ({"ports": [{"port": "http", "endPort": 80}]}, "ports[0].endPort", "behind the number of a port"),
        ({"ports": [{"endPort": 80}]}, "ports[0].endPort", "behind the number of a port"),
        ({"ports": [{"protocol": "ICMP"}]}, "ports[0].protocol", "TCP or UDP or SCTP"),
        ({"form": []}, "form", "Did you mean 'from'?"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_entry_is_told_at_its_place(entry: dict[str, Any], field: str, words: str) -> None:
    written = Written(json.loads(policy({"ingress": [{}, entry]})))
    (problem,) = [problem for problem in problems_of(written.text) if not problem.warning]
    assert problem.field == f"spec.ingress[1].{field}"
    assert written.lines["spec", "ingress", 1] <= problem.line
    assert words in str(problem)


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"ingress": [{"from": [{"podSelector": {}}]}]}, "spec.ingress[0].from[0]", "of this machine alone"),
        ({"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"env": "prod"}}}]}]},
         "spec.ingress[0].from[0].namespaceSelector", "labels of namespaces (env)"),
        ({"ingress": [{"ports": [{"port": "http"}]}]}, "spec.ingress[0].ports[0].port", "taken for 80"),
        ({"policyTypes": ["Ingress"], "egress": [{}]}, "spec.egress", "Egress among policyTypes"),
        ({"egress": []}, "spec.egress", "found an empty list"),
        ({"ingress": None}, "spec.ingress", "found null"),
        ({"podSelector": {"matchLabels": None}}, "spec.podSelector.matchLabels", "found null"),
        ({"ingress": [{"from": [{"ipBlock": {"cidr": "10.1.0.0/8"}}]}]}, "spec.ingress[0].from[0].ipBlock.cidr",
         'Write "10.0.0.0/8"'),
        ({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.2.0/16"]}}]}]},
         "spec.ingress[0].from[0].ipBlock.except[0]", 'Write "10.1.0.0/16"'),
    ],
)  # fmt: skip
def test_what_may_not_be_meant_is_warned_of(spec: dict[str, Any], field: str, words: str) -> None:
    problems = problems_of(policy(spec))
    assert all(problem.warning for problem in problems)
    assert [problem for problem in problems if problem.field == field and words in str(problem)]


def test_a_namespace_by_its_name_is_known() -> None:
    named = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "prod"}}}
    fields = {problem.field for problem in problems_of(policy({"ingress": [{"from": [named]}]}))}
    assert fields == {"spec.ingress[0].from[0]"}


@pytest.mark.parametrize("name", ["hauberk.io/audit", "hauberk.io/x"])
def test_annotations_of_ours_are_refused(name: str) -> None:
    document = json.loads(policy({})) | {"metadata": {"name": "p", "annotations": {name: "true", "other/x": "y"}}}
    (problem,) = problems_of(json.dumps(document))
    assert (problem.field, problem.warning) == (f"metadata.annotations.{name}", False)


def test_lists_are_bounded() -> None:
    most = [{"ipBlock": {"cidr": f"10.{number // 256}.{number % 256}.0/24"}} for number in range(5000)]
    assert problems_of(policy({"ingress": [{"from": most}]})) == []
    (problem,) = problems_of(policy({"ingress": [{"ports": [{"port": 80}] * 4097}]}))
    assert "at most 4096 elements" in str(problem)


def test_networks_that_become_rules_of_their_own_are_bounded() -> None:
    blocks: list[dict[str, Any]] = [{"cidr": "10.0.0.0/8"}]
    blocks += [
        {"cidr": f"10.{one // 256}.{one % 256}.0/24", "except": [f"10.{one // 256}.{one % 256}.0/28"]}
        for one in range(1001)
    ]
    (problem,) = problems_of(policy({"ingress": [{"from": [{"ipBlock": block} for block in blocks]}]}))
    assert (problem.field, problem.warning) == ("spec.ingress[0].from", False)
    assert "1001 networks with exceptions" in str(problem)
    blocks.pop()
    assert len(rules_of(policy({"ingress": [{"from": [{"ipBlock": block} for block in blocks]}]}))) == 1001
