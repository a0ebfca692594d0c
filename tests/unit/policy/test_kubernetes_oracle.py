# SPDX-License-Identifier: Apache-2.0
"""The normal form says of every connection what Kubernetes' documentation says of it."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from hauberk.policy.vocabulary import SERVICES
from tests.host.network.cases_kubernetes import COUNTS, NAMESPACE_NAME, kubernetes_cases
from tests.host.network.topology import PORTS, STRANGERS, Places, Probe, everybody
from tests.host.network.truth_verdicts import Verdicts
from tests.unit.policy.kubernetes_oracle import Connection, Pod, allowed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.network.cases import Case, State
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
    assert asked > 1000 * COUNTS[group]  # type: ignore[index]


def _compare(case: Case, state: State) -> int:
    """Compare all connections of a state; give how many."""
    verdicts = Verdicts(state)
    asked = 0
    for probe, connection in _connections(state):
        judged = verdicts.judge(probe, PLACES)
        expected = allowed(state.policies, connection, SERVICES)
        assert judged.passes is expected, (case.name, probe, judged)
        asked += 1
    stated = {(one.source, one.target, one.protocol, one.port): one.passes for one in state.stated}
    for probe, connection in _connections(state):
        one = (probe.source, probe.target, probe.protocol, probe.port)
        if one in stated:
            assert allowed(state.policies, connection, SERVICES) is stated[one], (case.name, probe)
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
