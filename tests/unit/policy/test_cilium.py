# SPDX-License-Identifier: Apache-2.0
"""Policies of Cilium mean what Cilium documents, below the content of connections."""

from __future__ import annotations

import ipaddress
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.policy import models, normalise
from hauberk.policy.rules import (
    Action,
    LabelRequirement,
    Operation,
    Peer,
    PeerGroup,
    PeerSelector,
    Section,
    Verdict,
)
from hauberk.policy.selectors import Scope, Selector, WorkloadIdentity
from tests.unit.policy.documents_of_each_kind import CILIUM, CLUSTERWIDE, CONTENT
from tests.unit.policy.test_kubernetes import PEERS, problems_of, rules_of, verdict
from tests.unit.policy.yaml_with_lines import Written

if TYPE_CHECKING:
    from hauberk.policy.rules import PeerMatch

NAMESPACE = "k8s:io.kubernetes.pod.namespace"
MONITORING = "kubernetes.io/metadata.name=monitoring"
TCP_80 = {"ports": [{"port": "80", "protocol": "TCP"}]}


def policy(spec: dict[str, Any], *, kind: str = "CiliumNetworkPolicy", audit: bool = False, **metadata: Any) -> str:  # noqa: ANN401
    annotations = {"annotations": {"hauberk.io/audit": "true"}} if audit else {}
    return json.dumps(
        {
            "apiVersion": "cilium.io/v2",
            "kind": kind,
            "metadata": {"name": "p"} | annotations | metadata,
            "spec": ({} if "nodeSelector" in spec else {"endpointSelector": {}}) | spec,
        }
    )


def match_of(spec: dict[str, Any], **metadata: Any) -> PeerMatch:  # noqa: ANN401
    (rule,) = rules_of(policy(spec, **metadata))
    match: Any = rule.match
    return match  # type: ignore[no-any-return] # narrowed by what is written


def test_every_field_becomes_a_rule() -> None:
    found = rules_of(CILIUM)
    assert [(rule.origin.field, rule.action.value, rule.default_deny, rule.value) for rule in found] == [
        ("spec.ingress[0]", "Allow", True,
         "10.0.0.0/8, fd00::/8 except 10.96.0.0/12 tcp/443, sctp/8000-8080, udp, tcp/9000, udp/9000, sctp/9000"),
        ("spec.ingress[1]", "Allow", True,
         "entity health, workloads any in namespaces shop, workloads role in namespaces with " + MONITORING),
        ("spec.ingress[2]", "Allow", True, "entity world, entity cluster icmp/8, icmpv6/128"),
        ("spec.ingressDeny[0]", "Block", True, "203.0.113.0/24, 198.51.100.7/32"),
        ("spec.egress[0]", "Allow", False,
         "name api.example.com, name *.cdn.example.com tcp/53, udp/53, sctp/53"),
        ("spec.egress[1]", "Allow", False, "any"),
        ("spec.egress[2]", "Allow", False, "192.0.2.0/24"),
        ("spec.egress[3]", "Allow", False, "workloads app=database in namespaces shop"),
        ("spec.egressDeny[0]", "Block", False, "169.254.0.0/16 except 169.254.20.10/32 tcp/80"),
        ("spec.egressDeny[1]", "Block", False, "entity host icmp/5"),
    ]  # fmt: skip
    assert {rule.section for rule in found[:4]} == {Section.INGRESS}
    assert {rule.section for rule in found[4:]} == {Section.EGRESS}
    assert {(rule.message, rule.origin.policy) for rule in found} == {("shop", "shop/endpoints")}
    assert found[0].origin.line == CILIUM.splitlines().index("    - fromCIDRSet:") + 1


def test_whom_a_policy_covers() -> None:
    (one,) = models.load([("p.yaml", CILIUM.encode())])
    selector = normalise.selector(one.model)
    assert selector.requirements == (
        LabelRequirement("app", "In", ("web",)),
        LabelRequirement("tier", "NotIn", ("test",)),
        LabelRequirement("canary", "DoesNotExist"),
    )
    for labels, covered in (({"app": "web"}, True), ({"app": "web", "tier": "test"}, False),
                            ({"app": "web", "canary": ""}, False), ({}, False)):  # fmt: skip
        assert selector.matches("shop", WorkloadIdentity(namespace="shop", labels=labels)) is covered
    assert not selector.matches("shop", WorkloadIdentity(namespace="prod", labels={"app": "web"}))


def test_whom_a_policy_for_hosts_covers() -> None:
    (one,) = models.load([("p.yaml", CLUSTERWIDE.encode())])
    selector = normalise.selector(one.model)
    assert selector.scope is Scope.HOST
    edge = WorkloadIdentity(host=True, host_name="node-1", labels={"role": "edge"})
    assert selector.matches("", edge)
    assert not selector.matches("", WorkloadIdentity(host=True, host_name="node-10", labels={"role": "edge"}))
    assert not selector.matches("", WorkloadIdentity(host=True, host_name="node-1"))
    assert not selector.matches("", WorkloadIdentity(labels={"role": "edge"}))
    every = models.load([("p.yaml", policy({"nodeSelector": {}, "ingress": [{}]}, kind=one.kind).encode())])
    assert normalise.selector(every[0].model).matches("", WorkloadIdentity(host=True))
    named = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["a", "b"]}]}
    (some,) = models.load([("p.yaml", policy({"nodeSelector": named, "ingress": [{}]}, kind=one.kind).encode())])
    assert normalise.selector(some.model).matches("", WorkloadIdentity(host=True, host_name="b"))


