# SPDX-License-Identifier: Apache-2.0
"""``hauberk policy explain``: what would happen if, and which rule says so.

From the options to a workload and a question in the terms of :mod:`hauberk.policy.explain`, and back to text or JSON.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from hauberk.cli import inputs
from hauberk.cli.inputs import UsageError
from hauberk.errors import FactsError, PolicyError
from hauberk.policy import annotations as of_annotations
from hauberk.policy import collection
from hauberk.policy.annotations import Mode, Settings
from hauberk.policy.explain import (
    Default,
    Explainer,
    Question,
    QuestionError,
    as_json,
    as_text,
    parse_question,
    verdict_as_json,
)
from hauberk.policy.rules import POSTURES, Operation, RuleSet, Verdict, join
from hauberk.policy.selectors import Scope, WorkloadIdentity

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping

    from hauberk.cli.inputs import Inputs
    from hauberk.policy.collection import NormalPolicy

DEFAULTS = {"deny": Verdict.DENY, "audit": Verdict.AUDIT, "allow": Verdict.ALLOW}
_OF_OBJECT = {
    "protocol": Operation.SOCKET,
    "domain": Operation.RESOLVE,
    "capability": Operation.CAPABILITY,
    "syscall": Operation.SYSCALL,
    "preset": Operation.PRESET,
    "device": Operation.ATTACH,
}
"""Options that name an object and say the operation with it."""
_PACKETS = (Operation.RECEIVE, Operation.SEND)
_PEER_DETAILS = {
    "port": "",
    "source_port": "from",
    "interface": "on",
    "peer_name": "name",
    "peer_entity": "entity",
    "peer_label": "labels",
    "peer_namespace": "namespace",
}
"""Options that say more of a peer, and the words of :mod:`hauberk.policy.objects` for them."""
_FILES = (Operation.EXECUTE, Operation.MAP, Operation.READ, Operation.WRITE)


class Subject(NamedTuple):
    """The workload of a command line: its rules (None: no policy covers it), and what else decides."""

    rule_set: RuleSet | None
    scope: Scope
    default: Verdict
    mode: Mode
    uncovered: str


def explain(arguments: argparse.Namespace) -> int:
    """Answer one question or many."""
    question = None if arguments.questions else _question(arguments)
    _check_batch(arguments)
    subject = workload(arguments)
    if subject.rule_set is None and question is None:
        with ExitStack() as stack:
            return _batch(Default(subject.default, subject.uncovered), arguments.questions, stack)
    if subject.rule_set is None:
        verdict = subject.default.name.lower()
        said = {"verdict": verdict, "reason": subject.uncovered}
        inputs.write(json.dumps(said) if arguments.json else f"{verdict}: {subject.uncovered}")
        return 1 if subject.default is Verdict.DENY else 0
    with ExitStack() as stack:
        explainer = _explainer(subject, subject.rule_set, arguments.rootfs, stack)
        if question is None:
            return _batch(explainer, arguments.questions, stack)
        answer = explainer.ask(question)
    inputs.write(json.dumps(as_json(answer), indent=2) if arguments.json else as_text(answer))
    return 0 if answer.allowed else 1


def workload(arguments: argparse.Namespace) -> Subject:
    """Give the workload that the options describe, with the rules of the policies that cover it.

    Raises :class:`UsageError`, and :class:`hauberk.errors.PolicyError` for invalid policies.
    """
    identity, scope = _identity(arguments)
    settings = _settings(arguments.annotation)
    given = inputs.read(arguments.files)
    policies = collection.load(given.files, inputs.cache(wanted=not arguments.no_cache))
    if identity is None:
        scopes = {policy.selector.scope for policy in policies}
        if scopes == {Scope.HOST}:
            scope = Scope.HOST
        covering = [policy for policy in policies if policy.selector.scope is scope]
    else:
        covering = [policy for policy in policies if policy.covers(identity)] if _within(given.target, identity) else []
    default = given.default or "deny"
    whose = f"that of the bundle is {default}" if given.default else "that of a bundle is deny unless it says otherwise"
    uncovered = f"no policy covers this workload, so a default decides; {whose}"
    rule_set = settings.apply(_joined(covering, arguments, given, settings)) if covering else None
    return Subject(rule_set, scope, DEFAULTS[default], settings.mode, uncovered)


def _within(target: Mapping[str, Any] | None, identity: WorkloadIdentity) -> bool:
    """Whether a bundle's policies are for this workload at all; targets say nothing of hosts."""
    if target is None or identity.host:
        return True
    labels: dict[str, str] = target.get("labels", {})
    return identity.image_digest in target.get("imageDigests", (identity.image_digest,)) and all(
        identity.labels.get(key) == value for key, value in labels.items()
    )


