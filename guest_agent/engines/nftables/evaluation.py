# SPDX-License-Identifier: Apache-2.0
"""What a ruleset does with a packet, worked out from the ruleset's data as the kernel would from its own.

It reads expressions, sets, maps, chains and quotas, and knows nothing of rules of policies: so comparing it with
``decide`` shows that a plan says what the policies say, and the simulator needs no second idea of what they mean.
A rule whose field a packet does not have does not match, as in the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from guest_agent.engines.nftables import ranges
from guest_agent.engines.nftables.expressions import TRANSLATED
from guest_agent.engines.nftables.protocols import ICMP, NUMBERS, PORTED
from guest_agent.engines.nftables.ruleset import ANSWER_PREFIX, WIDTHS, LogMark, Verdict
from hauberk.policy import peers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guest_agent.engines.nftables.ruleset import Expression, Hook, Key, Rule, Ruleset, Set

ConnectionState = Literal["new", "established", "related", "invalid", "untracked"]
_FAMILIES: Final = {"ip": 4, "ip6": 6}
_NAMES: Final = {4: "ipv4", 6: "ipv6"}


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet as the kernel's filter sees it.

    Ports are None where the packet has none or they cannot be read. ``cgroups`` are the numbers of the cgroups that its
    socket is in, from the root's child on; empty where no socket is found. ``translated``: the destination is another
    than the sender asked for.
    """

    source: str
    destination: str
    protocol: int
    source_port: int | None = None
    destination_port: int | None = None
    icmp_type: int | None = None
    hop_limit: int = 64
    interface_in: str = ""
    interface_out: str = ""
    state: ConnectionState = "new"
    reply: bool = False
    cgroups: tuple[int, ...] = ()
    length: int = 100
    translated: bool = False


@dataclass(slots=True)
class Outcome:
    """Whether a packet passes all hook chains of a hook, and what was told on the way."""

    passes: bool = True
    told: list[LogMark] = field(default_factory=list)
    answers: int = 0

    def tell(self, prefix: str) -> None:
        """Take what a rule logs."""
        if prefix == ANSWER_PREFIX:
            self.answers += 1
        else:
            self.told.append(LogMark.read(prefix))


class Evaluation:
    """A ruleset in force. ``used`` are the bytes counted for each quota; they grow with every packet."""

    def __init__(self, ruleset: Ruleset, used: Mapping[str, int] | None = None) -> None:
        """Begin with quotas used as given; those not given are unused."""
        self.ruleset = ruleset
        self.used = {name: (used or {}).get(name, 0) for name in ruleset.quotas}
        self._hooks = sorted((chain for chain in ruleset.chains if chain.hook), key=lambda chain: chain.priority)
        self._indices: dict[str, _Index] = {}

    def packet(self, hook: Hook, packet: Packet) -> Outcome:
        """Send a packet through the chains of a hook."""
        outcome = Outcome()
        for chain in self._hooks:
            if chain.hook == hook and self._chain(chain.name, packet, outcome) == "drop":
                outcome.passes = False
                break
        return outcome

    def _chain(self, chain: str, packet: Packet, outcome: Outcome) -> str | None:
        """Give the verdict of a chain, None at its end."""
        for rule in self.ruleset.rules_of(chain):
            verdict = self._rule(rule, packet, outcome)
            if verdict is None:
                continue
            word, *target = verdict
            found = self._chain(target[0], packet, outcome) if target else word
            if found is not None or word == "goto":
                return found
        return None

    def _rule(self, rule: Rule, packet: Packet, outcome: Outcome) -> Verdict | None:
        """Give the verdict of a rule, None where it does not match or has none."""
        for expression in rule.expressions:
            ((kind, body),) = expression.items()
            match kind:
                case "match" | "quota":
                    if not (self._matches(body, packet) if kind == "match" else self._beyond(body, packet)):
                        return None
                case "vmap":
                    return self._look_up(body["data"], _values(body["key"], packet))
                case "log":
                    outcome.tell(body["prefix"])
                case "limit":
                    continue  # nothing is left untold here
                case _:
                    return (kind, body["target"]) if body else (kind,)
        return None

    def _beyond(self, quota: str, packet: Packet) -> bool:
        """Count a packet, and tell whether it is beyond the quota."""
        self.used[quota] += packet.length
        return self.used[quota] > self.ruleset.quotas[quota].limit

    def _matches(self, body: Mapping[str, Any], packet: Packet) -> bool:
        values, right = _values(body["left"], packet), body["right"]
        if values is None:
            return False
        if isinstance(right, str) and right.startswith("@"):
            return self._look_up(right, values) is not None
        if body["op"] == "in":
            return values[0] in right if isinstance(right, list) else values[0] == right
        if isinstance(right, dict):
            _, first, last = ranges.network("{addr}/{len}".format(**right["prefix"]))
            return bool(first <= values[0] <= last)
        same = bool(values[0] == (ranges.interface(right)[0] if right == "lo" else right))
        return same is (body["op"] == "==")

    def _look_up(self, reference: str, values: Sequence[Any] | None) -> Verdict | None:
        """Give what a map says of values; of a set, an empty verdict for what is in it."""
        if values is None:
            return None
        name = reference.removeprefix("@")
        if name not in self._indices:
            self._indices[name] = _Index(self.ruleset.sets[name])
        return self._indices[name].find(tuple(values))