def expression(operator: str, *values: str, key: str = NAMESPACE) -> dict[str, Any]:
    return {"key": key, "operator": operator} | ({"values": list(values)} if values else {})


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        ({}, Selector(cluster=True)),
        ({"matchLabels": {NAMESPACE: "shop", "app": "web"}},
         Selector(requirements=(LabelRequirement("app", "In", ("web",)),), cluster=True, namespaces=("shop",))),
        ({"matchExpressions": [expression("In", "a", "b", "c"), expression("NotIn", "b"), expression("Exists")]},
         Selector(cluster=True, namespaces=("a", "c"), excluded_namespaces=("b",))),
        ({"matchExpressions": [expression("NotIn", "kube-system")]},
         Selector(cluster=True, excluded_namespaces=("kube-system",))),
        ({"matchLabels": {"io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name": "shop"}},
         Selector(cluster=True, namespaces=("shop",))),
    ],
)  # fmt: skip
def test_namespaces_of_a_clusterwide_policy(endpoints: dict[str, Any], expected: Selector) -> None:
    text = policy({"endpointSelector": endpoints, "ingress": [{}]}, kind="CiliumClusterwideNetworkPolicy")
    (one,) = models.load([("p.yaml", text.encode())])
    assert normalise.selector(one.model) == expected


def test_each_of_several_specs_is_a_policy_of_its_own() -> None:
    document = json.loads(policy({"ingress": [{}]}, namespace="shop"))
    document["specs"] = [
        {"endpointSelector": {"matchLabels": {"app": name}}, "egressDeny": [{"toCIDR": ["192.0.2.0/24"]}]}
        for name in ("a", "b")
    ]
    written = Written(document)
    found = models.load([("p.yaml", written.text.encode())])
    assert [one.name for one in found] == ["shop/p", "shop/p[0]", "shop/p[1]"]
    (rule,) = normalise.rules(found[2])
    assert (rule.origin.policy, rule.origin.field) == ("shop/p[1]", "specs[1].egressDeny[0]")
    assert rule.origin.line == written.lines["specs", 1, "egressDeny", 0]
    assert normalise.selector(found[1].model).requirements == (LabelRequirement("app", "In", ("a",)),)
    assert [rule.section for rule in normalise.rules(found[0])] == [Section.INGRESS]


ANY = Peer("198.51.100.7", "tcp", 443)


@pytest.mark.parametrize(
    ("spec", "receives", "sends"),
    [
        ({"ingress": [{}]}, Verdict.DENY, Verdict.ALLOW),
        ({"egress": [{}]}, Verdict.ALLOW, Verdict.DENY),
        ({"ingress": [{}], "egress": []}, Verdict.DENY, Verdict.ALLOW),
        ({"ingressDeny": [{}]}, Verdict.DENY, Verdict.ALLOW),
        ({"egressDeny": [{"toCIDR": ["192.0.2.0/24"]}]}, Verdict.ALLOW, Verdict.DENY),
        ({"ingress": [{"fromEntities": ["all"]}]}, Verdict.ALLOW, Verdict.ALLOW),
        ({"ingress": [{"fromEntities": ["none"]}]}, Verdict.DENY, Verdict.ALLOW),
        ({"ingress": [{"fromEntities": []}]}, Verdict.DENY, Verdict.ALLOW),
        ({"ingress": [{"fromCIDR": [], "toPorts": [{"ports": [{"port": "443"}]}]}]}, Verdict.DENY, Verdict.ALLOW),
        ({"ingress": [{"fromEndpoints": []}]}, Verdict.DENY, Verdict.ALLOW),
        ({"ingress": [{"fromEndpoints": [{}]}]}, Verdict.DENY, Verdict.ALLOW),
        ({"ingress": [{"toPorts": [{"ports": [{"port": "443"}]}]}]}, Verdict.ALLOW, Verdict.ALLOW),
        ({"ingress": [{"toPorts": [{"ports": [{"port": "0", "protocol": "UDP"}]}]}]}, Verdict.DENY, Verdict.ALLOW),
        ({"ingress": [{}], "enableDefaultDeny": {"ingress": False}}, Verdict.ALLOW, Verdict.ALLOW),
        ({"enableDefaultDeny": {"egress": True}}, Verdict.ALLOW, Verdict.DENY),
        ({"enableDefaultDeny": {"ingress": True, "egress": True}}, Verdict.DENY, Verdict.DENY),
        ({"ingress": [{"fromEntities": ["all"]}], "ingressDeny": [{"fromEntities": ["all"]}]}, Verdict.DENY,
         Verdict.ALLOW),
        ({"ingressDeny": [{"fromEntities": ["all"]}], "enableDefaultDeny": {"ingress": False}}, Verdict.DENY,
         Verdict.ALLOW),
    ],
)  # fmt: skip
def test_which_directions_are_lists(spec: dict[str, Any], receives: Verdict, sends: Verdict) -> None:
    assert verdict(policy(spec), Operation.RECEIVE, ANY) is receives
    assert verdict(policy(spec), Operation.SEND, ANY) is sends


