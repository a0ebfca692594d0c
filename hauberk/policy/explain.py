# SPDX-License-Identifier: Apache-2.0
"""What would happen if: questions about a rule set, answered by the code that the engines plan with.

An answer names the deciding rule with its file and line, and each rule that matched and lost, with the reason. With a
root file system, paths are resolved first, as the kernel does; without one they are taken as resolved. Where a
question leaves arguments or terminal out and a rule asks for them, the answer is the strictest of those possible, and
says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hauberk.policy import objects
from hauberk.policy.annotations import Mode
from hauberk.policy.answers import as_json, as_text, rule_as_json, rule_as_text, verdict_as_json
from hauberk.policy.coverage import ENFORCED_SECTIONS, strictest, unenforced
from hauberk.policy.index import RuleIndex
from hauberk.policy.objects import PATH_OPERATIONS, QuestionError
from hauberk.policy.rules import (
    SECTION_OF,
    Action,
    Circumstances,
    Decision,
    Operation,
    Peer,
    RuleSet,
    Verdict,
    decide,
)
from hauberk.policy.selectors import Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hauberk.policy.objects import Object
    from hauberk.policy.rules import Rule

__all__ = [
    "Answer",
    "Explainer",
    "Question",
    "QuestionError",
    "as_json",
    "as_text",
    "parse_question",
    "rule_as_json",
    "rule_as_text",
    "verdict_as_json",
]

_MAXIMUM_UID = 2**32 - 2  # the last one means "none" to the kernel


@dataclass(frozen=True, slots=True)
class Question:
    """Whether ``source`` may do ``operation`` to ``object``.

    ``object`` is text as :mod:`hauberk.policy.objects` reads it: a path for processes and files. ``source`` is the
    resolved path of the acting executable (for ``execute`` the one that calls exec), None for any that no rule names;
    ``parent`` is that of the process which started it, which decides nothing here. ``owner`` is whether the acting user
    owns the object; a ``uid`` says it in its place, together with ``owner_uid`` or, in a root file system, with the
    owner found there. ``arguments`` are those behind the program's own name, ``terminal`` is whether there is a
    controlling terminal (None: not said), ``beyond_quota`` whether more went through than rules with a quota allow.
    """

    operation: Operation
    object: str
    source: str | None = None
    owner: bool = True
    parent: str | None = None
    uid: int | None = None
    owner_uid: int | None = None
    arguments: tuple[str, ...] | None = None
    terminal: bool | None = None
    beyond_quota: bool = False

    def __post_init__(self) -> None:
        """Refuse what the kernel could not be asked. Raises :class:`QuestionError`."""
        objects.read(self.operation, self.object)
        for what, path in (("source", self.source), ("parent", self.parent)):
            if path is not None:
                objects.check_path(path, what)
        for what, number in (("uid", self.uid), ("owner's uid", self.owner_uid)):
            if number is not None and not 0 <= number <= _MAXIMUM_UID:
                message = f"found the {what} {number}, expected 0 to {_MAXIMUM_UID}. Correct it"
                raise QuestionError(message)
        if self.owner_uid is not None and self.uid is None:
            message = "found the uid of the owner alone, expected that of the acting user too. Say both, or neither"
            raise QuestionError(message)


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision, with the question as the kernel would see it (paths resolved, owner known), and notes on it."""

    asked: Question
    seen: Question
    decision: Decision
    notes: tuple[str, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether the operation goes through, be it with an alert."""
        return self.decision.verdict is not Verdict.DENY


class Explainer:
    """Answers questions about one rule set. Make one for many questions: it indexes the rules once."""

    def __init__(
        self,
        rule_set: RuleSet,
        resolve: Callable[[str], tuple[str, ...]] | None = None,
        owner_of: Callable[[str], int | None] | None = None,
        mode: Mode = Mode.ENABLED,
        scope: Scope = Scope.CONTAINER,
    ) -> None:
        """Take a rule set (expanded, if ``resolve`` is given) and how to resolve the paths of questions.

        ``owner_of`` gives the uid of the owner of a resolved path, None where there is nothing yet. ``mode`` is what
        annotations make of decisions, ``scope`` what the rules are for, which decides what an engine enforces of them.
        """
        self.rule_set = rule_set
        self._resolve = resolve
        self._owner_of = owner_of
        self._mode = mode
        self._scope = scope
        self._index = RuleIndex(rule_set.rules)
        self._held: RuleSet | None = None

    def ask(self, question: Question) -> Answer:
        """Answer one question. Raises :class:`hauberk.errors.FactsError` where a path cannot be looked at."""
        seen = self._seen(question)
        asked = objects.read(seen.operation, seen.object)
        if seen.operation is Operation.MAP and seen.source == seen.object:
            decision = Decision(Verdict.ALLOW, None, "its own program was judged when it was executed")
            held: tuple[str, ...] = ()
        else:
            matching = self._index.matching_object(asked)
            decision = max(
                (
                    decide(self.rule_set, matching, seen.operation, source=seen.source, owner=seen.owner, known=known)
                    for known in _circumstances(seen, asked, matching)
                ),
                key=lambda possible: possible.verdict,
            )
            held = self._held_otherwise(seen, matching, decision)
        notes = (*_notes(seen, decision), *(held or self._unenforced(seen, decision)))
        return Answer(question, seen, self._mode.apply(decision), notes)

    def _held_otherwise(self, seen: Question, matching: tuple[Rule, ...], decision: Decision) -> tuple[str, ...]:
        """Say so where the engine, which is given the strictest reading of rules, answers otherwise than they do."""
        section = SECTION_OF[seen.operation]
        if self._scope is not Scope.CONTAINER or section not in ENFORCED_SECTIONS:
            return ()
        deciding = ENFORCED_SECTIONS if seen.operation is Operation.MAP else {section}  # mapping asks about writing too
        about = (rule for rule in matching if rule.section in deciding)
        reason = next((why for rule in about if (why := unenforced(rule, self._scope))), None)
        if reason is None:
            return ()
        if self._held is None:
            self._held = replace(self.rule_set, rules=strictest(self.rule_set.rules))
        held = decide(self._held, strictest(matching), seen.operation, source=seen.source, owner=seen.owner).verdict
        if held is decision.verdict:
            return ()
        return (f"{reason}: the answer is what the policy says, and {held.name.lower()} is what the engine does",)

    def _unenforced(self, seen: Question, decision: Decision) -> Iterator[str]:
        """Say so where the answer rests on a rule, or on an allow-list, that no engine enforces as it is written."""
        section = SECTION_OF[seen.operation]
        rule = decision.rule
        if rule is None and self.rule_set.is_allow_list(section):
            written = (one for one in self.rule_set.rules if one.section is section and not one.implied)
            one = next(one for one in written if one.action is Action.ALLOW)
            rule = replace(one, allowed_arguments=(), terminal=None)  # its conditions do not matter to the list
        reason = None if rule is None else unenforced(rule, self._scope)
        if reason is not None:
            yield f"{reason}: the answer is what the policy says"

    def _seen(self, question: Question) -> Question:
        """Give the question with its paths resolved and its owner established."""
        seen = question
        if self._resolve is not None:
            source = None if question.source is None else self._resolve(question.source)[-1]
            seen = replace(seen, source=source, object=_resolved_object(question, self._resolve))
        if seen.uid is not None and seen.operation in PATH_OPERATIONS:
            owner_uid = seen.owner_uid
            if owner_uid is None and self._owner_of is not None:
                owner_uid = self._owner_of(seen.object)
                # what does not exist yet will belong to whoever makes it
                return replace(seen, owner_uid=owner_uid, owner=owner_uid in {None, seen.uid})
            seen = replace(seen, owner=owner_uid == seen.uid)
        return seen


def _resolved_object(question: Question, resolve: Callable[[str], tuple[str, ...]]) -> str:
    if question.operation in PATH_OPERATIONS:
        return resolve(question.object)[-1]
    if question.operation is Operation.SYSCALL:
        name, space, path = question.object.partition(" ")
        return f"{name} {resolve(path)[-1]}" if space else name
    return question.object


def _circumstances(seen: Question, asked: Object, matching: tuple[Rule, ...]) -> Iterator[Circumstances]:
    """Give what may be the case: what the question says, and where it says nothing each side of rules' conditions."""
    unsaid = seen.terminal is None and any(rule.terminal is not None for rule in matching)
    terminals = (True, False) if unsaid else (seen.terminal,)
    listed = dict.fromkeys(rule.allowed_arguments for rule in matching if rule.allowed_arguments)
    arguments = (None, *listed) if seen.arguments is None else (seen.arguments,)
    peer = asked if isinstance(asked, Peer) else None
    for terminal in terminals:
        for some in arguments:
            yield Circumstances(some, terminal, seen.beyond_quota, peer)


def _notes(seen: Question, decision: Decision) -> list[str]:
    """Give what whoever asked should know: what was not said and mattered, and what was said and did not."""
    notes: list[str] = []
    involved = [*([decision.rule] if decision.rule else []), *(rule for rule, _ in decision.lost)]
    involved = [rule for rule in involved if rule.section is SECTION_OF[seen.operation]]
    acting = [rule for rule in involved if rule.covers_source(seen.source)]
    if seen.arguments is None and any(rule.allowed_arguments for rule in acting):
        notes.append("the question says nothing of arguments: this is the strictest answer")
    if seen.terminal is None and any(rule.terminal is False for rule in acting):
        notes.append("the question says nothing of a terminal: this is the stricter answer")
    if seen.uid is not None and seen.owner_uid is None and not seen.owner and any(rule.owner_only for rule in acting):
        notes.append("the question names no owner's uid: taken as somebody else's")
    if any(rule.quota is not None for rule in acting) and not seen.beyond_quota:
        notes.append("as long as the quota lasts")
    if seen.parent is not None and seen.parent != seen.source and any(rule.sourced for rule in involved):
        who = seen.source or "a program that no rule names"
        notes.append(f"the parent {seen.parent} does not count: fromSource is the program that acts, {who}")
    if seen.operation is Operation.SYSCALL:
        notes.append("rules about system calls only ever report")
    return notes


def parse_question(line: str) -> Question:
    """Read a question from JSON.

    An object with ``operation`` and ``object`` (for files also ``path``), if wanted also ``source``, ``parent``,
    ``owner`` (default true) or ``uid`` and ``ownerUid``, ``arguments``, ``terminal``, ``beyondQuota``. Raises
    :class:`QuestionError`.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        message = f"found {line[:80]!r}, expected a JSON object ({error}). Write one question a line"
        raise QuestionError(message) from error
    operations = [operation.value for operation in Operation]
    named = isinstance(value, dict) and "operation" in value and ("object" in value) != ("path" in value)
    if not named or not _FIELDS.keys() >= value.keys():
        problem = f"an object with operation and object or path, and no fields but {', '.join(_FIELDS)}"
    elif value["operation"] not in operations:
        problem = f"an operation out of {', '.join(operations)}"
    elif wrong := next((name for name, found in value.items() if not _fits(name, found)), None):
        problem = f"{wrong} as {_FIELDS[wrong][1]}"
    elif "path" in value and value["operation"] not in PATH_OPERATIONS:
        problem = f"object in place of path for the operation {value['operation']}"
    else:
        arguments = value.get("arguments")
        return Question(
            Operation(value["operation"]),
            value["path"] if "path" in value else value["object"],
            value.get("source"),
            value.get("owner", True),
            value.get("parent"),
            value.get("uid"),
            value.get("ownerUid"),
            None if arguments is None else tuple(arguments),
            value.get("terminal"),
            value.get("beyondQuota", False),
        )
    message = f"found {line.strip()[:200]!r}, expected {problem}. Correct the question"
    raise QuestionError(message)


_NOTHING = type(None)
_TEXT, _FLAG, _NUMBER = "text", "true or false", "a whole number"
_FIELDS: dict[str, tuple[tuple[type, ...], str]] = {
    "operation": ((str,), _TEXT),
    "object": ((str,), _TEXT),
    "path": ((str,), _TEXT),
    "source": ((str, _NOTHING), _TEXT),
    "parent": ((str, _NOTHING), _TEXT),
    "owner": ((bool,), _FLAG),
    "uid": ((int, _NOTHING), _NUMBER),
    "ownerUid": ((int, _NOTHING), _NUMBER),
    "arguments": ((list, _NOTHING), "a list of texts"),
    "terminal": ((bool, _NOTHING), _FLAG),
    "beyondQuota": ((bool,), _FLAG),
}


def _fits(name: str, found: object) -> bool:
    types, _ = _FIELDS[name]
    if type(found) not in types:
        return False
    return not isinstance(found, list) or all(isinstance(item, str) for item in found)
