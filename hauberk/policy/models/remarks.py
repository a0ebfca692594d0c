# SPDX-License-Identifier: Apache-2.0
"""What is to be told of valid policies of Cilium and of Kubernetes: what they cannot have here, and what to know.

Refused is what depends on more than one field: the content of connections in a policy that does not audit, a name for
a port in a rule that denies. Warned of is what has one meaning that may not be the author's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hauberk.policy import cilium, packets, traffic
from hauberk.policy.models.base import shown, suggestion
from hauberk.policy.models.messages import problem_at
from hauberk.policy.rules import DEFAULT_NAMESPACE, NAMESPACE_NAME_LABEL
from hauberk.policy.vocabulary import LOCAL_ENTITIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hauberk.errors import Problem
    from hauberk.policy.documents import FieldPath
    from hauberk.policy.models.loading import Policy

MAXIMUM_ALONE = 1000
"""Most networks of an entry that become rules of their own (:mod:`hauberk.policy.packets`)."""
_PREFIX = "hauberk.io/"
_Says = Literal["allows", "denies", "reports"]
"""What becomes of the packets that an entry is about."""


class _Remark(NamedTuple):
    """Where, the parts of a message, and whether it is a warning alone."""

    path: FieldPath
    found: str
    expected: str
    advice: str
    warning: bool = True


def remarks(policies: Iterable[Policy]) -> Iterator[Problem]:
    """Give what is to be told of the policies of one document, in the order of its fields."""
    policies = tuple(policies)
    found = [remark for policy in policies[:1] for remark in _of_annotations(policy)]
    found += [remark for policy in policies for remark in _OF_KIND.get(policy.kind, _nothing)(policy)]
    for path, what, expected, advice, warning in found:
        yield problem_at(policies[0].document, path, what, expected, advice, warning=warning)


def _nothing(_: Policy) -> Iterator[_Remark]:
    yield from ()


def _of_annotations(policy: Policy) -> Iterator[_Remark]:
    """Refuse annotations of our own that say nothing, or nothing to this kind: a typo must not switch a policy off."""
    known = (cilium.AUDIT_ANNOTATION,) if policy.kind.startswith("Cilium") else ()
    for name, value in policy.model.metadata.annotations.items():
        path = ("metadata", "annotations", name)
        if name.startswith(_PREFIX) and name not in known:
            advice = suggestion(name, known) or "Remove it"
            yield _Remark(path, "an annotation of Hauberk's that this kind does not have",
                          " or ".join(known) or "none", advice, warning=False)  # fmt: skip
        elif name in known and value not in ("true", "false"):
            yield _Remark(path, shown(value), '"true" or "false"', 'Write "true" or "false"', warning=False)


# Cilium


def _of_cilium(policy: Policy) -> Iterator[_Remark]:
    spec: Any = policy.model.spec
    yield from _of_subject(policy, spec)
    audited = cilium.audits(policy.model)
    for name in ("ingress", "egress"):
        yield from _of_empty_list(policy, spec, name)
        for list_name in (name, f"{name}Deny"):
            for index, entry in enumerate(getattr(spec, list_name)):
                path = (*policy.root, list_name, index)
                denies = list_name != name
                if not entry.model_fields_set and len(getattr(spec, list_name)) > 1:
                    yield _of_empty_entry(path, denies=denies)
                looks = any(cilium.looks_into(element) for element in entry.toPorts or ())
                reports = audited and (denies or looks)
                yield from _of_peers(path, entry, "reports" if reports else "denies" if denies else "allows")
                yield from _of_ports(path, entry, denies=denies, audited=audited)


def _of_subject(policy: Policy, spec: Any) -> Iterator[_Remark]:  # noqa: ANN401 - a model
    if policy.kind != "CiliumNetworkPolicy":
        return
    own = policy.model.metadata.namespace or DEFAULT_NAMESPACE
    of_namespaces = cilium.of_pods_and_namespaces(spec.endpointSelector)[1]
    if not all(asked.holds({NAMESPACE_NAME_LABEL: own}) for asked in of_namespaces):
        yield _Remark(
            (*policy.root, "endpointSelector"),
            "a condition on the namespace that the policy's own does not meet",
            f"workloads of the namespace {own}",
            "Remove the condition, or write a CiliumClusterwideNetworkPolicy",
            warning=False,
        )


def _of_empty_list(policy: Policy, spec: Any, name: str) -> Iterator[_Remark]:  # noqa: ANN401 - a model
    for list_name in (name, f"{name}Deny"):
        if list_name in spec.model_fields_set and not getattr(spec, list_name):
            yield _Remark(
                (*policy.root, list_name),
                "an empty list",
                "at least one entry",
                "Write an entry {} to refuse what nothing allows; as with Cilium, an empty list refuses nothing",
            )


def _of_empty_entry(path: FieldPath, *, denies: bool) -> _Remark:
    """Warn of an entry ``{}`` beside others. Alone it is how Cilium's guide refuses all, and nobody's mistake."""
    return _Remark(
        path, "an entry without peers, ports or types of ICMP", "one of them",
        f"Remove it; as with Cilium, it {'denies' if denies else 'allows'} nothing. To name every peer write"
        " fromEntities or toEntities with all",
    )  # fmt: skip


def _of_peers(path: FieldPath, entry: Any, says: _Says) -> Iterator[_Remark]:  # noqa: ANN401 - a model
    for name in sorted(entry.model_fields_set - {"toPorts", "icmps"}):
        peers = getattr(entry, name)
        if not peers:
            yield _Remark(
                (*path, name), "an empty list", "at least one peer",
                "Remove the field if any peer is meant; as with Cilium, the entry is about no packet",
            )  # fmt: skip
        elif "CIDR" in name:
            yield from _of_networks((*path, name), peers)
            if name.endswith("Set"):
                yield from _of_overlaps((*path, name), ((peer.cidr, peer.except_) for peer in peers))
        elif name.endswith("Endpoints"):
            for index, one in enumerate(peers):
                yield from _of_endpoints((*path, name, index), one, says)
        elif name.endswith("Entities"):
            for index, entity in enumerate(peers):
                yield from _of_entity((*path, name, index), entity, says)
        elif says == "reports":
            yield _of_groups((*path, name), "domain names", says)


def _of_networks(path: FieldPath, peers: Iterable[Any]) -> Iterator[_Remark]:
    """Warn of addresses within networks where the list has no field named ``cidr``; those are warned of elsewhere."""
    for index, peer in enumerate(peers):
        if isinstance(peer, str):
            yield from _of_network((*path, index), peer)
        else:
            for number, exception in enumerate(peer.except_):
                yield from _of_network((*path, index, "except", number), exception)


def _of_overlaps(path: FieldPath, blocks: Iterable[tuple[str, list[str]]]) -> Iterator[_Remark]:
    number = packets.number_alone(blocks)
    if number > MAXIMUM_ALONE:
        yield _Remark(
            path, f"{number} networks with exceptions that others of the list overlap",
            f"at most {MAXIMUM_ALONE} of these, as each becomes a rule", "Write networks that are apart",
            warning=False,
        )  # fmt: skip


def _of_network(path: FieldPath, text: str) -> Iterator[_Remark]:
    if traffic.has_host_bits(text):
        network = traffic.network(text)
        yield _Remark(
            path, f"{shown(text)}, an address within {network}", "the network's own address",
            f'Write "{network}", which is what is compared',
        )  # fmt: skip


def _of_endpoints(path: FieldPath, endpoints: Any, says: _Says) -> Iterator[_Remark]:  # noqa: ANN401 - a model
    if endpoints.entity is not None:
        yield from _of_entity(path, endpoints.entity, says)
        return
    yield _of_groups(path, "workloads by their labels", says)
    of_namespaces = cilium.of_pods_and_namespaces(endpoints)[1]
    yield from _of_namespaces(path, (asked.key for asked in of_namespaces))


def _of_groups(path: FieldPath, what: str, says: _Says) -> _Remark:
    """Warn of peers of whom a machine never knows for certain that it knows all."""
    if says == "allows":
        return _Remark(
            path, what, "networks, if workloads of other machines are meant",
            "Add CIDRs for those; labels select workloads of this machine alone",
        )  # fmt: skip
    otherwise = "every peer is denied" if says == "denies" else "nothing is told of them"
    return _Remark(
        path, f"{what} in a rule that {says}", "networks",
        f"Write CIDRs; not all of them are known here, so {otherwise}, or the policy refused",
    )  # fmt: skip


def _of_namespaces(path: FieldPath, keys: Iterable[str]) -> Iterator[_Remark]:
    unknown = sorted({key for key in keys if key != NAMESPACE_NAME_LABEL})
    if unknown:
        yield _Remark(
            path, f"labels of namespaces ({', '.join(unknown)})", f"{NAMESPACE_NAME_LABEL}",
            "Name the namespaces; their other labels are not known to this machine, so no workload is selected",
        )  # fmt: skip


def _of_entity(path: FieldPath, entity: str, says: _Says) -> Iterator[_Remark]:
    if entity not in LOCAL_ENTITIES:
        otherwise = "every peer is denied, or the policy refused" if says == "denies" else "it is nobody"
        yield _Remark(
            path, shown(entity), "an entity that a machine knows by itself: host, world, all",
            f"Tell the agent its networks (networkEntities); where that is not done, {otherwise}",
        )  # fmt: skip


def _of_ports(path: FieldPath, entry: Any, *, denies: bool, audited: bool) -> Iterator[_Remark]:  # noqa: ANN401
    for index, element in enumerate(entry.toPorts or ()):
        place = (*path, "toPorts", index)
        yield from _of_content(place, element, audited=audited)
        for number, port in enumerate(element.ports):
            if port.port and traffic.is_service(port.port):
                yield _of_named_port((*place, "ports", number, "port"), port.port, denies=denies)


def _of_named_port(path: FieldPath, name: str, *, denies: bool) -> _Remark:
    number = traffic.port_number(name)
    if denies:
        return _Remark(
            path, f"{shown(name)} in a rule that denies", "the number of a port",
            "Write the number: what a pod's specification calls so is not known here, and could stay open",
            warning=False,
        )  # fmt: skip
    return _Remark(
        path, f"{shown(name)}, the name of a service", "the number of a port",
        f"Write the number; it is taken for {number}, whatever a pod's specification calls so",
    )  # fmt: skip


def _of_content(path: FieldPath, element: Any, *, audited: bool) -> Iterator[_Remark]:  # noqa: ANN401 - a model
    content = getattr(element, "rules", None)
    if cilium.looks_into(element):
        written = sorted(element.model_fields_set - {"ports"})
        found = f"conditions on the content of connections ({', '.join(written)})"
        if audited:
            yield _Remark(
                path, found, "ports alone", "Know that every connection to these ports is let pass and reported"
            )
        else:
            yield _Remark(
                (*path, written[0]), found, "ports alone, as nothing here looks into connections",
                f'Remove them, or let the policy audit: the annotation {cilium.AUDIT_ANNOTATION}: "true"',
                warning=False,
            )  # fmt: skip
    elif content is not None and content.dns is not None:
        yield _Remark(
            (*path, "rules", "dns"), "a condition that every name meets", "ports alone",
            "Know that names are learned from the answers of this machine's resolvers, asked here or not",
        )  # fmt: skip


# Kubernetes


def _of_kubernetes(policy: Policy) -> Iterator[_Remark]:
    spec: Any = policy.model.spec
    for name in ("ingress", "egress"):
        entries = getattr(spec, name)
        about = name.title() in spec.directions
        if name in spec.model_fields_set and not about:
            yield _Remark(
                (*policy.root, name),
                "entries" if entries else "an empty list",
                f"{name.title()} among policyTypes, or no {name}",
                f"Write policyTypes; as with Kubernetes, the policy says nothing of {name}",
            )
        for index, entry in enumerate(entries):
            path = (*policy.root, name, index)
            list_name, peers = ("from", entry.from_) if name == "ingress" else ("to", entry.to)
            blocks = (peer.ipBlock for peer in peers if peer.ipBlock is not None)
            yield from _of_overlaps((*path, list_name), ((block.cidr, block.except_) for block in blocks))
            for number, peer in enumerate(peers):
                yield from _of_kubernetes_peer((*path, list_name, number), peer)
            for number, port in enumerate(entry.ports):
                if isinstance(port.port, str):
                    yield _of_named_port((*path, "ports", number, "port"), port.port, denies=False)


def _of_kubernetes_peer(path: FieldPath, peer: Any) -> Iterator[_Remark]:  # noqa: ANN401 - a model
    if peer.ipBlock is not None:
        for number, exception in enumerate(peer.ipBlock.except_):
            yield from _of_network((*path, "ipBlock", "except", number), exception)
        return
    yield _of_groups(path, "workloads by their labels", "allows")
    if peer.namespaceSelector is not None:
        keys = (*peer.namespaceSelector.matchLabels, *(one.key for one in peer.namespaceSelector.matchExpressions))
        yield from _of_namespaces((*path, "namespaceSelector"), keys)


_OF_KIND = {
    "CiliumNetworkPolicy": _of_cilium,
    "CiliumClusterwideNetworkPolicy": _of_cilium,
    "NetworkPolicy": _of_kubernetes,
}
