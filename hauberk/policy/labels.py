# SPDX-License-Identifier: Apache-2.0
"""Labels of Kubernetes, and what Cilium puts before and between them.

Cilium names a label by its source and its key (``k8s:app``), keeps the namespace of a pod and that namespace's own
labels among the pod's, and gives labels to peers that are no pods (``reserved:host``). Here a workload has one set of
labels, whatever told them; so a source that tells labels of workloads is left out, and the others are what they stand
for.
"""

from __future__ import annotations

import re

KEY_PATTERN = r"^([A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
VALUE_PATTERN = "^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
_KEY = re.compile(KEY_PATTERN[1:-1])
_VALUE = re.compile(VALUE_PATTERN[1:-1])

RESERVED = "reserved"
SOURCES = ("k8s", "any", "container")
"""Where Cilium has the labels of workloads from."""
NAMESPACE = "io.kubernetes.pod.namespace"
"""Cilium's label with the namespace of a pod."""
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."
"""What Cilium puts before the labels of a pod's namespace."""
UNKNOWN = {
    "io.cilium.k8s.policy.cluster": "the cluster",
    "io.cilium.k8s.policy.serviceaccount": "the service account",
}
"""Labels that Cilium makes of what is not known here, and of what. It gives them to every workload of a cluster."""


def is_key(text: str) -> bool:
    """Tell whether a label of Kubernetes can be called so: a name, which may have a domain and ``/`` before it."""
    return _KEY.fullmatch(text) is not None


def is_value(text: str) -> bool:
    """Tell whether a label of Kubernetes can have this value; it may be empty."""
    return _VALUE.fullmatch(text) is not None


def split(label: str) -> tuple[str, str]:
    """Give source and key of a label as Cilium writes it; without a source it is from any."""
    source, colon, key = label.partition(":")
    return (source, key) if colon else ("any", label)
