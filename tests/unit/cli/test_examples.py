# SPDX-License-Identifier: Apache-2.0
"""Every example is valid and means what it says beside it; none of its rules is there for nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hauberk.cli import main
from hauberk.policy import collection, models
from hauberk.policy.rules import PeerMatch, Section

EXAMPLES = Path(__file__).parents[3] / "examples"
POLICIES = sorted(EXAMPLES.rglob("*.yaml"))
WARNED_OF = {
    "cilium-audit.yaml": "conditions on the content of connections",
    "kubernetes-database.yaml": "workloads by their labels",
}
"""Examples that show what `policy check` warns of, and the beginning of what it says."""


def expectations(policy: Path) -> list[dict[str, Any]]:
    lines = policy.with_suffix(".expectations.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_means_what_it_says(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deciding = set()
    expected = expectations(policy)
    for number, expectation in enumerate(expected):
        assert expectation.keys() == {"workload", "question", "verdict", "rule", "why"}
        questions = tmp_path / str(number)
        questions.write_text(json.dumps(expectation["question"]))
        words = ["policy", "explain", str(policy), *expectation["workload"], "--questions", str(questions)]
        assert main(words) == 0, expectation
        answer = json.loads(capsys.readouterr().out)
        assert answer["verdict"] == expectation["verdict"], expectation
        if expectation["rule"] is not None:
            assert answer["rule"].endswith(f" {expectation['rule']}"), expectation
            deciding.add(answer["rule"])
        else:
            assert answer["rule"] in {None, "(implied)"}, expectation
    rules = [rule for one in collection.load([(str(policy), policy.read_bytes())]) for rule in one.rules]
    unused = {
        f"{rule.origin.policy} {rule.origin.field}"
        for rule in rules
        if rule.section is not Section.APPARMOR and not (isinstance(rule.match, PeerMatch) and rule.match.nothing)
    } - deciding
    # a rule that only narrows (ownerOnly, a quota, …) decides on the far side of its condition, which is asked too
    assert not unused
    assert len({expectation["verdict"] for expectation in expected}) > 1, "an example shows more than one verdict"


def test_all_examples_are_valid_without_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = [str(path) for path in POLICIES if path.name not in WARNED_OF]
    assert main(["policy", "check", *quiet, "--no-cache"]) == 0
    assert capsys.readouterr().out.endswith(" valid policies, 0 problems\n")


@pytest.mark.parametrize("name", sorted(WARNED_OF))
def test_an_example_of_what_is_warned_of_warns_of_that_alone(name: str) -> None:
    path = EXAMPLES / "networks" / name
    problems = collection.examine([(name, path.read_bytes())]).problems
    assert problems
    assert all(problem.warning and problem.found.startswith(WARNED_OF[name]) for problem in problems)


def test_every_kind_and_section_has_an_example() -> None:
    policies = collection.load([(str(path), path.read_bytes()) for path in POLICIES])
    assert {policy.kind for policy in policies} == set(models.KINDS)
    assert {rule.section for policy in policies for rule in policy.rules} == set(Section)


def test_the_index_names_every_example() -> None:
    index = (EXAMPLES / "README.md").read_text()
    for policy in POLICIES:
        name = str(policy.relative_to(EXAMPLES))
        assert f"]({name})" in index, name


def test_no_expectation_is_for_a_policy_that_is_not_there() -> None:
    suffix = ".expectations.jsonl"
    for file in EXAMPLES.rglob(f"*{suffix}"):
        assert file.with_name(file.name.removesuffix(suffix) + ".yaml").is_file(), file