def _joined(
    covering: Iterable[NormalPolicy], arguments: argparse.Namespace, given: Inputs, settings: Settings
) -> RuleSet:
    posture = POSTURES[arguments.posture or given.posture or "block"]
    postures = tuple((dict(given.postures) | dict(settings.postures)).items())
    return join((rule for policy in covering for rule in policy.rules), posture, postures)


def _identity(arguments: argparse.Namespace) -> tuple[WorkloadIdentity | None, Scope]:
    """Give the workload described on the command line, or None where nothing is said about it."""
    of_container = bool(arguments.label or arguments.container_name or arguments.namespace or arguments.image_digest)
    of_host = bool(arguments.node_label or arguments.host_name)
    if of_container and (of_host or arguments.host):
        message = "found options about a container and about the host, expected one workload. Leave one of them out"
        raise UsageError(message)
    labels = inputs.pairs((*arguments.label, *arguments.node_label), "label")
    scope = Scope.HOST if of_host or arguments.host else Scope.CONTAINER
    if not (of_container or of_host):
        return None, scope
    return (
        WorkloadIdentity(
            namespace=arguments.namespace,
            labels=labels,
            container_name=arguments.container_name,
            image_digest=arguments.image_digest,
            host=of_host,
            host_name=arguments.host_name,
        ),
        scope,
    )


def _settings(texts: list[str]) -> Settings:
    if not texts:
        return Settings()
    try:
        return of_annotations.read(inputs.pairs(texts, "annotation"), file="--annotation")
    except PolicyError as error:
        raise UsageError(str(error)) from error


def _question(arguments: argparse.Namespace) -> Question:
    """Give the question that the options ask. Raises :class:`UsageError` and QuestionError."""
    operation, text = _object(arguments)
    if arguments.owner_uid is not None and arguments.uid is None:
        message = "found --owner-uid without --uid, expected both users. Say who acts, or --owner or --not-owner"
        raise UsageError(message)
    return _known(
        Question(
            operation,
            text,
            arguments.source,
            arguments.owner is not False,
            arguments.parent,
            arguments.uid,
            arguments.owner_uid,
            None if arguments.argument is None else tuple(arguments.argument),
            arguments.terminal,
            arguments.beyond_quota,
        )
    )


def _known(question: Question) -> Question:
    """Refuse to answer about a system call that there is not, as policies may not name one. Raises QuestionError."""
    if question.operation is Operation.SYSCALL:
        from hauberk.policy.syscall_names import SYSCALL_NAMES  # noqa: PLC0415 - few questions are about calls

        name = question.object.partition(" ")[0]
        if name not in SYSCALL_NAMES:
            from hauberk.policy.models.base import suggestion  # noqa: PLC0415 - as above

            advice = suggestion(name, SYSCALL_NAMES) or "Write it as in syscalls(2)"
            message = f"found {name!r}, expected the name of a Linux system call. {advice}"
            raise QuestionError(message)
    return question


