# SPDX-License-Identifier: Apache-2.0
"""NetworkPolicy of ``networking.k8s.io/v1``, with every field of its definition and its checks."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from hauberk.policy import traffic
from hauberk.policy.models.base import NOT_NULL, NULL_IS_ABSENT, Strict, refuse
from hauberk.policy.models.cilium import within
from hauberk.policy.models.labels import LabelSelector
from hauberk.policy.models.metadata import Metadata
from hauberk.policy.models.peers import MAXIMUM_ELEMENTS, MAXIMUM_NETWORKS
from hauberk.policy.models.sections import MAXIMUM_RULES
from hauberk.policy.models.values import Cidr, PortNumber
from hauberk.policy.vocabulary import SERVICES

API_VERSION = "networking.k8s.io/v1"

_NONE_FOR_NULL = BeforeValidator(lambda value: [] if value is None else value)


class KubernetesBlock(Strict):
    """A network without some of its parts."""

    cidr: Cidr
    except_: Annotated[list[Cidr], Field(alias="except", max_length=MAXIMUM_ELEMENTS)] = []

    @model_validator(mode="after")
    def _exceptions_within(self) -> Self:
        within(self.cidr, self.except_, strictly=True)
        return self


class KubernetesPeer(Strict):
    """A network, or pods: of the policy's namespace, or of those that namespaceSelector selects."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    ipBlock: Annotated[KubernetesBlock | None, NOT_NULL] = None
    podSelector: Annotated[LabelSelector | None, NOT_NULL] = None
    namespaceSelector: Annotated[LabelSelector | None, NOT_NULL] = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        selects = self.podSelector is not None or self.namespaceSelector is not None
        if self.ipBlock is not None and selects:
            refuse("ipBlock or selectors", "Make a peer of each", "both", ("ipBlock",))
        if self.ipBlock is None and not selects:
            refuse("ipBlock, podSelector or namespaceSelector", "Write one, or remove the element", "a peer of nothing")
        return self


def _port(value: object) -> str | int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= traffic.MAXIMUM_PORT:
        return value
    if isinstance(value, str) and traffic.is_service(value):
        return value
    if isinstance(value, str) and not value.isdigit():
        advice = "Write the number, without quotes; ports that a pod's own specification names are not known here"
        refuse("a port number or the name of a well-known service", advice, near=(value, SERVICES))
    return refuse(f"a port from 1 to {traffic.MAXIMUM_PORT}, without quotes", "Write the number, without quotes")


class KubernetesPort(Strict):
    """A destination port, a range of them, or all of a protocol."""

    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    port: Annotated[
        str | int | None,
        PlainValidator(_port),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "integer", "minimum": 1, "maximum": traffic.MAXIMUM_PORT},
                    {"type": "string", "pattern": "^[A-Za-z][-A-Za-z0-9]*$"},
                ]
            }
        ),
    ] = None
    endPort: Annotated[PortNumber | None, NOT_NULL] = None

    @model_validator(mode="after")
    def _forwards(self) -> Self:
        if self.endPort is not None:
            if not isinstance(self.port, int):
                refuse(
                    "endPort behind the number of a port", "Write the number as port", f"{self.endPort}", ("endPort",)
                )
            if self.endPort < self.port:
                refuse(f"a port from {self.port} on", "Swap port and endPort", f"{self.endPort}", ("endPort",))
        return self


_Ports = Annotated[list[KubernetesPort], Field(max_length=MAXIMUM_ELEMENTS)]


class KubernetesIngress(Strict):
    """What may come in: from one of the peers, to one of the ports. A list that is empty or absent means any."""

    from_: Annotated[list[KubernetesPeer], Field(alias="from", max_length=MAXIMUM_NETWORKS)] = []
    ports: _Ports = []


class KubernetesEgress(Strict):
    """What may go out: to one of the peers, to one of the ports. A list that is empty or absent means any."""

    to: Annotated[list[KubernetesPeer], Field(max_length=MAXIMUM_NETWORKS)] = []
    ports: _Ports = []


class KubernetesSpec(Strict):
    """``spec``: the pods, the directions in which only what is listed may pass, and the lists."""

    podSelector: LabelSelector = Field(default_factory=LabelSelector)
    policyTypes: Annotated[list[Literal["Ingress", "Egress"]], Field(max_length=2)] = []
    ingress: Annotated[list[KubernetesIngress], _NONE_FOR_NULL, Field(max_length=MAXIMUM_RULES), NULL_IS_ABSENT] = []
    egress: Annotated[list[KubernetesEgress], _NONE_FOR_NULL, Field(max_length=MAXIMUM_RULES), NULL_IS_ABSENT] = []

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions that are lists: as said, else Ingress, and Egress if there are entries for it."""
        return tuple(dict.fromkeys(self.policyTypes)) or (("Ingress", "Egress") if self.egress else ("Ingress",))


class NetworkPolicy(Strict):
    """Rules for the packets of the pods of a namespace."""

    apiVersion: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    metadata: Metadata
    spec: KubernetesSpec
    status: Any = None