@pytest.mark.parametrize(
    ("endpoints", "groups"),
    [
        ({}, PeerGroup.of_workloads(PeerSelector(namespaces=("shop",)))),
        ({"matchLabels": {"any:a": "b"}},
         PeerGroup.of_workloads(PeerSelector((LabelRequirement("a", "In", ("b",)),), namespaces=("shop",)))),
        ({"matchLabels": {NAMESPACE: "prod"}},
         PeerGroup.of_workloads(
             PeerSelector(namespace_labels=(LabelRequirement("kubernetes.io/metadata.name", "In", ("prod",)),)))),
        ({"matchExpressions": [expression("Exists", key="io.kubernetes.pod.namespace")]},
         PeerGroup.of_workloads(
             PeerSelector(namespace_labels=(LabelRequirement("kubernetes.io/metadata.name", "Exists"),)))),
        ({"matchLabels": {"k8s:io.cilium.k8s.namespace.labels.env": "prod"}},
         PeerGroup.of_workloads(PeerSelector(namespace_labels=(LabelRequirement("env", "In", ("prod",)),)))),
        ({"matchLabels": {"reserved:host": ""}}, PeerGroup("entity", "host")),
        ({"matchExpressions": [expression("Exists", key="io.cilium.k8s.policy.cluster")]},
         PeerGroup.of_workloads(PeerSelector(namespaces=("shop",)))),
    ],
)  # fmt: skip
def test_endpoints_as_peers(endpoints: dict[str, Any], groups: PeerGroup) -> None:
    assert match_of({"ingress": [{"fromEndpoints": [endpoints]}]}, namespace="shop").groups == (groups,)


def test_endpoints_of_a_policy_without_a_namespace() -> None:
    spec: dict[str, Any] = {"egress": [{"toEndpoints": [{}]}]}
    assert match_of(spec).groups == (PeerGroup.of_workloads(PeerSelector(namespaces=("default",))),)
    clusterwide = match_of(spec, kind="CiliumClusterwideNetworkPolicy")
    assert clusterwide.groups == (PeerGroup.of_workloads(PeerSelector()),)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"ports": [{"port": "80"}]}, ((80, 80, "tcp"), (80, 80, "udp"), (80, 80, "sctp"))),
        ({"ports": [{"port": "80", "endPort": 90, "protocol": "TCP"}]}, ((80, 90, "tcp"),)),
        ({"ports": [{"port": "0", "protocol": "ANY"}]}, ((0, 65535, "tcp"), (0, 65535, "udp"), (0, 65535, "sctp"))),
        ({"ports": [{"protocol": "VRRP"}, {"port": "0", "protocol": "ESP"}]},
         ((0, 65535, "vrrp"), (0, 65535, "esp"))),
        ({"ports": [{"port": "HTTPS", "protocol": "TCP"}]}, ((443, 443, "tcp"),)),
    ],
)  # fmt: skip
def test_ports(entry: dict[str, Any], expected: tuple[tuple[int, int, str], ...]) -> None:
    assert match_of({"ingress": [{"toPorts": [entry]}]}).ports == expected


def test_names() -> None:
    spec = {"egress": [{"toFQDNs": [{"matchName": "API.Example.com."}, {"matchPattern": "**.Example.ORG"}]}]}
    assert match_of(spec).groups == (PeerGroup("name", "api.example.com"), PeerGroup("name", "**.example.org"))


# A second opinion: what Cilium's guide says of entries, in its own words.

