# SPDX-License-Identifier: Apache-2.0
"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy: what they say of addresses, ports and types of ICMP.

What Cilium's definition of these kinds has, less what only a cluster can know (services, groups of a cloud, nodes by
their labels, authentication), which is refused with what to write instead
(:mod:`hauberk.policy.models.messages`). What is about the content of connections is read, since a policy that only
audits may hold it (:mod:`hauberk.policy.models.remarks`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from hauberk.policy import cilium, labels, traffic
from hauberk.policy.models.base import NOT_NULL, Strict, refuse, shown
from hauberk.policy.models.labels import CiliumSelector
from hauberk.policy.models.metadata import Metadata
from hauberk.policy.models.peers import MAXIMUM_ELEMENTS, MAXIMUM_NETWORKS
from hauberk.policy.models.sections import MAXIMUM_RULES, one_of
from hauberk.policy.models.values import Cidr, PortNumber, in_editors
from hauberk.policy.rules import NAMESPACE_NAME_LABEL
from hauberk.policy.selectors import HOST_NAME_LABELS
from hauberk.policy.vocabulary import ENTITIES, ICMP_TYPES, PORTLESS_PROTOCOLS, SERVICES

API_VERSION = "cilium.io/v2"

_Many = Field(max_length=MAXIMUM_ELEMENTS)
_Some = Field(min_length=1, max_length=MAXIMUM_ELEMENTS)
_Networks = Field(max_length=MAXIMUM_NETWORKS)
_Free = dict[str, Any]


def _port(text: str) -> str:
    if text in ("", "0"):
        return text
    try:
        traffic.port_number(text)
    except traffic.TrafficError as error:
        refuse(error.expected, error.advice, near=(text, SERVICES))
    return text


class CiliumPort(Strict):
    """A destination port or a range of them, ``"0"`` for all; or a protocol without ports."""

    port: Annotated[str, AfterValidator(_port), in_editors(pattern="^(|0|[1-9][0-9]{0,4}|[A-Za-z][-A-Za-z0-9]*)$")] = ""
    endPort: Annotated[PortNumber | None, NOT_NULL] = None
    protocol: Literal["TCP", "UDP", "SCTP", "ANY", "VRRP", "IGMP", "GRE", "IPIP", "IPV6", "ESP", "AH"] = "ANY"

    @model_validator(mode="after")
    def _fits_the_protocol(self) -> Self:
        portless = self.protocol in PORTLESS_PROTOCOLS
        if portless and self.port not in ("", "0"):
            refuse(f'"0", as {self.protocol} has no ports', "Remove the port", shown(self.port), ("port",))
        if not portless and not self.port:
            found = "none" if "port" not in self.model_fields_set else '""'
            refuse("a port", 'Write a number in quotes, or "0" for all', found, ("port",))
        if self.endPort is not None:
            if self.port in ("", "0") or traffic.is_service(self.port):
                refuse(
                    "endPort behind the number of a port", "Write the number as port", f"{self.endPort}", ("endPort",)
                )
            if self.endPort < traffic.port_number(self.port):
                refuse(f"a port from {self.port} on", "Swap port and endPort", f"{self.endPort}", ("endPort",))
        return self


def _some_name(name: str) -> str:
    try:
        return traffic.domain_name(name)
    except traffic.TrafficError as error:
        refuse(error.expected, error.advice)


def _some_pattern(pattern: str) -> str:
    try:
        return traffic.domain_pattern(pattern)
    except traffic.TrafficError as error:
        refuse(error.expected, error.advice)


class Names(Strict):
    """Domain names: one, or those of a pattern; with both, either."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    matchName: Annotated[Annotated[str, AfterValidator(_some_name)] | None, NOT_NULL] = None
    matchPattern: Annotated[Annotated[str, AfterValidator(_some_pattern)] | None, NOT_NULL] = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.matchName is None and self.matchPattern is None:
            refuse("matchName or matchPattern", "Name what is meant", "neither")
        return self


class Content(Strict):
    """What may pass within a connection. Taken of policies that audit alone, but for ``dns`` that restricts nothing."""

    http: Annotated[Annotated[list[_Free], _Many] | None, NOT_NULL] = None
    kafka: Annotated[Annotated[list[_Free], _Many] | None, NOT_NULL] = None
    dns: Annotated[Annotated[list[Names], _Many] | None, NOT_NULL] = None
    l7proto: Annotated[str | None, NOT_NULL] = None
    l7: Annotated[Annotated[list[_Free], _Many] | None, NOT_NULL] = None

    @property
    def restricts(self) -> bool:
        """Whether some connection to the port would not be allowed."""
        others = (self.http, self.kafka, self.l7proto, self.l7)
        return any(other is not None for other in others) or (
            self.dns is not None and all(names.matchPattern != "*" for names in self.dns)
        )


class CiliumPorts(Strict):
    """Ports, one of which must be the destination's, and what may pass within the connection."""

    ports: Annotated[list[CiliumPort], _Some]
    rules: Annotated[Content | None, NOT_NULL] = None
    serverNames: Annotated[Annotated[list[str], _Many] | None, NOT_NULL] = None
    terminatingTLS: Annotated[_Free | None, NOT_NULL] = None
    originatingTLS: Annotated[_Free | None, NOT_NULL] = None
    listener: Annotated[_Free | None, NOT_NULL] = None


class CiliumDeniedPorts(Strict):
    """Ports of a rule that denies."""

    ports: Annotated[list[CiliumPort], _Some]


def _icmp_type(value: object) -> str | int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        refuse("a number or the name of a type of ICMP", "Write a number from 0 to 255, or a name such as EchoRequest")
    return value


class IcmpField(Strict):
    """A type of ICMP, or with the family IPv6 of ICMPv6."""

    family: Literal["IPv4", "IPv6"] = "IPv4"
    type: Annotated[
        str | int,
        PlainValidator(_icmp_type),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "integer", "minimum": 0, "maximum": 255},
                    {"type": "string", "pattern": "^[0-9]{1,3}$"},
                    {"enum": sorted(ICMP_TYPES[4] | ICMP_TYPES[6])},
                ]
            }
        ),
    ]

    @model_validator(mode="after")
    def _known(self) -> Self:
        try:
            traffic.icmp_type(int(self.family[-1]), self.type)
        except traffic.TrafficError as error:
            names = ICMP_TYPES[int(self.family[-1])]
            refuse(error.expected, error.advice, shown(self.type), ("type",), (str(self.type), names))
        return self


