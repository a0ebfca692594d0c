# SPDX-License-Identifier: Apache-2.0
"""Whatever the rules, the ruleset does with a packet what the policies say of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_agent.engines.network_port import Desired, Endpoint, Settings, Whole
from guest_agent.engines.nftables import boxes, matching
from guest_agent.engines.nftables.evaluation import Evaluation
from guest_agent.engines.nftables.plan import plan
from hauberk.policy import exemptions
from hauberk.policy.rules import Action, PeerMatch, RuleSet, Section, Verdict
from tests.unit.engines.nftables.policies import MEMBERS, decided, packets, rule_sets, rules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guest_agent.engines.nftables.evaluation import Packet
    from hauberk.policy.rules import Peer, Rule

MANAGEMENT: Final = (
    exemptions.management(
        PeerMatch(cidrs=("192.168.1.0/24", "fd00::/64"), ports=((22, 1000, "tcp"),)), Section.INGRESS
    ),
    exemptions.management(PeerMatch(ports=((53, 53, "udp"), (80, 80, "tcp")), cidrs=("10.1.2.0/24",))),
)
SETTINGS: Final = Settings(management=MANAGEMENT, resolvers=("10.1.2.3", "fd00::1"))
HOOKS: Final = {Section.INGRESS: "input", Section.EGRESS: "output"}


@pytest.fixture(params=[False, True], ids=["usual", "cut-small"], autouse=True, scope="module")
def _sizes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Also with sets cut so small that every shape occurs."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param:
            small = {"SHARED": 2, "SHARED_LISTS": 1, "LIST": 1, "HELD": 2, "MANY": 1, "SHARD": 2, "SPARSE": 2}
            for name, value in small.items():
                patch.setattr(boxes if hasattr(boxes, name) else matching, name, value)
        yield


def check(desired: Desired, section: Section, found: tuple[Packet, Peer], *, beyond: bool) -> None:
    packet, peer = found
    machine = desired.endpoints[0].identifier == 0
    ruleset = plan(desired)
    used = {name: quota.limit if beyond else 0 for name, quota in ruleset.quotas.items()}
    outcome = Evaluation(ruleset, used).packet(HOOKS[section], packet)  # type: ignore[arg-type]
    exempt = exemptions.holding(whole=True, machine=machine, listed=MANAGEMENT)
    verdicts = [
        decided(rule_set, section, peer, beyond=beyond, exempt=exempt)
        for endpoint in desired.endpoints
        for rule_set in endpoint.rule_sets
    ]
    assert outcome.passes == (Verdict.DENY not in verdicts)
    told = {mark.verdict for mark in outcome.told}
    if outcome.passes:
        assert told == ({"audit"} if Verdict.AUDIT in verdicts else set())
    else:
        assert "deny" in told
    assert all(mark.section is section for mark in outcome.told)


sections = st.sampled_from((Section.INGRESS, Section.EGRESS))


@settings(max_examples=150)
@given(rule_sets(), st.data(), st.booleans(), sections)
def test_the_machines_own_packets(rule_set: RuleSet, data: st.DataObject, beyond: bool, section: Section) -> None:  # noqa: FBT001 - drawn
    desired = Desired((Endpoint(0, (rule_set,), Whole()),), SETTINGS, MEMBERS)
    for _ in range(8):
        check(desired, section, data.draw(packets(section, rule_set.rules)), beyond=beyond)


@settings(max_examples=60)
@given(rule_sets(4), rule_sets(4), st.data(), st.booleans(), sections)
def test_all_of_several_rule_sets_must_let_pass(
    first: RuleSet,
    second: RuleSet,
    data: st.DataObject,
    beyond: bool,  # noqa: FBT001 - drawn
    section: Section,
) -> None:
    # Of two rule sets with the same quota only one asks it; the other is the stricter for that.
    reporting = any(rule.quota and rule.action is Action.AUDIT for rule in (*first.rules, *second.rules))
    desired = Desired((Endpoint(7, (first, second), Whole()),), SETTINGS, MEMBERS)
    for _ in range(4):
        check(
            desired,
            section,
            data.draw(packets(section, (*first.rules, *second.rules))),
            beyond=beyond and not reporting,
        )


@settings(max_examples=100)
@given(st.lists(rules(quotas=False), min_size=2, max_size=10), st.data(), st.sampled_from(Action), sections)
def test_rules_of_one_action_that_lie_within_each_other(
    drawn: list[Rule], data: st.DataObject, action: Action, section: Section
) -> None:
    alike = tuple(replace(one, action=action, section=section) for one in drawn)
    plain = tuple(
        replace(one, match=replace(one.match, interfaces=(), groups=()))
        for one in alike
        if isinstance(one.match, PeerMatch)
    )
    rule_set = RuleSet(plain)
    desired = Desired((Endpoint(0, (rule_set,), Whole()),), SETTINGS, MEMBERS)
    for _ in range(12):
        check(desired, section, data.draw(packets(section, plain)), beyond=False)
