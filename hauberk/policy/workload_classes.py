# SPDX-License-Identifier: Apache-2.0
"""Every set of policies that can cover one workload, each with such a workload.

What a workload may do follows from the policies that cover it together: one policy's Allow rule refuses what another
says nothing about. Whoever compares policies therefore compares sets of them. A selector looks at some properties of a
workload (its namespace, its container's or host's name, single labels) and at each of them on its own, so the sets are
found property by property: of each property only those values are tried that some selector tells apart, and
workloads that the selectors have told apart nowhere so far are carried on as one.

Properties that are independent of each other multiply, in the policies as here. Sets that hold none of the policies
that matter are dropped on the way; what is still too much ends in an error instead of an incomplete answer.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, NamedTuple

from hauberk.errors import HauberkError
from hauberk.policy import globs, selectors
from hauberk.policy.path_classes import text_classes
from hauberk.policy.rules import DEFAULT_NAMESPACE
from hauberk.policy.selectors import HOST_NAME_LABELS, Scope, WorkloadIdentity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from hauberk.policy.rules import LabelRequirement
    from hauberk.policy.selectors import Selector

MAXIMUM_CLASSES: Final = 20_000
"""Most sets that are carried on."""


class TooManyWorkloadsError(HauberkError):
    """The workloads that policies tell apart are too many to look at each."""

    exit_code = 3


class Subject(NamedTuple):
    """Whom a policy covers: its selector, and the namespace it belongs to."""

    namespace: str
    selector: Selector


class _Value(NamedTuple):
    """One value of a property: how a workload gets it, whom it excludes, and whose In expressions it satisfies."""

    workload: WorkloadIdentity
    excluded: frozenset[int]
    satisfied: frozenset[int]


def workload_classes(
    subjects: Sequence[Subject], relevant: Iterable[int] | None = None
) -> dict[frozenset[int], WorkloadIdentity]:
    """Give each set of policies (by their numbers) that some workload is covered by exactly, with such a workload.

    With ``relevant``, only sets that hold at least one of these numbers; without, every set that is not empty. Raises
    :class:`TooManyWorkloadsError`.
    """
    wanted = frozenset(range(len(subjects)) if relevant is None else relevant)
    found: dict[frozenset[int], WorkloadIdentity] = {}
    for scope in Scope:
        numbers = [number for number, subject in enumerate(subjects) if subject.selector.scope is scope]
        if wanted.isdisjoint(numbers):
            continue
        expecting = frozenset(number for number in numbers if subjects[number].selector.within)
        states = {(frozenset(numbers), frozenset[int]()): WorkloadIdentity(host=scope is Scope.HOST)}
        for values in _properties(subjects, numbers, scope):
            states = _part(states, values, wanted)
        for (alive, satisfied), workload in states.items():
            covering = alive - (expecting - satisfied)
            if not covering.isdisjoint(wanted):
                found.setdefault(covering, workload)
    return found


_States = dict[tuple[frozenset[int], frozenset[int]], WorkloadIdentity]


def _part(states: _States, values: list[_Value], wanted: frozenset[int]) -> _States:
    """Part each class of workloads by one more property."""
    parted: _States = {}
    for (alive, satisfied), workload in states.items():
        for value in values:
            remaining = alive - value.excluded
            if wanted.isdisjoint(remaining):
                continue
            key = (remaining, (satisfied | value.satisfied) & remaining)
            if key not in parted:
                parted[key] = _joined(workload, value.workload)
        if len(parted) > MAXIMUM_CLASSES:
            message = (
                f"found more than {MAXIMUM_CLASSES} sets of policies that can cover one workload, expected fewer. "
                "Compare fewer policies at a time"
            )
            raise TooManyWorkloadsError(message)
    return parted


def _joined(one: WorkloadIdentity, other: WorkloadIdentity) -> WorkloadIdentity:
    return WorkloadIdentity(
        namespace=one.namespace or other.namespace,
        labels={**one.labels, **other.labels},
        container_name=one.container_name or other.container_name,
        host=one.host,
    )


def _properties(subjects: Sequence[Subject], numbers: list[int], scope: Scope) -> Iterator[list[_Value]]:
    """Give for each property that some selector looks at the values that selectors tell apart."""
    if scope is Scope.CONTAINER:
        yield _namespaces(subjects, numbers)
        yield _container_names(subjects, numbers)
    else:
        for label in HOST_NAME_LABELS:
            yield _host_names(subjects, numbers, label)
    yield from _labels(subjects, numbers)


def _namespaces(subjects: Sequence[Subject], numbers: list[int]) -> list[_Value]:
    mentioned: dict[str, None] = {"": None}
    for number in numbers:
        namespace, selector = subjects[number]
        own = () if selector.cluster else (namespace or DEFAULT_NAMESPACE,)
        mentioned |= dict.fromkeys((*own, *selector.namespaces, *selector.excluded_namespaces))
    values = []
    for namespace in (*mentioned, another(mentioned)):
        workload = WorkloadIdentity(namespace=namespace)
        excluded = frozenset(
            number
            for number in numbers
            if not selectors.Selector(
                cluster=subjects[number].selector.cluster,
                namespaces=subjects[number].selector.namespaces,
                excluded_namespaces=subjects[number].selector.excluded_namespaces,
            ).matches(subjects[number].namespace, workload)
        )
        values.append(_Value(workload, excluded, frozenset()))
    return values


def _container_names(subjects: Sequence[Subject], numbers: list[int]) -> list[_Value]:
    written: dict[str, set[int]] = {}
    for number in numbers:
        value = subjects[number].selector.container_name
        if value is not None and not selectors.names_none(value):
            written.setdefault(value, set()).add(number)
    return _by_text([(_tree(value), limited) for value, limited in written.items()], "")


def _host_names(subjects: Sequence[Subject], numbers: list[int], label: str) -> list[_Value]:
    written: dict[tuple[bool, str], set[int]] = {}
    for number in numbers:
        selector = subjects[number].selector
        for expressions, pairs in ((False, selector.host_names), (True, selector.host_expressions)):
            for about, value in pairs:
                if about == label:
                    written.setdefault((expressions, value), set()).add(number)
    trees = [
        (selectors.parse_host_expression(value) if expression else _choices(value.split(",")), limited)
        for (expression, value), limited in written.items()
    ]
    return _by_text(trees, label)


def _by_text(trees: list[tuple[globs.Node, set[int]]], label: str) -> list[_Value]:
    """Give a text for each set of trees that match one; those limited to the others are excluded by it."""
    values = []
    for matching, text in text_classes([tree for tree, _ in trees]).items():
        excluded = (limited for index, (_, limited) in enumerate(trees) if index not in matching)
        labels = {label: text} if label and text else {}
        workload = WorkloadIdentity(labels=labels, container_name="" if label else text)
        values.append(_Value(workload, frozenset().union(*excluded), frozenset()))
    return values


def _tree(value: str) -> globs.Node:
    names = selectors.name_list(value)
    return selectors.parse_expression(value) if names is None else _choices(names)


def _choices(names: Iterable[str]) -> globs.Node:
    stripped = [name.strip() for name in names if name.strip()]
    if "*" in stripped:
        return globs.Repeat(globs.ANY_BYTE, 0)
    return globs.Alternation(tuple(globs.Literal(globs.to_bytes(name)) for name in stripped))


def _labels(subjects: Sequence[Subject], numbers: list[int]) -> Iterator[list[_Value]]:
    required: dict[str, dict[str, set[int]]] = {}
    within: dict[str, dict[str, set[int]]] = {}
    without: dict[str, dict[str, set[int]]] = {}
    asking: dict[str, list[tuple[LabelRequirement, int]]] = {}
    for number in numbers:
        selector = subjects[number].selector
        for key, value in selector.labels:
            required.setdefault(key, {}).setdefault(value, set()).add(number)
        for table, pairs in ((within, selector.within), (without, selector.without)):
            for pair in pairs:
                key, _, value = pair.partition("=")
                table.setdefault(key, {}).setdefault(value, set()).add(number)
        for requirement in selector.requirements:
            asking.setdefault(requirement.key, []).append((requirement, number))
    for key in dict.fromkeys((*required, *within, *without, *asking)):
        demanding = required.get(key, {})
        everybody = frozenset().union(*demanding.values())
        mentioned = dict.fromkeys((*demanding, *within.get(key, ()), *without.get(key, ())))
        mentioned |= dict.fromkeys(value for requirement, _ in asking.get(key, ()) for value in requirement.values)
        # a value that nobody mentions differs from no label where somebody asks whether there is one
        others = (another(mentioned),) if key in asking else ()
        yield [
            _Value(WorkloadIdentity(), everybody | _refused(asking.get(key, ()), {}), frozenset()),
            *(
                _Value(
                    WorkloadIdentity(labels={key: value}),
                    (everybody - demanding.get(value, set()))
                    | without.get(key, {}).get(value, set())
                    | _refused(asking.get(key, ()), {key: value}),
                    frozenset(within.get(key, {}).get(value, ())),
                )
                for value in (*mentioned, *others)
            ),
        ]


def _refused(asking: Iterable[tuple[LabelRequirement, int]], labels: dict[str, str]) -> frozenset[int]:
    """Give whom a requirement excludes where these are all labels it can be about."""
    return frozenset(number for requirement, number in asking if not requirement.holds(labels))


def another(mentioned: Iterable[str]) -> str:
    """Give a word that is not mentioned."""
    taken = set(mentioned)
    return next(word for number in itertools.count() if (word := f"other{number or ''}") not in taken)