BLOCKS: list[dict[str, Any]] = [
    {"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}, {"cidr": "10.1.2.0/24"}]},
    {"fromCIDR": ["192.168.0.0/16", "fd00::/8"]},
    {"fromCIDRSet": [{"cidr": "0.0.0.0/0", "except": ["10.0.0.0/9"]},
                     {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}]},
    {"fromEntities": ["all"]},
    {"fromCIDR": []},
    {},
]  # fmt: skip
KINDS: list[dict[str, Any]] = [
    {"toPorts": [TCP_80]},
    {"toPorts": [{"ports": [{"port": "80", "endPort": 90}]}, {"ports": [{"port": "0", "protocol": "UDP"}]}]},
    {"icmps": [{"fields": [{"type": 8}]}]},
    {},
]
ENTRIES = st.lists(st.builds(lambda peers, kinds: peers | kinds, st.sampled_from(BLOCKS), st.sampled_from(KINDS)),
                   max_size=3)  # fmt: skip


def says(entry: dict[str, Any], peer: Peer) -> bool:
    """Tell whether an entry is about a packet."""
    lists = [name for name in entry if name.startswith("from")]
    if not entry or any(not entry[name] for name in lists):
        return False
    address = ipaddress.ip_address(peer.address)
    networks = [{"cidr": cidr} for cidr in entry.get("fromCIDR", [])] + entry.get("fromCIDRSet", [])
    is_peer = (
        not lists
        or "all" in entry.get("fromEntities", [])
        or any(
            address in ipaddress.ip_network(one["cidr"])
            and not any(address in ipaddress.ip_network(part) for part in one.get("except", []))
            for one in networks
        )
    )

    def is_port(port: dict[str, Any]) -> bool:
        protocol = port.get("protocol", "ANY")
        first = int(port["port"])
        inside = first == 0 or (peer.port is not None and first <= peer.port <= port.get("endPort", first))
        return inside and peer.protocol in (("tcp", "udp", "sctp") if protocol == "ANY" else (protocol.lower(),))

    ports = [port for element in entry.get("toPorts", []) for port in element["ports"]]
    types = [field["type"] for element in entry.get("icmps", []) for field in element["fields"]]
    is_kind = (not ports and not types) or any(map(is_port, ports)) or (
        peer.protocol == "icmp" and peer.icmp_type in types
    )  # fmt: skip
    return is_peer and is_kind


@given(ENTRIES, ENTRIES, st.sampled_from([None, True, False]), PEERS)
def test_entries_say_what_the_guide_says(
    allowed: list[dict[str, Any]],
    denied: list[dict[str, Any]],
    default: bool | None,  # noqa: FBT001 - drawn
    peer: Peer,
) -> None:
    if not allowed and not denied and not default:
        return
    spec = {"ingress": allowed, "ingressDeny": denied}
    if default is not None:
        spec |= {"enableDefaultDeny": {"ingress": default}}  # type: ignore[dict-item] # one of another type
    if any(says(entry, peer) for entry in denied):
        expected = Verdict.DENY
    elif any(says(entry, peer) for entry in allowed):
        expected = Verdict.ALLOW
    else:
        expected = Verdict.DENY if default is not False else Verdict.ALLOW
    assert verdict(policy(spec), Operation.RECEIVE, peer) is expected


# Policies that audit


def test_a_policy_that_audits_refuses_nothing() -> None:
    found = rules_of(CONTENT)
    assert [(rule.origin.field, rule.action.value, rule.value) for rule in found] == [
        ("spec", "Audit", "nothing"),
        ("spec.ingress[0]", "Allow", "10.0.0.0/8 tcp/22"),
        ("spec.ingress[0].toPorts[1]", "Audit", "10.0.0.0/8 tcp/80"),
        ("spec.ingressDeny[0]", "Audit", "203.0.113.0/24"),
        ("spec", "Audit", "nothing"),
        ("spec.egress[0].toPorts[0]", "Audit", "any tcp/443"),
        ("spec.egress[0].toPorts[1]", "Audit", "any tcp/9092, udp/9092, sctp/9092"),
        ("spec.egress[1].toPorts[0]", "Audit", "any tcp/53, udp/53, sctp/53"),
    ]
    assert [rule.default_deny for rule in found] == [rule.value == "nothing" for rule in found]
    assert verdict(CONTENT, Operation.RECEIVE, Peer("203.0.113.7", "tcp", 1)) is Verdict.AUDIT
    assert verdict(CONTENT, Operation.RECEIVE, Peer("10.0.0.1", "tcp", 80)) is Verdict.AUDIT
    assert verdict(CONTENT, Operation.RECEIVE, Peer("10.0.0.1", "tcp", 22)) is Verdict.ALLOW
    assert verdict(CONTENT, Operation.RECEIVE, Peer("10.0.0.1", "tcp", 81)) is Verdict.AUDIT
    problems = problems_of(CONTENT)
    assert [problem.field for problem in problems] == [
        "spec.ingress[0].toPorts[1]", "spec.egress[0].toPorts[0]", "spec.egress[0].toPorts[1]",
        "spec.egress[1].toPorts[0]",
    ]  # fmt: skip
    assert all(problem.warning and "let pass and reported" in str(problem) for problem in problems)


@given(ENTRIES, ENTRIES, PEERS)
def test_a_policy_that_audits_never_refuses(
    allowed: list[dict[str, Any]], denied: list[dict[str, Any]], peer: Peer
) -> None:
    if allowed or denied:
        spec = {"ingress": allowed, "ingressDeny": denied}
        enforced = verdict(policy(spec), Operation.RECEIVE, peer)
        expected = Verdict.AUDIT if enforced is Verdict.DENY else enforced
        assert verdict(policy(spec, audit=True), Operation.RECEIVE, peer) is expected


@pytest.mark.parametrize(
    ("spec", "field", "expected"),
    [
        ({"ingress": [{"fromCIDR": ["10.0.0.0/8"]}]}, "spec", Verdict.AUDIT),
        ({"enableDefaultDeny": {"ingress": True}}, "spec.enableDefaultDeny.ingress", Verdict.AUDIT),
        ({"ingress": [{"fromCIDR": ["10.0.0.0/8"]}], "enableDefaultDeny": {"ingress": False}}, None, Verdict.ALLOW),
        ({"egress": [{"toCIDR": ["10.0.0.0/8"]}]}, None, Verdict.ALLOW),
    ],
)
def test_what_a_policy_that_audits_would_not_allow_is_reported(
    spec: dict[str, Any], field: str | None, expected: Verdict
) -> None:
    text = policy(spec, audit=True)
    assert verdict(text, Operation.RECEIVE, ANY) is expected
    made = [rule.origin.field for rule in rules_of(text) if rule.makes_allow_list and rule.section is Section.INGRESS]
    assert made == ([field] if field else [])
    refusing = policy({"ingress": [{"fromCIDR": ["192.0.2.0/24"]}]}, name="q")
    assert verdict(f"{text}\n---\n{refusing}", Operation.RECEIVE, ANY) is Verdict.DENY


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"ingressDeny": [{"fromEndpoints": [{}]}]}, "spec.ingressDeny[0].fromEndpoints[0]"),
        ({"egress": [{"toFQDNs": [{"matchName": "a.b"}], "toPorts": [TCP_80 | {"serverNames": ["a.b"]}]}]},
         "spec.egress[0].toFQDNs"),
        ({"ingress": [{"fromEndpoints": [{}], "toPorts": [TCP_80 | {"rules": {"http": []}}]}]},
         "spec.ingress[0].fromEndpoints[0]"),
    ],
)  # fmt: skip
def test_of_whom_nothing_can_be_told_is_warned_of(spec: dict[str, Any], field: str) -> None:
    told = [problem for problem in problems_of(policy(spec, audit=True)) if problem.field == field]
    assert ["nothing is told of them" in str(problem) for problem in told] == [True]


