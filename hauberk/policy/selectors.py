# SPDX-License-Identifier: Apache-2.0
"""Which policies a workload gets.

A policy is for containers or for hosts, never for both. Beyond that, all of these must hold:

* **Namespace.** A container policy covers workloads of its own namespace; one that names none is in ``default``, as
  with Kubernetes. A cluster policy covers every namespace, or those it names, without those it excludes. If the
  workload's namespace is not known (runc, podman), it is not compared: leaving a policy out would drop its Block rules.
* **Labels.** Each of ``matchLabels`` must be present with that value.
* **Requirements.** Each must hold of the labels (``In``, ``NotIn``, ``Exists``, ``DoesNotExist``), as with Kubernetes.
* **Expressions.** Of all ``In`` expressions, one of their ``k=v`` must be present; of all ``NotIn``, none may be. What
  has no labels has none of them.
* **Container name** (label ``kubearmor.io/container.name``): a list ``[a, b]`` or a regular expression for the whole
  name. A name that is not known counts as empty: ``.*`` covers every container, named or not. So does a value that
  names none, ``""`` or ``[]``, as with KubeArmor: leaving the policy out would drop its Block rules.
* **Host name** (labels ``kubearmor.io/hostname`` and ``kubernetes.io/hostname``): ``*`` or names with commas between
  them; with ``hostnamereg``, an expression for the whole name in which ``*`` stands for anything.

A selector that selects by nothing covers the whole namespace, as with KubeArmor, that of a cluster policy all of them.
Regular expressions are a subset that needs no backtracking, since whoever names a container must not be able to stall
the agent.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping  # noqa: TC003 - part of a dataclass's annotations that tools evaluate
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NoReturn

from hauberk.errors import HauberkError
from hauberk.policy import globs
from hauberk.policy.rules import DEFAULT_NAMESPACE, LabelRequirement

CONTAINER_NAME_LABEL = "kubearmor.io/container.name"
HOST_NAME_LABELS = ("kubearmor.io/hostname", "kubernetes.io/hostname")
HOST_EXPRESSION_LABELS = {
    "kubearmor.io/hostnamereg": HOST_NAME_LABELS[0],
    "kubernetes.io/hostnamereg": HOST_NAME_LABELS[1],
}
"""Labels whose value is an expression, and the label whose value it is about."""
_MAXIMUM_EXPRESSION = 1024
_MAXIMUM_NESTING = 16


class Scope(StrEnum):
    """What a policy can cover: containers, or the host itself; never both."""

    CONTAINER = "container"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class WorkloadIdentity:
    """What is known of a workload. Empty text: not known. ``labels`` are the pod's or container's, or the host's."""

    name: str = ""
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    container_name: str = ""
    image: str = ""
    image_digest: str = ""  # "sha256:…" of the image's manifest, as whoever started it says
    host: bool = False
    host_name: str = ""


@dataclass(frozen=True, slots=True)
class Selector:
    """Whom a policy covers.

    ``labels`` must all be there, and all ``requirements`` hold of the labels; ``within`` and ``without`` are the
    ``k=v`` of In and of NotIn; ``container_name`` is a list or expression. ``cluster``: the policy belongs to no
    namespace, but to those in ``namespaces`` (empty: all) that are not in ``excluded_namespaces``. ``host_names`` and
    ``host_expressions`` are ``(label, value)`` pairs of a host's name.
    """

    labels: tuple[tuple[str, str], ...] = ()
    within: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    container_name: str | None = None
    scope: Scope = Scope.CONTAINER
    cluster: bool = False
    namespaces: tuple[str, ...] = ()
    excluded_namespaces: tuple[str, ...] = ()
    host_names: tuple[tuple[str, str], ...] = ()
    host_expressions: tuple[tuple[str, str], ...] = ()
    requirements: tuple[LabelRequirement, ...] = ()

    @property
    def covers_every_container(self) -> bool:
        """Whether nothing that is said about a container changes the answer, but its namespace."""
        asks = self.labels or self.within or self.without or self.requirements
        asks = asks or self.namespaces or self.excluded_namespaces
        name = self.container_name
        return self.scope is Scope.CONTAINER and not asks and (name in {None, ".*"} or names_none(name or ""))

    def matches(self, policy_namespace: str, workload: WorkloadIdentity) -> bool:
        """Tell whether a policy of ``policy_namespace`` with this selector covers the workload."""
        return (
            workload.host is (self.scope is Scope.HOST)
            and (workload.host or self._namespace_matches(policy_namespace, workload.namespace))
            and all(workload.labels.get(key) == value for key, value in self.labels)
            and all(requirement.holds(workload.labels) for requirement in self.requirements)
            and (not self.within or any(_present(pair, workload) for pair in self.within))
            and not any(_present(pair, workload) for pair in self.without)
            and (self.container_name is None or _name_matches(self.container_name, workload.container_name))
            and all(_host_named(label, names, workload) for label, names in self.host_names)
            and all(
                _whole_match(parse_host_expression(expression), _host_name(label, workload))
                for label, expression in self.host_expressions
            )
        )

    def _namespace_matches(self, own: str, namespace: str) -> bool:
        if not namespace:
            return True
        if not self.cluster:
            return (own or DEFAULT_NAMESPACE) == namespace
        return (not self.namespaces or namespace in self.namespaces) and namespace not in self.excluded_namespaces


