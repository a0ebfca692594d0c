# SPDX-License-Identifier: Apache-2.0
"""Whatever is planned, nft compiles and the kernel takes, element by element; and one plan leads to any other."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from guest_agent.engines.network_port import Cgroup, Desired, Endpoint, Interface, Settings, Whole
from guest_agent.engines.nftables import boxes, matching
from guest_agent.engines.nftables.engine import NftablesEngine
from guest_agent.engines.nftables.plan import plan
from hauberk.policy import exemptions
from hauberk.policy.rules import Action, PeerMatch, RuleSet, Section
from tests.unit.engines.nftables.policies import MEMBERS, rule, rule_sets

from . import nft_release
from .engine_pair import Place

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS: Final = Settings(
    management=(exemptions.management(PeerMatch(cidrs=("10.0.0.0/8",), ports=((22, 22, "tcp"),))),),
    resolvers=("10.1.2.3", "fd00::1"),
)
SMALL: Final = {"SHARED": 2, "SHARED_LISTS": 1, "LIST": 1, "HELD": 2, "MANY": 1, "SHARD": 2, "SPARSE": 2}


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with contextlib.closing(Place()) as made:
        yield made


@pytest.fixture(scope="module", params=["the machine's nft", "a current nft"])
def program(request: pytest.FixtureRequest) -> str | None:
    return str(nft_release.prepare()) if request.param == "a current nft" else None


@pytest.fixture(scope="module")
def engine(program: str | None) -> Iterator[NftablesEngine]:
    with contextlib.closing(NftablesEngine(program)) as made:
        yield made


@pytest.fixture(params=["usual", "cut-small"])
def sizes(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items() if request.param == "cut-small" else ():
            patch.setattr(boxes if hasattr(boxes, name) else matching, name, value)
        yield


@pytest.mark.usefixtures("sizes")
@settings(
    max_examples=12, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(first=rule_sets(8), second=rule_sets(8))
def test_every_plan_is_taken(
    engine: NftablesEngine, program: str | None, place: Place, first: RuleSet, second: RuleSet
) -> None:
    outside = RuleSet(
        tuple(one for one in second.rules if isinstance(one.match, PeerMatch) and not one.match.interfaces)
    )
    desired = Desired(
        (
            Endpoint(0, (first, second), Whole()),
            Endpoint(1, (first,), Cgroup(1 << 33, 2)),
            Endpoint(2, (second,), Cgroup(4711, 9)),
            Endpoint(3, (outside,), Interface("veth0123456789a")),
        ),
        SETTINGS,
        MEMBERS,
    )
    applied = engine.apply(place.namespace, desired)
    assert engine.held(place.namespace) == applied.digest
    ruleset = plan(desired)
    if ruleset.chains:
        listed = place.listing(program=program)
        assert all(f"chain {chain.name} {{" in listed for chain in ruleset.chains)
        assert listed.count("\n\tquota ") == len(ruleset.quotas)


def test_ten_thousand_rules_are_taken_and_one_more_is_only_elements(engine: NftablesEngine, place: Place) -> None:
    rules = [
        rule(
            Section.INGRESS,
            Action.BLOCK if number % 3 else Action.ALLOW,
            cidrs=(f"10.{number >> 8}.{number & 255}.0/{24 + number % 9}", f"fd00:{number:x}::/{32 + number % 96}"),
            ports=((number + 1, number + 1 + number % 7, "udp" if number % 2 else "tcp"),),
        )
        for number in range(5000)
    ]
    engine.apply(place.namespace, Desired((Endpoint(0, (RuleSet(tuple(rules)),), Whole()),)))
    more = (*rules, rule(Section.INGRESS, Action.BLOCK, cidrs=("172.16.0.0/12",), ports=((7, 7, "tcp"),)))
    applied = engine.apply(place.namespace, Desired((Endpoint(0, (RuleSet(more),), Whole()),)))
    assert applied.change == "elements"
    assert engine.held(place.namespace) == applied.digest
