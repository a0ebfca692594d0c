# SPDX-License-Identifier: Apache-2.0
"""Policies of Cilium -> selector and rules, with the meanings that Cilium documents.

An entry allows (or denies) packets from one of its peers to one of its ports. An entry that names neither peers nor
ports, or has a list of peers with nothing in it, allows nothing; a policy with entries of a direction makes it an
allow-list unless ``enableDefaultDeny`` says otherwise. What is denied is denied whoever allows it.

Cilium can only audit all policies of an endpoint or none. Here a policy says so of itself, by the annotation
``hauberk.io/audit: "true"``: it refuses nothing. What it would deny, and what it would not allow, is reported; so are
connections of which it would look at the content, which nothing here does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hauberk.policy import labels, packets, traffic
from hauberk.policy.inheritance import rule
from hauberk.policy.kubernetes import requirements
from hauberk.policy.rules import (
    DEFAULT_NAMESPACE,
    NAMESPACE_NAME_LABEL,
    Action,
    LabelRequirement,
    ObjectKind,
    PeerGroup,
    PeerMatch,
    PeerSelector,
)
from hauberk.policy.selectors import HOST_NAME_LABELS, Scope, Selector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hauberk.policy.documents import FieldPath
    from hauberk.policy.models import Policy
    from hauberk.policy.rules import Rule, Section

AUDIT_ANNOTATION = "hauberk.io/audit"
"""The annotation by which a policy says that it refuses nothing, with ``"true"`` or ``"false"``."""
_OF_CONTENT = ("serverNames", "terminatingTLS", "originatingTLS", "listener")


def audits(model: Any) -> bool:  # noqa: ANN401 - a model, which is not imported here
    """Tell whether a policy says that it refuses nothing."""
    audited: str = model.metadata.annotations.get(AUDIT_ANNOTATION, "false")
    return audited == "true"


def looks_into(ports: Any) -> bool:  # noqa: ANN401 - a model
    """Tell whether an element of ``toPorts`` is about more than ports, and so about the content of connections."""
    rules_of_content = getattr(ports, "rules", None)
    return (rules_of_content is not None and rules_of_content.restricts) or any(
        getattr(ports, name, None) is not None for name in _OF_CONTENT
    )


def selector(model: Any) -> Selector:  # noqa: ANN401 - a model
    """Give whom a policy of Cilium covers."""
    if getattr(model.spec, "nodeSelector", None) is not None:
        return _of_hosts(model.spec.nodeSelector)
    asked, of_namespace = of_pods_and_namespaces(model.spec.endpointSelector)
    if model.kind == "CiliumNetworkPolicy":
        return Selector(requirements=asked)
    names = admitted_namespaces(of_namespace)
    excluded = [value for one in of_namespace if one.operator == "NotIn" for value in one.values]
    return Selector(
        requirements=asked,
        cluster=True,
        namespaces=() if names is None else names,
        excluded_namespaces=tuple(dict.fromkeys(excluded)),
    )


def _of_hosts(nodes: Any) -> Selector:  # noqa: ANN401 - a model
    asked = tuple(_plain(one) for one in requirements(nodes))
    named = [one for one in asked if one.key in HOST_NAME_LABELS]
    return Selector(
        scope=Scope.HOST,
        host_names=tuple((one.key, ",".join(one.values)) for one in named if one.operator == "In"),
        requirements=tuple(one for one in asked if one not in named),
    )


def _plain(one: LabelRequirement) -> LabelRequirement:
    return LabelRequirement(labels.split(one.key)[1], one.operator, one.values)


def of_pods_and_namespaces(
    endpoints: Any,  # noqa: ANN401 - a model
) -> tuple[tuple[LabelRequirement, ...], tuple[LabelRequirement, ...]]:
    """Give what a selector asks of pods, and what of their namespaces, the latter as of the namespace's labels."""
    of_pods: list[LabelRequirement] = []
    of_namespaces: list[LabelRequirement] = []
    for one in map(_plain, requirements(endpoints)):
        if one.key == labels.NAMESPACE:
            of_namespaces.append(LabelRequirement(NAMESPACE_NAME_LABEL, one.operator, one.values))
        elif one.key.startswith(labels.NAMESPACE_LABELS):
            key = one.key.removeprefix(labels.NAMESPACE_LABELS)
            of_namespaces.append(LabelRequirement(key, one.operator, one.values))
        elif one.key not in labels.UNKNOWN:  # of these is asked only that they exist, as they do
            of_pods.append(one)
    return tuple(of_pods), tuple(of_namespaces)


def admitted_namespaces(asked: Iterable[LabelRequirement]) -> tuple[str, ...] | None:
    """Give the names of the namespaces that are asked for; None: no names are. All of what is asked must hold."""
    asked = tuple(asked)
    named = [one.values for one in asked if one.operator == "In"]
    if any(one.operator == "DoesNotExist" for one in asked):
        return ()
    if not named:
        return None
    return tuple(
        name for name in dict.fromkeys(named[0]) if all(one.holds({NAMESPACE_NAME_LABEL: name}) for one in asked)
    )