class Icmp(Strict):
    """Types of ICMP, one of which must be the packet's."""

    fields: Annotated[list[IcmpField], _Some]


class CidrRule(Strict):
    """A network without some of its parts."""

    cidr: Cidr
    except_: Annotated[list[Cidr], _Many, Field(alias="except")] = []

    @model_validator(mode="after")
    def _exceptions_within(self) -> Self:
        within(self.cidr, self.except_)
        return self


def within(cidr: str, exceptions: list[str], *, strictly: bool = False) -> None:
    """Refuse an exception that is no part of its network, or with ``strictly`` all of it."""
    for index, text in enumerate(exceptions):
        whole, part = traffic.network(cidr), traffic.network(text)
        if not traffic.holds(whole, part) or (strictly and part == whole):
            refuse(f"a part of {whole}", "Write a network inside of it", shown(text), ("except", index))


_Selectors = Annotated[Annotated[list[CiliumSelector], _Many] | None, NOT_NULL]
_Cidrs = Annotated[Annotated[list[Cidr], _Networks] | None, NOT_NULL]
_CidrRules = Annotated[Annotated[list[CidrRule], _Networks] | None, NOT_NULL]
_Entities = Annotated[Annotated[list[Literal[ENTITIES]], _Many] | None, NOT_NULL]  # type: ignore[valid-type] # data
_Icmps = Annotated[Annotated[list[Icmp], _Some] | None, NOT_NULL]


