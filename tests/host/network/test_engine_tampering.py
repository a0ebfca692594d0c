# SPDX-License-Identifier: Apache-2.0
"""Somebody else changes our table, or the agent dies in the middle of a change."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

import pytest

from guest_agent.engines.network_port import EngineError, NetworkEvent
from guest_agent.engines.nftables.engine import NftablesEngine
from hauberk.policy.rules import Action, PeerGroup

from .engine_pair import EGRESS, INGRESS, LONG, THERE, Pair, Place, desired, rule, tcp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guest_agent.engines.network_port import Desired

ALLOW, BLOCK = Action.ALLOW, Action.BLOCK
MANY: Final = tuple(f"192.{second}.{third}.0/25" for second in range(4) for third in range(0, 250, 2))
WANTED: Final = desired(rule(EGRESS, BLOCK, *MANY, f"{THERE[4]}/32", ports=tcp(80)), rule(INGRESS, BLOCK, "fd00::/8"))


@pytest.fixture
def engine() -> Iterator[NftablesEngine]:
    with contextlib.closing(NftablesEngine()) as made:
        yield made


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as made:
        yield made


def _element(place: Place) -> str:
    """Give the set and the element that holds the peer's address, as nft writes them."""
    found = re.search(rf"set (\S+) {{[^}}]*elements = {{[^}}]*?({re.escape(THERE[4])}[^,}}\n]*)", place.listing())
    assert found is not None
    return f"{found[1]} {{ {found[2]} }}"


