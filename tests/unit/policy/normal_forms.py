# SPDX-License-Identifier: Apache-2.0
"""Any rule and selector of the normal form, also such as no policy can say, for what writes and reads them."""

from __future__ import annotations

from hypothesis import strategies as st

from hauberk.policy.rules import (
    Action,
    DeviceMatch,
    LabelRequirement,
    ObjectKind,
    Operation,
    Origin,
    PeerGroup,
    PeerMatch,
    PeerSelector,
    Rule,
    Section,
    SyscallMatch,
)
from hauberk.policy.selectors import Scope, Selector

text = st.text(st.characters(codec="utf-8") | st.sampled_from("\udcff"), max_size=8)
texts = st.lists(text, max_size=2).map(tuple)
pairs = st.lists(st.tuples(text, text), max_size=2).map(tuple)
numbers = st.integers(0, 2**63)
requirements = st.lists(
    st.builds(LabelRequirement, text, st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]), texts), max_size=2
).map(tuple)
peer_selectors = st.builds(PeerSelector, requirements, st.none() | texts, requirements)
groups = st.one_of(
    st.builds(PeerGroup, st.sampled_from(["name", "entity"]), text), st.builds(PeerGroup.of_workloads, peer_selectors)
)
peer_matches = st.tuples(texts, texts).flatmap(
    lambda addresses: st.builds(
        PeerMatch,
        cidrs=st.just(addresses[0]),
        exceptions=st.just(addresses[1] if addresses[0] else ()),
        interfaces=texts,
        ports=st.lists(st.tuples(numbers, numbers, text), max_size=2).map(tuple),
        quota=st.none() | st.tuples(numbers, numbers, text),
        icmp=st.lists(st.tuples(numbers, st.none() | numbers), max_size=2).map(tuple),
        groups=st.lists(groups, max_size=2).map(tuple),
        nothing=st.booleans(),
    )
)
matches = st.one_of(
    st.none(),
    st.builds(DeviceMatch, *[st.none() | numbers] * 4),
    peer_matches,
    st.builds(
        SyscallMatch,
        texts,
        st.none() | text,
        st.booleans(),
        st.lists(st.tuples(text, st.booleans()), max_size=2).map(tuple),
    ),
)
rules = st.builds(
    Rule,
    section=st.sampled_from(Section),
    kind=st.sampled_from(ObjectKind),
    value=text,
    action=st.sampled_from(Action),
    origin=st.builds(Origin, text, text, text, numbers, numbers),
    recursive=st.booleans(),
    read_only=st.booleans(),
    owner_only=st.booleans(),
    sources=texts,
    severity=numbers,
    tags=texts,
    message=text,
    operations=st.lists(st.sampled_from(Operation), max_size=2).map(tuple),
    implied=st.booleans(),
    allowed_arguments=texts,
    terminal=st.none() | st.booleans(),
    match=matches,
    default_deny=st.none() | st.booleans(),
)
selectors = st.builds(
    Selector,
    labels=pairs,
    within=texts,
    without=texts,
    container_name=st.none() | text,
    scope=st.sampled_from(Scope),
    cluster=st.booleans(),
    namespaces=texts,
    excluded_namespaces=texts,
    host_names=pairs,
    host_expressions=pairs,
    requirements=requirements,
)
