# SPDX-License-Identifier: Apache-2.0
"""The kinds of policy documents: KubeArmor's four with the sections that their definitions have, and the others."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from hauberk.policy.models.base import NOT_NULL, NULL_IS_ABSENT, Attributes, Strict, refuse
from hauberk.policy.models.cilium import API_VERSION as CILIUM
from hauberk.policy.models.cilium import CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy
from hauberk.policy.models.kubernetes import API_VERSION as KUBERNETES
from hauberk.policy.models.kubernetes import NetworkPolicy
from hauberk.policy.models.metadata import Metadata
from hauberk.policy.models.peers import Egress, Ingress
from hauberk.policy.models.sections import (
    MAXIMUM_RULES,
    CapabilitiesSection,
    DeviceSection,
    FileSection,
    HostNetworkSection,
    NetworkSection,
    Preset,
    ProcessSection,
    SyscallsSection,
)
from hauberk.policy.models.selecting import ClusterSelector, NodeSelector, SelectorModel

API_VERSION = "security.kubearmor.com/v1"


def _some_text(text: str) -> str:
    if not text.strip():
        refuse("lines of an AppArmor profile", "Write them, or remove the field")
    return text


_Presets = Annotated[list[Preset], Field(min_length=1, max_length=MAXIMUM_RULES)]


class _Spec(Attributes):
    """Sections that container, cluster and host policies share."""

    process: Annotated[ProcessSection | None, NOT_NULL] = None
    file: Annotated[FileSection | None, NOT_NULL] = None
    capabilities: Annotated[CapabilitiesSection | None, NOT_NULL] = None
    syscalls: Annotated[SyscallsSection | None, NOT_NULL] = None
    apparmor: Annotated[Annotated[str, AfterValidator(_some_text)] | None, NOT_NULL] = None

    @model_validator(mode="after")
    def _some_section(self) -> Self:
        sections = [
            name for name in type(self).model_fields if name not in Attributes.model_fields and "elector" not in name
        ]
        if all(getattr(self, name) is None for name in sections):
            refuse(f"one of {', '.join(sections)}", "Add rules, or remove the document", "a policy without rules")
        return self


def _rules_required(*names: str) -> ConfigDict:
    """Tell editors that one of these sections must be there."""
    choices: list[Any] = [{"required": [name]} for name in names]
    return ConfigDict(json_schema_extra={"anyOf": choices})


class ContainerSpec(_Spec):
    """``spec`` of a container policy: whom it covers, and its rules."""

    model_config = _rules_required("process", "file", "network", "capabilities", "syscalls", "presets", "apparmor")

    selector: SelectorModel = Field(default_factory=SelectorModel)
    network: Annotated[NetworkSection | None, NOT_NULL] = None
    presets: Annotated[_Presets | None, NOT_NULL] = None


class HostSpec(_Spec):
    """``spec`` of a host policy."""

    model_config = _rules_required("process", "file", "network", "capabilities", "syscalls", "device", "apparmor")

    nodeSelector: NodeSelector
    network: Annotated[HostNetworkSection | None, NOT_NULL] = None
    device: Annotated[DeviceSection | None, NOT_NULL] = None


def _nothing_for_null(value: object) -> object:
    return {} if value is None else value


class ClusterSpec(_Spec):
    """``spec`` of a cluster policy."""

    model_config = _rules_required("process", "file", "network", "capabilities", "syscalls", "presets", "apparmor")

    selector: Annotated[ClusterSelector, BeforeValidator(_nothing_for_null), NULL_IS_ABSENT] = Field(
        default_factory=ClusterSelector
    )
    network: Annotated[NetworkSection | None, NOT_NULL] = None
    presets: Annotated[_Presets | None, NOT_NULL] = None


class NetworkSpec(Attributes):
    """``spec`` of a network policy: packets of hosts, or with ``selector`` quotas of containers."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                {"oneOf": [{"required": ["nodeSelector"]}, {"required": ["selector"]}]},
                {
                    "anyOf": [
                        {"required": [name], "properties": {name: {"minItems": 1}}} for name in ("ingress", "egress")
                    ]
                },
            ]
        }
    )

    nodeSelector: Annotated[NodeSelector | None, NOT_NULL] = None
    selector: Annotated[SelectorModel | None, NOT_NULL] = None
    level: Literal["pod", "policy", "Pod", "Policy"] = "pod"
    ingress: Annotated[list[Ingress], Field(max_length=MAXIMUM_RULES)] = []
    egress: Annotated[list[Egress], Field(max_length=MAXIMUM_RULES)] = []

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        if not self.ingress and not self.egress:
            refuse("ingress or egress", "Add entries, or remove the document", "a policy without rules")
        if self.nodeSelector and self._of_containers():
            refuse(
                "one of them: a policy is for hosts or for containers",
                "Remove one, or make two policies",
                "both nodeSelector and selector",
                ("selector",),
            )
        if not self.nodeSelector and not self._of_containers():
            refuse(
                "exactly one of them",
                'For every host write nodeSelector with the label kubearmor.io/hostname: "*"',
                "neither nodeSelector nor selector",
            )
        return self

    @model_validator(mode="after")
    def _containers_have_quotas_alone(self) -> Self:
        entries = (("ingress", self.ingress), ("egress", self.egress)) if self._of_containers() else ()
        for name, of_direction in entries:
            for index, entry in enumerate(of_direction):
                if entry.limit is None:
                    refuse(
                        "limit and duration, as a policy for containers can hold quotas alone",
                        "Add both, or select hosts with nodeSelector",
                        "an entry without a quota",
                        (name, index),
                    )
        return self

    def _of_containers(self) -> bool:
        return self.selector is not None and self.selector != SelectorModel()


