# SPDX-License-Identifier: Apache-2.0
"""What Kubernetes says a NetworkPolicy means, for a second opinion on the normal form.

Written from the documentation of the API (networking.k8s.io/v1) and of its concepts alone, and in no part from
Hauberk's reader, rules or decisions: it takes policies as plain values and asks of one connection at a time.

* A pod that no policy selects in a direction is not isolated in it. One that is takes, or sends, only what the sum of
  those policies allows. Both ends must agree. What a pod exchanges with itself is never refused.
* ``policyTypes`` left out: ingress, and egress where the policy has egress rules.
* A rule allows what is of one of its peers *and* of one of its ports; an empty or absent list of either means all.
* A peer selects pods of the policy's own namespace by ``podSelector`` alone, all pods of namespaces by
  ``namespaceSelector`` alone, pods of namespaces by both; ``ipBlock`` addresses within ``cidr`` and no ``except``.
* A port without ``protocol`` is TCP; without ``port`` all ports; with ``endPort`` a range.
* Requirements of a selector hold all together; an empty selector selects everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod with its labels, its namespace and that namespace's labels. A stranger has none of these."""

    name: str
    namespace: str | None
    labels: Mapping[str, str]
    namespace_labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Connection:
    """A new flow between two ends, with the addresses that packets carry."""

    source: Pod
    source_address: str
    target: Pod
    target_address: str
    protocol: str  # TCP, UDP, SCTP
    port: int


def allowed(policies: Iterable[Document], connection: Connection, services: Mapping[str, int]) -> bool:
    """Tell whether a connection is allowed. ``services`` are the numbers that named ports stand for."""
    if connection.source == connection.target:
        return True
    policies = tuple(policies)
    return _direction(policies, connection, "Egress", services) and _direction(
        policies, connection, "Ingress", services
    )


def _direction(policies: tuple[Document, ...], connection: Connection, kind: str, services: Mapping[str, int]) -> bool:
    ingress = kind == "Ingress"
    subject = connection.target if ingress else connection.source
    peer, address = (
        (connection.source, connection.source_address) if ingress else (connection.target, connection.target_address)
    )
    isolating = [policy for policy in policies if kind in _types(policy["spec"]) and _covers(policy, subject)]
    if not isolating:
        return True
    return any(
        _is_peer(rule.get("from" if ingress else "to"), policy["metadata"]["namespace"], peer, address)
        and _is_port(rule.get("ports"), connection, services)
        for policy in isolating
        for rule in policy["spec"].get("ingress" if ingress else "egress") or ()
    )


def _types(spec: Document) -> tuple[str, ...]:
    if spec.get("policyTypes"):
        return tuple(spec["policyTypes"])
    return ("Ingress", "Egress") if spec.get("egress") else ("Ingress",)


def _covers(policy: Document, pod: Pod) -> bool:
    return pod.namespace == policy["metadata"]["namespace"] and selects(policy["spec"]["podSelector"], pod.labels)


def selects(selector: Document, labels: Mapping[str, str]) -> bool:
    """Tell whether a label selector selects something with these labels."""
    return all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items()) and all(
        _holds(requirement, labels) for requirement in selector.get("matchExpressions") or ()
    )


def _holds(requirement: Document, labels: Mapping[str, str]) -> bool:
    key, values = requirement["key"], requirement.get("values", ())
    match requirement["operator"]:
        case "In":
            return key in labels and labels[key] in values
        case "NotIn":
            return key not in labels or labels[key] not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    raise AssertionError(requirement)


def _is_peer(peers: Iterable[Document] | None, own_namespace: str, pod: Pod, address: str) -> bool:
    return not peers or any(_is_one_peer(peer, own_namespace, pod, address) for peer in peers)


def _is_one_peer(peer: Document, own_namespace: str, pod: Pod, address: str) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        here = ip_address(address)
        return here in ip_network(block["cidr"]) and not any(
            here in ip_network(part) for part in block.get("except") or ()
        )
    if pod.namespace is None:
        return False
    namespace_fits = (
        selects(peer["namespaceSelector"], pod.namespace_labels)
        if "namespaceSelector" in peer
        else pod.namespace == own_namespace
    )
    return namespace_fits and selects(peer.get("podSelector") or {}, pod.labels)


def _is_port(ports: Iterable[Document] | None, connection: Connection, services: Mapping[str, int]) -> bool:
    return not ports or any(_is_one_port(port, connection, services) for port in ports)


def _is_one_port(port: Document, connection: Connection, services: Mapping[str, int]) -> bool:
    if port.get("protocol", "TCP") != connection.protocol:
        return False
    said = port.get("port")
    if said is None:
        return True
    first = services.get(said, -1) if isinstance(said, str) else said
    return bool(first <= connection.port <= port.get("endPort", first))