DEEDS: Final[dict[str, Callable[[Place], object]]] = {
    "the table was deleted": lambda place: place.nft("delete table inet hauberk"),
    "the table was deleted, with all others": lambda place: place.nft("flush ruleset"),
    "the table was flushed": lambda place: place.nft("flush table inet hauberk"),
    "a rule was put first": lambda place: place.nft("insert rule inet hauberk h0.0o.output accept"),
    "a chain was added": lambda place: place.nft("add chain inet hauberk theirs"),
    "an element was taken": lambda place: place.nft(f"delete element inet hauberk {_element(place)}"),
    "an element was added": lambda place: place.nft(
        f"add element inet hauberk {_element(place).replace(THERE[4], '203.0.113.9')}"
    ),
    "a set was emptied": lambda place: place.nft(f"flush set inet hauberk {_element(place).split()[0]}"),
    "it was made anew, without rules": lambda place: place.nft(
        "delete table inet hauberk\nadd table inet hauberk\nadd chain inet hauberk h0.0o.output"
    ),
    "it sleeps": lambda place: place.nft("table inet hauberk { flags dormant; }"),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_what_somebody_changed_is_put_right_and_told(engine: NftablesEngine, pair: Pair, deed: str) -> None:
    applied = engine.apply(pair.here.namespace, WANTED)
    DEEDS[deed](pair.here)
    assert select.select([engine.fileno()], [], [], LONG)[0], "it is noticed without being asked for"
    events = list(engine.drain())
    assert [event.verdict for event in events if isinstance(event, NetworkEvent)] == ["tampered"]
    event = events[0]
    assert isinstance(event, NetworkEvent)
    assert event.namespace == pair.here.namespace.inode
    assert "by nft (process" in event.detail
    assert engine.held(pair.here.namespace) == applied.digest
    assert pair.no_tcp_out(80)
    pair.tcp_out(81)
    assert engine.verify() == []
    assert engine.statistics()["tampered"] == 1


def test_verify_tells_which_namespace_was_changed(engine: NftablesEngine, pair: Pair) -> None:
    for place in (pair.here, pair.there):
        engine.apply(place.namespace, WANTED)
    pair.there.nft("flush ruleset")
    assert engine.verify() == [pair.there.namespace]
    assert engine.verify() == []
    assert [event.namespace for event in engine.drain()] == [pair.there.namespace.inode]


def test_what_others_do_to_their_own_tables_is_none_of_ours(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(pair.here.namespace, WANTED)
    pair.here.nft("table inet theirs { chain hauberk { accept; }; }\ntable ip hauberk { chain c { accept; }; }")
    pair.here.nft("delete table inet theirs")
    assert engine.verify() == []
    assert list(engine.drain()) == []


def test_our_own_changes_do_not_count(engine: NftablesEngine, pair: Pair) -> None:
    name = PeerGroup("name", "www.example.com")
    engine.apply(pair.here.namespace, WANTED)
    engine.apply(pair.here.namespace, desired(rule(EGRESS, ALLOW, groups=(name,), quota=(1000, 60, "pod"))))
    engine.set_members(pair.here.namespace, name, ((THERE[4], 60),))
    for quota in engine.usage(pair.here.namespace):
        engine.reset_quota(pair.here.namespace, quota.name)
    assert engine.verify() == []
    assert list(engine.drain()) == []


def test_a_change_before_the_next_apply_is_told_too(engine: NftablesEngine, pair: Pair) -> None:
    engine.apply(pair.here.namespace, WANTED)
    pair.here.nft("flush table inet hauberk")
    assert engine.apply(pair.here.namespace, WANTED).change == "table"
    assert [event.verdict for event in engine.drain() if isinstance(event, NetworkEvent)] == ["tampered"]
    assert pair.no_tcp_out(80)


def test_members_that_are_left_have_what_is_left_of_their_time(engine: NftablesEngine, pair: Pair) -> None:
    name = PeerGroup("name", "www.example.com")
    engine.apply(pair.here.namespace, desired(rule(EGRESS, ALLOW, groups=(name,), ports=tcp(80))))
    engine.set_members(pair.here.namespace, name, ((THERE[4], 600),))
    pair.here.nft("flush ruleset")
    assert engine.verify() == [pair.here.namespace]
    pair.tcp_out(80)
    assert "timeout 10m" in pair.here.listing() or "timeout 9m" in pair.here.listing()


def test_an_element_that_nobody_put_into_a_group_is_taken_out(engine: NftablesEngine, pair: Pair) -> None:
    name = PeerGroup("name", "www.example.com")
    engine.apply(pair.here.namespace, desired(rule(EGRESS, ALLOW, groups=(name,))))
    words = pair.here.listing().split()
    target = next(words[number + 1] for number, word in enumerate(words) if word == "set" and "g4" in words[number + 1])
    pair.here.nft(f"add element inet hauberk {target} {{ {THERE[4]} timeout 1h }}")
    assert engine.verify() == [pair.here.namespace]
    assert pair.no_tcp_out(80)


# ---- killed between any two steps ------------------------------------------------------------------------------------

STEPS: Final = frozenset({"send", "recvfrom", "recv", "setns", "unshare", "fork_exec", "open", "close", "bind", "read"})
"""Functions of C by which the engine does anything to the world."""


def _in_a_child(place: Place, wanted: Desired, last: int) -> tuple[int, int]:
    """Apply in a process that is killed at its nth step; give its status and the number of steps it took."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        steps = 0

        def count(_frame: object, kind: str, function: Any) -> None:  # noqa: ANN401 - a function of C
            nonlocal steps
            if kind == "c_call" and function.__name__ in STEPS:
                steps += 1
                os.write(writing, b".")
                if steps == last:
                    os.kill(os.getpid(), signal.SIGKILL)

        engine = NftablesEngine()
        threading.setprofile(count)
        sys.setprofile(count)
        try:
            engine.apply(place.namespace, wanted)
        finally:
            os._exit(0)
    os.close(writing)
    taken = b""
    while got := os.read(reading, 4096):
        taken += got
    os.close(reading)
    return os.waitpid(child, 0)[1], len(taken)


@pytest.mark.parametrize("change", ["elements", "table"])
def test_killed_between_any_two_steps_leaves_the_one_or_the_other(pair: Pair, change: str) -> None:
    after = (
        desired(rule(EGRESS, BLOCK, *MANY, f"{THERE[4]}/31", ports=tcp(80)), rule(INGRESS, BLOCK, "fd00::/8"))
        if change == "elements"
        else desired(rule(EGRESS, ALLOW, f"{THERE[4]}/32", ports=tcp(81)), rule(INGRESS, BLOCK, interfaces=("lo",)))
    )
    with contextlib.closing(NftablesEngine()) as engine:
        digests = {name: engine.apply(pair.here.namespace, one).digest for name, one in (("B", after), ("A", WANTED))}
    status, steps = _in_a_child(pair.here, after, 0)
    assert (status, steps > 20) == (0, True)
    names = {digest: name for name, digest in digests.items()}
    seen: list[str] = []
    for last in range(1, steps + 1):
        with contextlib.closing(NftablesEngine()) as engine:
            engine.apply(pair.here.namespace, WANTED)
        _in_a_child(pair.here, after, last)
        with contextlib.closing(NftablesEngine()) as engine:
            seen.append(names[engine.held(pair.here.namespace) or ""])
            assert engine.apply(pair.here.namespace, after).digest == digests["B"]
    assert sorted(seen) == seen, "there is one step at which it happens"
    assert set(seen) == {"A", "B"}


def test_nothing_is_remembered_of_what_failed(
    engine: NftablesEngine, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = engine.apply(pair.here.namespace, WANTED)
    monkeypatch.setattr("guest_agent.engines.nftables.nft.Nft.run", _refuse)
    other = desired(rule(EGRESS, ALLOW, quota=(1000, 60, "pod")))
    for _ in range(2):
        with pytest.raises(EngineError, match="nft is not well"):
            engine.apply(pair.here.namespace, other)
        assert engine.held(pair.here.namespace) == before.digest
        assert engine.usage(pair.here.namespace) == ()
        assert engine.verify() == []
    monkeypatch.undo()
    assert engine.apply(pair.here.namespace, WANTED).change == "nothing"
    assert engine.apply(pair.here.namespace, other).change == "table"


def _refuse(*_: object) -> None:
    message = "nft is not well"
    raise EngineError(message)
