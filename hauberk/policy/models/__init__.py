# SPDX-License-Identifier: Apache-2.0
"""Policy documents as strict models; every refusal with its place.

The models accept what KubeArmor's custom resource definitions accept for its four kinds, what Cilium's accept for its
two below the content of connections, and Kubernetes' own NetworkPolicy; without coercion and without unknown fields.
:mod:`~hauberk.policy.models.tolerances` tells the few things accepted beyond. Everything known is parsed, enforced or
not: what no engine can hold is said where a bundle is activated, which knows the engines.

This package imports pydantic, which is large: import it where a document is read, not at start-up.
"""

from __future__ import annotations

from hauberk.policy.models.cilium import CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy
from hauberk.policy.models.kinds import (
    API_VERSION,
    API_VERSIONS,
    KINDS,
    NAMESPACED,
    KubeArmorClusterPolicy,
    KubeArmorHostPolicy,
    KubeArmorNetworkPolicy,
    KubeArmorPolicy,
    PolicyModel,
)
from hauberk.policy.models.kubernetes import NetworkPolicy
from hauberk.policy.models.loading import Policy, check, examine, load

__all__ = [
    "API_VERSION",
    "API_VERSIONS",
    "KINDS",
    "NAMESPACED",
    "CiliumClusterwideNetworkPolicy",
    "CiliumNetworkPolicy",
    "KubeArmorClusterPolicy",
    "KubeArmorHostPolicy",
    "KubeArmorNetworkPolicy",
    "KubeArmorPolicy",
    "NetworkPolicy",
    "Policy",
    "PolicyModel",
    "check",
    "examine",
    "load",
]
