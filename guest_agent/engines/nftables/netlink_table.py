# SPDX-License-Identifier: Apache-2.0
"""A table of nftables as the kernel holds it, in bytes that compare.

What is read back and what is sent have one form: attributes without what differs from one reading to the next (handles,
counts, what is left of a time). Two tables that are equal here do the same; what is not equal here was changed by
somebody. Nothing interprets the expressions of rules: `nft` wrote them.

Formats: ``include/uapi/linux/netfilter/nf_tables.h``.
"""

from __future__ import annotations

import errno
import hashlib
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from guest_agent.engines.nftables import netlink
from guest_agent.engines.nftables.netlink import Message, NetlinkError, attribute, nested, netfilter, text, u32, u64

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from guest_agent.engines.nftables.netlink import NetlinkSocket

TABLE: Final = "hauberk"
FAMILY: Final = 1  # NFPROTO_INET

NEW_TABLE, GET_TABLE, DELETE_TABLE = range(3)
NEW_CHAIN, GET_CHAIN, DELETE_CHAIN = range(3, 6)
NEW_RULE, GET_RULE, DELETE_RULE = range(6, 9)
NEW_SET, GET_SET, DELETE_SET = range(9, 12)
NEW_ELEMENTS, GET_ELEMENTS, DELETE_ELEMENTS = range(12, 15)
NEW_GENERATION, GET_GENERATION = 15, 16
NEW_OBJECT, GET_OBJECT, DELETE_OBJECT, RESET_OBJECT = range(18, 22)
QUOTA: Final = 2

TABLE_NAME: Final = 1  # what is said of a table, a chain, a rule, a set, its elements or an object begins with this
_TABLE_FLAGS: Final = 2
_GENERATION_ID: Final = 1
_CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE, _CHAIN_USERDATA = 3, 4, 5, 7, 12
_CHAIN_KEPT: Final = (_CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE, _CHAIN_USERDATA)
_RULE_CHAIN, _RULE_EXPRESSIONS, _RULE_USERDATA = 2, 4, 7
_SET_NAME, _SET_FLAGS, _SET_DESCRIPTION, _SET_ID = 2, 3, 9, 10
_DESCRIPTION_FIELDS, _FIELD_BYTES = 2, 1
# flags, types and lengths of key and data, policy, description, time-out and collection, userdata, expressions
_SET_KEPT: Final = (_SET_FLAGS, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 18)
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEMENT = 1, 2, 3, 1
_KEY, _DATA, _ELEMENT_FLAGS, _TIMEOUT, _EXPIRATION, _KEY_END = 1, 2, 3, 4, 5, 10
_VALUE, _VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 1, 2, 1, 2
_OBJECT_NAME, _OBJECT_TYPE, _OBJECT_DATA = 2, 3, 4
_QUOTA_BYTES, _QUOTA_FLAGS, _QUOTA_CONSUMED = 1, 2, 4
_QUOTA_DEPLETED: Final = 2
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_INTERVAL_END: Final = 1
_INTERVAL: Final = 0x4
_CONCATENATION: Final = 0x80
_READINGS: Final = 20
_SUM_BYTES: Final = 32
_SUM_MASK: Final = (1 << 8 * _SUM_BYTES) - 1