class _Document(Strict):
    apiVersion: Literal["security.kubearmor.com/v1"]
    kind: str
    metadata: Metadata
    status: Any = None


class KubeArmorPolicy(_Document):
    """Rules for the containers of a namespace."""

    kind: Literal["KubeArmorPolicy"]
    spec: ContainerSpec


class KubeArmorHostPolicy(_Document):
    """Rules for hosts."""

    kind: Literal["KubeArmorHostPolicy"]
    spec: HostSpec


class KubeArmorClusterPolicy(_Document):
    """Rules for the containers of all namespaces, or of those it selects."""

    kind: Literal["KubeArmorClusterPolicy"]
    spec: ClusterSpec


class KubeArmorNetworkPolicy(_Document):
    """Rules for the packets of hosts, and traffic quotas of containers."""

    kind: Literal["KubeArmorNetworkPolicy"]
    spec: NetworkSpec


PolicyModel = (
    KubeArmorPolicy
    | KubeArmorHostPolicy
    | KubeArmorClusterPolicy
    | KubeArmorNetworkPolicy
    | CiliumNetworkPolicy
    | CiliumClusterwideNetworkPolicy
    | NetworkPolicy
)

_OF_KUBEARMOR = (KubeArmorPolicy, KubeArmorHostPolicy, KubeArmorClusterPolicy, KubeArmorNetworkPolicy)
_OF_CILIUM = (CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy)

KINDS: dict[str, type[PolicyModel]] = {model.__name__: model for model in (*_OF_KUBEARMOR, *_OF_CILIUM, NetworkPolicy)}
"""The kinds of documents by the name that ``kind`` gives."""

API_VERSIONS: dict[str, str] = (
    dict.fromkeys((model.__name__ for model in _OF_KUBEARMOR), API_VERSION)
    | dict.fromkeys((model.__name__ for model in _OF_CILIUM), CILIUM)
    | {NetworkPolicy.__name__: KUBERNETES}
)
"""The ``apiVersion`` of each kind."""

NAMESPACED = frozenset(("KubeArmorPolicy", "CiliumNetworkPolicy", "NetworkPolicy"))
"""Kinds whose documents belong to a namespace; the others belong to a cluster or machine as a whole."""
