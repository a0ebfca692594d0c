# SPDX-License-Identifier: Apache-2.0
"""What programs may still be reading is not written over before they have been waited for.

The maps are dictionaries here and the table memory is bytes; the order of what the engine does to them is what counts.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from guest_agent.engines.bpf_lsm import layout
from guest_agent.engines.bpf_lsm.engine import BpfLsmEngine
from guest_agent.engines.bpf_lsm.layout import WorkloadRecord
from guest_agent.engines.bpf_lsm.plan import compile_table, fingerprint
from guest_agent.engines.port import EnforcedWorkload, EngineError, SuccessorRecord
from hauberk.policy.rules import Action, ObjectKind, Origin, Rule, RuleSet, Section, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT = "wait"


class FakeMap:
    """A map that tells what is written to it."""

    def __init__(self, name: str, told: list[str]) -> None:
        """Begin empty."""
        self.name, self.told = name, told
        self.values: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        """Give a value; arrays begin with zeros."""
        empty = {"workloads": layout.WORKLOAD.size, "epoch": layout.EPOCH.size, "successors": layout.SUCCESSOR.size}
        return self.values.get(key) or (bytes(empty[self.name]) if self.name in empty else None)

    def put(self, key: bytes, value: bytes) -> None:
        """Set a value."""
        self.told.append(self.name)
        self.values[key] = value

    def remove(self, key: bytes) -> None:
        """Remove a key."""
        self.values.pop(key, None)

    def keys(self, _size: int) -> list[bytes]:
        """Give all keys."""
        return list(self.values)


class FakeLibrary:
    """Counts the waits in the same list."""

    def __init__(self, told: list[str]) -> None:
        """Tell into this list."""
        self.told = told

    def wait_for_programs(self) -> None:
        """Wait for nobody."""
        self.told.append(WAIT)


class Engine(BpfLsmEngine):
    """The real engine on maps of ours; ``told`` has every write and every wait in order."""

    def __init__(self, regions: int = 1) -> None:
        """Open it on empty maps."""
        super().__init__(regions=regions)
        self.told: list[str] = []
        self.memory = bytearray(regions * layout.REGION_BYTES)
        names = ("workloads", "cgroups", "epoch", "successors")
        fakes: Any = {name: FakeMap(name, self.told) for name in names}
        library: Any = FakeLibrary(self.told)
        self.library = library
        self._maps, self._library = fakes, library

    def _is_loaded(self) -> bool:
        return True

    @contextmanager
    def _window(self, start: int, length: int) -> Iterator[tuple[Any, int]]:
        before = bytes(self.memory[start : start + length])
        yield self.memory, start
        if self.memory[start : start + length] != before:
            self.told.append("tables")

    def held(self) -> dict[int, WorkloadRecord]:
        """Give what lies in the kernel, by place."""
        values = self._maps["workloads"].values  # type: ignore[attr-defined] # a fake map
        return {layout.KEY.unpack(key)[0]: WorkloadRecord.decode(value) for key, value in values.items()}


def table(name: str) -> tuple[bytes, str]:
    rule = Rule(Section.FILE, ObjectKind.PATH, f"/{name}", Action.BLOCK, Origin("policy", "field"))
    rules = RuleSet((rule,), Verdict.ALLOW)
    return compile_table(rules).blob, fingerprint(rules)


def workload(number: int, name: str | None = None) -> EnforcedWorkload:
    return EnforcedWorkload(number, f"container-{number}", 1000 + number, 2000 + number, *table(name or f"f{number}"))


def test_a_successor_may_bring_network_rules_and_take_them_away() -> None:
    engine = Engine()
    engine.register(replace(workload(1), network_namespace=4026531833))
    assert [held.network_namespace for held in engine.registered()] == [4026531833]
    for number, namespace in enumerate((0, 4026532000), 1):
        moved = replace(workload(1), network_namespace=namespace)
        engine.advance(SuccessorRecord(f"{number:064x}", number, number), [moved])
        assert [held.network_namespace for held in engine.registered()] == [namespace]
    assert [record.network_namespace for _, record in sorted(engine.held().items())] == [4026532000, 0]


def test_a_successor_writes_after_a_wait_only() -> None:
    engine = Engine()
    engine.register(workload(1, "one"))
    for number, name in enumerate(("two", "three", "four"), 1):
        engine.told.clear()
        engine.advance(SuccessorRecord(f"{number:064x}", number, number), [workload(1, name)])
        assert engine.told == [WAIT, "tables", "workloads", "successors", "epoch"]


def test_a_wait_that_fails_leaves_all_as_before() -> None:
    engine = Engine()
    engine.register(workload(1, "one"))
    before, memory = engine.held(), bytes(engine.memory)

    def fail() -> None:
        raise OSError(1, "no")

    engine.library.wait_for_programs = fail
    with pytest.raises(EngineError, match="all is as before"):
        engine.advance(SuccessorRecord("1" * 64, 1, 1), [workload(1, "two")])
    assert (engine.held(), bytes(engine.memory)) == (before, memory)
    assert engine.successor() is None


def test_what_was_let_go_is_kept_until_after_a_wait() -> None:
    engine = Engine()
    engine.register(workload(1))
    [(place, first)] = engine.held().items()
    content = bytes(engine.memory[first.table * 8 : (first.table + first.table_words) * 8])
    engine.release(1)
    assert engine.held()[place] == first._replace(workload_id=0)  # a program that read the id goes by the rest
    engine.register(workload(2))
    assert WAIT not in engine.told
    assert engine.held()[place] == first._replace(workload_id=0)
    assert bytes(engine.memory[first.table * 8 : (first.table + first.table_words) * 8]) == content
    engine.advance(SuccessorRecord("1" * 64, 1, 1), [workload(2)])  # waits
    engine.told.clear()
    engine.register(workload(3))
    assert engine.held()[place + layout.MAXIMUM_WORKLOADS].workload_id == 3
    assert WAIT not in engine.told


def test_slots_that_were_let_go_are_used_again_after_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAXIMUM_WORKLOADS", 2)
    engine = Engine()
    for number in range(1, 3):
        engine.register(workload(number))
    with pytest.raises(EngineError, match="2 workloads are in force"):
        engine.register(workload(3))
    engine.release(1)
    assert WAIT not in engine.told
    engine.told.clear()
    engine.register(workload(3))
    assert engine.told[0] == WAIT
    assert {record.workload_id for record in engine.held().values()} == {0, 2, 3}


def test_memory_that_was_let_go_is_used_again_after_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    blob, _ = table("f1")
    monkeypatch.setattr(layout, "TABLE_WORDS", len(blob) // 8)  # room for one
    engine = Engine()
    engine.register(workload(1))
    with pytest.raises(EngineError, match="no room"):
        engine.register(workload(2))
    engine.release(1)
    engine.told.clear()
    engine.register(workload(2))
    assert engine.told[:2] == [WAIT, "tables"]
