# SPDX-License-Identifier: Apache-2.0
"""What would happen if: questions about a rule set, answered by the code that the engines plan with.

An answer names the deciding rule with its file and line, and each rule that matched and lost, with the reason. With a
root file system, paths are resolved first, as the kernel does; without one they are taken as resolved.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hauberk.errors import HauberkError
from hauberk.policy.index import RuleIndex
from hauberk.policy.rules import Decision, Operation, Rule, RuleSet, Verdict, decide

if TYPE_CHECKING:
    from collections.abc import Callable

_FIELDS = frozenset(("operation", "path", "source", "owner"))


class QuestionError(HauberkError):
    """A question cannot be asked as it stands."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Question:
    """Whether ``source`` (an executable; None: any that no rule names) may do ``operation`` to ``path``."""

    operation: Operation
    path: str
    source: str | None = None
    owner: bool = True

    def __post_init__(self) -> None:
        """Refuse what the kernel could not be asked. Raises :class:`QuestionError`."""
        for name, path in (("path", self.path), ("source", self.source)):
            if path is None:
                continue
            parts = path.split("/")[1:] if path != "/" else ["-"]
            if not path.startswith("/") or "\0" in path or any(part in ("", ".", "..") for part in parts):
                message = (
                    f"found the {name} {path!r}, expected an absolute path without '.', '..' and extra '/'. Correct it"
                )
                raise QuestionError(message)


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision, with the question as the kernel would see it (paths resolved)."""

    asked: Question
    seen: Question
    decision: Decision

    @property
    def allowed(self) -> bool:
        """Whether the operation goes through, be it with an alert."""
        return self.decision.verdict is not Verdict.DENY


class Explainer:
    """Answers questions about one rule set. Make one for many questions: it indexes the rules once."""

    def __init__(self, rule_set: RuleSet, resolve: Callable[[str], tuple[str, ...]] | None = None) -> None:
        """Take a rule set (expanded, if ``resolve`` is given) and how to resolve the paths of questions."""
        self.rule_set = rule_set
        self._resolve = resolve
        self._index = RuleIndex(rule_set.rules)

    def ask(self, question: Question) -> Answer:
        """Answer one question. Raises :class:`hauberk.errors.FactsError` where a path cannot be resolved."""
        seen = question
        if self._resolve is not None:
            source = None if question.source is None else self._resolve(question.source)[-1]
            seen = Question(question.operation, self._resolve(question.path)[-1], source, question.owner)
        if seen.operation is Operation.MAP and seen.source == seen.path:
            decision = Decision(Verdict.ALLOW, None, "its own program was judged when it was executed")
        else:
            matching = self._index.matching(seen.path)
            decision = decide(self.rule_set, matching, seen.operation, source=seen.source, owner=seen.owner)
        return Answer(question, seen, decision)


def parse_question(line: str) -> Question:
    """Read a question from JSON: an object with operation and path, if wanted also source and owner (default true).

    Raises :class:`QuestionError`.
    """
    try:
        value = json.loads(line)
    except ValueError as error:
        message = f"found {line[:80]!r}, expected a JSON object ({error}). Write one question a line"
        raise QuestionError(message) from error
    operations = [operation.value for operation in Operation]
    if not isinstance(value, dict) or not {"operation", "path"} <= value.keys() <= _FIELDS:
        problem = "an object with operation and path, and no fields but source and owner"
    elif value["operation"] not in operations:
        problem = f"an operation out of {', '.join(operations)}"
    elif not isinstance(value["path"], str) or not isinstance(value.get("source"), str | None):
        problem = "path and source as text"
    elif not isinstance(value.get("owner", True), bool):
        problem = "owner as true or false"
    else:
        return Question(Operation(value["operation"]), value["path"], value.get("source"), value.get("owner", True))
    message = f"found {line.strip()[:200]!r}, expected {problem}. Correct the question"
    raise QuestionError(message)


def rule_as_json(rule: Rule) -> dict[str, Any]:
    """Give a rule of the normal form as plain values, with nothing left out that says something."""
    result: dict[str, Any] = {
        "section": rule.section.value,
        "kind": rule.kind.value,
        "value": rule.value,
        "action": rule.action.value,
        "policy": rule.origin.policy,
        "field": rule.origin.field,
        "file": rule.origin.file,
        "line": rule.origin.line,
        "column": rule.origin.column,
    }
    optional: dict[str, Any] = {
        "recursive": rule.recursive,
        "readOnly": rule.read_only,
        "ownerOnly": rule.owner_only,
        "fromSource": list(rule.sources),
        "severity": rule.severity,
        "tags": list(rule.tags),
        "message": rule.message,
        "operations": [operation.value for operation in rule.operations],
        "implied": rule.implied,
    }
    return result | {name: value for name, value in optional.items() if value}


def rule_as_text(rule: Rule) -> str:
    """Give a rule in one line: what it says, and where it was written."""
    words = [rule.action.value, rule.section.value, rule.kind.value, rule.value]
    words += ["recursive"] * rule.recursive + ["readOnly"] * rule.read_only + ["ownerOnly"] * rule.owner_only
    if rule.sources:
        words.append("fromSource " + ", ".join(rule.sources))
    if rule.implied:
        return f"{' '.join(words)} (implied by Hauberk: {rule.message})"
    origin = rule.origin
    return f"{' '.join(words)} ({origin.policy} {origin.field} at {origin.file}:{origin.line}:{origin.column})"


def as_json(answer: Answer) -> dict[str, Any]:
    """Give an answer as plain values."""
    decision = answer.decision
    return {
        **verdict_as_json(answer),
        "seen": {"path": answer.seen.path, "source": answer.seen.source},
        "rule": None if decision.rule is None else rule_as_json(decision.rule),
        "lost": [{"rule": rule_as_json(rule), "why": why} for rule, why in decision.lost],
    }


def verdict_as_json(answer: Answer) -> dict[str, Any]:
    """Give an answer in short, for many questions: the question, the verdict, and which rule or default gave it."""
    asked, decision = answer.asked, answer.decision
    rule = decision.rule
    return {
        "operation": asked.operation.value,
        "path": asked.path,
        "source": asked.source,
        "owner": asked.owner,
        "verdict": decision.verdict.name.lower(),
        "rule": None if rule is None else f"{rule.origin.policy} {rule.origin.field}".strip(),
        "reason": decision.reason,
    }


def as_text(answer: Answer) -> str:
    """Give an answer for a person."""
    asked, seen, decision = answer.asked, answer.seen, answer.decision
    path = seen.path if seen.path == asked.path else f"{asked.path} (the kernel sees {seen.path})"
    source = seen.source if seen.source == asked.source else f"{asked.source} (the kernel sees {seen.source})"
    by = f"by {source}" if source else "by a program that no rule names"
    owner = "its owner" if asked.owner else "not its owner"
    lines = [f"{decision.verdict.name.lower()}: {asked.operation.value} {path} {by}, {owner}"]
    if decision.rule is None:
        lines.append(f"  because: {decision.reason}")
    else:
        lines.append(f"  decided by: {rule_as_text(decision.rule)}")
        if decision.rule.message and not decision.rule.implied:
            lines.append(f"  message: {decision.rule.message}")
    lines += [f"  lost: {rule_as_text(rule)}: {why}" for rule, why in decision.lost]
    return "\n".join(lines)
