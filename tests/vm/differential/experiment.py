# SPDX-License-Identifier: Apache-2.0
"""One case: what would come of each question without policy, what must come of it, and what does.

Left out are questions that the kernel refuses for reasons of its own (modes, file system), found by asking them before
the policies are in force; questions that would leave the tree other than later questions expect it; and those of
probers that the policies do not let start. How many is counted: a test of left-out questions would show nothing.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hauberk.policy.rules import Verdict
from tests.vm.differential.oracle import DENIED, FOREIGN, NOT_EXECUTABLE, Expectation, Oracle
from tests.vm.differential.universe import ENTRIES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from guest_agent.engines.port import KernelEvent
    from tests.vm.differential.generator import Case, Document, Question
    from tests.vm.differential.laboratory import Laboratory

_EXECUTING: Final = ("exec", "execveat")


@dataclass(frozen=True)
class Mismatch:
    """A difference between ``explain`` and the kernel."""

    question: Question
    what: str
    explained: str


@dataclass
class Outcome:
    """What one case, or many, came to."""

    asked: int = 0
    excluded: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    alerts: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Count another case in, without its mismatches."""
        self.asked += other.asked
        self.excluded += other.excluded
        self.verdicts += other.verdicts
        self.operations += other.operations
        self.alerts += other.alerts


@dataclass(frozen=True)
class _Planned:
    question: Question
    baseline: str
    expectation: Expectation


def run(laboratory: Laboratory, case: Case, outcome: Outcome | None = None) -> tuple[Outcome, Oracle]:
    """Ask a case's questions of both and compare."""
    outcome = Outcome() if outcome is None else outcome
    laboratory.repair()
    oracle = Oracle(case, laboratory.root, laboratory.policies)
    baselines = _baselines(laboratory, oracle, case, outcome)
    laboratory.repair()
    oracle.prepare(baselines)
    planned = _plan(oracle, baselines, outcome)
    laboratory.register(oracle)
    try:
        for (source, user), batch in _batches(planned):
            _compare(laboratory, oracle, source, user, batch, outcome)
    finally:
        laboratory.release()
    return outcome, oracle


def _baselines(laboratory: Laboratory, oracle: Oracle, case: Case, outcome: Outcome) -> list[tuple[Question, str]]:
    """Ask without policy; give the questions that nothing but a policy could refuse, with their answers."""
    found: list[tuple[Question, str]] = []
    kept = list(_undoable(oracle, case.questions, outcome))
    for source, user in dict.fromkeys((question.source, question.user) for question in kept):
        # each prober for itself: nobody writes to a program that runs
        questions = [question for question in kept if (question.source, question.user) == (source, user)]
        batch = laboratory.ask(source, user, questions)
        assert batch is not None
        assert not batch.events, f"events without a policy: {batch.events}"
        for question, answer in zip(questions, batch.answers, strict=True):
            executed = question.operation in _EXECUTING and answer == NOT_EXECUTABLE
            moved = question.operation in ("rename", "exchange") and answer == FOREIGN
            if answer == "0" or executed or moved:
                found.append((question, answer))
            else:
                outcome.excluded[f"{question.operation}: {answer}"] += 1
    order = {question: index for index, question in reversed(list(enumerate(case.questions)))}
    return sorted(found, key=lambda entry: order[entry[0]])


def _undoable(oracle: Oracle, questions: Sequence[Question], outcome: Outcome) -> Iterator[Question]:
    """Leave out what the prober could not undo even without a policy, or what needs a content that was taken away."""
    emptied: set[bytes] = set()
    for question in questions:
        operation, path, other, _, user = question
        place = oracle.place(path, follow=True)
        entry = ENTRIES.get(place)
        if operation == "unlink":
            here = ENTRIES[oracle.place(path, follow=False)]
            if here.kind != "file" or user not in (0, here.owner):
                outcome.excluded["unlink: cannot be undone"] += 1
                continue
            emptied.add(place)
        elif operation.startswith("open-trunc"):
            if entry is None or entry.kind != "file":
                outcome.excluded["open-trunc: a program"] += 1
                continue
            emptied.add(place)
        elif operation in _EXECUTING and place in emptied:
            outcome.excluded["exec: an empty file"] += 1
            continue
        elif operation == "exchange" and oracle.place(path, follow=False) == oracle.place(other, follow=False):
            outcome.excluded["exchange: one name"] += 1
            continue
        yield question


