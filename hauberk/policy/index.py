# SPDX-License-Identifier: Apache-2.0
"""Finding the rules that match a path without trying each.

Exact paths, executable names and directories are found by looking the path's own parts up; only patterns are tried
one by one. The result is the same as asking :func:`hauberk.policy.globs.matches` for every rule, in the same order;
thousands of questions to ten thousand rules become cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hauberk.policy import globs
from hauberk.policy.rules import ObjectKind, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable


class RuleIndex:
    """An index over the objects of rules. It does not look at sections, operations or sources."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        """Index ``rules``, whose order is kept."""
        self.rules = tuple(rules)
        self._paths: dict[bytes, list[int]] = {}
        self._names: dict[bytes, list[int]] = {}
        self._children: dict[bytes, list[int]] = {}
        self._trees: dict[bytes, list[int]] = {}
        self._patterns: list[int] = []
        for number, rule in enumerate(self.rules):
            value = globs.to_bytes(rule.value)
            if rule.kind is ObjectKind.PATH:
                self._paths.setdefault(value, []).append(number)
            elif rule.kind is ObjectKind.EXECNAME:
                self._names.setdefault(value, []).append(number)
            elif rule.kind is ObjectKind.DIRECTORY:
                table = self._trees if rule.recursive else self._children
                table.setdefault(value.rstrip(b"/"), []).append(number)
            else:
                self._patterns.append(number)

    def matching(self, path: str | bytes) -> tuple[Rule, ...]:
        """Give the rules whose object names ``path`` (absolute, no slash at its end), in the order given."""
        octets = path if isinstance(path, bytes) else globs.to_bytes(path)
        whole = octets.rstrip(b"/")
        parent, _, name = whole.rpartition(b"/")
        found = [
            *self._paths.get(octets, ()),
            *self._names.get(name, ()),
            *self._children.get(whole, ()),
            *self._trees.get(whole, ()),
        ]
        if whole:
            found += self._children.get(parent, ())
            above = whole
            while above:
                above = above.rpartition(b"/")[0]
                found += self._trees.get(above, ())
        found += [number for number in self._patterns if globs.matches(self.rules[number], octets)]
        return tuple(self.rules[number] for number in sorted(found))
