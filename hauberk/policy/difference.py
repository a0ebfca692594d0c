# SPDX-License-Identifier: Apache-2.0
"""What changes for workloads when one set of policies takes the place of another: in meaning, not in text.

Both sets are asked the same questions, by the code that answers ``explain`` and plans for the kernel. Which questions
follows from the rules of both sets together, and they are complete:

* *Workloads.* What a workload may do depends on the set of policies that cover it. All such sets are asked about
  (:mod:`hauberk.policy.workload_classes`) in which some policy differs, or all where postures or defaults do.
* *Objects.* An answer depends on the rules that name the object, never on anything else of it. All sets of rules that
  name some path are found by walking the product of their automata (:mod:`hauberk.policy.path_classes`), those that
  name other things from what the rules mention (:mod:`hauberk.policy.witnesses`). Of packets, which many rules can name
  at once, those are asked that suffice to find every two rules between which an answer changes
  (:mod:`hauberk.policy.peer_classes`). Paths and packets that no changed rule names keep their answer as long as
  allow-lists, postures and sources with rights of their own are the same.
* *Who acts, and how.* Of executables, one is asked for each set of rules about the object that cover it, also with
  regard to rights of its own; owners, arguments, terminals and quotas are tried on both sides of each condition that
  some rule about the object has. A question that leaves these out gets the strictest of those answers, so it differs
  only where one of them does.

Each question on whose verdict the sets disagree becomes a :class:`Change`, an example of a class of questions. So if
two sets differ in any answer, there is a change whose example is decided by the same rules as that question (or rules
of the same action); and if there is no change, they differ in none.

Limits: the policies are compared as they are written. What their paths lead to in one root file system may make equal
what is different here, or the other way round for rules on links. Raw AppArmor text has no meaning but its own: another
text is no change. Messages, tags and severities are not looked at. Where the combinations are too many, the comparison
ends with an error.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from hauberk.policy import objects
from hauberk.policy.explain import Answer, Default, Explainer, Question
from hauberk.policy.index import RuleIndex
from hauberk.policy.path_classes import PathObject, path_classes
from hauberk.policy.peer_classes import peer_classes
from hauberk.policy.rules import (
    PACKET_SECTIONS,
    PATH_KINDS,
    PATH_SECTIONS,
    SECTION_OF,
    ObjectKind,
    Operation,
    Origin,
    PeerMatch,
    Rule,
    RuleSet,
    Section,
    Verdict,
    join,
)
from hauberk.policy.witnesses import texts
from hauberk.policy.workload_classes import Subject, another, workload_classes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from hauberk.policy.collection import NormalPolicy
    from hauberk.policy.selectors import WorkloadIdentity

UNCOVERED: Final = "no policy covers this workload, so the default decides"
_NOWHERE: Final = Origin("", "")


@dataclass(frozen=True, slots=True)
class Side:
    """One set of policies, and what holds beside their rules. ``default`` is for workloads that no policy covers."""

    policies: tuple[NormalPolicy, ...]
    posture: Verdict = Verdict.DENY
    postures: tuple[tuple[Section, Verdict], ...] = ()
    default: Verdict = Verdict.DENY


class Outcome(NamedTuple):
    """What one side says: the verdict, and the rule or default it comes from."""

    verdict: Verdict
    rule: Rule | None
    reason: str


@dataclass(frozen=True, slots=True)
class Change:
    """A class of questions that are answered in another way, by its example.

    ``naming`` are the rules of both sides that name the object. ``covered`` is whether policies cover the workloads
    before and after; ``workloads`` are examples, none for those that no policy covers on either side.
    """

    question: Question
    before: Outcome
    after: Outcome
    naming: tuple[Rule, ...]
    covered: tuple[bool, bool]
    workloads: tuple[WorkloadIdentity, ...]

    @property
    def effect(self) -> str:
        """In one word what becomes of the question: ``allowed``, ``refused``, ``audited`` or ``unaudited``."""
        if self.after.verdict is Verdict.DENY:
            return "refused"
        if self.before.verdict is Verdict.DENY:
            return "allowed"
        return "audited" if self.after.verdict is Verdict.AUDIT else "unaudited"


def compare(old: Side, new: Side) -> tuple[Change, ...]:
    """Give every class of questions on which two sets of policies disagree, in no order that means anything.

    Raises :class:`hauberk.errors.HauberkError` where rules combine in too many ways.
    """
    numbers: dict[object, int] = {}
    for policy in (*old.policies, *new.policies):
        numbers.setdefault(_essence_of_policy(policy), len(numbers))
    sides = [{numbers[_essence_of_policy(policy)]: policy for policy in reversed(side.policies)} for side in (old, new)]
    of_both = {**sides[1], **sides[0]}
    subjects = [Subject(of_both[number].namespace, of_both[number].selector) for number in range(len(numbers))]
    same_frame = (old.posture, old.postures) == (new.posture, new.postures)
    differing = sides[0].keys() ^ sides[1].keys()
    merged: dict[tuple[object, ...], Change] = {}
    if old.default is not new.default:
        _merge(merged, None, _differences(old.default, new.default))
    if same_frame and not differing:
        return tuple(merged.values())
    for covering, workload in workload_classes(subjects, differing if same_frame else None).items():
        rule_sets = [
            _rule_set(side, [policies[number] for number in sorted(covering) if number in policies])
            for side, policies in zip((old, new), sides, strict=True)
        ]
        _merge(merged, workload, _differences(rule_sets[0], rule_sets[1]))
    return tuple(merged.values())


def _rule_set(side: Side, policies: Sequence[NormalPolicy]) -> RuleSet | Verdict:
    """Give the rules of a workload, or the default's verdict where no policy covers it."""
    if not policies:
        return side.default
    return join((rule for policy in policies for rule in policy.rules), side.posture, side.postures)