_IN_SET: Final[Verdict] = ("",)


class _Index:
    """A set for looking up: by the first field's blocks, then one by one."""

    def __init__(self, one: Set) -> None:
        self._width = WIDTHS[one.fields[0]]
        self._blocks: dict[int, dict[int, list[tuple[Key, Verdict]]]] = {}
        for key, verdict in one.elements.items():
            for first, bits in ranges.blocks(*key[0]):
                self._blocks.setdefault(bits, {}).setdefault(first >> bits, []).append((key, verdict or _IN_SET))

    def find(self, values: tuple[int, ...]) -> Verdict | None:
        for bits, blocks in self._blocks.items():
            for key, verdict in blocks.get(values[0] >> bits, ()):
                if all(first <= value <= last for value, (first, last) in zip(values, key, strict=True)):
                    return verdict
        return None


def _values(expression: Expression, packet: Packet) -> list[Any] | None:
    """Give the values of a key; None when the packet lacks one of them."""
    parts = expression.get("concat", [expression])
    values = [_value(part, packet) for part in parts]
    return None if None in values else values


def _value(expression: Expression, packet: Packet) -> int | str | None:
    ((kind, body),) = expression.items()
    family = peers.address(packet.source)[0]
    match kind, body:
        case "meta", {"key": "l4proto"}:
            return packet.protocol
        case "meta", {"key": "nfproto"}:
            return _NAMES[family]
        case "meta", {"key": key}:
            name = packet.interface_in if key == "iifname" else packet.interface_out
            return ranges.interface(name)[0] if name else None
        case ("&", [{"ct": {"key": key}}, _]) | ("ct", {"key": key}):
            return _tracked(key, packet)
        case "fib" | "socket", _:
            return _destination(packet.destination) if kind == "fib" else _cgroup(body["level"], packet)
        case "payload", {"protocol": protocol, "field": name}:
            return _field(protocol, name, packet, family)
    message = f"no idea of {expression}"
    raise NotImplementedError(message)


def _cgroup(level: int, packet: Packet) -> int | None:
    return packet.cgroups[level - 1] if len(packet.cgroups) >= level else None


def _destination(text: str) -> str:
    """Give what kind of destination an address is, without a routing table: networks' own broadcasts are not known."""
    family, number = peers.address(text)
    if text == "255.255.255.255":
        return "broadcast"
    return "multicast" if number >> (28 if family == 4 else 120) == (0xE if family == 4 else 0xFF) else "unicast"  # noqa: PLR2004 - RFC 5771, 4291


def _tracked(key: str, packet: Packet) -> int | str:
    """Give what connection tracking says of a packet; of the bits of its status only that of translation."""
    if key == "status":
        return TRANSLATED if packet.translated else 0
    return packet.state if key == "state" else ("reply" if packet.reply else "original")


def _field(protocol: str, name: str, packet: Packet, family: int) -> int | None:
    """Give a field of a header that the packet has."""
    if protocol in _FAMILIES:
        if _FAMILIES[protocol] != family:
            return None
        if name == "hoplimit":
            return packet.hop_limit
        return peers.address(packet.source if name == "saddr" else packet.destination)[1]
    if protocol in {"icmp", "icmpv6"}:
        return packet.icmp_type if packet.protocol == ICMP[4 if protocol == "icmp" else 6] else None
    if packet.protocol not in ({NUMBERS["udp"]} if protocol == "udp" else PORTED):
        return None
    return packet.source_port if name == "sport" else packet.destination_port