CONTENTS: list[tuple[dict[str, Any], str]] = [
    ({"rules": {"http": [{"path": "/"}]}}, "rules"),
    ({"rules": {"http": []}}, "rules"),
    ({"rules": {"kafka": [{"role": "produce"}]}}, "rules"),
    ({"rules": {"dns": [{"matchName": "a.example.com"}]}}, "rules"),
    ({"rules": {"dns": [{"matchPattern": "*.example.com"}]}}, "rules"),
    ({"rules": {"dns": []}}, "rules"),
    ({"rules": {"l7proto": "x", "l7": [{"a": "b"}]}}, "rules"),
    ({"rules": {"dns": [{"matchPattern": "*"}], "http": [{}]}}, "rules"),
    ({"serverNames": ["a.example.com"]}, "serverNames"),
    ({"terminatingTLS": {"secret": {"name": "x"}}}, "terminatingTLS"),
    ({"originatingTLS": {"secret": {"name": "x"}}}, "originatingTLS"),
    ({"listener": {"name": "x"}}, "listener"),
]


@pytest.mark.parametrize(("content", "field"), CONTENTS)
def test_the_content_of_connections_is_refused(content: dict[str, Any], field: str) -> None:
    written = Written(json.loads(policy({"egress": [{"toPorts": [TCP_80, TCP_80 | content]}]})))
    (problem,) = problems_of(written.text)
    assert (problem.field, problem.warning) == (f"spec.egress[0].toPorts[1].{field}", False)
    assert problem.line - written.lines["spec", "egress", 0, "toPorts", 1, field] in {0, 1}
    assert "conditions on the content of connections" in str(problem)
    assert 'hauberk.io/audit: "true"' in problem.advice
    assert models.examine([("p.yaml", written.text.encode())])[0] == []
    audited = policy({"egress": [{"toPorts": [TCP_80, TCP_80 | content]}]}, audit=True)
    assert [rule.action for rule in rules_of(audited)] == [Action.AUDIT, Action.ALLOW, Action.AUDIT]


@pytest.mark.parametrize(
    "content", [{}, {"rules": {}}, {"rules": {"dns": [{"matchPattern": "*"}, {"matchName": "a"}]}}]
)
def test_what_restricts_nothing_is_taken(content: dict[str, Any]) -> None:
    text = policy({"egress": [{"toPorts": [TCP_80 | content]}]})
    assert [rule.action for rule in rules_of(text)] == [Action.ALLOW]
    dns = "dns" in content.get("rules", {})
    assert [problem.field for problem in problems_of(text)] == ["spec.egress[0].toPorts[0].rules.dns"] * dns


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({"hauberk.io/audit": "yes"}, 'found "yes", expected "true" or "false"'),
        ({"hauberk.io/audit": ""}, 'expected "true" or "false"'),
        ({"hauberk.io/audti": "true"}, "Did you mean 'hauberk.io/audit'?"),
        ({"hauberk.io/enforce": "no"}, "expected hauberk.io/audit"),
    ],
)
def test_an_annotation_of_ours_that_says_nothing_is_refused(annotations: dict[str, str], words: str) -> None:
    (problem,) = problems_of(policy({"ingress": [{}]}, annotations=annotations | {"policy.example.com/x": "y"}))
    assert not problem.warning
    assert problem.field == f"metadata.annotations.{next(iter(annotations))}"
    assert words in str(problem)


def test_a_policy_may_say_that_it_does_not_audit() -> None:
    text = policy({"ingressDeny": [{"fromCIDR": ["192.0.2.0/24"]}]}, annotations={"hauberk.io/audit": "false"})
    assert [rule.action for rule in rules_of(text)] == [Action.BLOCK]


# What is refused, and what is warned of