def _merge(
    merged: dict[tuple[object, ...], Change], workload: WorkloadIdentity | None, changes: Iterable[Change]
) -> None:
    """Join changes that are the same for several workloads."""
    for change in changes:
        key = (change.question, change.before, change.after, change.covered, change.naming)
        known = merged.get(key, change)
        workloads = known.workloads if workload is None else (*known.workloads, workload)
        merged[key] = replace(known, workloads=workloads)


def _essence(rule: Rule) -> Rule:
    """Give what of a rule decides something."""
    return replace(rule, origin=_NOWHERE, severity=0, tags=(), message="")


def _essence_of_policy(policy: NormalPolicy) -> object:
    rules = frozenset(_essence(rule) for rule in policy.rules if rule.section is not Section.APPARMOR)
    return (policy.namespace, policy.selector, rules)


def _differences(old: RuleSet | Verdict, new: RuleSet | Verdict) -> Iterator[Change]:
    """Ask two rule sets (or defaults) everything that tells them apart."""
    sides = (_answering(old), _answering(new))
    covered = (isinstance(old, RuleSet), isinstance(new, RuleSet))
    pair = _Pair(sides[0].rule_set, sides[1].rule_set, alike=all(covered))
    for operation in Operation:
        if not pair.may_differ(operation):
            continue
        for text, naming in pair.objects(operation):
            changes = [
                Change(question, _outcome(before), _outcome(after), naming, covered, ())
                for question in pair.questions(operation, text, naming)
                for before, after in (tuple(side.ask(question) for side in sides),)
                if before.decision.verdict is not after.decision.verdict
            ]
            yield from changes


def _answering(side: RuleSet | Verdict) -> Explainer | Default:
    return Explainer(side) if isinstance(side, RuleSet) else Default(side, UNCOVERED)


def _outcome(answer: Answer) -> Outcome:
    return Outcome(answer.decision.verdict, answer.decision.rule, answer.decision.reason)