def rules(policy: Policy) -> Iterator[Rule]:
    """Give the rules of a policy of Cilium, or of one of its ``specs``."""
    spec: Any = policy.model.spec
    audited = audits(policy.model)
    for section, name in packets.DIRECTIONS:
        lists = ((name, Action.ALLOW), (f"{name}Deny", Action.AUDIT if audited else Action.BLOCK))
        written = any(getattr(spec, list_name) for list_name, _ in lists)
        said = getattr(spec.enableDefaultDeny, name)
        isolates = written if said is None else said
        if isolates and (audited or not written):  # else the entries say so
            path = (*policy.root, "enableDefaultDeny", name) if said else policy.root
            default = Action.AUDIT if audited else Action.ALLOW
            yield _rule(policy, path, section, default, PeerMatch(nothing=True), isolates=True)
        for list_name, action in lists:
            for index, entry in enumerate(getattr(spec, list_name)):
                path = (*policy.root, list_name, index)
                for place, of_entry, match in _matches(policy, path, entry, action):
                    yield _rule(policy, place, section, of_entry, match, isolates=isolates and not audited)


def _rule(  # noqa: PLR0913 - the parts of a rule
    policy: Policy, path: FieldPath, section: Section, action: Action, match: PeerMatch, *, isolates: bool
) -> Rule:
    spec: Any = policy.model.spec
    return rule(
        policy,
        path,
        (),
        section=section,
        kind=ObjectKind.PEER,
        value=packets.text(match),
        action=action,
        message=spec.description if spec.log is None else spec.log.value,
        match=match,
        default_deny=isolates,
    )


def _matches(
    policy: Policy,
    path: FieldPath,
    entry: Any,  # noqa: ANN401 - a model
    action: Action,
) -> Iterator[tuple[FieldPath, Action, PeerMatch]]:
    """Give what an entry says: where, whether it allows or denies, and of which packets."""
    peers = _peers(entry, None if policy.kind != "CiliumNetworkPolicy" else policy.model.metadata.namespace)
    for place, says, kinds in _kinds(path, entry, action):
        if peers is None:  # any peer, but for some kinds of packets alone
            nothing = kinds == PeerMatch() and not _names_everybody(entry)
            matches = [PeerMatch(nothing=True) if nothing else kinds]
        else:
            matches = list(packets.with_peers(kinds, *peers)) or [PeerMatch(nothing=True)]
        for match in matches:
            yield place, says, match


def _kinds(path: FieldPath, entry: Any, action: Action) -> Iterator[tuple[FieldPath, Action, PeerMatch]]:  # noqa: ANN401
    """Give the kinds of packets that an entry is about; those of whose content it says more are audited."""
    if entry.toPorts is None:
        icmp = tuple(
            dict.fromkeys(
                (int(field.family[-1]), traffic.icmp_type(int(field.family[-1]), field.type))
                for element in entry.icmps or ()
                for field in element.fields
            )
        )
        yield path, action, PeerMatch(icmp=icmp)
        return
    plain = [one for one in entry.toPorts if not looks_into(one)]
    if plain:
        yield path, action, _with_ports(plain)
    for index, one in enumerate(entry.toPorts):
        if looks_into(one):
            yield (*path, "toPorts", index), Action.AUDIT, _with_ports([one])


def _with_ports(elements: Iterable[Any]) -> PeerMatch:
    ranges = (found for element in elements for port in element.ports for found in _port_ranges(port))
    return PeerMatch(ports=tuple(dict.fromkeys(ranges)))


def _port_ranges(port: Any) -> Iterator[tuple[int, int, str]]:  # noqa: ANN401 - a model
    first, last = 0, traffic.MAXIMUM_PORT
    if port.port not in ("", "0"):
        first = traffic.port_number(port.port)
        last = first if port.endPort is None else port.endPort
    for protocol in packets.PORTS if port.protocol == "ANY" else (port.protocol.lower(),):
        yield (first, last, protocol)


def _names_everybody(entry: Any) -> bool:  # noqa: ANN401 - a model
    return "all" in _of(entry, "Entities") or any(one.entity == "all" for one in _of(entry, "Endpoints"))


def _of(entry: Any, what: str) -> list[Any]:  # noqa: ANN401 - a model
    """Give the peers of one of an entry's lists, which are named by the direction: ``fromCIDR``, ``toCIDR``."""
    written = (getattr(entry, f"{direction}{what}", None) for direction in ("from", "to"))
    return next((peers for peers in written if peers is not None), [])


def _peers(entry: Any, namespace: str | None) -> tuple[list[tuple[str, list[str]]], list[PeerGroup]] | None:  # noqa: ANN401
    """Give the networks and groups that an entry is about; None where it is about any peer.

    ``namespace`` is that of the policy, "" the default one, None where it has none.
    """
    lists = entry.model_fields_set - {"toPorts", "icmps"}
    if not lists or _names_everybody(entry):
        return None
    blocks: list[tuple[str, list[str]]] = [(cidr, []) for cidr in _of(entry, "CIDR")]
    blocks += [(block.cidr, block.except_) for block in _of(entry, "CIDRSet")]
    entities = [*_of(entry, "Entities"), *(one.entity for one in _of(entry, "Endpoints") if one.entity is not None)]
    groups = [PeerGroup("entity", entity) for entity in entities if entity != "none"]
    groups += [
        PeerGroup.of_workloads(_workloads(one, namespace)) for one in _of(entry, "Endpoints") if one.entity is None
    ]
    groups += [
        PeerGroup("name", value)
        for names in _of(entry, "FQDNs")
        for value in (names.matchName, names.matchPattern)
        if value is not None
    ]
    return blocks, groups


def _workloads(endpoints: Any, namespace: str | None) -> PeerSelector:  # noqa: ANN401 - a model
    of_pods, of_namespaces = of_pods_and_namespaces(endpoints)
    if of_namespaces or namespace is None:
        return PeerSelector(of_pods, namespace_labels=of_namespaces)
    return PeerSelector(of_pods, namespaces=(namespace or DEFAULT_NAMESPACE,))
