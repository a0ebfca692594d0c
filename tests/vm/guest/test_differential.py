# SPDX-License-Identifier: Apache-2.0
"""``hauberk policy explain`` and the kernel give the same answers to generated questions about generated policies.

A seed names a case. ``HAUBERK_SEED`` (one number, or several with commas) asks for other cases than the listed ones.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from hauberk.policy.rules import Verdict
from tests.vm.differential import experiment, generator
from tests.vm.differential.laboratory import Laboratory
from tests.vm.differential.oracle import read_answers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.vm.differential.oracle import Oracle

SEEDS: Final = range(1, 19)
LONG_SEEDS: Final = range(1001, 1501)
RENEWED_AFTER: Final = 20
"""Cases that share one container, so that what one leaves in the kernel's caches meets the next."""
MINIMUM_QUESTIONS: Final = 100
SAMPLED: Final = 30
"""One of so many cases is also put to the command in a process of its own."""
SHOWN: Final = 3
LEAST_SHARE: Final = 0.05
MOST_EXCLUDED: Final = 0.2


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    with Laboratory(tmp_path_factory.mktemp("laboratory")) as made:
        yield made


def seeds(default: Sequence[int]) -> Sequence[int]:
    chosen = os.environ.get("HAUBERK_SEED")
    return [int(seed) for seed in chosen.split(",")] if chosen else default


def run_seeds(laboratory: Laboratory, chosen: Sequence[int]) -> None:
    total = experiment.Outcome()
    findings: list[str] = []
    differing: list[int] = []
    for number, seed in enumerate(chosen, 1):
        case = generator.Generator(random.Random(seed)).case()  # noqa: S311 - a repeatable draw
        outcome, oracle = experiment.run(laboratory, case)
        total.add(outcome)
        if outcome.mismatches:
            differing.append(seed)
            if len(differing) <= SHOWN:
                findings.append(describe(laboratory, seed, case, outcome))
            laboratory.renew()
        elif number % SAMPLED == 1:
            same_in_a_process_of_its_own(oracle)
        if number % RENEWED_AFTER == 0:
            laboratory.renew()
    excluded = sum(total.excluded.values())
    summary = (
        f"seeds {chosen[0]} to {chosen[-1]}: {total.asked} questions, {total.alerts} alerts, "
        f"{ {verdict.name: count for verdict, count in total.verdicts.items()} }, {excluded} left out"
    )
    sys.stdout.write(f"{summary}\n{dict(total.operations)}\n{dict(total.excluded.most_common())}\n")
    assert not findings, f"{len(differing)} cases differ (seeds {differing}); {summary}\n\n" + "\n\n".join(findings)
    if len(chosen) >= len(SEEDS):  # chance has no say any more
        assert total.asked >= MINIMUM_QUESTIONS * len(chosen) * (1 - MOST_EXCLUDED), summary
        assert excluded < MOST_EXCLUDED * (excluded + total.asked), summary
        assert min(total.verdicts[verdict] for verdict in Verdict) > LEAST_SHARE * total.asked, summary
        asked_for = {*generator.FOLLOWING, *generator.MAKING, *generator.REMOVING, *generator.NAMING}
        assert set(total.operations) == asked_for, summary


def describe(laboratory: Laboratory, seed: int, case: generator.Case, outcome: experiment.Outcome) -> str:
    first = outcome.mismatches[0]
    smallest = experiment.minimise(laboratory, case, first.question)
    if smallest is None:
        note, shown, mismatch = "it takes the questions before", case, first
    else:
        note, shown = "alone too, with fewer rules", smallest
        mismatch = experiment.run(laboratory, smallest)[0].mismatches[0]
    return (
        f"HAUBERK_SEED={seed}: {len(outcome.mismatches)} differences; the first ({note}), posture {shown.posture}:\n"
        f"{mismatch.question}\n{mismatch.what}\n{mismatch.explained}\n{shown.text}"
    )


def same_in_a_process_of_its_own(oracle: Oracle) -> None:
    """Show that the command line says the same as its function called here, for many questions and for one."""
    asked = oracle.asked()
    command = [sys.executable, "-m", "hauberk.cli", *oracle.arguments()]
    done = subprocess.run(
        [*command, "--questions", "-"], input=oracle.lines(asked), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert read_answers(done.stdout) == list(asked.values())
    denied = [subject for subject, verdict in asked.items() if verdict is Verdict.DENY and subject.source]
    for subject in denied[:1]:
        one = ["--operation", subject.operation.value, "--path", subject.path, "--source", subject.source]
        done = subprocess.run(
            [*command, *one, "--owner" if subject.owner else "--not-owner"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stdout + done.stderr
        assert done.stdout.startswith("deny: "), done.stdout


def test_explain_and_the_kernel_agree(laboratory: Laboratory) -> None:
    run_seeds(laboratory, seeds(SEEDS))


@pytest.mark.long
def test_explain_and_the_kernel_agree_on_many_more(laboratory: Laboratory) -> None:
    run_seeds(laboratory, seeds(LONG_SEEDS))