class _Pair:
    """Two rule sets together, and what can be asked of them."""

    def __init__(self, old: RuleSet, new: RuleSet, *, alike: bool) -> None:
        """Take the rule sets; ``alike``: both decide by rules, and none by a default."""
        self._sets = (old, new)
        self._alike = alike
        self._rules = tuple(dict.fromkeys((*old.rules, *new.rules)))
        self._privileged = (old.privileged_sources(), new.privileged_sources())
        essences = [{section: set[Rule]() for section in Section} for _ in self._sets]
        for rule_set, by_section in zip(self._sets, essences, strict=True):
            for rule in rule_set.rules:
                by_section[rule.section].add(_essence(rule))
        self._changed = {section: essences[0][section] ^ essences[1][section] for section in Section}
        self._same_frame = {
            section: alike and old.is_allow_list(section) is new.is_allow_list(section)
            and old.posture_of(section) is new.posture_of(section)
            for section in Section
        }  # fmt: skip
        self._same_privileges = alike and self._privileged[0] == self._privileged[1]
        self._paths: list[tuple[str, tuple[Rule, ...]]] | None = None

    def may_differ(self, operation: Operation) -> bool:
        """Whether anything that decides about an operation is different."""
        sections = self._sections(operation)
        differs = any(self._changed[section] or not self._same_frame[section] for section in sections)
        return differs or (operation is Operation.MAP and not self._same_privileges)

    def _sections(self, operation: Operation) -> frozenset[Section]:
        # what may be mapped also depends on what may be written
        return PATH_SECTIONS if operation is Operation.MAP else frozenset((SECTION_OF[operation],))

    def objects(self, operation: Operation) -> Iterable[tuple[str, tuple[Rule, ...]]]:
        """Give objects that stand for all, each with the rules that name it."""
        if operation in objects.PATH_OPERATIONS:
            if self._paths is None:
                self._paths = self._path_objects()
            return self._paths
        return self._other_objects(operation)

    def _path_objects(self) -> list[tuple[str, tuple[Rule, ...]]]:
        rules: dict[PathObject, list[Rule]] = {}
        for rule in self._rules:
            if rule.kind in PATH_KINDS:
                rules.setdefault(PathObject(rule.kind, rule.value, rule.recursive), []).append(rule)
        # What an executable maps of itself is judged apart: its path stands for others only where there is no other.
        sources = {source for rule in self._rules if rule.section in PATH_SECTIONS for source in rule.sources}
        for source in sorted(sources):
            rules.setdefault(PathObject(ObjectKind.PATH, source, recursive=False), [])
        named = list(rules)
        relevant: set[int] | None = None
        if self._same_privileges and all(self._same_frame[section] for section in PATH_SECTIONS):
            changed = {
                PathObject(rule.kind, rule.value, rule.recursive)
                for section in PATH_SECTIONS
                for rule in self._changed[section]
            }
            relevant = {number for number, name in enumerate(named) if name in changed}
        found: dict[tuple[Rule, ...], str] = {}
        for numbers, path in path_classes(named, relevant).items():
            naming = tuple(rule for number in sorted(numbers) for rule in rules[named[number]])
            if found.setdefault(naming, path) in sources:
                found[naming] = path
        return [(path, naming) for naming, path in found.items()]

    def _other_objects(self, operation: Operation) -> Iterator[tuple[str, tuple[Rule, ...]]]:
        section = SECTION_OF[operation]
        rules = [rule for rule in self._rules if rule.section is section]
        if section in PACKET_SECTIONS:
            yield from self._packets(section, rules)
            return
        index = RuleIndex(rules)
        seen: set[object] = set()
        for text in texts(operation, rules):
            asked = objects.read(operation, text)
            naming = index.matching_object(asked)
            if naming not in seen:
                seen.add(naming)
                yield text, naming

    def _packets(self, section: Section, rules: list[Rule]) -> Iterator[tuple[str, tuple[Rule, ...]]]:
        """Give packets that stand for all; where the rest decides alike, for those that a changed rule is about."""
        numbered = [(rule, rule.match) for rule in rules if isinstance(rule.match, PeerMatch)]
        relevant: set[int] | None = None
        if self._same_frame[section]:
            changed = self._changed[section]
            relevant = {number for number, (rule, _) in enumerate(numbered) if _essence(rule) in changed}
        for numbers, peer in peer_classes([match for _, match in numbered], relevant).items():
            yield objects.peer_text(peer), tuple(numbered[number][0] for number in sorted(numbers))
        if not self._alike:
            yield "127.0.0.1 on lo", ()  # no rule is asked about it, but a default is

    def questions(self, operation: Operation, text: str, naming: tuple[Rule, ...]) -> Iterator[Question]:
        """Give questions for everyone who may act, and each way to do it, that the rules about an object tell apart."""
        about = [rule for rule in naming if rule.section in self._sections(operation)]
        owners = (True, False) if any(rule.owner_only for rule in about) else (True,)
        terminals = (True, False) if any(rule.terminal is not None for rule in about) else (None,)
        quotas = (False, True) if any(rule.quota for rule in about) else (False,)
        arguments = _arguments(about) if operation is Operation.EXECUTE else (None,)
        for source, owner, terminal, quota, words in itertools.product(
            self._sources(operation, text, about), owners, terminals, quotas, arguments
        ):
            yield Question(operation, text, source, owner, arguments=words, terminal=terminal, beyond_quota=quota)

    def _sources(self, operation: Operation, text: str, about: list[Rule]) -> Iterator[str | None]:
        """Give one executable of each kind: covered by the same rules, with the same rights of its own."""
        named: dict[str | None, None] = {None: None}
        named |= dict.fromkeys(source for rule in about for source in rule.sources)
        directories = dict.fromkeys(entry for rule in about for entry in rule.source_directories)
        if directories:
            limits = [PathObject(ObjectKind.DIRECTORY, name, recursive) for name, recursive in directories]
            # a directory's own path is no executable in it, and must not stand for those that are
            apart = [*filter(None, named), *(name.rstrip("/") or "/" for name, _ in directories)]
            limits += [PathObject(ObjectKind.PATH, path, recursive=False) for path in dict.fromkeys(apart)]
            named |= dict.fromkeys(path_classes(limits).values())
        if operation is Operation.MAP and not self._alike:
            named[text] = None  # a program's own file, of which rules say one thing and a default may say another
        if operation is Operation.MAP:
            old, new = self._privileged
            for group in (old & new, old - new, new - old):
                # one that no rule about the object names, and that is not the object itself
                other = next((source for source in sorted(group) if source not in named and source != text), None)
                named[other] = None
        kinds: set[object] = set()
        for source in named:
            kind = (
                tuple(rule.covers_source(source) for rule in about),
                *(source in privileged for privileged in self._privileged if operation is Operation.MAP),
                source == text,
            )
            if kind not in kinds:
                kinds.add(kind)
                yield source


def _arguments(about: list[Rule]) -> tuple[tuple[str, ...] | None, ...]:
    """Give arguments for each set of rules that permit some: what all rules of such a set list is permitted by them.

    The first are permitted by none. Without rules about arguments, nothing needs to be said of them.
    """
    listed = {frozenset(rule.allowed_arguments) for rule in about if rule.allowed_arguments}
    if not listed:
        return (None,)
    known = frozenset().union(*listed)
    other = another(known)
    pending = set(listed)
    while pending:
        one = pending.pop()
        new = {one & another for another in listed} - listed - {frozenset()}
        listed |= new
        pending |= new
    return ((other,), *(tuple(sorted(words)) for words in sorted(listed, key=sorted)))