def _object(arguments: argparse.Namespace) -> tuple[Operation, str]:
    """Give the operation, and its object in the words of :mod:`hauberk.policy.objects`."""
    asked = Operation(arguments.operation) if arguments.operation else None
    named = [name for name in (*_OF_OBJECT, "peer") if getattr(arguments, name) is not None]
    if arguments.path is not None and named != ["syscall"]:
        named.append("path")
    if not named:
        message = (
            "found no question, expected an object such as --path and what is done to it, or --questions. Say both"
        )
        raise UsageError(message)
    if len(named) > 1:
        found = " and ".join(f"--{name}" for name in named)
        message = f"found {found}, expected one object to ask about. Ask about one after the other"
        raise UsageError(message)
    _check_details(arguments, named[0])
    if named[0] in {"path", "peer"}:
        fitting = _FILES if named[0] == "path" else _PACKETS
        if asked is None or asked not in fitting:
            found = f"--operation {asked.value}" if asked else "no --operation"
            words = ", ".join(operation.value for operation in fitting)
            message = f"found --{named[0]} with {found}, expected one of {words}. Say what is done"
            raise UsageError(message)
        return asked, arguments.path if named[0] == "path" else _peer(arguments)
    operation = _OF_OBJECT[named[0]]
    if asked not in {None, operation}:
        message = f"found --{named[0]} with --operation {arguments.operation}, expected {operation.value}. Leave it out"
        raise UsageError(message)
    text: str = getattr(arguments, named[0])
    if operation is Operation.ATTACH:
        text = text.replace(":", "/") + ("" if arguments.level is None else f"@{arguments.level}")
    elif operation is Operation.SYSCALL and arguments.path is not None:
        text = f"{text} {arguments.path}"
    return operation, text


def _check_details(arguments: argparse.Namespace, named: str) -> None:
    """Refuse details of another object than the one that is asked about."""
    for detail, of in (("level", "device"), *((detail, "peer") for detail in _PEER_DETAILS)):
        if getattr(arguments, detail) is not None and named != of:
            option = detail.replace("_", "-")
            message = f"found --{option} without --{of}, expected them together. Leave it out, or name the {of}"
            raise UsageError(message)


def _peer(arguments: argparse.Namespace) -> str:
    text: str = arguments.peer
    if arguments.port is not None:
        text += f" tcp/{arguments.port}" if arguments.port.isdigit() else f" {arguments.port}"
    for detail, word in _PEER_DETAILS.items():
        said = getattr(arguments, detail)
        if word and said is not None:
            text += f" {word} {said if isinstance(said, str) else ','.join(said)}"
    return text


def _check_batch(arguments: argparse.Namespace) -> None:
    """Refuse a question on the command line beside a file of them."""
    if not arguments.questions:
        return
    names = (*_OF_OBJECT, "peer", "path", "operation", "source", "parent", "owner", "uid", "owner_uid", "argument")
    names = (*names, "terminal", "level", *_PEER_DETAILS)
    found = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) is not None]
    if found or arguments.beyond_quota:
        message = f"found --questions and {' '.join(found) or '--beyond-quota'}, expected one of them. Put the question"
        message += " into the file"
        raise UsageError(message)


def _explainer(subject: Subject, rule_set: RuleSet, rootfs: str | None, stack: ExitStack) -> Explainer:
    if rootfs is None:
        return Explainer(rule_set, mode=subject.mode, scope=subject.scope)
    from hauberk.policy.resolution import RootResolver, expand  # noqa: PLC0415 - only where a root is named

    resolver = stack.enter_context(RootResolver(rootfs))
    expanded = expand(rule_set, resolver.resolve)
    return Explainer(expanded, resolver.resolve, resolver.owner_of, subject.mode, subject.scope)


def _lines(name: str, stack: ExitStack) -> Iterator[str]:
    try:
        yield from sys.stdin if name == "-" else stack.enter_context(open(name, encoding="utf-8"))  # noqa: PTH123, SIM115
    except OSError as error:
        message = f"found {name} unreadable ({error.strerror}), expected a file with questions. Check its name and mode"
        raise UsageError(message) from error
    except UnicodeDecodeError as error:
        message = f"found {name} with bytes that are no text, expected questions in UTF-8. Save it so"
        raise UsageError(message) from error


def _batch(explainer: Explainer | Default, name: str, stack: ExitStack) -> int:
    """Answer questions line by line. The exit code says whether all could be asked, not what was answered."""
    for number, line in enumerate(_lines(name, stack), 1):
        if not line.strip():
            continue
        try:
            answer = explainer.ask(_known(parse_question(line)))
        except QuestionError as error:
            message = f"question in line {number}: {error}"
            raise UsageError(message) from error
        except FactsError as error:
            message = f"question in line {number}: {error}"
            raise FactsError(message) from error
        sys.stdout.write(json.dumps(verdict_as_json(answer)) + "\n")
    return 0
