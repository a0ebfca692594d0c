# SPDX-License-Identifier: Apache-2.0
"""The scenarios that KubeArmor publishes with an outcome come out that way, as far as ``explain`` is asked."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from hauberk.policy.explain import Explainer
from hauberk.policy.rules import SECTION_OF, Verdict
from tests import scenarios

if TYPE_CHECKING:
    from tests.scenarios import Command, Scenario

CASES = [(scenario, command) for scenario in scenarios.load() for command in scenario.commands]


@pytest.mark.parametrize(("scenario", "command"), CASES, ids=[str(command) for _, command in CASES])
def test_the_outcome_is_the_one_stated(scenario: Scenario, command: Command) -> None:
    rule_set = scenario.rule_set(command)
    section = SECTION_OF[command.question.operation]
    decision = Explainer(rule_set).ask(command.question).decision
    assert decision.verdict is command.expected(rule_set, section), f"{scenario.upstream}: {decision}"
    if command.outcome == "failed" or command.action == "Audit":
        assert decision.rule is not None
        assert decision.rule.origin.policy in {policy.name for policy in scenario.policies}
    if command.outcome == "default":  # nothing that is written gives leave
        assert decision.verdict is Verdict.DENY or (decision.rule is None and not rule_set.is_allow_list(section))


def test_every_published_scenario_is_there() -> None:
    """42 directories with 102 commands for containers, 18 with 32 for hosts; outcomes and actions as counted there."""
    published = [
        (scenario, command) for scenario, command in CASES if "scenarios/" in scenario.upstream.partition(" @ ")[0]
    ]
    directories = Counter(
        scenario.upstream.split("/")[2] for scenario in scenarios.load() if "scenarios/" in scenario.upstream
    )
    assert directories == {"scenarios": 42, "host_scenarios": 18}
    assert len(published) == 134
    assert Counter(command.outcome for _, command in published) == {"passed": 55, "failed": 53, "default": 26}
    # of the 86 with the action Block, the four about text for AppArmor have the outcome default
    actions = Counter(command.action for _, command in published if command.outcome != "default")
    assert actions == {"Block": 82, "Allow": 16, "Audit": 10}


def test_scenarios_name_their_place() -> None:
    for scenario in scenarios.load():
        place, _, commit = scenario.upstream.partition(" @ ")
        assert place.startswith("tests/")
        assert len(commit) == 40
