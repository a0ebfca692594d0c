# SPDX-License-Identifier: Apache-2.0
"""Finding the rules that match an object without trying each.

Exact paths, executable names and directories are found by looking the path's own parts up; only patterns are tried
one by one. Of what is not a file, words, domains and networks are looked up, while devices are tried. The result
is the same as asking :func:`hauberk.policy.globs.matches` or :func:`hauberk.policy.objects.matches` for every rule, in
the same order; thousands of questions to ten thousand rules become cheap.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hauberk.policy import globs, objects
from hauberk.policy.rules import ObjectKind, Peer, PeerMatch, Rule, SyscallMatch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hauberk.policy.objects import Object

_LITERAL = re.compile(r"[^*?\[{\\]*")
"""What a pattern begins with, up to the first character that may not stand for itself."""
_BY_WORD = frozenset({ObjectKind.PROTOCOL, ObjectKind.DOMAIN, ObjectKind.CAPABILITY, ObjectKind.PRESET})


class RuleIndex:
    """An index over the objects of rules. It does not look at sections, operations or sources."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        """Index ``rules``, whose order is kept."""
        self.rules = tuple(rules)
        self._paths: dict[bytes, list[int]] = {}
        self._names: dict[bytes, list[int]] = {}
        self._children: dict[bytes, list[int]] = {}
        self._trees: dict[bytes, list[int]] = {}
        self._patterns: list[tuple[bytes, int]] = []
        self._words: dict[tuple[ObjectKind, str], list[int]] = {}
        self._tried: dict[ObjectKind, list[int]] = {}
        self._networks: dict[int, dict[int, dict[int, list[int]]]] | None = None  # family, bits behind the prefix, it
        self._anywhere: list[int] = []
        for number, rule in enumerate(self.rules):
            self._add(number, rule)

    def _add(self, number: int, rule: Rule) -> None:
        match rule.kind:
            case ObjectKind.PATH:
                self._paths.setdefault(globs.to_bytes(rule.value), []).append(number)
            case ObjectKind.EXECNAME:
                self._names.setdefault(globs.to_bytes(rule.value), []).append(number)
            case ObjectKind.DIRECTORY:
                table = self._trees if rule.recursive else self._children
                table.setdefault(globs.to_bytes(rule.value).rstrip(b"/"), []).append(number)
            case ObjectKind.PATTERN:
                literal = _LITERAL.match(rule.value)
                self._patterns.append((globs.to_bytes(literal[0] if literal else ""), number))
            case ObjectKind.SYSCALL if isinstance(rule.match, SyscallMatch):
                for name in rule.match.names:
                    self._words.setdefault((rule.kind, name), []).append(number)
            case kind if kind in _BY_WORD:
                self._words.setdefault((kind, rule.value), []).append(number)
            case kind:
                self._tried.setdefault(kind, []).append(number)

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
        # a pattern is compiled when a path begins as it does: most questions are about few patterns
        found += [
            number
            for start, number in self._patterns
            if octets.startswith(start) and globs.matches(self.rules[number], octets)
        ]
        return tuple(self.rules[number] for number in sorted(found))

    def matching_object(self, asked: Object) -> tuple[Rule, ...]:
        """Give the rules whose object is what is asked about, be it a file or not, in the order given."""
        match asked:
            case str():
                return self.matching(asked)
            case objects.Socket(words):
                found = self._looked_up(ObjectKind.PROTOCOL, (*words, "all"))
            case objects.Name(name):
                domains = {candidate for one in objects.names(name) for candidate in _above(one)}
                found = self._looked_up(ObjectKind.DOMAIN, domains)
            case objects.Word(word):
                found = self._looked_up(ObjectKind.CAPABILITY, (word,)) + self._looked_up(ObjectKind.PRESET, (word,))
            case objects.Call(name):
                called = self._looked_up(ObjectKind.SYSCALL, (name,))
                found = [number for number in called if objects.matches(self.rules[number], asked)]
            case Peer():
                found = [number for number in self._near(asked) if objects.matches(self.rules[number], asked)]
            case _:
                tried = self._tried.get(ObjectKind.DEVICE, ())
                found = [number for number in tried if objects.matches(self.rules[number], asked)]
        return tuple(self.rules[number] for number in sorted(found))

    def _near(self, peer: Peer) -> Iterable[int]:
        """Give the rules about packets that name a network which holds the peer's address, or not only networks."""
        from hauberk.policy import peers  # noqa: PLC0415 - few questions are about packets

        if self._networks is None:
            self._networks = {4: {}, 6: {}}
            for number in self._tried.get(ObjectKind.PEER, ()):
                match = self.rules[number].match
                if isinstance(match, PeerMatch) and match.cidrs and not match.groups:
                    for cidr in match.cidrs:
                        family, first, length = peers.prefix(cidr)
                        shift = peers.BITS[family] - length
                        self._networks[family].setdefault(shift, {}).setdefault(first >> shift, []).append(number)
                else:
                    self._anywhere.append(number)
        family, address = peers.address(peer.address)
        near = set(self._anywhere)
        for shift, prefixes in self._networks[family].items():
            near.update(prefixes.get(address >> shift, ()))
        return near

    def _looked_up(self, kind: ObjectKind, words: Iterable[str]) -> list[int]:
        return [number for word in words for number in self._words.get((kind, word), ())]


def _above(name: str) -> Iterable[str]:
    """Give a domain name and every domain it is in."""
    labels = name.split(".")
    return (".".join(labels[start:]) for start in range(len(labels)))
