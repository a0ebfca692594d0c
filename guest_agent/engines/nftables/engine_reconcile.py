# SPDX-License-Identifier: Apache-2.0
"""From the table the kernel holds to the one that is wanted: the messages of one transaction. Pure.

What is the same stays untouched, so that one address more among ten thousand is one element, and a quota that stays
keeps what is used of it. Chains that hang on a hook stay in place and get other rules, rather than being made anew:
the kernel exchanges the rules of a chain at one instant, but not one chain for another.

The order is what the kernel accepts: rules go before what they name, what they name comes before rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from guest_agent.engines.nftables import netlink_table as kernel
from guest_agent.engines.nftables.netlink_table import Chain, Quota, Set, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from guest_agent.engines.nftables.netlink import Message

_TOLERANCE: Final = 1500  # milliseconds that the time of an element may differ by and stay


@dataclass(frozen=True, slots=True)
class Step:
    """One message and what to call it in an error."""

    message: Message
    what: str


@dataclass(frozen=True, slots=True)
class Change:
    """What leads from one table to another."""

    kind: Literal["nothing", "elements", "table"]
    steps: tuple[Step, ...] = ()


def reconcile(held: Table | None, wanted: Table) -> Change:
    """Give the transaction that turns ``held`` (None: no table) into ``wanted``.

    Elements that end by themselves are made anew where they are missing or had another time.
    """
    present = held or Table()
    sets = {name for name, found in present.sets.items() if _same_set(found, wanted.sets.get(name))}
    chains = {name for name, found in present.chains.items() if _same_chain(found, wanted.chains.get(name))}
    quotas = {
        name for name, found in present.quotas.items() if name in wanted.quotas and _equal(found, wanted.quotas[name])
    }
    if sets == present.sets.keys() and chains == present.chains.keys():
        rewritten = {name for name in chains if present.chains[name].rules != wanted.chains[name].rules}
    else:
        # The kernel lets nothing go that a rule names, and which rules do so only nft could tell: write all of them.
        rewritten = present.chains.keys() | wanted.chains.keys()
    rewritten |= wanted.chains.keys() - chains
    kept = _Kept(sets, chains, quotas, rewritten)
    begun = (Step(kernel.new_table(), "the table"),) if held is None or held.flags != wanted.flags else ()
    steps = (*begun, *_removals(present, wanted, kept), *_additions(present, wanted, kept))
    structure = bool(begun or rewritten) or not (
        sets == wanted.sets.keys() == present.sets.keys() and quotas == wanted.quotas.keys() == present.quotas.keys()
    )
    return Change("nothing" if not steps else "table" if structure else "elements", steps)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Names of what stays, and of the chains whose rules are written anew."""

    sets: set[str]
    chains: set[str]
    quotas: set[str]
    rewritten: AbstractSet[str]


def _removals(present: Table, wanted: Table, kept: _Kept) -> Iterator[Step]:
    for name in sorted(kept.rewritten & present.chains.keys()):
        if present.chains[name].rules:
            yield Step(kernel.flush_chain(name), f"the rules of chain {name}")
    for name in sorted(kept.sets):
        yield from _deleted(name, wanted.sets[name].definition, _gone(present.sets[name], wanted.sets[name]))
    for name in sorted(present.sets.keys() - kept.sets):
        yield Step(kernel.delete_set(name), f"set {name}")
    for name in sorted(present.chains.keys() - kept.chains):
        yield Step(kernel.delete_chain(name), f"chain {name}")
    for name in sorted(present.quotas.keys() - wanted.quotas.keys()):
        yield Step(kernel.delete_quota(name), f"quota {name}")


def _additions(present: Table, wanted: Table, kept: _Kept) -> Iterator[Step]:
    for name in sorted(wanted.quotas.keys() - kept.quotas):
        yield Step(kernel.new_quota(name, wanted.quotas[name]), f"quota {name}")
    for name in sorted(wanted.chains.keys() - kept.chains):
        yield Step(kernel.new_chain(name, wanted.chains[name]), f"chain {name}")
    for number, name in enumerate(sorted(wanted.sets.keys() - kept.sets), 1):
        yield Step(kernel.new_set(name, wanted.sets[name], number), f"set {name}")
    for name in sorted(wanted.sets):
        come = _come(present.sets[name] if name in kept.sets else None, wanted.sets[name])
        yield from _added(name, wanted.sets[name].definition, come)
    for name in sorted(kept.rewritten & wanted.chains.keys()):
        for place, rule in enumerate(wanted.chains[name].rules, 1):
            yield Step(kernel.new_rule(name, rule), f"rule {place} of chain {name}")


