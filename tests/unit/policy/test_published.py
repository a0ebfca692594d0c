# SPDX-License-Identifier: Apache-2.0
"""The policies that KubeArmor publishes are accepted, and what is told of them is what was found in the originals."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hauberk.policy import models
from tests.tools.check_published import main
from tests.tools.facts import document_of, facts_of
from tests.unit.policy.yaml_with_lines import Written

FILE = Path(__file__).parents[2] / "data" / "published" / "policies.jsonl"
FACTS: list[dict[str, Any]] = [json.loads(line) for line in FILE.read_text().splitlines()]
REFUSED = [["apiVersion", "refused"], ["Version", "refused"]], [["spec", "refused"]]


def test_the_corpus_is_whole() -> None:
    assert Counter(fact["kind"] for fact in FACTS) == {
        "KubeArmorPolicy": 185, "KubeArmorHostPolicy": 45, "KubeArmorClusterPolicy": 24, "KubeArmorNetworkPolicy": 6,
    }  # fmt: skip
    assert sum("odd" in fact for fact in FACTS) == 3


@pytest.mark.parametrize("number", range(len(FACTS)))
def test_a_published_policy_is_told_of_what_it_deserves(number: int) -> None:
    fact = FACTS[number]
    written = Written(document_of(fact, number))
    policies, problems = models.examine([("p.yaml", written.text.encode())])
    told = [[problem.field, "warning" if problem.warning else "refused"] for problem in problems]
    assert told == fact["told"]
    assert (told in REFUSED) == ("odd" in fact) == (policies == [])
    for problem in problems:
        assert 1 <= problem.line <= written.text.count("\n")


def test_facts_of_a_document_are_those_it_was_made_of() -> None:
    for number, fact in enumerate(FACTS):
        document = document_of(fact, number)
        _, problems = models.examine([("p.yaml", Written(document).text.encode())])
        assert facts_of(document, problems) == fact


def test_all_of_them_are_read_as_one_file() -> None:
    valid = [Written(document_of(fact, number)).text for number, fact in enumerate(FACTS) if "odd" not in fact]
    policies = models.load([("all.yaml", "---\n".join(valid).encode())])
    assert len(policies) == len(valid) == 257


def test_the_tool_that_takes_them_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    valid = Written(document_of(FACTS[0], 1)).text
    (tmp_path / "a.yaml").write_text(f"{valid}---\n{valid}")
    (tmp_path / "crd.yaml").write_text("kind: CustomResourceDefinition\ngroup: security.kubearmor.com/v1\n")
    (tmp_path / "doc.md").write_text(
        f"text\n```yaml\n{valid}```\n  ```\n  {valid.replace(chr(10), chr(10) + '  ')}```\n"
    )
    assert main([str(tmp_path), "--facts", str(tmp_path / "facts")]) == 0
    report = capsys.readouterr().out
    assert "YAML: 0 unreadable blocks, 2 valid" in report
    assert "Markdown: 0 unreadable blocks, 2 valid" in report
    assert [json.loads(line) for line in (tmp_path / "facts").read_text().splitlines()] == FACTS[:1]
    (tmp_path / "b.yml").write_text(valid.replace("spec:", "spce:"))
    assert main([str(tmp_path)]) == 1
    assert "b.yml:5:1: spce: found the unknown field" in capsys.readouterr().out