class _Entry(Strict):
    """What all entries share: of the lists of peers there is one, and ports or types of ICMP."""

    icmps: _Icmps = None

    @model_validator(mode="after")
    def _one_list_of_peers(self) -> Self:
        written = [name for name in type(self).model_fields if name in self.model_fields_set]
        peers = [name for name in written if name not in ("toPorts", "icmps")]
        if len(peers) > 1:
            refuse(
                "one list of peers in an entry, as with Cilium",
                "Make an entry of each: entries allow what any of them does",
                f"{' and '.join(peers)}",
                (peers[1],),
            )
        if {"toPorts", "icmps"} <= set(written):
            refuse("toPorts or icmps in an entry, as with Cilium", "Make an entry of each", "both", ("icmps",))
        return self


class _FromPeers(_Entry):
    fromEndpoints: _Selectors = None
    fromCIDR: _Cidrs = None
    fromCIDRSet: _CidrRules = None
    fromEntities: _Entities = None


class _ToPeers(_Entry):
    toEndpoints: _Selectors = None
    toCIDR: _Cidrs = None
    toCIDRSet: _CidrRules = None
    toEntities: _Entities = None


class CiliumIngress(_FromPeers):
    """What may come in: from one of the peers, to one of the ports. An entry that names neither allows nothing."""

    toPorts: Annotated[Annotated[list[CiliumPorts], _Some] | None, NOT_NULL] = None


class CiliumIngressDeny(_FromPeers):
    """What may not come in, whatever allows it."""

    toPorts: Annotated[Annotated[list[CiliumDeniedPorts], _Some] | None, NOT_NULL] = None


class CiliumEgress(_ToPeers):
    """What may go out: to one of the peers, to one of the ports. An entry that names neither allows nothing."""

    toFQDNs: Annotated[Annotated[list[Names], _Some] | None, NOT_NULL] = None
    toPorts: Annotated[Annotated[list[CiliumPorts], _Some] | None, NOT_NULL] = None


class CiliumEgressDeny(_ToPeers):
    """What may not go out, whatever allows it."""

    toPorts: Annotated[Annotated[list[CiliumDeniedPorts], _Some] | None, NOT_NULL] = None


class DefaultDeny(Strict):
    """Whether what nothing allows is refused. Not said: where the policy has entries for the direction."""

    ingress: Annotated[bool | None, NOT_NULL] = None
    egress: Annotated[bool | None, NOT_NULL] = None


class RuleLabel(Strict):
    """A label of the policy itself, which has no meaning here."""

    key: str
    value: str = ""
    source: str = ""


class Log(Strict):
    """What is said in alerts."""

    value: str


class _Spec(Strict):
    ingress: Annotated[list[CiliumIngress], Field(max_length=MAXIMUM_RULES)] = []
    ingressDeny: Annotated[list[CiliumIngressDeny], Field(max_length=MAXIMUM_RULES)] = []
    egress: Annotated[list[CiliumEgress], Field(max_length=MAXIMUM_RULES)] = []
    egressDeny: Annotated[list[CiliumEgressDeny], Field(max_length=MAXIMUM_RULES)] = []
    enableDefaultDeny: DefaultDeny = Field(default_factory=DefaultDeny)
    description: str = ""
    labels: Annotated[list[RuleLabel], _Many] = []
    log: Annotated[Log | None, NOT_NULL] = None

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        entries = self.ingress or self.ingressDeny or self.egress or self.egressDeny
        if not entries and not self.enableDefaultDeny.ingress and not self.enableDefaultDeny.egress:
            refuse(
                "entries of ingress, egress, ingressDeny or egressDeny",
                "To refuse all, write an entry {} that allows nothing, such as 'ingress: [{}]'",
                "a policy without rules, which does nothing",
            )
        return self