_CODES: Final = {"accept": 1, "drop": 0, "continue": -1, "return": -5, "jump": -3, "goto": -4}
_CODE: Final = struct.Struct(">i")


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain: its hook, type and policy (empty for one that is jumped to), and its rules in order."""

    definition: bytes
    rules: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Set:
    """A set or map: what it is, and its elements.

    ``timed`` has those that end by themselves, with what is left of their time in milliseconds.
    """

    definition: bytes
    elements: frozenset[bytes] = frozenset()
    timed: Mapping[bytes, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Quota:
    """A quota: ``limit`` and ``used`` in bytes, ``over``: whether it matches beyond the limit or within it."""

    limit: int
    over: bool
    used: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """All of our table."""

    chains: Mapping[str, Chain] = field(default_factory=dict)
    sets: Mapping[str, Set] = field(default_factory=dict)
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    flags: int = 0  # of the table; that it sleeps is one

    def digest(self, sums: Mapping[str, int] | None = None) -> str:
        """Give the SHA-256 (hex) of all that lasts: not of usage, nor of elements that end by themselves.

        ``sums`` are those of the elements of each set where they are known already (:func:`element_sum`).
        """
        digest = hashlib.sha256()

        def take(*parts: bytes) -> None:
            for part in parts:
                digest.update(len(part).to_bytes(8, "big") + part)

        for name, chain in sorted(self.chains.items()):
            take(b"chain", name.encode(), chain.definition, *chain.rules)
        for name, kept in sorted(self.sets.items()):
            total = element_sum(kept.elements) if sums is None else sums[name]
            take(b"set", name.encode(), kept.definition, total.to_bytes(_SUM_BYTES, "big"))
        for name, quota in sorted(self.quotas.items()):
            take(b"quota", name.encode(), u64(quota.over, quota.limit))
        if self.flags:
            take(b"flags", u32(_TABLE_FLAGS, self.flags))
        return digest.hexdigest()


def element_sum(elements: Iterable[bytes]) -> int:
    """Give a number that is the same for the same elements in whatever order, and follows when one comes or goes."""
    total = 0
    for encoded in elements:
        total += int.from_bytes(hashlib.blake2b(encoded, digest_size=_SUM_BYTES).digest(), "big")
    return total & _SUM_MASK


def changed_sum(total: int, gone: Iterable[bytes], come: Iterable[bytes]) -> int:
    """Give the sum after some elements went and others came."""
    return (total - element_sum(gone) + element_sum(come)) & _SUM_MASK


# ---- elements --------------------------------------------------------------------------------------------------------


def element(key: bytes, key_end: bytes | None = None, verdict: str | None = None, chain: str = "") -> bytes:
    """Encode an element: its key, its other end, the verdict it maps to.

    ``key_end`` is the last key of concatenated ranges. Of a plain interval it is the key behind the last one (None:
    there is none): the kernel keeps start and end of those as two elements, which come and go together.
    """
    parts = [nested(_KEY, attribute(_VALUE, key))]
    if verdict is not None:
        parts.append(mapped(verdict, chain))
    if key_end is not None and key_end != key:
        parts.append(nested(_KEY_END, attribute(_VALUE, key_end)))
    return b"".join(parts)


def frames(size: int) -> tuple[bytes, bytes, bytes]:
    """Give what :func:`element` puts before a key of so many bytes, before the other end, and behind either."""
    key, end = (nested(kind, attribute(_VALUE, bytes(size))) for kind in (_KEY, _KEY_END))
    return key[: -size - (-size % 4)], end[: -size - (-size % 4)], bytes(-size % 4)


def mapped(verdict: str, chain: str = "") -> bytes:
    """Give what :func:`element` puts between the key and its other end, for what the key maps to."""
    target = (text(_VERDICT_CHAIN, chain),) if chain else ()
    return nested(_DATA, nested(_VERDICT, attribute(_VERDICT_CODE, _CODE.pack(_CODES[verdict])), *target))


def has_plain_intervals(definition: bytes) -> bool:
    """Whether a set is of intervals of one field."""
    return _flags(definition) & (_INTERVAL | _CONCATENATION) == _INTERVAL


def is_slow_to_shrink(definition: bytes) -> bool:
    """Whether every element that is deleted from a set makes the kernel go over all of it (concatenated intervals)."""
    return _flags(definition) & (_INTERVAL | _CONCATENATION) == _INTERVAL | _CONCATENATION


def with_intervals(definition: bytes, widths: tuple[int, ...]) -> bytes:
    """Give the definition of a set of concatenations, made one of concatenated intervals.

    ``widths`` are the bytes of the fields.
    """
    parts = netlink.attributes(definition)
    parts[_SET_FLAGS] = (_flags(definition) | _INTERVAL | _CONCATENATION).to_bytes(4, "big")
    fields = b"".join(nested(_LIST_ELEMENT, u32(_FIELD_BYTES, width)) for width in widths)
    parts[_SET_DESCRIPTION] = parts.get(_SET_DESCRIPTION, b"") + nested(_DESCRIPTION_FIELDS, fields)
    return _kept(parts, _SET_KEPT)


def _flags(definition: bytes) -> int:
    return netlink.read_number(netlink.attributes(definition).get(_SET_FLAGS, b""))


@dataclass(frozen=True, slots=True)
class _Element:
    """One element as the kernel keeps it; ``time`` is what is left of it in milliseconds, 0 for one that stays."""

    parts: dict[int, bytes]
    time: int

    @property
    def is_end(self) -> bool:
        return bool(netlink.read_number(self.parts.get(_ELEMENT_FLAGS, b"")) & _INTERVAL_END)

    @property
    def key(self) -> bytes:
        return netlink.attributes(self.parts[_KEY])[_VALUE]

    def encoded(self, beyond: bytes | None = None) -> bytes:
        """Give it in the one form, with the end of its interval where it is the start of one."""
        parts = [_value(_KEY, self.parts[_KEY])]
        if _DATA in self.parts:
            parts.append(_value(_DATA, self.parts[_DATA]))
        if beyond is not None:
            parts.append(nested(_KEY_END, attribute(_VALUE, beyond)))
        elif _KEY_END in self.parts and self.parts[_KEY_END] != self.parts[_KEY]:
            parts.append(_value(_KEY_END, self.parts[_KEY_END]))
        return b"".join(parts)


def _read_element(payload: bytes) -> _Element:
    read = netlink.attributes(payload)
    timed = _TIMEOUT in read or _EXPIRATION in read
    left = netlink.read_number(read.get(_EXPIRATION, read.get(_TIMEOUT, b"")))
    return _Element(read, max(left, 1) if timed else 0)


def _value(kind: int, payload: bytes) -> bytes:
    """Encode data again as we do, whatever flags the kernel sets on what it nests."""
    read = netlink.attributes(payload)
    if _VALUE in read:
        return nested(kind, attribute(_VALUE, read[_VALUE]))
    verdict = netlink.attributes(read.get(_VERDICT, b""))
    parts = [attribute(part, verdict[part]) for part in (_VERDICT_CODE, _VERDICT_CHAIN) if part in verdict]
    return nested(kind, nested(_VERDICT, *parts))


# ---- rules -----------------------------------------------------------------------------------------------------------


def expression(name: str, *parts: bytes) -> bytes:
    """Encode one expression of a rule."""
    return nested(_LIST_ELEMENT, text(_EXPRESSION_NAME, name), nested(_EXPRESSION_DATA, *parts))


def cgroup_dispatch(level: int, map_name: str) -> bytes:
    """Encode the rule ``socket cgroupv2 level N vmap @map``, which JSON of nft 1.0.6 has no words for."""
    loaded = expression("socket", u32(1, 3), u32(2, 1), u32(3, level))  # key cgroupv2, into register 1
    looked_up = expression("lookup", text(1, map_name), u32(2, 1), u32(3, 0))  # from register 1, for a verdict
    return nested(_RULE_EXPRESSIONS, loaded, looked_up)


def _read_rule(read: Mapping[int, bytes]) -> bytes:
    expressions = b"".join(
        attribute(kind | 0x8000, _without_counts(payload)) for kind, payload in netlink.walk(read[_RULE_EXPRESSIONS])
    )
    userdata = attribute(_RULE_USERDATA, read[_RULE_USERDATA]) if _RULE_USERDATA in read else b""
    return nested(_RULE_EXPRESSIONS, expressions) + userdata


def _without_counts(payload: bytes) -> bytes:
    read = netlink.attributes(payload)
    name = netlink.read_text(read[_EXPRESSION_NAME])
    if name != "counter":
        return payload
    return text(_EXPRESSION_NAME, name) + nested(_EXPRESSION_DATA)


# ---- messages --------------------------------------------------------------------------------------------------------


def message(kind: int, *parts: bytes, flags: int = 0, table: str = TABLE) -> Message:
    """Make a message about something of our table."""
    made = netfilter(netlink.SUBSYSTEM_NFTABLES, kind, FAMILY, text(TABLE_NAME, table), *parts)
    return Message(made.kind, made.payload, flags=flags)


def new_table() -> Message:
    """Make the table if it is not there, and wake it if it sleeps."""
    return message(NEW_TABLE, u32(_TABLE_FLAGS, 0), flags=netlink.CREATE)


def delete_table() -> Message:
    """Delete the table with all that is in it."""
    return message(DELETE_TABLE)


def new_chain(name: str, chain: Chain) -> Message:
    """Make a chain, without its rules."""
    return message(NEW_CHAIN, text(_CHAIN_NAME, name), chain.definition, flags=netlink.CREATE)


def delete_chain(name: str) -> Message:
    """Delete a chain, which has no rules any more."""
    return message(DELETE_CHAIN, text(_CHAIN_NAME, name))


def flush_chain(name: str) -> Message:
    """Delete the rules of a chain."""
    return message(DELETE_RULE, text(_RULE_CHAIN, name))


def new_rule(chain: str, rule: bytes) -> Message:
    """Append a rule to a chain."""
    return message(NEW_RULE, text(_RULE_CHAIN, chain), rule, flags=netlink.CREATE | netlink.APPEND)


def new_set(name: str, kept: Set, number: int) -> Message:
    """Make a set, without its elements; ``number`` is unique in the transaction."""
    return message(NEW_SET, text(_SET_NAME, name), u32(_SET_ID, number), kept.definition, flags=netlink.CREATE)


def delete_set(name: str) -> Message:
    """Delete a set with its elements."""
    return message(DELETE_SET, text(_SET_NAME, name))


def new_elements(name: str, elements: Mapping[bytes, int], *, plain: bool) -> list[Message]:
    """Add elements with their times in milliseconds (0: for good). ``plain``: :func:`has_plain_intervals`."""
    return _elements(NEW_ELEMENTS, name, elements, netlink.CREATE, plain=plain)


def delete_elements(name: str, elements: Mapping[bytes, int], *, plain: bool) -> list[Message]:
    """Delete elements, all of which are there."""
    return _elements(DELETE_ELEMENTS, name, dict.fromkeys(elements, 0), 0, plain=plain)


def _elements(kind: int, name: str, elements: Mapping[bytes, int], flags: int, *, plain: bool) -> list[Message]:
    if plain:  # each start before its end, and where one begins where another is over, that one's end before
        encoded = (part for one, time in sorted(elements.items()) for part in _interval(one, time))
    else:
        encoded = (nested(_LIST_ELEMENT, one, _time(time)) for one, time in elements.items())
    return [
        message(kind, text(_LIST_SET, name), nested(_LIST_ELEMENTS, piece), flags=flags)
        for piece in netlink.split(encoded)
    ]


def _interval(encoded: bytes, time: int) -> Iterator[bytes]:
    """Give the two elements of an interval; its time is that of its start alone."""
    parts = netlink.attributes(encoded)
    start = b"".join(nested(kind, parts[kind]) for kind in (_KEY, _DATA) if kind in parts)
    yield nested(_LIST_ELEMENT, start, _time(time))
    if _KEY_END in parts:
        yield nested(_LIST_ELEMENT, u32(_ELEMENT_FLAGS, _INTERVAL_END), nested(_KEY, parts[_KEY_END]))


def _time(time: int) -> bytes:
    return u64(_TIMEOUT, time) if time else b""


def new_quota(name: str, quota: Quota) -> Message:
    """Make a quota, or give one that is there another limit; what is used of that one stays."""
    parts = [u64(_QUOTA_BYTES, quota.limit), u32(_QUOTA_FLAGS, int(quota.over))]
    if quota.used:
        parts.append(u64(_QUOTA_CONSUMED, quota.used))
    data = nested(_OBJECT_DATA, *parts)
    return message(NEW_OBJECT, text(_OBJECT_NAME, name), u32(_OBJECT_TYPE, QUOTA), data, flags=netlink.CREATE)


def delete_quota(name: str) -> Message:
    """Delete a quota that no rule refers to."""
    return message(DELETE_OBJECT, text(_OBJECT_NAME, name), u32(_OBJECT_TYPE, QUOTA))


# ---- reading ---------------------------------------------------------------------------------------------------------


def generation(channel: NetlinkSocket) -> int:
    """Give the number of the last transaction in the namespace. Raises NetlinkError, OSError."""
    request = netfilter(netlink.SUBSYSTEM_NFTABLES, GET_GENERATION, socket.AF_UNSPEC)
    for answer in channel.ask(request):
        return netlink.read_number(netlink.netfilter_attributes(answer)[_GENERATION_ID])
    raise NetlinkError(errno.EPROTO, "the kernel did not tell the generation of its rules")


def read_table(channel: NetlinkSocket, table: str = TABLE) -> tuple[Table | None, int]:
    """Read a table and the generation it belongs to; None: there is none. Raises NetlinkError, OSError."""
    for _ in range(_READINGS):
        before = generation(channel)
        try:
            found = _read_table(channel, table)
        except NetlinkError as error:
            if error.errno != errno.ENOENT or generation(channel) == before:
                raise
            continue
        if generation(channel) == before:
            return found, before
    raise NetlinkError(errno.EBUSY, "the rules kept changing while they were read")


def _read_table(channel: NetlinkSocket, table: str) -> Table | None:
    flags = 0
    try:
        for answer in channel.ask(message(GET_TABLE, table=table)):
            flags = netlink.read_number(netlink.netfilter_attributes(answer).get(_TABLE_FLAGS, b""))
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    rules: dict[str, list[bytes]] = {}
    for read in _dump(channel, GET_RULE, table):
        rules.setdefault(netlink.read_text(read[_RULE_CHAIN]), []).append(_read_rule(read))
    chains = {
        netlink.read_text(read[_CHAIN_NAME]): Chain(
            _kept(read, _CHAIN_KEPT), tuple(rules.get(netlink.read_text(read[_CHAIN_NAME]), ()))
        )
        for read in _dump(channel, GET_CHAIN, table)
    }
    sets = {}
    for read in _dump(channel, GET_SET, table):
        name = netlink.read_text(read[_SET_NAME])
        sets[name] = read_set(channel, name, _kept(read, _SET_KEPT), table)
    quotas = {
        netlink.read_text(read[_OBJECT_NAME]): _read_quota(read[_OBJECT_DATA])
        for read in _dump(channel, GET_OBJECT, table)
        if netlink.read_number(read[_OBJECT_TYPE]) == QUOTA
    }
    return Table(chains, sets, quotas, flags)


def read_quotas(channel: NetlinkSocket) -> dict[str, Quota]:
    """Read quotas with their usage; none where there is no table. Raises NetlinkError, OSError."""
    return {
        netlink.read_text(read[_OBJECT_NAME]): _read_quota(read[_OBJECT_DATA])
        for read in _dump(channel, GET_OBJECT, TABLE)
        if netlink.read_number(read[_OBJECT_TYPE]) == QUOTA
    }


def reset_quota(channel: NetlinkSocket, name: str) -> None:
    """Set what is used of a quota to nothing. Raises NetlinkError (ENOENT: there is no such quota), OSError."""
    channel.ask(message(RESET_OBJECT, text(_OBJECT_NAME, name), u32(_OBJECT_TYPE, QUOTA)))


def _dump(channel: NetlinkSocket, kind: int, table: str, *parts: bytes) -> list[dict[int, bytes]]:
    """Dump what belongs to a table; the kernel does not choose by table everywhere."""
    read = (netlink.netfilter_attributes(answer) for answer in channel.dump(message(kind, *parts, table=table)))
    return [found for found in read if netlink.read_text(found.get(TABLE_NAME, b"")) == table]


def read_set(channel: NetlinkSocket, name: str, definition: bytes, table: str = TABLE) -> Set:
    """Read the elements of a set. Raises NetlinkError, OSError."""
    found = [
        _read_element(payload)
        for read in _dump(channel, GET_ELEMENTS, table, text(_LIST_SET, name))
        for _, payload in netlink.walk(read.get(_LIST_ELEMENTS, b""))
    ]
    encoded = dict(
        _intervals(found) if has_plain_intervals(definition) else ((one.encoded(), one.time) for one in found)
    )
    stay = frozenset(one for one, time in encoded.items() if not time)
    return Set(definition, stay, {one: time for one, time in encoded.items() if time})


def _intervals(found: Iterable[_Element]) -> Iterator[tuple[bytes, int]]:
    """Put starts and ends together. An end whose start's time is over is left out: the kernel takes it away later."""
    start: _Element | None = None
    for one in sorted(found, key=lambda one: (one.key, not one.is_end)):
        if start is not None:
            yield start.encoded(one.key if one.is_end else None), start.time
        start = None if one.is_end else one
    if start is not None:
        yield start.encoded(), start.time


def _read_quota(payload: bytes) -> Quota:
    read = netlink.attributes(payload)
    return Quota(
        limit=netlink.read_number(read[_QUOTA_BYTES]),
        over=bool(netlink.read_number(read.get(_QUOTA_FLAGS, b"")) & ~_QUOTA_DEPLETED),
        used=netlink.read_number(read.get(_QUOTA_CONSUMED, b"")),
    )


def _kept(read: Mapping[int, bytes], kinds: tuple[int, ...]) -> bytes:
    return b"".join(attribute(kind, read[kind]) for kind in kinds if kind in read)
