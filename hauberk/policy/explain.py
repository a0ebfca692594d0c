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
from hauberk.policy.coverage import (
    BY_DEFAULT,
    ENFORCED_SECTIONS,
    enforced,
    packets_in_force,
    strictest,
    unenforced,
)
from hauberk.policy.index import RuleIndex
from hauberk.policy.objects import PATH_OPERATIONS, QuestionError
from hauberk.policy.rules import (
    NOTHING_KNOWN,
    PACKET_SECTIONS,
    SECTION_OF,
    Action,
    Circumstances,
    Decision,
    Operation,
    Peer,
    PeerMatch,
    RuleSet,
    Verdict,
    decide,
    join,
)
from hauberk.policy.selectors import Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hauberk.policy.exemptions import Exemption
    from hauberk.policy.objects import Object
    from hauberk.policy.rules import Rule

__all__ = [
    "Answer",
    "Default",
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

_GROUPS = {
    "name": "by which domain name the peer was found",
    "entity": "what the peer is to the machine",
    "workloads": "whether the peer is a workload of this machine",
}
"""What a question can say of a peer, by the kind of group that asks for it."""
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


class Default:
    """Answers for workloads that no policy covers."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        """Take what the default says, and why it decides."""
        self._decision = Decision(verdict, None, reason)
        self.rule_set = RuleSet(())

    def ask(self, question: Question) -> Answer:
        """Answer one question."""
        return Answer(question, question, self._decision)


class Explainer:
    """Answers questions about one rule set. Make one for many questions: it indexes the rules once."""

    def __init__(  # noqa: PLR0913 - what decides beside the rules, each with its default
        self,
        rule_set: RuleSet,
        resolve: Callable[[str], tuple[str, ...]] | None = None,
        owner_of: Callable[[str], int | None] | None = None,
        mode: Mode = Mode.ENABLED,
        scope: Scope = Scope.CONTAINER,
        *,
        exemptions: tuple[Exemption, ...] | None = None,
    ) -> None:
        """Take a rule set (expanded, if ``resolve`` is given) and how to resolve the paths of questions.

        ``owner_of`` gives the uid of the owner of a resolved path, None where there is nothing yet. ``mode`` is what
        annotations make of decisions, ``scope`` what the rules are for, which decides what an engine enforces of them.
        ``exemptions`` are the packets that no policy is about; by default those of the machine, or of a container that
        shares a network namespace.
        """
        self.rule_set = rule_set
        self._resolve = resolve
        self._owner_of = owner_of
        self._mode = mode
        self._scope = scope
        self._index = RuleIndex(rule_set.rules)
        self._exemptions = exemptions
        self._engines: dict[bool, tuple[str | None, RuleSet, RuleIndex]] = {}
        written = [rule for rule in rule_set.rules if not rule.implied]
        self._without_engine = bool(written) and not any(enforced(rule, scope) for rule in written)

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
                    for known in _circumstances(seen, self._known(asked), matching)
                ),
                key=lambda possible: possible.verdict,
            )
            held = self._as_held(seen, asked, decision)
        notes = (*_notes(seen, decision), *(held or self._unenforced(seen, decision)))
        if isinstance(asked, Peer):
            notes = (*notes, *self._about_peer(seen, asked, decision))
        return Answer(question, seen, self._mode.apply(decision), notes)

    def _as_held(self, seen: Question, asked: Object, decision: Decision) -> tuple[str, ...]:
        """Say so where the engine, which is given the strictest reading of rules, answers otherwise than they do."""
        packets = SECTION_OF[seen.operation] in PACKET_SECTIONS
        if not packets and (self._scope is not Scope.CONTAINER or seen.operation not in PATH_OPERATIONS):
            return ()
        reason, rule_set, index = self._held(packets=packets)
        if reason is None:
            return ()
        known = replace(self._known(asked), beyond_quota=seen.beyond_quota)
        matching = index.matching_object(asked)
        held = decide(rule_set, matching, seen.operation, source=seen.source, owner=seen.owner, known=known).verdict
        if held is decision.verdict:
            return ()
        return (f"{reason}: the answer is what the policy says, and {held.name.lower()} is what the engine does",)

    def _held(self, *, packets: bool) -> tuple[str | None, RuleSet, RuleIndex]:
        """Give what an engine holds of the rules, and why it is not all that is written; None: it is."""
        if packets not in self._engines:
            sections = PACKET_SECTIONS if packets else ENFORCED_SECTIONS
            written = [rule for rule in self.rule_set.rules if rule.section in sections and not rule.implied]
            reason = next((why for rule in written if (why := unenforced(rule, self._scope))), None)
            rule_set = self.rule_set
            if reason is not None:
                held = packets_in_force(written) if packets else strictest(written)
                # what follows from rules follows from what is held of them
                rule_set = join(held, self.rule_set.posture, self.rule_set.postures)
                if self._resolve is not None:
                    from hauberk.policy.resolution import expand  # noqa: PLC0415 - only where a root is named

                    rule_set = expand(rule_set, self._resolve)
            self._engines[packets] = (reason, rule_set, self._index if reason is None else RuleIndex(rule_set.rules))
        return self._engines[packets]

    def _unenforced(self, seen: Question, decision: Decision) -> Iterator[str]:
        """Say so where the answer rests on a rule, or on an allow-list, that no engine enforces as it is written."""
        section = SECTION_OF[seen.operation]
        rule = decision.rule
        if rule is None and self.rule_set.is_allow_list(section):
            one = next(one for one in self.rule_set.rules if one.section is section and one.makes_allow_list)
            # its conditions do not matter to the list
            rule = replace(one, action=Action.ALLOW, allowed_arguments=(), terminal=None)
        reason = None if rule is None else unenforced(rule, self._scope)
        if reason is not None:
            yield f"{reason}: the answer is what the policy says"
        if self._without_engine:
            yield BY_DEFAULT

    def _known(self, asked: Object) -> Circumstances:
        """Give what is known by the object and the workload."""
        if not isinstance(asked, Peer):
            return NOTHING_KNOWN
        if self._exemptions is None:
            from hauberk.policy import exemptions  # noqa: PLC0415 - few questions are about packets

            of_host = self._scope is Scope.HOST
            self._exemptions = exemptions.holding(whole=of_host, machine=of_host)
        return Circumstances(peer=asked, exemptions=self._exemptions)

    def _about_peer(self, seen: Question, peer: Peer, decision: Decision) -> Iterator[str]:
        """Say what of a peer decided that is known at run time only, and what would matter if it were said."""
        from hauberk.policy import exemptions, peers  # noqa: PLC0415 - few questions are about packets

        section = SECTION_OF[seen.operation]
        matches = [rule.match for rule in self.rule_set.rules if rule.section is section]
        of_groups = [match for match in matches if isinstance(match, PeerMatch) and match.groups]
        rule = decision.rule
        if rule is not None and isinstance(rule.match, PeerMatch):
            groups = [str(group) for group in rule.match.groups if peers.belongs(group, peer)]
            if groups and not peers.matches(replace(rule.match, groups=(), nothing=not rule.match.cidrs), peer):
                yield f"the rule names its peers as {', '.join(groups)}: the agent finds their addresses at run time"
        said = {"name": bool(peer.names), "entity": bool(peer.entities), "workloads": peer.labels is not None}
        anybody = (replace(match, cidrs=(), exceptions=(), groups=()) for match in of_groups)
        asking = [match for match, other in zip(of_groups, anybody, strict=True) if peers.matches(other, peer)]
        for kind, what in _GROUPS.items():
            if not said[kind] and any(group.kind == kind for match in asking for group in match.groups):
                yield f"the question does not say {what}: rules that name such peers are taken as not about it"
        if self._scope is Scope.CONTAINER:
            missed = exemptions.exempting(peer, section, exemptions.DISCOVERY)
            if missed is not None and exemptions.exempting(peer, section, self._exemptions) is None:
                yield f"in a network namespace of its own it passes before any rule: {missed.reason}"

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


def _circumstances(seen: Question, known: Circumstances, matching: tuple[Rule, ...]) -> Iterator[Circumstances]:
    """Give what may be the case: what the question says, and where it says nothing each side of rules' conditions."""
    unsaid = seen.terminal is None and any(rule.terminal is not None for rule in matching)
    terminals = (True, False) if unsaid else (seen.terminal,)
    listed = dict.fromkeys(rule.allowed_arguments for rule in matching if rule.allowed_arguments)
    arguments = (None, *listed) if seen.arguments is None else (seen.arguments,)
    for terminal in terminals:
        for some in arguments:
            yield replace(known, arguments=some, terminal=terminal, beyond_quota=seen.beyond_quota)


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

    An object with ``operation`` and ``object`` (for files also ``path``; a peer may be an object of its own, see
    :data:`hauberk.policy.objects.PEER_FIELDS`), if wanted also ``source``, ``parent``,
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
    elif isinstance(value.get("object"), dict) and SECTION_OF[Operation(value["operation"])] not in PACKET_SECTIONS:
        problem = f"object as {_TEXT}"
    else:
        arguments = value.get("arguments")
        asked = value["path"] if "path" in value else value["object"]
        return Question(
            Operation(value["operation"]),
            objects.peer_from_json(asked) if isinstance(asked, dict) else asked,
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
    "object": ((str, dict), _TEXT),
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
