# SPDX-License-Identifier: Apache-2.0
"""Look-ups in sets, and maps that lead from one to the next: what finding packets is made of.

The same for every endpoint that has the rules: chains and verdicts come when a ruleset is written.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from guest_agent.engines.nftables.ruleset import MAXIMUM_NAME, FieldType, Key, Set
from hauberk.errors import HauberkError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from guest_agent.engines.nftables.boxes import Boxes
    from guest_agent.engines.nftables.ranges import Union
    from hauberk.policy.rules import PeerGroup

Part = Literal["address4", "address6", "protocol", "port", "source_port", "icmp4", "icmp6", "interface"]
"""What of a packet is looked up. Address, port and interface are the peer's side: which field, the direction says."""
FIELDS: Final[Mapping[Part, FieldType]] = {
    "address4": "ipv4_addr", "address6": "ipv6_addr", "protocol": "inet_proto", "port": "inet_service",
    "source_port": "inet_service", "icmp4": "icmp_type", "icmp6": "icmpv6_type", "interface": "ifname",
}  # fmt: skip
ADDRESS: Final[Mapping[int, Part]] = {4: "address4", 6: "address6"}
ICMP: Final[Mapping[int, Part]] = {4: "icmp4", 6: "icmp6"}


class PlanError(HauberkError):
    """Rules cannot become a ruleset; the message says which rule or which limit, and what to do."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """A packet's parts are in a set. ``protocol`` is what its ports are of, where they are looked up alone."""

    parts: tuple[Part, ...]
    set_name: str
    protocol: int | None = None


@dataclass(frozen=True, slots=True)
class Enter:
    """Further steps, which stand once and are entered from several places."""

    role: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A map from parts of a packet to further steps; no steps behind a key mean that the key decides."""

    role: str
    parts: tuple[Part, ...]
    entries: tuple[tuple[Key, Enter | None], ...]

    @property
    def fields(self) -> tuple[FieldType, ...]:
        """The types of the map's key."""
        return tuple(FIELDS[part] for part in self.parts)


@dataclass(frozen=True, slots=True)
class Always:
    """Every packet."""


Step = Lookup | Enter | Dispatch | Always
ALWAYS: Final = Always()


@dataclass(frozen=True, slots=True)
class Dynamic:
    """A set whose elements are members of groups, of one family."""

    name: str
    family: int
    groups: tuple[PeerGroup, ...]


@dataclass(slots=True)
class Sets:
    """The sets that look-ups need: those known now, and those whose elements are members of groups.

    ``owner`` begins every name. ``boxes``, ``counts`` (of networks, by role, family and ports) and ``everywhere``
    (roles and ports that go with any address) are for revising the sets when little changes.
    """

    owner: str
    known: dict[str, Set] = field(default_factory=dict)
    dynamic: dict[str, Dynamic] = field(default_factory=dict)
    boxes: dict[str, Boxes] = field(default_factory=dict)
    counts: dict[tuple[str, int, Union], int] = field(default_factory=dict)
    everywhere: set[tuple[str, Union]] = field(default_factory=set)

    def add(self, role: str, parts: tuple[Part, ...], elements: Iterable[Key]) -> Lookup:
        """Make an interval set and give the look-up in it."""
        fields = tuple(FIELDS[part] for part in parts)
        one = Set(name(self.owner, role), fields, interval=True, elements=dict.fromkeys(elements))
        self.known[one.name] = one
        return Lookup(parts, one.name)

    def add_groups(self, role: str, family: int, groups: Iterable[PeerGroup]) -> Lookup:
        """Make a set for members of groups and give the look-up in it."""
        one = Dynamic(name(self.owner, role), family, tuple(sorted(set(groups), key=str)))
        self.dynamic[one.name] = one
        return Lookup((ADDRESS[family],), one.name)


def name(owner: str, role: str) -> str:
    """Give a name that the kernel takes: the role itself where that is short, else its hash."""
    plain = f"{owner}.{role}"
    return plain if len(plain) <= MAXIMUM_NAME else f"{owner}.{short(role)}"


def short(*words: object) -> str:
    """Give 16 hexadecimal digits that stand for words."""
    return hashlib.blake2s("\0".join(map(str, words)).encode(errors="surrogateescape"), digest_size=8).hexdigest()
