# SPDX-License-Identifier: Apache-2.0
"""Files -> valid policies and located problems."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from hauberk.collecting import suspended_collection
from hauberk.errors import PolicyError, Problem
from hauberk.policy import documents
from hauberk.policy.documents import type_name
from hauberk.policy.models.cilium import CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy
from hauberk.policy.models.kinds import API_VERSION, KINDS, NAMESPACED, PolicyModel
from hauberk.policy.models.messages import problem_at, translate, wrong_kind
from hauberk.policy.models.remarks import remarks
from hauberk.policy.models.tolerances import warnings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hauberk.policy.documents import Document, FieldPath

MAXIMUM_PROBLEMS = 100
"""Most problems told of one document; the rest is counted."""
MAXIMUM_FILE_PROBLEMS = documents.MAXIMUM_PROBLEMS
"""Most problems told of one file; the rest is counted."""


class Policy:
    """A valid document and where its parts stand; of a document with several specs, one of them.

    ``root`` is where the policy's ``spec`` stands.
    """

    __slots__ = ("document", "model", "root")

    def __init__(self, model: PolicyModel, document: Document, root: FieldPath = ("spec",)) -> None:
        """Join a model and the document it was read from."""
        self.model = model
        self.document = document
        self.root = root

    @property
    def kind(self) -> str:
        """The document's ``kind``."""
        return self.model.kind

    @property
    def name(self) -> str:
        """``namespace/name``, or ``name`` where the document names no namespace or its kind has none.

        One of several ``specs`` has its index behind it: ``shop/web[1]``.
        """
        metadata = self.model.metadata
        namespaced = metadata.namespace and self.kind in NAMESPACED
        name = f"{metadata.namespace}/{metadata.name}" if namespaced else metadata.name
        return name + "".join(f"[{part}]" for part in self.root[1:])

    def parts(self) -> tuple[Policy, ...]:
        """Give a policy for each spec of the document: its ``spec``, and each of its ``specs`` where its kind has them.

        They have selectors of their own, so they are policies of their own; only the name is shared.
        """
        if not isinstance(self.model, CiliumNetworkPolicy | CiliumClusterwideNetworkPolicy):
            return (self,)
        several = self.model.specs or ()
        single = (self,) if self.model.spec is not None else ()
        return (
            *single,
            *(
                Policy(self.model.model_copy(update={"spec": spec}), self.document, ("specs", index))
                for index, spec in enumerate(several)
            ),
        )


def load(files: Iterable[tuple[str, bytes]]) -> tuple[Policy, ...]:
    """Read policies from ``(name for messages, content)`` pairs.

    Raises :class:`hauberk.errors.PolicyError` with every problem of every document of every file, also for two
    policies of one kind and name. Warnings are no reason to raise.
    """
    policies, problems = examine(files)
    serious = [problem for problem in problems if not problem.warning]
    if serious:
        raise PolicyError(serious)
    return tuple(policies)


def examine(files: Iterable[tuple[str, bytes]]) -> tuple[list[Policy], list[Problem]]:
    """Read policies as :func:`load` does, but give both what is valid and what is wrong, warnings included."""
    problems: list[Problem] = []
    policies: list[Policy] = []
    seen: dict[tuple[str, str], Policy] = {}
    with suspended_collection():  # looking for cycles would cost twice what reading does
        for file, data in files:
            told: list[Problem] = []
            for document in documents.read(data, file, told):
                serious = sum(not problem.warning for problem in told)
                policy, of_document = check(document, min(MAXIMUM_PROBLEMS, max(0, MAXIMUM_FILE_PROBLEMS - serious)))
                told += of_document
                if policy is None:
                    continue
                first = seen.setdefault((policy.kind, policy.name), policy)
                if first is not policy:
                    told.append(_second(policy, first))
                policies += policy.parts()
            problems += _not_too_many(told, file)
    return policies, problems


def _second(policy: Policy, first: Policy) -> Problem:
    path: FieldPath = ("metadata", "name")
    place = f"{first.document.file}:{first.document.place(path).line}"
    found = f"a second {policy.kind} named {policy.name!r} (first at {place})"
    return problem_at(policy.document, path, found, "each name once", "Rename one of them")


def _not_too_many(told: list[Problem], file: str) -> list[Problem]:
    """Give the first problems of a file. Those that refuse it come before warnings where there are too many."""
    if len(told) <= MAXIMUM_FILE_PROBLEMS + 1:
        return told
    told.sort(key=lambda problem: problem.warning)
    rest = told[MAXIMUM_FILE_PROBLEMS:]
    found = f"{len(rest)} more problems in this file"
    warning = all(problem.warning for problem in rest)
    last = Problem(file, 0, 0, "", found, "none", "Correct the first ones and check again", warning)
    return [*told[:MAXIMUM_FILE_PROBLEMS], last]


def check(document: Document, most: int = MAXIMUM_PROBLEMS) -> tuple[Policy | None, list[Problem]]:
    """Check one document: the policy if it is valid, and what is to be told of it.

    Of its mistakes, the first ``most`` are told one by one; to word one takes longer than to find it.
    """
    value = document.value
    if not isinstance(value, dict):
        expected = "a mapping with apiVersion, kind, metadata and spec"
        return None, [problem_at(document, (), type_name(value), expected, "Write a policy")]
    if "kind" not in value:
        expected = f"the field 'kind', one of {', '.join(KINDS)}"
        advice = f"Add it, and apiVersion: {API_VERSION}" if "apiVersion" not in value else "Add it"
        return None, [problem_at(document, ("kind",), "no such field", expected, advice)]
    kind = value["kind"]
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:  # nothing else about it would be worth telling
        return None, [wrong_kind(document, kind)]
    try:
        policy = Policy(model.model_validate(value), document)
    except ValidationError as errors:
        found = errors.errors(include_url=False)
        problems = [translate(document, model, dict(error)) for error in found[:most]]
        problems.sort(key=lambda problem: (problem.line, problem.column))
        if len(found) > most:
            more = f"{len(found) - most} more problems in this document"
            problems.append(problem_at(document, (), more, "none", "Correct the first ones and check again"))
        return None, problems
    told = [*warnings(document, policy.kind), *remarks(policy.parts())]
    serious = [problem for problem in told if not problem.warning]
    return (None, serious[:most]) if serious else (policy, told)