def _plan(oracle: Oracle, baselines: list[tuple[Question, str]], outcome: Outcome) -> list[_Planned]:
    """Say what must come of each question; leave out those that meet what an earlier one cannot undo."""
    planned: list[_Planned] = []
    consumed: set[bytes] = set()
    for question, baseline in baselines:
        if not oracle.admits(question.source):
            outcome.excluded["the prober may not start"] += 1
            continue
        forms = oracle.forms(question)
        met = any((form + b"/").startswith(place + b"/") for form in forms for place in consumed)
        if question.operation == "rmdir":  # what was left may stand in the way
            met = met or any(place.startswith(form + b"/") for form in forms for place in consumed)
        if met:
            outcome.excluded["meets what was not undone"] += 1
            continue
        expectation = oracle.expect(question, baseline)
        left = question.operation == "creat-read" and expectation.decisions[0] is not Verdict.DENY
        if expectation.answer.startswith("!") or (left and expectation.denied):
            consumed |= {oracle.place(path, follow=False) for path in (question.path, question.other) if path}
        planned.append(_Planned(question, baseline, expectation))
    return planned


def _batches(planned: list[_Planned]) -> list[tuple[tuple[str, int], list[_Planned]]]:
    batches: dict[tuple[str, int], list[_Planned]] = {}
    for one in planned:
        batches.setdefault((one.question.source, one.question.user), []).append(one)
    return list(batches.items())


def _compare(  # noqa: PLR0913, PLR0917 - both sides of one batch
    laboratory: Laboratory, oracle: Oracle, source: str, user: int, batch: list[_Planned], outcome: Outcome
) -> None:
    said = laboratory.ask(source, user, [one.question for one in batch])

    def differ(one: _Planned, what: str) -> None:
        outcome.mismatches.append(Mismatch(one.question, what, oracle.explained(one.question, one.baseline)))

    if said is None:
        differ(batch[0], f"explain lets {source} start, the kernel does not")
        return
    events = list(said.events)
    in_step = True
    for one, answer in zip(batch, said.answers, strict=True):
        expectation = one.expectation
        outcome.asked += 1
        outcome.operations[one.question.operation] += 1
        outcome.verdicts[max(expectation.decisions, default=Verdict.ALLOW)] += 1
        if _plain(one.question, answer) != _plain(one.question, expectation.answer):
            differ(one, f"explain makes it {expectation.answer!r}, the kernel {answer!r}; next events {events[:3]}")
            in_step = False
        if in_step:
            wrong = _take(expectation, events)
            outcome.alerts += len(expectation.alerts)
            if wrong:
                differ(one, wrong)
                in_step = False
    if in_step and events:
        differ(batch[-1], f"events that no question explains: {events}")


def _take(expectation: Expectation, events: list[KernelEvent]) -> str:
    """Take a question's alerts off the front of the events; "" when they are all there."""
    for alert in expectation.alerts:
        if events and alert.told_by(events[0]):
            del events[0]
        elif not alert.maybe:
            return f"expected {alert}, found {events[:2]}"
    return ""


def _plain(question: Question, answer: str) -> str:
    """Give an answer as far as a policy decides it: whether the file is a program is none of its business."""
    return "0" if question.operation in _EXECUTING and answer == NOT_EXECUTABLE else answer


def minimise(laboratory: Laboratory, case: Case, question: Question) -> Case | None:
    """Give the smallest case that still differs at this question; None if alone it does not."""
    smallest = dataclasses.replace(case, questions=(question,))
    if not _differs(laboratory, smallest):
        return None
    shrunk = True
    while shrunk:
        shrunk = False
        for documents in _smaller(smallest.documents):
            candidate = dataclasses.replace(smallest, documents=documents)
            if documents and _differs(laboratory, candidate):
                smallest, shrunk = candidate, True
                break
    return smallest


def _differs(laboratory: Laboratory, case: Case) -> bool:
    outcome, _ = run(laboratory, case)
    return bool(outcome.mismatches)


def _smaller(documents: tuple[Document, ...]) -> Iterator[tuple[Document, ...]]:
    """Give the policies without one document, without one section, or without one rule."""
    for index, document in enumerate(documents):
        before, after = documents[:index], documents[index + 1 :]
        yield before + after
        spec = document["spec"]
        sections = [name for name in ("process", "file") if name in spec]
        for section in sections:
            if len(sections) > 1:
                yield (*before, {**document, "spec": {k: v for k, v in spec.items() if k != section}}, *after)
            rules = [(name, rule) for name, rules in spec[section].items() if name != "action" for rule in rules]
            for left_out in range(len(rules)):
                if len(rules) == 1:
                    continue
                kept = {"action": spec[section]["action"]} if "action" in spec[section] else {}
                for number, (name, rule) in enumerate(rules):
                    if number != left_out:
                        kept.setdefault(name, []).append(rule)
                yield (*before, {**document, "spec": {**spec, section: kept}}, *after)


__all__ = ["DENIED", "Mismatch", "Outcome", "minimise", "run"]