def _present(pair: str, workload: WorkloadIdentity) -> bool:
    key, _, value = pair.partition("=")
    return workload.labels.get(key) == value


def _host_name(label: str, workload: WorkloadIdentity) -> str:
    """Give a host's name: what the label says where there is one, else the name that the host itself has."""
    return workload.labels.get(label) or workload.host_name


def _host_named(label: str, names: str, workload: WorkloadIdentity) -> bool:
    name = _host_name(label, workload)
    return any(choice in {"*", name} for choice in map(str.strip, names.split(",")) if choice)


class ExpressionError(HauberkError):
    """An expression for the names of containers or hosts cannot be used. ``message`` says why."""

    def __init__(self, message: str) -> None:
        """Take the reason, which is also the text of the error."""
        self.message = message
        super().__init__(message)


def name_list(value: str) -> tuple[str, ...] | None:
    """Give the names of a bracketed list, or None if ``value`` is a regular expression."""
    if not (value.startswith("[") and value.endswith("]")):
        return None
    return tuple(name.strip() for name in value[1:-1].split(",") if name.strip())


def check_container_name(value: str) -> None:
    """Raise :class:`ExpressionError` unless the special label's value is a list of names or a usable expression."""
    if names_none(value):
        return
    names = name_list(value)
    if names is None:
        parse_expression(value)
        return
    for name in names:
        if not is_name(name):
            message = (
                "brackets around the whole of it, which make it a list, and in the list what is no name; "
                "for an expression that starts with a class put it into '(?:' and ')'"
            )
            raise ExpressionError(message)


def is_name(text: str) -> bool:
    """Tell whether containers and namespaces can be called so: letters, digits, ``_``, ``.`` and ``-``."""
    return re.fullmatch(r"[A-Za-z0-9][-A-Za-z0-9_.]*", text) is not None


def names_none(value: str) -> bool:
    """Tell whether the special label's value names no container, and so covers every one."""
    return not value.strip() or name_list(value) == ()


def _name_matches(value: str, name: str) -> bool:
    if names_none(value):
        return True
    names = name_list(value)
    if names is not None:
        return name in names
    return _whole_match(parse_expression(value), name)


def _whole_match(expression: globs.Node, name: str) -> bool:
    octets = globs.to_bytes(name)
    return len(octets) in globs.simulate(expression, octets)


def parse_host_expression(expression: str) -> globs.Node:
    r"""Parse the value of a ``hostnamereg`` label: a regular expression in which ``*`` stands for anything.

    A ``*`` behind a ``.`` may mean either, and both are the same; ``\*`` is the character, and ``\.*`` a dot with
    anything behind it. Raises :class:`ExpressionError`.
    """
    return parse_expression(re.sub(r"(?<!\\)\.?\*", ".*", expression))


@functools.lru_cache(maxsize=1024)
def parse_expression(expression: str) -> globs.Node:
    r"""Parse a regular expression of the subset.

    Characters, ``.``, ``[…]``, ``\d \w \s``, groups, ``|``, ``* + ?`` after one character.

    Repeating a group is refused: it is the part that needs backtracking. Raises :class:`ExpressionError`.
    """
    if len(expression) > _MAXIMUM_EXPRESSION:
        message = f"an expression of more than {_MAXIMUM_EXPRESSION} characters; shorten it"
        raise ExpressionError(message)
    return _Expression(expression).parse()


_ASCII_DIGITS = frozenset(b"0123456789")
_ASCII_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_CLASSES = {
    "d": _ASCII_DIGITS, "D": globs.ANY_BYTE - _ASCII_DIGITS, "w": _ASCII_WORD, "W": globs.ANY_BYTE - _ASCII_WORD,
    "s": frozenset(b" \t\n\r\f\v"), "S": globs.ANY_BYTE - frozenset(b" \t\n\r\f\v"),
}  # fmt: skip