def _deleted(name: str, definition: bytes, elements: Mapping[bytes, int]) -> Iterator[Step]:
    plain = kernel.has_plain_intervals(definition)
    return (Step(made, f"elements of set {name}") for made in kernel.delete_elements(name, elements, plain=plain))


def _added(name: str, definition: bytes, elements: Mapping[bytes, int]) -> Iterator[Step]:
    plain = kernel.has_plain_intervals(definition)
    return (Step(made, f"elements of set {name}") for made in kernel.new_elements(name, elements, plain=plain))


def exchange(name: str, definition: bytes, gone: Mapping[bytes, int], come: Mapping[bytes, int]) -> tuple[Step, ...]:
    """Give the transaction that takes some elements out of a set and puts others in."""
    return (*_deleted(name, definition, gone), *_added(name, definition, come))


def members(held: Set, wanted: Mapping[bytes, int], name: str) -> tuple[Step, ...]:
    """Give the transaction that makes ``wanted`` the elements of a set, each with its time (0: for good)."""
    after = Set(
        held.definition,
        frozenset(encoded for encoded, time in wanted.items() if not time),
        {encoded: time for encoded, time in wanted.items() if time},
    )
    return exchange(name, held.definition, _gone(held, after), _come(held, after))


def with_usage(wanted: Table, usage: Mapping[str, Quota]) -> Table:
    """Give the table with what was used of its quotas, for one that has to be made anew."""
    return replace(
        wanted,
        quotas={
            name: replace(quota, used=usage[name].used if name in usage else quota.used)
            for name, quota in wanted.quotas.items()
        },
    )


def differs(held: Table | None, wanted: Table) -> str:
    """Say how a table that was read back differs from what was put in force; "" when it does not.

    An element that ends by itself may be missing; one that nobody put there may not be there.
    """
    if held is None:
        return "the table was deleted"
    if held.flags != wanted.flags:
        return f"the table has the flags {held.flags}"
    for kind, found, expected in (("chain", held.chains, wanted.chains), ("quota", held.quotas, wanted.quotas)):
        for name in sorted(found.keys() | expected.keys()):
            if not _equal(found.get(name), expected.get(name)):
                return _difference(kind, name, found, expected)
    for name in sorted(held.sets.keys() | wanted.sets.keys()):
        one, other = held.sets.get(name), wanted.sets.get(name)
        if one is None or other is None or one.definition != other.definition:
            return _difference("set", name, held.sets, wanted.sets)
        if one.elements != other.elements or not one.timed.keys() <= other.timed.keys():
            return f"elements of set {name} were changed"
    return ""


def _equal(found: Chain | Quota | None, expected: Chain | Quota | None) -> bool:
    if isinstance(found, Quota) and isinstance(expected, Quota):
        return (found.limit, found.over) == (expected.limit, expected.over)
    return found == expected


def _difference(kind: str, name: str, found: Mapping[str, object], expected: Mapping[str, object]) -> str:
    if name not in found:
        return f"{kind} {name} was deleted"
    return f"{kind} {name} was changed" if name in expected else f"{kind} {name} was added"


def _same_set(found: Set, wanted: Set | None) -> bool:
    """Whether a set stays: it is the same, and changing it is not slower than making it anew."""
    return (
        wanted is not None
        and found.definition == wanted.definition
        and not (too_many_to_delete(len(_gone(found, wanted)), len(wanted.elements)) and _is_slow(found))
    )


def too_many_to_delete(gone: int, left: int) -> bool:
    """Whether so many elements of concatenated intervals take longer to delete than so many to be added again.

    Measured on Linux 6.18: 20 ms for each that is deleted, of 10,000 as of 100,000; 4 µs for each that is added.
    """
    return gone > 1 + left // 5000


def _is_slow(found: Set) -> bool:
    return kernel.is_slow_to_shrink(found.definition)


def _same_chain(found: Chain, wanted: Chain | None) -> bool:
    return wanted is not None and found.definition == wanted.definition


def _gone(held: Set, wanted: Set) -> dict[bytes, int]:
    """Give the elements to delete: those not wanted, and those to be made anew with another time."""
    gone = dict.fromkeys(held.elements - wanted.elements, 0)
    gone |= {encoded: 0 for encoded, time in held.timed.items() if _outdated(time, wanted.timed.get(encoded, 0))}
    return gone


def _come(held: Set | None, wanted: Set) -> dict[bytes, int]:
    elements, timed = (held.elements, held.timed) if held else (frozenset[bytes](), {})
    come = dict.fromkeys(wanted.elements - elements, 0)
    come |= {encoded: time for encoded, time in wanted.timed.items() if _outdated(timed.get(encoded, 0), time)}
    return come


def _outdated(held: int, wanted: int) -> bool:
    return abs(held - wanted) > _TOLERANCE
