# SPDX-License-Identifier: Apache-2.0
"""The truth table with the engine: a sample of every feature in each layout, and all of it where time allows."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from guest_agent.engines.nftables.engine import NftablesEngine
from hauberk.policy.rules import PeerMatch
from tests.host.network import nft_release
from tests.host.network.cases import sample
from tests.host.network.cases_cilium import cilium_cases
from tests.host.network.cases_kubearmor import kubearmor_cases
from tests.host.network.cases_kubernetes import kubernetes_cases
from tests.host.network.cases_together import cases_together
from tests.host.network.truth import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from guest_agent.engines.network_port import Applied, Desired, Namespace
    from hauberk.policy.rules import Rule
    from tests.host.network.cases import Case
    from tests.host.network.truth import Layout

EVERY_CASE = (*kubernetes_cases(), *cilium_cases(), *kubearmor_cases(), *cases_together())
SAMPLES: dict[Layout, int] = {"whole": 84, "cgroup": 24, "interface": 20}
"""How many cases of each layout `make test` tries."""
LAYOUTS: tuple[Layout, ...] = ("whole", "cgroup", "interface")


def _system_nft() -> str:
    found = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
    assert found is not None, "nft is not installed: run `make setup`"
    return found


def _current_nft() -> str:
    return str(nft_release.prepare())


def test_the_sample_has_every_feature_of_the_table() -> None:
    cases = {layout: [case for case in EVERY_CASE if Table(layout, _none).holds(case)] for layout in LAYOUTS}
    features = {layout: _features(some) for layout, some in cases.items()}
    sampled = {layout: _features(sample(some, SAMPLES[layout])) for layout, some in cases.items()}
    assert features["whole"] == sampled["whole"]
    assert {"machine and pods", "NetworkPolicy", "except", "endPort", "SCTP"} <= sampled["cgroup"]
    assert {"except", "endPort", "SCTP", "entity world"} <= sampled["interface"]


def _none() -> NftablesEngine:
    raise AssertionError


def _features(cases: Iterable[Case]) -> frozenset[str]:
    return frozenset().union(*(case.features for case in cases))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sample_holds(layout: Layout) -> None:
    with Table(layout, lambda: NftablesEngine(_system_nft())) as table:
        cases = [case for case in EVERY_CASE if table.holds(case)]
        for case in sample(cases, SAMPLES[layout]):
            table.run(case)
    assert not table.tally.differences, str(table.tally)
    assert table.tally.refused > 1000, str(table.tally)
    assert table.tally.events > 1000, str(table.tally)


def test_a_sample_holds_with_the_current_release_of_nft() -> None:
    with Table("whole", lambda: NftablesEngine(_current_nft())) as table:
        for case in sample([case for case in EVERY_CASE if table.holds(case)], 12):
            table.run(case)
    assert not table.tally.differences, str(table.tally)
    assert table.tally.events > 100, str(table.tally)


@pytest.mark.long
@pytest.mark.parametrize("nft", [_system_nft, _current_nft], ids=["system", "current"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_case_holds(layout: Layout, nft: Callable[[], str]) -> None:
    with Table(layout, lambda: NftablesEngine(nft())) as table:
        for case in EVERY_CASE:
            if table.holds(case):
                table.run(case)
    assert not table.tally.differences, str(table.tally)
    assert table.tally.cases > 230, str(table.tally)


class _Wrong(NftablesEngine):
    """An engine that changes rules before it holds them."""

    def __init__(self, change: Callable[[Rule], Rule]) -> None:
        super().__init__(_system_nft())
        self._change = change

    def apply(self, namespace: Namespace, desired: Desired) -> Applied:
        endpoints = tuple(
            replace(
                endpoint,
                rule_sets=tuple(
                    replace(rule_set, rules=tuple(map(self._change, rule_set.rules))) for rule_set in endpoint.rule_sets
                ),
            )
            for endpoint in desired.endpoints
        )
        return super().apply(namespace, replace(desired, endpoints=endpoints))


def _without_exceptions(rule: Rule) -> Rule:
    return replace(rule, match=replace(rule.match, exceptions=())) if isinstance(rule.match, PeerMatch) else rule


def _without_ports(rule: Rule) -> Rule:
    return replace(rule, match=replace(rule.match, ports=())) if isinstance(rule.match, PeerMatch) else rule


@pytest.mark.parametrize("change", [_without_exceptions, _without_ports])
def test_the_table_finds_an_engine_that_is_wrong(change: Callable[[Rule], Rule]) -> None:
    (case,) = [case for case in EVERY_CASE if case.name == "ingress: a network with an exception"]
    with Table("whole", lambda: _Wrong(change), patience=0.2) as table:
        table.run(case)
    assert any(" arrived, expected: " in one for one in table.tally.differences), str(table.tally)
    assert any("is missing" in one for one in table.tally.differences), str(table.tally)
