# SPDX-License-Identifier: Apache-2.0
"""What is accepted though it is not what the language's definition says, with a warning each.

Published policies hold these, and each has one sensible reading. It is told, since its author may have meant another.
Everything else that the definition refuses is refused here as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hauberk.policy import traffic
from hauberk.policy.models.kinds import NAMESPACED
from hauberk.policy.models.messages import problem_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hauberk.errors import Problem
    from hauberk.policy.documents import Document, FieldPath

_NULLS = ("fromSource", "matchExpressions", "selector")


def warnings(document: Document, kind: str) -> Iterator[Problem]:
    """Give the warnings about a valid document, in the order of its fields."""
    value: Any = document.value
    if kind not in NAMESPACED and value["metadata"].get("namespace"):
        yield problem_at(
            document,
            ("metadata", "namespace"),
            f"a namespace, which {kind} does not have",
            "none",
            "Remove it; it selects nothing",
            warning=True,
        )
    for path, name, found in _fields(value["spec"], ("spec",)):
        warning = _warning(document, kind, path, name, found)
        if warning:
            yield warning
    if kind == "KubeArmorHostPolicy":
        yield from _rules_without_source(document, value["spec"])


def _fields(value: object, path: FieldPath) -> Iterator[tuple[FieldPath, str, object]]:
    """Give each named field below a value with its path."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield (*path, name), name, item
            yield from _fields(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _fields(item, (*path, index))


def _warning(document: Document, kind: str, path: FieldPath, name: str, found: object) -> Problem | None:
    if found is None and name in _NULLS:
        covers = "every source" if name == "fromSource" else "all namespaces" if "Cluster" in kind else "no expression"
        return problem_at(
            document,
            path,
            "null",
            "a value",
            f"Remove the field, which means {covers}, as null does here",
            warning=True,
        )
    if not isinstance(found, str):
        return None
    if name == "dir" and not found.endswith("/"):
        return problem_at(
            document,
            path,
            f'"{found}"',
            "a '/' at the end of a directory",
            f'Write "{found}/"; it is taken for the directory, not for a file of that name',
            warning=True,
        )
    if name == "cidr" and traffic.has_host_bits(found):
        network = traffic.network(found)
        return problem_at(
            document,
            path,
            f'"{found}", an address within {network}',
            "the network's own address",
            f'Write "{network}", which is what is compared, or the address with /{network.max_prefixlen} for it alone',
            warning=True,
        )
    if name == "action" and found == "Allow" and path[1] == "presets":
        return problem_at(
            document,
            path,
            '"Allow"',
            "Audit or Block",
            "Write Block, which is what it means for a preset",
            warning=True,
        )
    return None


def _rules_without_source(document: Document, spec: dict[str, Any]) -> Iterable[Problem]:
    for section, name in (("network", "matchProtocols"), ("capabilities", "matchCapabilities")):
        rules = (spec.get(section) or {}).get(name) or ()
        for index, rule in enumerate(rules):
            if "fromSource" not in rule:
                yield problem_at(
                    document,
                    ("spec", section, name, index),
                    "a host rule without fromSource",
                    "the executables that it is about",
                    "Add fromSource; without it, the rule holds for every program of the host",
                    warning=True,
                )
