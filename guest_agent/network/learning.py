# SPDX-License-Identifier: Apache-2.0
"""The addresses of names as resolvers told them, each namespace its own, until their time is over: pure.

An address counts for a name for as long as the answer said, within bounds: a few seconds at least, because a client
connects after it has asked, and a day at most. Names survive a restart of the agent with what is left of their time;
time is that of CLOCK_BOOTTIME, in seconds.

Workloads make the machine look names up, so there is a limit for each namespace; beyond it the address that would have
been over first is forgotten, which refuses more and never less.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hauberk.policy import peers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guest_agent.engines.network_port import GroupMembers
    from hauberk.policy.rules import PeerGroup

LEAST_SECONDS: Final = 5
MOST_SECONDS: Final = 86_400
MAXIMUM_ADDRESSES: Final = 4096
"""Most addresses remembered for one namespace."""


@dataclass(slots=True)
class Learned:
    """What names led to. Not thread-safe."""

    _until: dict[int, dict[tuple[str, str], int]] = field(default_factory=dict)  # namespace -> (name, address) -> time

    def learn(self, namespace: int, name: str, address: str, seconds: int, now: int) -> None:
        """Take an answer: ``name``, in lower case without its last dot, leads to ``address`` for ``seconds``."""
        known = self._until.setdefault(namespace, {})
        until = now + min(max(seconds, LEAST_SECONDS), MOST_SECONDS)
        key = (name, address)
        known[key] = max(until, known.get(key, 0))
        if len(known) > MAXIMUM_ADDRESSES:
            self.forget(now)
            left = self._until[namespace]
            if len(left) > MAXIMUM_ADDRESSES:
                del left[min(left, key=left.__getitem__)]

    def forget(self, now: int, namespaces: Iterable[int] | None = None) -> None:
        """Forget what is over and, where given, all but these namespaces."""
        kept = set(self._until if namespaces is None else namespaces)
        for namespace in tuple(self._until):
            left = {key: until for key, until in self._until[namespace].items() if until > now}
            if namespace in kept and left:
                self._until[namespace] = left
            else:
                del self._until[namespace]

    def members(self, namespace: int, group: PeerGroup, now: int) -> GroupMembers:
        """Give the addresses of the names that a group means, each with the longest time it has left."""
        found: dict[str, int] = {}
        for (name, address), until in self._until.get(namespace, {}).items():
            if until > now and peers.name_matches(group.value, name):
                found[address] = max(until - now, found.get(address, 0))
        return tuple(sorted(found.items()))

    def names_of(self, namespace: int, address: str) -> tuple[str, ...]:
        """Give the names an address was learned by, whether their time is over or not: for alerts."""
        return tuple(sorted(name for name, known in self._until.get(namespace, {}) if known == address))

    def encode(self) -> list[list[object]]:
        """Give everything as JSON values."""
        return [
            [namespace, name, address, until]
            for namespace, known in self._until.items()
            for (name, address), until in known.items()
        ]

    @classmethod
    def decode(cls, value: object) -> Learned:
        """Read back what :meth:`encode` gave. Raises ValueError."""
        learned = cls()
        if not isinstance(value, list):
            message = f"found {type(value).__name__}, expected a list of names"
            raise ValueError(message)  # noqa: TRY004 - a malformed record, not a wrong argument
        for entry in value:
            if not isinstance(entry, list) or [type(part) for part in entry] != [int, str, str, int]:
                message = "found an entry that is no name, expected namespace, name, address and time"
                raise ValueError(message)
            namespace, name, address, until = entry
            learned._until.setdefault(namespace, {})[name, address] = until
        return learned