class _Expression:
    """Recursive descent over a regular expression of the subset."""

    def __init__(self, text: str) -> None:
        # Anchors at the ends change nothing: the whole name must match anyway.
        self.text = text.removeprefix("^")
        if self.text.endswith("$") and not self.text.endswith("\\$"):
            self.text = self.text[:-1]
        self.position = 0

    def parse(self) -> globs.Node:
        if not self.text:
            self.refuse("an empty expression, which matches no name; write '.*' for every container")
        node = self.choices(depth=0)
        if self.position < len(self.text):
            self.refuse("')' without '('; write '\\)' for the character")
        return node

    def refuse(self, what: str) -> NoReturn:
        raise ExpressionError(what)

    def choices(self, depth: int) -> globs.Node:
        if depth > _MAXIMUM_NESTING:
            self.refuse(f"groups nested more than {_MAXIMUM_NESTING} deep; write it flatter")
        found = [self.terms(depth)]
        while self.text[self.position : self.position + 1] == "|":
            self.position += 1
            found.append(self.terms(depth))
        return found[0] if len(found) == 1 else globs.Alternation(tuple(found))

    def terms(self, depth: int) -> globs.Node:
        parts: list[globs.Node] = []
        while self.position < len(self.text) and self.text[self.position] not in "|)":
            atom = self.atom(depth)
            quantifier = self.text[self.position : self.position + 1]
            if quantifier and quantifier in "*+?":
                self.position += 1
                atom = self.quantified(atom, quantifier)
            elif quantifier == "{":
                self.refuse("a counted repetition '{…}'; use '*', '+' or '?'")
            parts.append(atom)
        return globs.Sequence(tuple(parts))

    def quantified(self, atom: globs.Node, quantifier: str) -> globs.Node:
        if self.text[self.position : self.position + 1] in ("*", "+", "?"):
            self.refuse("two repetitions in a row; use one")
        if quantifier == "?":
            return globs.Alternation((globs.EMPTY, atom))
        if not isinstance(atom, globs.AnyByte):
            self.refuse(
                "a repeated group, or a repeated character outside of ASCII; repeat single characters or classes only"
            )
        return globs.Repeat(atom.classes, 1 if quantifier == "+" else 0)

    def atom(self, depth: int) -> globs.Node:
        character = self.text[self.position]
        self.position += 1
        if character == "(":
            return self.group(depth)
        if character == "[":
            return globs.AnyByte(self.bracket())
        if character == ".":
            return globs.AnyByte(globs.ANY_BYTE)
        if character == "\\":
            return self.escaped()
        if character in "*+?{^$":
            self.refuse(f"{character!r} where it repeats or anchors nothing; write '\\{character}' for the character")
        return _character(character)

    def escaped(self) -> globs.Node:
        character = self.text[self.position : self.position + 1]
        self.position += 1
        if character in _CLASSES:
            return globs.AnyByte(_CLASSES[character])
        if not character or character.isalnum():
            self.refuse(f"the escape '\\{character}'; only \\d \\D \\w \\W \\s \\S and escaped punctuation are known")
        return _character(character)

    def group(self, depth: int) -> globs.Node:
        if self.text.startswith("?:", self.position):
            self.position += 2
        elif self.text.startswith("?", self.position):
            self.refuse("a group with '(?'; only plain groups are known")
        node = self.choices(depth + 1)
        if self.text[self.position : self.position + 1] != ")":
            self.refuse("'(' without ')'; close it, or write '\\(' for the character")
        self.position += 1
        return node

    def bracket(self) -> frozenset[int]:
        negated = self.text.startswith("^", self.position)
        self.position += negated
        members: set[int] = set()
        while self.position < len(self.text) and self.text[self.position] != "]":
            first = self.member()
            last = first
            if self.text[self.position : self.position + 1] == "-" and self.text[
                self.position + 1 : self.position + 2
            ] not in ("", "]"):
                self.position += 1
                last = self.member()
            if max(last) < min(first):
                self.refuse("a range that runs backwards; swap its ends")
            members |= first if last is first else frozenset(range(min(first), max(last) + 1))
        if self.position >= len(self.text) or not members:
            self.refuse("'[' without members or ']'; complete it, or write '\\[' for the character")
        self.position += 1
        result = globs.ANY_BYTE - members if negated else globs.ANY_BYTE & members
        if not result:
            self.refuse("a class that matches nothing; name at least one character in it")
        return result

    def member(self) -> frozenset[int]:
        character = self.text[self.position]
        self.position += 1
        node = self.escaped() if character == "\\" else _character(character)
        if not isinstance(node, globs.AnyByte):
            self.refuse("a character outside of ASCII in a class; write it as an alternative with '|'")
        return node.classes


def _character(character: str) -> globs.Node:
    octets = globs.to_bytes(character)
    return globs.AnyByte(frozenset(octets)) if len(octets) == 1 else globs.Literal(octets)
