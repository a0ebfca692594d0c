# SPDX-License-Identifier: Apache-2.0
"""pydantic's errors -> "found, expected, what to do" at a line and column."""

from __future__ import annotations

import re
import typing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from hauberk.errors import Problem
from hauberk.policy.documents import Document, FieldPath, field_name, printable
from hauberk.policy.models.base import shown, suggestion
from hauberk.policy.models.kinds import KINDS
from hauberk.policy.models.metadata import Metadata

if TYPE_CHECKING:
    from collections.abc import Iterable

_SERVER_FIELDS = frozenset(name for name, field in Metadata.model_fields.items() if field.annotation is Any) | {
    "status"
}

_EXPECTATIONS: dict[str, tuple[str, str]] = {
    "string_type": ("text", "Put the value in quotes"),
    "int_type": ("a whole number", "Write digits without quotes"),
    "bool_type": ("true or false", "Write true or false, without quotes"),
    "list_type": ("a list", "Start each element with '- '"),
    "dict_type": ("a mapping", "Write 'key: value' lines below it"),
    "model_type": ("a mapping", "Write 'key: value' lines below it"),
    "too_short": ("at least one element", "Add one, or remove the field"),
}

_ADVICE_FOR_UNKNOWN = {
    "readOnly": "Only rules of the file section can be readOnly",
    "fromSource": "Patterns cannot be limited to a source; use a path or directory",
    "action": "System calls are audited whatever the action is; remove it",
    "pts": "Only rules about processes and files, and protocols of containers, know terminals; remove it",
    "nodeSelector": "Policies of this kind select containers, with selector",
    "selector": "Policies of this kind select hosts, with nodeSelector",
    "device": "Devices are the host's: write a KubeArmorHostPolicy",
    "presets": "Presets are for containers: write a KubeArmorPolicy or KubeArmorClusterPolicy",
    "matchLabels": "Cluster policies select with matchExpressions",
}
"""What to do about fields below ``spec`` that exist elsewhere in KubeArmor's language."""

_NOT_HERE: dict[str, tuple[str, str]] = {
    "toServices": ("services, which a cluster alone knows", "Write the addresses behind them with toCIDR"),
    "fromGroups": ("groups of a cloud, which are not known here", "Write their networks with fromCIDRSet"),
    "toGroups": ("groups of a cloud, which are not known here", "Write their networks with toCIDRSet"),
    "fromNodes": ("nodes by their labels, which a cluster alone knows", "Write their addresses with fromCIDR"),
    "toNodes": ("nodes by their labels, which a cluster alone knows", "Write their addresses with toCIDR"),
    "fromRequires": ("requirements on all other entries, which Cilium gave up in 1.19", "Write them into each entry"),
    "toRequires": ("requirements on all other entries, which Cilium gave up in 1.19", "Write them into each entry"),
    "cidrGroupRef": ("a group of networks that a cluster holds", "Write its networks, each as cidr"),
    "cidrGroupSelector": ("groups of networks that a cluster holds", "Write their networks, each as cidr"),
    "authentication": ("authentication of peers, which nothing here does", "Remove it, if the peers may go without"),
    "nodeSelector": ("nodes, which a policy of a namespace is not for", "Write a CiliumClusterwideNetworkPolicy"),
}
"""What Cilium's language has and policies here cannot: what it is, and what to do."""
_NOT_DENIED = {
    "rules": ("the content of connections in a rule that denies", "Remove it to deny the ports as a whole"),
    "listener": ("a listener in a rule that denies", "Remove it to deny the ports as a whole"),
    "serverNames": ("the content of connections in a rule that denies", "Remove it to deny the ports as a whole"),
    "toFQDNs": ("names in a rule that denies", "Write the addresses: those of a name are never all known"),
}
"""What rules that allow can say and those that deny cannot."""


def problem_at(  # noqa: PLR0913 - the parts of one sentence
    document: Document,
    path: FieldPath,
    found: str,
    expected: str,
    advice: str,
    *,
    of_key: bool = False,
    warning: bool = False,
) -> Problem:
    """Give a problem of a document with the place of a field's value or key."""
    line, column = document.place(path, of_key=of_key)
    return Problem(document.file, line, column, field_name(path), found, expected, advice, warning)