def _selects_workloads(selector: CiliumSelector) -> CiliumSelector:
    if selector.entity is not None:
        refuse("labels that workloads have", "Select workloads by their labels", shown(f"reserved:{selector.entity}"))
    of_namespaces = cilium.of_pods_and_namespaces(selector)[1]
    for asked in of_namespaces:
        if asked.key != NAMESPACE_NAME_LABEL:
            refuse(
                f"labels of pods, and of their namespace {NAMESPACE_NAME_LABEL} alone",
                "Name the namespaces, as the labels of namespaces are not known to this machine",
                shown(labels.NAMESPACE_LABELS + asked.key),
            )
    if cilium.admitted_namespaces(of_namespaces) == ():
        refuse("a namespace that all conditions admit", "Correct the conditions on namespaces", "none")
    return selector


def _selects_hosts(selector: CiliumSelector) -> CiliumSelector:
    if cilium.of_pods_and_namespaces(_selects_workloads(selector))[1]:
        refuse("labels of hosts, which are in no namespace", "Remove the condition on namespaces", "one of namespaces")
    for index, expression in enumerate(selector.matchExpressions):
        if labels.split(expression.key)[1] in HOST_NAME_LABELS and expression.operator != "In":
            below = ("matchExpressions", index, "operator")
            refuse("In with a host's name", "List the hosts that are meant", shown(expression.operator), below)
    return selector


_Workloads = Annotated[CiliumSelector, AfterValidator(_selects_workloads)]
_Hosts = Annotated[CiliumSelector, AfterValidator(_selects_hosts)]


class CiliumSpec(_Spec):
    """``spec``, or one of ``specs``, of a policy of a namespace."""

    endpointSelector: _Workloads


class CiliumClusterwideSpec(_Spec):
    """``spec``, or one of ``specs``, of a policy of no namespace: for workloads, or with nodeSelector for hosts."""

    model_config = one_of("endpointSelector", "nodeSelector")

    endpointSelector: Annotated[_Workloads | None, NOT_NULL] = None
    nodeSelector: Annotated[_Hosts | None, NOT_NULL] = None

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        if (self.endpointSelector is None) == (self.nodeSelector is None):
            refuse(
                "one of them: a policy is for workloads or for hosts",
                "Write endpointSelector: {} for all workloads, nodeSelector: {} for all hosts",
                "both endpointSelector and nodeSelector"
                if self.nodeSelector is not None
                else "neither endpointSelector nor nodeSelector",
                ("nodeSelector",) if self.nodeSelector is not None else (),
            )
        return self


class _Document(Strict):
    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["spec"]}, {"required": ["specs"]}]})

    apiVersion: Literal["cilium.io/v2"]
    kind: str
    metadata: Metadata
    status: Any = None

    @model_validator(mode="after")
    def _some_spec(self) -> Self:
        if getattr(self, "spec", None) is None and getattr(self, "specs", None) is None:
            refuse("the field 'spec' or 'specs'", "Add one", "neither spec nor specs")
        return self


_Several = Field(min_length=1, max_length=MAXIMUM_ELEMENTS)


class CiliumNetworkPolicy(_Document):
    """Rules for the packets of the workloads of a namespace."""

    kind: Literal["CiliumNetworkPolicy"]
    spec: Annotated[CiliumSpec | None, NOT_NULL] = None
    specs: Annotated[Annotated[list[CiliumSpec], _Several] | None, NOT_NULL] = None


class CiliumClusterwideNetworkPolicy(_Document):
    """Rules for the packets of workloads of all namespaces, or of hosts."""

    kind: Literal["CiliumClusterwideNetworkPolicy"]
    spec: Annotated[CiliumClusterwideSpec | None, NOT_NULL] = None
    specs: Annotated[Annotated[list[CiliumClusterwideSpec], _Several] | None, NOT_NULL] = None