@pytest.mark.parametrize(
    ("entry", "field", "words"),
    [
        ({"fromCIDR": ["10.0.0.0/8"], "fromEntities": ["world"]}, "fromEntities", "one list of peers"),
        ({"fromEndpoints": [{}], "fromCIDRSet": [{"cidr": "10.0.0.0/8"}]}, "fromCIDRSet", "one list of peers"),
        ({"toPorts": [TCP_80], "icmps": [{"fields": [{"type": 8}]}]}, "icmps", "toPorts or icmps"),
        ({"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}]}, "fromCIDRSet[0].except[0]",
         "a part of 10.0.0.0/8"),
        ({"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["0.0.0.0/0"]}]}, "fromCIDRSet[0].except[0]", "a part of"),
        ({"fromCIDRSet": [{"cidr": "10.0.0.0/8", "cidrGroupRef": "x"}]}, "fromCIDRSet[0].cidrGroupRef",
         "a group of networks that a cluster holds"),
        ({"fromCIDR": ["300.0.0.0/8"]}, "fromCIDR[0]", "IPv4 or IPv6 network"),
        ({"fromEntities": ["wolrd"]}, "fromEntities[0]", "Did you mean 'world'?"),
        ({"fromEndpoints": [{"matchLabels": {"reserved:hots": ""}}]}, "fromEndpoints[0].matchLabels.reserved:hots",
         "behind reserved:"),
        ({"fromEndpoints": [{"matchLabels": {"reserved:host": "", "a": "b"}}]}, "fromEndpoints[0]", "alone"),
        ({"fromEndpoints": [{"matchLabels": {"reserved:host": "x"}}]}, "fromEndpoints[0]", "alone"),
        ({"fromEndpoints": [{"matchExpressions": [{"key": "reserved:host", "operator": "Exists"}]}]},
         "fromEndpoints[0]", "alone"),
        ({"fromEndpoints": [{"matchLabels": {"fqdn:x": "y"}}]}, "fromEndpoints[0].matchLabels.fqdn:x", "k8s:, any:"),
        ({"fromEndpoints": [{"matchLabels": {"io.cilium.k8s.policy.serviceaccount": "x"}}]},
         "fromEndpoints[0].matchLabels.io.cilium.k8s.policy.serviceaccount", "the service account is not known"),
        ({"fromEndpoints": [{"matchExpressions": [expression("In", "x", key="io.cilium.k8s.policy.cluster")]}]},
         "fromEndpoints[0].matchExpressions[0].key", "the cluster is not known"),
        ({"fromEndpoints": [{"matchLabels": {"a": "b c"}}]}, "fromEndpoints[0].matchLabels.a", "value of a label"),
        ({"fromNodes": [{}]}, "fromNodes", "Write their addresses with fromCIDR"),
        ({"fromGroups": [{}]}, "fromGroups", "fromCIDRSet"),
        ({"fromRequires": [{}]}, "fromRequires", "gave up in 1.19"),
        ({"authentication": {"mode": "required"}}, "authentication", "authentication of peers"),
        ({"toPorts": [{"ports": [{"port": "0", "endPort": 9}]}]}, "toPorts[0].ports[0].endPort", "Write the number"),
        ({"toPorts": [{"ports": [{"port": "http", "endPort": 90}]}]}, "toPorts[0].ports[0].endPort",
         "Write the number"),
        ({"toPorts": [{"ports": [{"port": "90", "endPort": 80}]}]}, "toPorts[0].ports[0].endPort", "Swap"),
        ({"toPorts": [{"ports": [{"protocol": "TCP"}]}]}, "toPorts[0].ports[0].port", "found none"),
        ({"toPorts": [{"ports": [{"port": ""}]}]}, "toPorts[0].ports[0].port", 'found ""'),
        ({"toPorts": [{"ports": [{"port": "80", "protocol": "GRE"}]}]}, "toPorts[0].ports[0].port", "has no ports"),
        ({"toPorts": [{"ports": [{"port": "web"}]}]}, "toPorts[0].ports[0].port", "well-known service"),
        ({"toPorts": [{"rules": {}}]}, "toPorts[0].ports", "no such field"),
        ({"toPorts": []}, "toPorts", "at least one element"),
        ({"icmps": [{"fields": [{"type": "EchoRequst"}]}]}, "icmps[0].fields[0].type", "Did you mean 'EchoRequest'?"),
        ({"icmps": [{"fields": [{"type": "Redirect", "family": "IPv6"}]}]}, "icmps[0].fields[0].type",
         "type of ICMP for IPv6"),
        ({"icmps": [{"fields": [{"type": True}]}]}, "icmps[0].fields[0].type", "a number or the name"),
        ({"toFQDNs": [{"matchName": "a.b"}]}, "toFQDNs", "the unknown field 'toFQDNs'"),
        ({"rules": {}}, "rules", "the unknown field 'rules'"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_entry_is_told_at_its_place(entry: dict[str, Any], field: str, words: str) -> None:
    written = Written(json.loads(policy({"ingress": [{"fromEntities": ["all"]}, entry]})))
    (problem,) = [problem for problem in problems_of(written.text) if problem.field == f"spec.ingress[1].{field}"]
    assert not problem.warning
    assert problem.line >= written.lines["spec", "ingress", 1]
    assert words in str(problem)


@pytest.mark.parametrize(
    ("spec", "kind", "field", "words"),
    [
        ({"nodeSelector": {}, "ingress": [{}]}, "CiliumNetworkPolicy", "spec.nodeSelector",
         "Write a CiliumClusterwideNetworkPolicy"),
        ({"nodeSelector": {}, "endpointSelector": {}, "ingress": [{}]}, "CiliumClusterwideNetworkPolicy",
         "spec.nodeSelector", "both endpointSelector and nodeSelector"),
        ({}, "CiliumNetworkPolicy", "spec", "a policy without rules"),
        ({"ingress": []}, "CiliumNetworkPolicy", "spec", "'ingress: [{}]'"),
        ({"enableDefaultDeny": {"ingress": False}, "egress": []}, "CiliumNetworkPolicy", "spec", "without rules"),
        ({"ingress": None}, "CiliumNetworkPolicy", "spec.ingress", "expected a list"),
        ({"endpointSelector": {"matchLabels": {"reserved:init": ""}}, "ingress": [{}]}, "CiliumNetworkPolicy",
         "spec.endpointSelector", "Select workloads by their labels"),
        ({"endpointSelector": {"matchLabels": {NAMESPACE: "prod"}}, "ingress": [{}]}, "CiliumNetworkPolicy",
         "spec.endpointSelector", "workloads of the namespace default"),
        ({"endpointSelector": {"matchExpressions": [expression("NotIn", "default")]}, "ingress": [{}]},
         "CiliumNetworkPolicy", "spec.endpointSelector", "workloads of the namespace default"),
        ({"endpointSelector": {"matchExpressions": [expression("In", "a"), expression("NotIn", "a")]},
          "ingress": [{}]}, "CiliumClusterwideNetworkPolicy", "spec.endpointSelector", "all conditions admit"),
        ({"endpointSelector": {"matchExpressions": [expression("DoesNotExist")]}, "ingress": [{}]},
         "CiliumClusterwideNetworkPolicy", "spec.endpointSelector", "all conditions admit"),
        ({"endpointSelector": {"matchLabels": {"io.cilium.k8s.namespace.labels.env": "prod"}}, "ingress": [{}]},
         "CiliumClusterwideNetworkPolicy", "spec.endpointSelector", "Name the namespaces"),
        ({"nodeSelector": {"matchLabels": {NAMESPACE: "a"}}, "ingress": [{}]}, "CiliumClusterwideNetworkPolicy",
         "spec.nodeSelector", "which are in no namespace"),
        ({"nodeSelector": {"matchExpressions": [expression("NotIn", "a", key="kubernetes.io/hostname")]},
          "ingress": [{}]}, "CiliumClusterwideNetworkPolicy", "spec.nodeSelector.matchExpressions[0].operator",
         "List the hosts"),
        ({"egress": [{"toServices": [{}]}]}, "CiliumNetworkPolicy", "spec.egress[0].toServices", "with toCIDR"),
        ({"egress": [{"toGroups": [{}]}]}, "CiliumNetworkPolicy", "spec.egress[0].toGroups", "toCIDRSet"),
        ({"egress": [{"toNodes": [{}]}]}, "CiliumNetworkPolicy", "spec.egress[0].toNodes", "with toCIDR"),
        ({"egress": [{"toRequires": [{}]}]}, "CiliumNetworkPolicy", "spec.egress[0].toRequires", "gave up in 1.19"),
        ({"egress": [{"toFQDNs": [{"matchPattern": "x.**.y"}]}]}, "CiliumNetworkPolicy",
         "spec.egress[0].toFQDNs[0].matchPattern", "pattern of domain names"),
        ({"egress": [{"toFQDNs": [{"matchName": "a.b"}], "toCIDR": ["10.0.0.0/8"]}]}, "CiliumNetworkPolicy",
         "spec.egress[0].toFQDNs", "one list of peers"),
        ({"egressDeny": [{"toFQDNs": [{"matchName": "a.b"}]}]}, "CiliumNetworkPolicy", "spec.egressDeny[0].toFQDNs",
         "names in a rule that denies"),
        ({"egressDeny": [{"toPorts": [TCP_80 | {"rules": {}}]}]}, "CiliumNetworkPolicy",
         "spec.egressDeny[0].toPorts[0].rules", "deny the ports as a whole"),
        ({"egressDeny": [{"toPorts": [{"ports": [{"port": "http"}]}]}]}, "CiliumNetworkPolicy",
         "spec.egressDeny[0].toPorts[0].ports[0].port", "in a rule that denies"),
        ({"selector": {}, "ingress": [{}]}, "CiliumNetworkPolicy", "spec.selector", "Did you mean 'endpointSelector'?"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_spec_is_told_at_its_place(spec: dict[str, Any], kind: str, field: str, words: str) -> None:
    written = Written(json.loads(policy(spec, kind=kind)))
    told = [problem for problem in problems_of(written.text) if not problem.warning]
    assert [problem for problem in told if problem.field == field and words in str(problem)], told
    assert all(problem.line >= written.lines["spec",] for problem in told)


def test_a_policy_without_spec_and_specs_is_refused() -> None:
    document = json.loads(policy({}))
    del document["spec"]
    (problem,) = problems_of(json.dumps(document))
    assert "neither spec nor specs" in str(problem)
    (problem,) = problems_of(json.dumps(document | {"specs": []}))
    assert (problem.field, "at least one element" in str(problem)) == ("specs", True)


def test_neither_workloads_nor_hosts_are_refused() -> None:
    document = json.loads(policy({"ingress": [{}]}, kind="CiliumClusterwideNetworkPolicy"))
    del document["spec"]["endpointSelector"]
    (problem,) = problems_of(json.dumps(document))
    assert "neither endpointSelector nor nodeSelector" in str(problem)


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"ingress": [{"fromEndpoints": [{}]}]}, "spec.ingress[0].fromEndpoints[0]", "of this machine alone"),
        ({"ingressDeny": [{"fromEndpoints": [{}]}]}, "spec.ingressDeny[0].fromEndpoints[0]", "every peer is denied"),
        ({"ingress": [{"fromEndpoints": [{"matchLabels": {"k8s:io.cilium.k8s.namespace.labels.env": "a"}}]}]},
         "spec.ingress[0].fromEndpoints[0]", "no workload is selected"),
        ({"ingress": [{"fromEndpoints": [{"matchLabels": {"reserved:remote-node": ""}}]}]},
         "spec.ingress[0].fromEndpoints[0]", "networkEntities"),
        ({"ingress": [{"fromEntities": ["cluster"]}]}, "spec.ingress[0].fromEntities[0]", "it is nobody"),
        ({"ingressDeny": [{"fromEntities": ["cluster"]}]}, "spec.ingressDeny[0].fromEntities[0]", "denied, or"),
        ({"ingress": [{"fromCIDR": []}]}, "spec.ingress[0].fromCIDR", "the entry is about no packet"),
        ({"ingress": [{}, {"fromEntities": ["all"]}]}, "spec.ingress[0]", "allows nothing"),
        ({"ingressDeny": [{}, {"fromEntities": ["all"]}]}, "spec.ingressDeny[0]", "denies nothing"),
        ({"ingress": [{}], "egress": []}, "spec.egress", "an empty list refuses nothing"),
        ({"ingress": [{"toPorts": [{"ports": [{"port": "http"}]}]}]}, "spec.ingress[0].toPorts[0].ports[0].port",
         "taken for 80"),
        ({"ingress": [{"fromCIDR": ["10.1.2.3/8"]}]}, "spec.ingress[0].fromCIDR[0]", 'Write "10.0.0.0/8"'),
        ({"ingress": [{"fromCIDRSet": [{"cidr": "10.1.2.3/8"}]}]}, "spec.ingress[0].fromCIDRSet[0].cidr",
         'Write "10.0.0.0/8"'),
        ({"ingress": [{"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.1.2.3/16"]}]}]},
         "spec.ingress[0].fromCIDRSet[0].except[0]", 'Write "10.1.0.0/16"'),
        ({"endpointSelector": {"matchLabels": None}, "ingress": [{}]}, "spec.endpointSelector.matchLabels", "null"),
    ],
)  # fmt: skip
def test_what_may_not_be_meant_is_warned_of(spec: dict[str, Any], field: str, words: str) -> None:
    problems = problems_of(policy(spec))
    assert all(problem.warning for problem in problems)
    assert [problem for problem in problems if problem.field == field and words in str(problem)], problems


@pytest.mark.parametrize("spec", [{"ingress": [{}]}, {"egress": [{"toEntities": ["world", "host", "all", "none"]}]}])
def test_what_is_usual_is_not_warned_of(spec: dict[str, Any]) -> None:
    assert problems_of(policy(spec)) == []


def long_list(number: int) -> str:
    cidrs = "".join(f"        - cidr: 10.{one // 256}.{one % 256}.0/24\n" for one in range(number))
    return (
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec:\n  endpointSelector: {}\n"
        f"  ingress:\n    - fromCIDRSet:\n{cidrs}"
    )


def test_networks_in_the_thousands_are_one_rule() -> None:
    (rule,) = rules_of(long_list(10_000))
    match: Any = rule.match
    assert len(match.cidrs) == 10_000
    assert len(rule.value) < 200


@pytest.mark.long
def test_a_hundred_thousand_networks_are_taken_and_no_more() -> None:
    networks = "\n".join(
        f"        - cidr: {10 + one // 65536}.{one // 256 % 256}.{one % 256}.0/24" for one in range(100_000)
    )
    text = long_list(0) + networks
    (rule,) = rules_of(text)
    match: Any = rule.match
    assert len(match.cidrs) == 100_000
    (problem,) = problems_of(text + "\n        - cidr: 192.0.2.0/24\n")
    assert "at most 100000 elements" in str(problem)


def test_networks_that_become_rules_of_their_own_are_bounded() -> None:
    blocks: list[dict[str, Any]] = [{"cidr": "10.0.0.0/8"}]
    blocks += [
        {"cidr": f"10.{one // 256}.{one % 256}.0/24", "except": [f"10.{one // 256}.{one % 256}.0/28"]}
        for one in range(1001)
    ]
    (problem,) = problems_of(policy({"ingress": [{"fromCIDRSet": blocks}]}))
    assert (problem.field, problem.warning) == ("spec.ingress[0].fromCIDRSet", False)
    assert "1001 networks with exceptions" in str(problem)
    blocks.pop()
    assert len(rules_of(policy({"ingress": [{"fromCIDRSet": blocks}]}))) == 1001
