# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' NetworkPolicy -> selector and rules.

The directions that a policy is about become allow-lists, whatever it lists; an entry allows what comes from one of its
peers to one of its ports. A list that is empty or absent within an entry means any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hauberk.policy import packets, traffic
from hauberk.policy.inheritance import rule
from hauberk.policy.rules import (
    DEFAULT_NAMESPACE,
    Action,
    LabelRequirement,
    ObjectKind,
    PeerGroup,
    PeerMatch,
    PeerSelector,
    Section,
)
from hauberk.policy.selectors import Selector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hauberk.policy.models import Policy
    from hauberk.policy.rules import Rule


def selector(model: Any) -> Selector:  # noqa: ANN401 - a model, which is not imported here
    """Give whom a NetworkPolicy covers."""
    pods = model.spec.podSelector
    return Selector(labels=tuple(pods.matchLabels.items()), requirements=expressions(pods))


def expressions(labels: Any) -> tuple[LabelRequirement, ...]:  # noqa: ANN401 - a model, which is not imported here
    """Give the ``matchExpressions`` of a selector."""
    return tuple(LabelRequirement(one.key, one.operator, tuple(one.values)) for one in labels.matchExpressions)


def requirements(labels: Any) -> tuple[LabelRequirement, ...]:  # noqa: ANN401 - a model, which is not imported here
    """Give all that a selector asks, each label of ``matchLabels`` as a requirement."""
    pairs = (LabelRequirement(key, "In", (value,)) for key, value in labels.matchLabels.items())
    return (*pairs, *expressions(labels))


def rules(policy: Policy) -> Iterator[Rule]:
    """Give the rules of a NetworkPolicy."""
    spec: Any = policy.model.spec
    namespace = policy.model.metadata.namespace or DEFAULT_NAMESPACE
    for section, list_name in packets.DIRECTIONS:
        if list_name.title() not in spec.directions:
            continue
        entries = getattr(spec, list_name)
        for index, entry in enumerate(entries):
            for match in _matches(entry, "from_" if section is Section.INGRESS else "to", namespace):
                yield _allow(policy, (*policy.root, list_name, index), section, match)
        if not entries:
            yield _allow(policy, (*policy.root, "policyTypes"), section, PeerMatch(nothing=True))


def _allow(policy: Policy, path: tuple[str | int, ...], section: Section, match: PeerMatch) -> Rule:
    return rule(
        policy,
        path,
        (),
        section=section,
        kind=ObjectKind.PEER,
        value=packets.text(match),
        action=Action.ALLOW,
        match=match,
        default_deny=True,
    )


def _matches(entry: Any, field: str, namespace: str) -> Iterator[PeerMatch]:  # noqa: ANN401 - a model
    kinds = PeerMatch(ports=tuple(dict.fromkeys(map(_port_range, entry.ports))))
    peers = getattr(entry, field)
    if not peers:
        yield kinds
        return
    blocks = [(peer.ipBlock.cidr, peer.ipBlock.except_) for peer in peers if peer.ipBlock is not None]
    groups = [PeerGroup.of_workloads(_workloads(peer, namespace)) for peer in peers if peer.ipBlock is None]
    yield from packets.with_peers(kinds, blocks, groups)


def _workloads(peer: Any, namespace: str) -> PeerSelector:  # noqa: ANN401 - a model
    labels = requirements(peer.podSelector) if peer.podSelector is not None else ()
    if peer.namespaceSelector is None:
        return PeerSelector(labels, namespaces=(namespace,))
    return PeerSelector(labels, namespace_labels=requirements(peer.namespaceSelector))


def _port_range(entry: Any) -> tuple[int, int, str]:  # noqa: ANN401 - a model
    protocol = entry.protocol.lower()
    if entry.port is None:
        return (0, traffic.MAXIMUM_PORT, protocol)
    first = traffic.port_number(str(entry.port))
    return (first, first if entry.endPort is None else entry.endPort, protocol)
