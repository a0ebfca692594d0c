# SPDX-License-Identifier: Apache-2.0
"""The registry's invariants, one by one and under any order of events."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from guest_agent.workloads.registry import (
    MAXIMUM_WORKLOAD_ID,
    ConflictError,
    Identity,
    Observation,
    Registry,
    RegistryError,
    Release,
    State,
    Workload,
    paths_overlap,
)

OVER = Observation(init_alive=False, cgroup_populated=False)


def identity(number: int = 1, path: str = "/pod/one") -> Identity:
    return Identity(pid=number, start_time=9, cgroup_id=1000 + number, cgroup_path=path, mount_namespace=2000 + number)


def enforced(registry: Registry, name: str = "one", number: int = 1, path: str = "/pod/one") -> Workload:
    registry.announce(name)
    registry.verify(name, identity(number, path))
    return registry.enforce(name, "digest")


def test_a_workload_goes_through_its_states_in_order() -> None:
    registry = Registry()
    assert registry.announce("one").state is State.ANNOUNCED
    assert registry.verify("one", identity()).state is State.VERIFIED
    assert registry.enforce("one", "digest").state is State.ENFORCED
    assert registry.release("one", 1, OVER).state is State.GONE
    assert registry.find("one") is None
    assert len(registry) == 0


@pytest.mark.parametrize("name", ["", "x" * 256, "two\nlines"])
def test_an_impossible_id_is_refused(name: str) -> None:
    with pytest.raises(RegistryError, match="printable"):
        Registry().announce(name)


def test_an_id_that_lives_is_refused_in_every_state() -> None:
    registry = Registry()
    registry.announce("one")
    with pytest.raises(ConflictError, match="announced already"):
        registry.announce("one")
    registry.verify("one", identity())
    with pytest.raises(ConflictError, match="verified already"):
        registry.announce("one")
    registry.enforce("one", "digest")
    with pytest.raises(ConflictError, match="enforced already"):
        registry.announce("one")


@pytest.mark.parametrize(
    ("number", "path", "reason"),
    [
        (1, "/elsewhere", "cgroup of its own"),
        (2, "/pod/one", "cgroup of its own"),
        (2, "/pod", "above or below"),
        (2, "/pod/one/child", "above or below"),
        (2, "/", "above or below"),
    ],
)
def test_a_cgroup_that_collides_is_refused(number: int, path: str, reason: str) -> None:
    registry = Registry()
    enforced(registry)
    registry.announce("two")
    with pytest.raises(ConflictError, match=reason):
        registry.verify("two", identity(number, path))
    two = registry.find("two")
    assert two is not None
    assert two.state is State.ANNOUNCED


def test_a_sibling_whose_name_begins_alike_is_no_conflict() -> None:
    registry = Registry()
    enforced(registry)
    assert enforced(registry, "two", 2, "/pod/one-more").workload_id == 2
    assert not paths_overlap("/pod/one", "/pod/one-more")
    assert paths_overlap("/", "/pod")
    assert not paths_overlap("", "/pod")


def test_steps_out_of_order_are_refused() -> None:
    registry = Registry()
    with pytest.raises(RegistryError, match="unknown"):
        registry.verify("one", identity())
    registry.announce("one")
    with pytest.raises(RegistryError, match="expected verified"):
        registry.enforce("one", "digest")
    with pytest.raises(RegistryError, match="expected enforced"):
        registry.release("one", 1, OVER)


@pytest.mark.parametrize(
    "observation",
    [
        Observation(init_alive=True, cgroup_populated=True),
        Observation(init_alive=True, cgroup_populated=False),
        Observation(init_alive=False, cgroup_populated=True),
    ],
)
def test_whoever_asks_a_living_container_stays_in_force(observation: Observation) -> None:
    registry = Registry()
    enforced(registry)
    assert registry.request_stop("one", observation) is Release.ALIVE
    with pytest.raises(RegistryError, match="stays in force"):
        registry.release("one", 1, observation)
    found = registry.find("one")
    assert found is not None
    assert found.state is State.ENFORCED
    assert found.stop_requested
    assert registry.request_stop("one", OVER) is Release.GONE


def test_poststop_is_idempotent_and_waits_for_a_registration() -> None:
    registry = Registry()
    assert registry.request_stop("never seen", None) is Release.GONE
    registry.announce("one")
    assert registry.request_stop("one", OVER) is Release.PENDING
    registry.abandon("one", 1)
    assert registry.request_stop("one", OVER) is Release.GONE


def test_an_enforced_workload_is_asked_about_with_an_observation() -> None:
    registry = Registry()
    enforced(registry)
    with pytest.raises(RegistryError, match="needs an observation"):
        registry.request_stop("one", None)


def test_a_failed_registration_frees_the_container_and_the_cgroup_but_not_the_number() -> None:
    registry = Registry()
    registry.announce("one")
    registry.verify("one", identity())
    assert registry.abandon("one", 1).state is State.GONE
    assert enforced(registry, "two", 1, "/pod/one").workload_id == 2
    with pytest.raises(RegistryError, match="not abandoned"):
        registry.abandon("two", 2)


def test_numbers_of_others_are_not_let_go() -> None:
    registry = Registry()
    enforced(registry)
    with pytest.raises(RegistryError, match="not 7"):
        registry.release("one", 7, OVER)
    registry.announce("two")
    with pytest.raises(RegistryError, match="not 7"):
        registry.abandon("two", 7)


def test_what_the_kernel_holds_is_taken_up_and_its_numbers_are_skipped() -> None:
    registry = Registry()
    assert registry.take_up(41, "one", identity(), "digest").state is State.ENFORCED
    assert registry.next_workload_id == 42
    assert registry.take_up(5, "old", identity(2, "/pod/two"), "digest").workload_id == 5
    assert registry.next_workload_id == 42
    for number, name in ((41, "three"), (50, "one")):
        with pytest.raises(ConflictError, match="known already"):
            registry.take_up(number, name, identity(3, "/pod/three"), "digest")
    with pytest.raises(RegistryError, match=r"not in 1\.\."):
        registry.take_up(0, "zero", identity(4, "/pod/four"), "digest")


def test_a_cgroup_that_is_gone_collides_with_no_path() -> None:
    registry = Registry()
    registry.take_up(1, "one", identity(1, ""), "digest")
    registry.take_up(2, "two", identity(2, ""), "digest")
    assert len(registry) == 2


def test_numbers_end_instead_of_coming_again() -> None:
    registry = Registry(MAXIMUM_WORKLOAD_ID)
    assert registry.announce("last").workload_id == MAXIMUM_WORKLOAD_ID
    with pytest.raises(RegistryError, match="reboot"):
        registry.announce("one more")
    for first in (0, MAXIMUM_WORKLOAD_ID + 1):
        with pytest.raises(ValueError, match="is not in"):
            Registry(first)


PATHS = ["/a", "/a/b", "/b", "/b/c", "/b/c/d", "/c"]


class RegistryMachine(RuleBasedStateMachine):
    """Any order of calls; a plain model of who is protected says what must hold after each."""

    names = Bundle("names")

    def __init__(self) -> None:
        """Start with an empty registry and an empty model."""
        super().__init__()
        self.registry = Registry()
        self.given: set[int] = set()
        self.enforced: dict[str, Identity] = {}

    @rule(target=names, name=st.sampled_from(["k", "l", "m", "n"]))
    def name(self, name: str) -> str:
        """Draw a container id."""
        return name

    @rule(name=names)
    def announce(self, name: str) -> None:
        """Announce: refused exactly while the id lives."""
        known = self.registry.find(name)
        try:
            workload = self.registry.announce(name)
        except ConflictError:
            assert known is not None
        else:
            assert known is None
            assert workload.workload_id not in self.given
            self.given.add(workload.workload_id)

    @rule(name=names, path=st.sampled_from(PATHS), number=st.integers(1, 5))
    def verify(self, name: str, path: str, number: int) -> None:
        """Verify: a refusal changes nothing."""
        before = list(self.registry)
        try:
            self.registry.verify(name, identity(number, path))
        except RegistryError:
            assert list(self.registry) == before

    @rule(name=names)
    def enforce(self, name: str) -> None:
        """Enforce: from here on the model counts it as protected."""
        try:
            workload = self.registry.enforce(name, "digest")
        except RegistryError:
            return
        assert workload.identity is not None
        self.enforced[name] = workload.identity

    @rule(name=names)
    def abandon(self, name: str) -> None:
        """Abandon: never what is protected."""
        known = self.registry.find(name)
        try:
            self.registry.abandon(name, known.workload_id if known else 1)
        except RegistryError:
            assert known is None or name in self.enforced

    @rule(name=names, alive=st.booleans(), populated=st.booleans())
    def stop(self, name: str, alive: bool, populated: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        """Ask to let go: only what has ended goes."""
        observation = Observation(init_alive=alive, cgroup_populated=populated)
        known = self.registry.find(name)
        answer = self.registry.request_stop(name, observation)
        if name in self.enforced:
            assert answer is (Release.GONE if observation.over else Release.ALIVE)
            if answer is Release.GONE:
                assert known is not None
                self.registry.release(name, known.workload_id, observation)
                del self.enforced[name]
        else:
            assert answer is (Release.PENDING if known else Release.GONE)

    @rule(name=names, number=st.integers(1, 60), path=st.sampled_from(PATHS), cgroup=st.integers(1, 5))
    def take_up(self, name: str, number: int, path: str, cgroup: int) -> None:
        """Take up what a kernel holds."""
        if number in self.given:
            return  # the kernel gives numbers out no second time either
        try:
            self.registry.take_up(number, name, identity(cgroup, path), "digest")
        except RegistryError:
            return
        self.given.add(number)
        self.enforced[name] = identity(cgroup, path)

    @invariant()
    def protected_are_exactly_the_enforced(self) -> None:
        """The registry and the model agree."""
        found = {
            workload.container_id: workload.identity for workload in self.registry if workload.state is State.ENFORCED
        }
        assert found == self.enforced

    @invariant()
    def no_two_cgroups_touch(self) -> None:
        """No cgroup is another one, or above or below it."""
        held = [workload.identity for workload in self.registry if workload.identity is not None]
        for index, first in enumerate(held):
            for second in held[index + 1 :]:
                assert first.cgroup_id != second.cgroup_id
                assert not paths_overlap(first.cgroup_path, second.cgroup_path)

    @invariant()
    def the_next_number_is_new(self) -> None:
        """No number comes again."""
        assert all(number < self.registry.next_workload_id for number in self.given)


TestRegistryMachine = RegistryMachine.TestCase
