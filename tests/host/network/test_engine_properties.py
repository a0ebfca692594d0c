# SPDX-License-Identifier: Apache-2.0
"""For any policies: what the kernel holds is what was planned, and how one came there does not matter."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest_agent.engines.network_port import Cgroup, Desired, Endpoint, Interface, Whole
from guest_agent.engines.nftables import netlink_table as kernel
from guest_agent.engines.nftables.engine import NftablesEngine
from guest_agent.engines.nftables.namespace import run_inside
from guest_agent.engines.nftables.netlink import NetlinkSocket
from guest_agent.engines.nftables.plan import PlanError, plan
from guest_agent.engines.nftables.ruleset import WIDTHS
from tests.unit.engines.nftables.policies import MEMBERS, rule_sets

from .engine_pair import Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from guest_agent.engines.network_port import Attachment
    from guest_agent.engines.nftables.ruleset import Key, Set

SLOW: Final = settings(
    max_examples=10 if "HAUBERK_VM" in os.environ else 40,  # an emulated guest is slow
    deadline=None, database=None, print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
ATTACHMENTS: Final[tuple[Attachment, ...]] = (Whole(), Cgroup(4711, 2), Cgroup(4712, 3), Interface("veth9"))


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with contextlib.closing(Place()) as made:
        yield made


@pytest.fixture(scope="module")
def channel(place: Place) -> Iterator[NetlinkSocket]:
    with open(place.path) as opened, run_inside(opened.fileno(), NetlinkSocket) as made:  # noqa: PTH123 - of /proc
        yield made


@st.composite
def desires(draw: st.DrawFn) -> Desired:
    """Draw what is desired of a namespace."""
    chosen = draw(st.lists(st.sampled_from(ATTACHMENTS), unique=True, max_size=3))
    endpoints = []
    for number, attachment in enumerate(chosen):
        identifier = 0 if isinstance(attachment, Whole) else number + 1
        endpoints.append(Endpoint(identifier, tuple(draw(st.lists(rule_sets(4), min_size=1, max_size=2))), attachment))
    return Desired(tuple(endpoints), groups=MEMBERS)


def possible(desired: Desired) -> bool:
    try:
        plan(desired)
    except PlanError:
        return False
    return True


@SLOW
@given(one=desires().filter(possible), other=desires().filter(possible))
def test_applying_one_and_then_another_equals_applying_the_other(
    place: Place, channel: NetlinkSocket, one: Desired, other: Desired
) -> None:
    with contextlib.closing(NftablesEngine()) as engine:
        first = engine.apply(place.namespace, one)
        assert engine.held(place.namespace) == first.digest
        second = engine.apply(place.namespace, other)
        after = kernel.read_table(channel)[0]
        assert engine.apply(place.namespace, other).change == "nothing"
        assert engine.verify() == []
        engine.remove(place.namespace)
    with contextlib.closing(NftablesEngine()) as engine:
        alone = engine.apply(place.namespace, other)
        assert alone.digest == second.digest == engine.held(place.namespace)
        assert _lasting(kernel.read_table(channel)[0]) == _lasting(after)
        engine.remove(place.namespace)
    assert kernel.read_table(channel)[0] is None


def _lasting(table: kernel.Table | None) -> object:
    assert table is not None
    sets = {name: (one.definition, one.elements, set(one.timed)) for name, one in table.sets.items()}
    quotas = {name: (one.limit, one.over) for name, one in table.quotas.items()}
    return table.chains, sets, quotas


@SLOW
@given(desired=desires().filter(possible))
def test_what_is_read_back_is_what_was_planned(place: Place, channel: NetlinkSocket, desired: Desired) -> None:
    planned = plan(desired)
    with contextlib.closing(NftablesEngine()) as engine:
        engine.apply(place.namespace, desired)
    held, _ = kernel.read_table(channel)
    assert held is not None
    assert held.chains.keys() == {chain.name for chain in planned.chains}
    for chain in planned.chains:
        assert len(held.chains[chain.name].rules) == len(planned.rules_of(chain.name))
        assert bool(held.chains[chain.name].definition) == (chain.hook is not None)
    assert held.quotas.keys() == planned.quotas.keys()
    for name, quota in planned.quotas.items():
        assert (held.quotas[name].limit, held.quotas[name].over) == (quota.limit, True)
    assert held.sets.keys() == planned.sets.keys()
    for name, described in planned.sets.items():
        read = held.sets[name]
        keys = {**dict.fromkeys(read.elements), **read.timed}
        assert _keys(described, keys) == set(described.elements), name
        assert _keys(described, read.timed) == set(described.timeouts), name


def _keys(described: Set, encoded: Mapping[bytes, object]) -> set[Key]:
    """Decode elements on another way than they were encoded on: by what the kernel tells of each."""
    plain = described.interval and len(described.fields) == 1
    found: set[Key] = set()
    for one in encoded:
        first, beyond = _fields(described, _value(one, 1)), _value(one, 10)
        if plain:
            last = _fields(described, beyond)[0] - 1 if beyond else (1 << WIDTHS[described.fields[0]]) - 1
            found.add(((first[0], last),))
        else:
            found.add(tuple(zip(first, _fields(described, beyond or _value(one, 1)), strict=True)))
    return found


def _value(encoded: bytes, wanted: int) -> bytes:
    """Give the bytes of a key (1) or of its other end (10)."""
    while encoded:
        length, kind = int.from_bytes(encoded[:2], "little"), int.from_bytes(encoded[2:4], "little") & 0x3FFF
        if kind == wanted:
            return encoded[8 : 4 + int.from_bytes(encoded[4:6], "little")]
        encoded = encoded[(length + 3) & ~3 :]
    return b""


def _fields(described: Set, data: bytes) -> list[int]:
    found = []
    for field in described.fields:
        size = WIDTHS[field] // 8
        found.append(int.from_bytes(data[:size], "little" if field == "cgroupsv2" else "big"))
        data = data[(size + 3) & ~3 :]
    return found