def translate(document: Document, model: type[BaseModel], error: dict[str, Any]) -> Problem:
    """Turn one of pydantic's errors about a document into a located problem."""
    path: FieldPath = tuple(part for part in error["loc"] if part != "[key]")
    kind: str = error["type"]
    context: dict[str, Any] = error.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_field(document, model, path)
    if kind == "missing":
        return _missing(document, path)
    found = context.get("found") or shown(error["input"])
    if kind == "hauberk":
        advice = suggestion(*context["near"]) or context["advice"]
        return problem_at(document, (*path, *context["below"]), found, context["expected"], advice)
    if kind == "literal_error":
        return wrong_word(document, path, error["input"], re.findall(r"'([^']*)'", context["expected"]))
    expected, advice = _EXPECTATIONS.get(kind, (error["msg"], "Correct the value"))
    if kind in ("greater_than_equal", "less_than_equal"):
        expected, advice = _range(model, path), "Choose one of them"
    elif kind == "too_long":
        expected, advice, found = (
            f"at most {context['max_length']} elements",
            "Split the rule",
            f"{context['actual_length']} elements",
        )
    return problem_at(document, path, found, expected, advice)


def _missing(document: Document, path: FieldPath) -> Problem:
    line, column = document.place(path[:-1])
    return Problem(document.file, line, column, field_name(path), "no such field", f"the field {path[-1]!r}", "Add it")


def wrong_word(document: Document, path: FieldPath, value: object, choices: Iterable[str]) -> Problem:
    """Give the problem of a value that is none of some words."""
    choices = tuple(choices)
    near = suggestion(value, choices) if isinstance(value, str) else ""
    return problem_at(document, path, shown(value), " or ".join(choices), near or f"Write {' or '.join(choices)}")


def _unknown_field(document: Document, model: type[BaseModel], path: FieldPath) -> Problem:
    name = str(path[-1])
    known = [field for field in fields_at(model, path[:-1]) if field not in _SERVER_FIELDS]
    expected = f"one of {', '.join(known)}"
    if model.__name__.startswith("Cilium") and path[0] in ("spec", "specs"):
        denies = any(str(part).endswith("Deny") for part in path[:-1])
        found, advice = (_NOT_HERE | (_NOT_DENIED if denies else {})).get(name, ("", ""))
        if found:
            return problem_at(document, path, found, expected, advice, of_key=True)
    advice = _advice(model, path, name) or suggestion(name, known) or "Remove it"
    return problem_at(document, path, f"the unknown field '{printable(name)}'", expected, advice, of_key=True)


def _advice(model: type[BaseModel], path: FieldPath, name: str) -> str | None:
    """Say what to do about a field that exists elsewhere in the language."""
    if name == "<<":
        return "Merging is not done; write the fields out"
    if len(path) > 1:
        of_kubearmor = path[0] == "spec" and model.__name__.startswith("KubeArmor")
        return _ADVICE_FOR_UNKNOWN.get(name) if of_kubearmor else None
    parent = next((parent for parent in ("spec", "metadata") if name in fields_at(model, (parent,))), None)
    return f"Indent it below {parent}" if parent else None


def _range(model: type[BaseModel], path: FieldPath) -> str:
    """Name the whole numbers that a field takes."""
    limits: dict[str, int] = {}

    def collect(annotation: Any) -> None:  # noqa: ANN401 - whatever stands in an annotation
        for bound in ("ge", "le"):
            if isinstance(getattr(annotation, bound, None), int):
                limits.setdefault(bound, getattr(annotation, bound))
        parts = [*getattr(annotation, "metadata", ()), *getattr(annotation, "__metadata__", ())]
        for part in (*parts, *typing.get_args(annotation)):
            collect(part)

    owner = model_at(model, path[:-1])
    field = next(field for name, field in owner.model_fields.items() if (field.alias or name) == path[-1])
    collect(field)
    collect(field.annotation)
    return f"a whole number from {limits['ge']} to {limits['le']}"


def fields_at(model: type[BaseModel], path: FieldPath) -> list[str]:
    """Give the field names that a kind of document knows at a place."""
    return [field.alias or name for name, field in model_at(model, path).model_fields.items()]


def model_at(model: type[BaseModel], path: FieldPath) -> type[BaseModel]:
    """Give the model of the mapping at a place of a kind of document."""
    current = model
    for part in path:
        if isinstance(part, int):  # an element of the list that the name before led to
            continue
        field = next(field for name, field in current.model_fields.items() if (field.alias or name) == part)
        current = _model_in(field.annotation)
    return current


def _model_in(annotation: Any) -> type[BaseModel]:  # noqa: ANN401 - whatever stands in an annotation
    while arguments := typing.get_args(annotation):  # lists, optional and annotated types
        annotation = arguments[0]
    found: type[BaseModel] = annotation
    return found


def wrong_kind(document: Document, kind: object) -> Problem:
    """Give the problem of a document whose kind is no kind of policy."""
    if isinstance(kind, str) and kind.endswith("List"):
        found, expected = f"{shown(kind)}, a list of documents", "a policy"
        return problem_at(document, ("kind",), found, expected, "Write each of its items as a document of its own")
    problem = wrong_word(document, ("kind",), kind, KINDS)
    if not isinstance(kind, str) or suggestion(kind, KINDS):
        return problem
    return replace(problem, advice="Keep what is no policy out of the files that are checked")
