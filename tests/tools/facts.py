# SPDX-License-Identifier: Apache-2.0
"""Policies -> what they say to a machine, and back to a document of our own words.

A fact is a mapping:

* ``kind``, ``namespaced``, ``selector`` or ``nodeSelector``;
* ``levels``: severity and action by section, ``""`` for the spec;
* ``rules``: [section, list, fields] in the order they are written;
* ``more``: other fields of the spec;
* ``told``: the field of each problem and whether it is a warning;
* ``odd``: the fields of a refused document that do not belong there, or ``spec`` where that is null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hauberk.errors import Problem

SECTIONS = ("process", "file", "network", "capabilities", "syscalls", "device")
_SELECTORS = ("selector", "nodeSelector")
_OTHERS = {"message", "tags"}


def facts_of(document: dict[str, Any], told: Iterable[Problem]) -> dict[str, Any]:
    """Take down one policy."""
    spec = document.get("spec")
    fact: dict[str, Any] = {
        "kind": document["kind"],
        "told": [[problem.field, "warning" if problem.warning else "refused"] for problem in told],
    }
    if "namespace" in document["metadata"]:
        fact["namespaced"] = True
    odd = [name for name in document if name not in ("apiVersion", "kind", "metadata", "spec")]
    if odd or spec is None:
        return {**fact, "odd": odd or ["spec"]}
    levels = {"": _level(spec), **{name: _level(spec[name]) for name in SECTIONS if name in spec}}
    rules = [
        [section, name, _without_words(rule)]
        for section in SECTIONS
        for name, entries in spec.get(section, {}).items()
        if name.startswith("match")
        for rule in entries
    ]
    more = {
        name: _without_words(value)
        for name, value in spec.items()
        if name not in {*SECTIONS, *_SELECTORS, *_OTHERS, "severity", "action"}
    }
    return {
        **fact,
        **{name: spec[name] for name in _SELECTORS if name in spec},
        "levels": {name: level for name, level in levels.items() if level},
        "rules": rules,
        **({"more": more} if more else {}),
    }


def _level(level: dict[str, Any]) -> dict[str, Any]:
    return {name: level[name] for name in ("severity", "action") if name in level}


def _without_words(value: Any) -> Any:  # noqa: ANN401 - plain values of a document
    if isinstance(value, dict):
        return {name: _without_words(item) for name, item in value.items() if name not in _OTHERS}
    if isinstance(value, list):
        return [_without_words(item) for item in value]
    return value


def document_of(fact: dict[str, Any], number: int) -> dict[str, Any]:
    """Give a document that says what a fact says."""
    metadata = {"name": f"published-{number}", **({"namespace": "some"} if fact.get("namespaced") else {})}
    document: dict[str, Any] = {"apiVersion": "security.kubearmor.com/v1", "kind": fact["kind"], "metadata": metadata}
    if "odd" in fact:
        if fact["odd"] == ["spec"]:
            return {**document, "spec": None}
        del document["apiVersion"]
        return {
            **dict.fromkeys(fact["odd"], "security.kubearmor.com/v1"),
            **document,
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "file": {"matchPaths": [{"path": "/x"}]}},
        }
    spec: dict[str, Any] = {name: fact[name] for name in _SELECTORS if name in fact}
    spec |= fact["levels"].get("", {})
    spec |= {"message": "said in alerts", "tags": ["one", "two"]}
    for section, name, rule in fact["rules"]:
        spec.setdefault(section, dict(fact["levels"].get(section, {}))).setdefault(name, []).append(rule)
    return {**document, "spec": {**spec, **fact.get("more", {})}}
