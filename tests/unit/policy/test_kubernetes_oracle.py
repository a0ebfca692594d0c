# SPDX-License-Identifier: Apache-2.0
"""The normal form says of every connection what Kubernetes' documentation says of it."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hauberk.policy.vocabulary import SERVICES
from tests.host.network.cases import Document, State, Workload
from tests.host.network.cases_kubernetes import COUNTS, NAMESPACE_NAME, kubernetes_cases
from tests.host.network.topology import PORTS, STRANGERS, Places, Probe, everybody
from tests.host.network.truth_verdicts import Verdicts
from tests.unit.policy.kubernetes_oracle import Connection, Pod, allowed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.network.cases import Case
    from tests.host.network.topology import Protocol

CASES = kubernetes_cases()
PLACES = Places(everybody())
ADDRESSES = {plan.name: plan.addresses[0][1:] for plan in everybody()}


def test_every_group_has_as_many_cases_as_the_catalogue() -> None:
    assert Counter(case.group for case in CASES) == COUNTS
    assert len({(case.group, case.name) for case in CASES}) == 230


@pytest.mark.parametrize("group", COUNTS)
def test_decisions_are_what_kubernetes_says(group: str) -> None:
    asked = 0
    for case in CASES:
        if case.group == group:
            for state in case.states:
                asked += _compare(case, state)
    assert asked > 200 * COUNTS[group]  # type: ignore[index]


_PODS = st.sampled_from(["a", "b", "c"])
_NAMESPACES = st.sampled_from(["x", "y", "z"])


def _selectors(key: str, values: st.SearchStrategy[str]) -> st.SearchStrategy[Document]:
    """Give selectors by one label that everybody has, and by one that nobody has."""
    some = st.lists(values, min_size=1, max_size=2, unique=True)
    by_value = st.builds(
        lambda operator, chosen: {"key": key, "operator": operator, "values": chosen},
        st.sampled_from(["In", "NotIn"]),
        some,
    )
    by_presence = st.builds(
        lambda operator, key: {"key": key, "operator": operator},
        st.sampled_from(["Exists", "DoesNotExist"]),
        st.sampled_from([key, "tier"] if key == "pod" else [key]),
    )
    parts = {
        "matchLabels": st.dictionaries(st.just(key), values, max_size=1),
        "matchExpressions": st.lists(by_value | by_presence, max_size=2),
    }
    return st.fixed_dictionaries({}, optional=parts)


_BLOCKS = st.sampled_from(
    [
        {"cidr": "10.77.0.0/16"},
        {"cidr": "10.77.0.0/16", "except": ["10.77.0.0/28", "10.77.1.17/32"]},
        {"cidr": "0.0.0.0/0", "except": ["203.0.113.0/24"]},
        {"cidr": "fd77::/112", "except": ["fd77::14/128"]},
        {"cidr": "::/0"},
        {"cidr": "203.0.113.5/32"},
    ]
)
_POD_SELECTORS = _selectors("pod", _PODS)
_PEERS = st.one_of(
    st.fixed_dictionaries({"ipBlock": _BLOCKS}),
    st.fixed_dictionaries({"podSelector": _POD_SELECTORS}),
    st.fixed_dictionaries(
        {"namespaceSelector": _selectors(NAMESPACE_NAME, _NAMESPACES)}, optional={"podSelector": _POD_SELECTORS}
    ),
)
_NUMBERS = st.sampled_from([79, 80, 81, 8080, 8081])
_PROTOCOLS = st.fixed_dictionaries({}, optional={"protocol": st.sampled_from(["TCP", "UDP", "SCTP"])})
_PORTS = st.one_of(
    _PROTOCOLS,
    st.builds(lambda entry, port: {**entry, "port": port}, _PROTOCOLS, _NUMBERS | st.sampled_from(["http", "https"])),
    st.builds(lambda entry, ends: {**entry, "port": min(ends), "endPort": max(ends)}, _PROTOCOLS,
              st.tuples(_NUMBERS, _NUMBERS)),
)  # fmt: skip


def _rules(peers: str) -> st.SearchStrategy[list[Document]]:
    parts = {peers: st.lists(_PEERS, max_size=2), "ports": st.lists(_PORTS, max_size=2)}
    return st.lists(st.fixed_dictionaries({}, optional=parts), max_size=2)


_POLICIES = st.lists(
    st.fixed_dictionaries(
        {
            "apiVersion": st.just("networking.k8s.io/v1"),
            "kind": st.just("NetworkPolicy"),
            "metadata": st.fixed_dictionaries({"name": st.just("any"), "namespace": st.sampled_from(["x", "y"])}),
            "spec": st.fixed_dictionaries(
                {"podSelector": _POD_SELECTORS},
                optional={
                    "policyTypes": st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"]]),
                    "ingress": _rules("from"),
                    "egress": _rules("to"),
                },
            ),
        }
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=60)
@given(_POLICIES)
def test_decisions_about_any_policies_are_what_kubernetes_says(policies: list[Document]) -> None:
    for number, policy in enumerate(policies):
        policy["metadata"]["name"] = f"any-{number}"
    workloads = tuple(Workload.of(name) for name in ("x/a", "x/b", "y/a"))
    state = State(tuple(policies), workloads)
    verdicts = Verdicts(state)
    for probe, connection in _connections(state):
        assert verdicts.judge(probe, PLACES).passes is allowed(state.policies, connection, SERVICES), probe


def _compare(case: Case, state: State) -> int:
    """Compare all connections of a state; give how many."""
    verdicts = Verdicts(state)
    covered = {name for name, rule_set in verdicts.rule_sets.items() if rule_set.rules}
    stated = {(one.source, one.target, one.protocol, one.port): one.passes for one in state.stated}
    asked = 0
    for number, (probe, connection) in enumerate(_connections(state)):
        if number % 5 and covered.isdisjoint((probe.source, probe.target)):
            continue  # of those that no policy is about some are enough
        judged = verdicts.judge(probe, PLACES)
        expected = allowed(state.policies, connection, SERVICES)
        assert judged.passes is expected, (case.name, probe, judged)
        assert stated.get((probe.source, probe.target, probe.protocol, probe.port), expected) is expected, probe
        asked += 1
    return asked


def _connections(state: State) -> Iterator[tuple[Probe, Connection]]:
    ends = {
        workload.name: Pod(
            workload.name, workload.namespace, dict(workload.labels), {NAMESPACE_NAME: workload.namespace}
        )
        for workload in state.workloads
    } | {name: Pod(name, None, {}, {}) for name in STRANGERS}
    protocols: tuple[Protocol, ...] = ("tcp", "udp", "sctp")
    for source, target in itertools.product(ends, ends):
        for protocol, port, family in itertools.product(protocols, PORTS, (0, 1)):
            own, other = ADDRESSES[source][family], ADDRESSES[target][family]
            probe = Probe(source, own, target, other, protocol, port)
            yield probe, Connection(ends[source], own, ends[target], other, protocol.upper(), port)
