# SPDX-License-Identifier: Apache-2.0
"""``metadata``, which all kinds of documents have."""

from __future__ import annotations

from typing import Any

from hauberk.policy.models.base import Strict
from hauberk.policy.models.values import Name


class Metadata(Strict):
    """``metadata``. What the Kubernetes API server adds is accepted and has no meaning here."""

    name: Name
    namespace: Name = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    creationTimestamp: Any = None
    deletionGracePeriodSeconds: Any = None
    deletionTimestamp: Any = None
    finalizers: Any = None
    generateName: Any = None
    generation: Any = None
    managedFields: Any = None
    ownerReferences: Any = None
    resourceVersion: Any = None
    selfLink: Any = None
    uid: Any = None
