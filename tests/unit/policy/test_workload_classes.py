# SPDX-License-Identifier: Apache-2.0
"""Every set of policies that can cover a workload is found, and each with a workload that it covers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hauberk.policy import workload_classes
from hauberk.policy.rules import LabelRequirement
from hauberk.policy.selectors import Scope, Selector, WorkloadIdentity
from hauberk.policy.workload_classes import Subject, TooManyWorkloadsError

KEYS, VALUES = ("app", "tier"), ("a", "b", "", "other")
HOSTNAME = "kubearmor.io/hostname"
NAMES = ("", "web", "web-1", "db", "x", "other")
NAMESPACES = ("", "default", "shop", "other", "third")

pairs = st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES))
texts = st.lists(pairs.map("=".join), max_size=2, unique=True).map(tuple)
labels = st.dictionaries(st.sampled_from(KEYS), st.sampled_from((*VALUES, "unheard of")), max_size=2)
namespaces = st.lists(st.sampled_from(NAMESPACES[1:]), max_size=2, unique=True).map(tuple)
requirements = st.lists(
    st.builds(
        LabelRequirement,
        st.sampled_from(KEYS),
        st.sampled_from(("In", "NotIn", "Exists", "DoesNotExist")),
        st.lists(st.sampled_from(VALUES), max_size=2, unique=True).map(tuple),
    ),
    max_size=2,
).map(tuple)
of_containers = st.builds(
    Selector,
    labels=labels.map(lambda found: tuple(found.items())),
    within=texts,
    without=texts,
    container_name=st.sampled_from((None, "", "[]", ".*", "[web, db]", "web.*", "web-[0-9]|x")),
    cluster=st.booleans(),
    namespaces=namespaces,
    excluded_namespaces=namespaces,
    requirements=requirements,
)
of_hosts = st.builds(
    Selector,
    labels=labels.map(lambda found: tuple(found.items())),
    scope=st.just(Scope.HOST),
    host_names=st.lists(st.tuples(st.just(HOSTNAME), st.sampled_from(("*", "web,db", "x", ","))), max_size=1).map(
        tuple
    ),
    host_expressions=st.lists(st.tuples(st.just(HOSTNAME), st.sampled_from(("web*", ".*b"))), max_size=1).map(tuple),
)
subjects = st.lists(st.builds(Subject, st.sampled_from(NAMESPACES[:3]), of_containers | of_hosts), max_size=5)
containers = st.builds(
    WorkloadIdentity,
    namespace=st.sampled_from(NAMESPACES),
    labels=labels,
    container_name=st.sampled_from(NAMES),
)
hosts = st.builds(WorkloadIdentity, labels=labels, host=st.just(value=True), host_name=st.sampled_from(NAMES))


def covering(some: list[Subject], workload: WorkloadIdentity) -> frozenset[int]:
    return frozenset(
        number for number, subject in enumerate(some) if subject.selector.matches(subject.namespace, workload)
    )


@given(subjects, st.lists(containers | hosts, max_size=10))
@settings(max_examples=200)
def test_each_set_is_found_with_a_workload_that_it_covers(
    some: list[Subject], workloads: list[WorkloadIdentity]
) -> None:
    found = workload_classes.workload_classes(some)
    for numbers, workload in found.items():
        assert numbers
        assert covering(some, workload) == numbers
    for workload in workloads:
        numbers = covering(some, workload)
        assert not numbers or numbers in found


@given(subjects, st.data())
def test_only_what_is_relevant_is_looked_for(some: list[Subject], data: st.DataObject) -> None:
    relevant = data.draw(st.sets(st.integers(0, max(len(some) - 1, 0))))
    everything = workload_classes.workload_classes(some)
    found = workload_classes.workload_classes(some, relevant)
    assert found.keys() == {numbers for numbers in everything if numbers & relevant}


def test_a_thousand_applications_are_a_thousand_classes() -> None:
    some = [Subject("shop", Selector(labels=(("app", str(number)),))) for number in range(1000)]
    found = workload_classes.workload_classes(some)
    assert found.keys() == {frozenset({number}) for number in range(1000)}
    assert found[frozenset({7})] == WorkloadIdentity(labels={"app": "7"})


def test_what_multiplies_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload_classes, "MAXIMUM_CLASSES", 100)
    some = [Subject("", Selector(within=(f"k{number}=v",))) for number in range(10)]
    with pytest.raises(TooManyWorkloadsError, match="more than 100 sets of policies"):
        workload_classes.workload_classes(some)
