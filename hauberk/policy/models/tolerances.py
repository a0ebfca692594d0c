# SPDX-License-Identifier: Apache-2.0
"""What is accepted though it is not what the language's definition says, or says less than it seems, with a warning.

Published policies hold these, and each has one sensible reading. It is told, since its author may have meant another.
Everything else that the definition refuses is refused here as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from hauberk.policy import globs, selectors, traffic
from hauberk.policy.models.base import shown
from hauberk.policy.models.kinds import NAMESPACED
from hauberk.policy.models.messages import problem_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hauberk.errors import Problem
    from hauberk.policy.documents import Document, FieldPath


class _Remark(NamedTuple):
    """The parts of a warning."""

    found: str
    expected: str
    advice: str


def warnings(document: Document, kind: str) -> Iterator[Problem]:
    """Give the warnings about a valid document, in the order of its fields."""
    value: Any = document.value
    if kind not in NAMESPACED and value["metadata"].get("namespace"):
        remark = _Remark(f"a namespace, which {kind} does not have", "none", "Remove it; it selects nothing")
        yield problem_at(document, ("metadata", "namespace"), *remark, warning=True)
    if kind == "KubeArmorPolicy" and not any((value["spec"].get("selector") or {}).values()):
        remark = _Remark(
            "a selector that selects by nothing" if "selector" in value["spec"] else "no selector",
            "at least one label or expression",
            "Name what the policy covers; as it is, it covers every container of its namespace",
        )
        yield problem_at(document, ("spec", "selector"), *remark, warning=True)
    checks = _CHECKS if kind.startswith("KubeArmor") else _CHECKS_OF_OTHERS
    for path, found in (field for root in ("spec", "specs") for field in _fields(value.get(root), (root,))):
        check = checks.get(str(path[-1]))
        said = check(path, found) if check else None
        if said:
            yield problem_at(document, path, *said, warning=True)
    if kind == "KubeArmorHostPolicy":
        yield from _rules_without_source(document, value["spec"])


def _fields(value: object, path: FieldPath) -> Iterator[tuple[FieldPath, object]]:
    """Give each named field below a value. Labels are no fields, whatever they are called, but for the special one."""
    if isinstance(value, dict):
        for name, item in value.items():
            if path[-1] != "matchLabels" or name == selectors.CONTAINER_NAME_LABEL:
                yield (*path, name), item
            yield from _fields(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _fields(item, (*path, index))


def _null(meaning: str) -> Callable[[FieldPath, object], _Remark | None]:
    def check(_: FieldPath, found: object) -> _Remark | None:
        if found is None:
            return _Remark("null", "a value", f"Remove the field, which means {meaning}, as null does here")
        return None

    return check


def _directory(_: FieldPath, found: object) -> _Remark | None:
    if isinstance(found, str) and not found.endswith("/"):
        return _Remark(
            shown(found),
            "a '/' at the end of a directory",
            f"Write {shown(found + '/')}; it is taken for the directory, not for a file of that name",
        )
    return _literally(found)


def _pattern(path: FieldPath, found: object) -> _Remark | None:
    if isinstance(found, str) and globs.has_wildcards(found) and path[-3] == "matchPaths":
        return _Remark(
            f"{shown(found)}, which has wildcards",
            "a path",
            "Move it to matchPatterns; it is taken for a pattern, not for a file with such a name",
        )
    return _literally(found)


def _literally(found: object) -> _Remark | None:
    if isinstance(found, str) and globs.has_groups(found):
        return _Remark(
            f"{shown(found)}, with what groups names in patterns",
            "a path",
            "Use matchPatterns if that is meant; it is taken for a name with these very characters",
        )
    return None


def _network(_: FieldPath, found: object) -> _Remark | None:
    if isinstance(found, str) and traffic.has_host_bits(found):
        network = traffic.network(found)
        return _Remark(
            f"{shown(found)}, an address within {network}",
            "the network's own address",
            f'Write "{network}", which is what is compared, or the address with /{network.max_prefixlen} for it alone',
        )
    return None


def _preset(path: FieldPath, found: object) -> _Remark | None:
    if found == "Allow" and path[1] == "presets":
        return _Remark('"Allow"', "Audit or Block", "Write Block, which is what it means for a preset")
    return None


def _container_name(path: FieldPath, found: object) -> _Remark | None:
    if isinstance(found, str) and path[1] == "selector" and selectors.names_none(found):
        return _Remark(
            f"{shown(found)}, which names no container", "a name", 'Write ".*"; it is taken for every container'
        )
    return None


_CHECKS: dict[str, Callable[[FieldPath, object], _Remark | None]] = {
    "fromSource": _null("every source"),
    "matchExpressions": _null("no condition"),
    "selector": _null("all namespaces"),
    "dir": _directory,
    "execname": _pattern,
    "path": _pattern,
    "cidr": _network,
    "action": _preset,
    selectors.CONTAINER_NAME_LABEL: _container_name,
}
"""What to look at, by the field's name."""
_CHECKS_OF_OTHERS: dict[str, Callable[[FieldPath, object], _Remark | None]] = {
    "matchExpressions": _null("no condition"),
    "matchLabels": _null("no condition"),
    "ingress": _null("an empty list"),
    "egress": _null("an empty list"),
    "cidr": _network,
}
"""The same for policies of Cilium and of Kubernetes."""


def _rules_without_source(document: Document, spec: dict[str, Any]) -> Iterator[Problem]:
    remark = _Remark(
        "a host rule without fromSource",
        "the executables that it is about",
        "Add fromSource; without it, the rule holds for every program of the host",
    )
    for section, name in (("network", "matchProtocols"), ("capabilities", "matchCapabilities")):
        rules = (spec.get(section) or {}).get(name) or ()
        for index, rule in enumerate(rules):
            if "fromSource" not in rule:
                yield problem_at(document, ("spec", section, name, index), *remark, warning=True)
