# SPDX-License-Identifier: Apache-2.0
"""Label selectors as Kubernetes writes them, and with the keys that Cilium writes in them.

Other than KubeArmor's: an expression is about one label, with values of its own and two operators more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from hauberk.policy import labels
from hauberk.policy.models.base import NULL_IS_ABSENT, Strict, refuse, shown
from hauberk.policy.vocabulary import ENTITIES

if TYPE_CHECKING:
    from hauberk.policy.documents import FieldPath

MAXIMUM_REQUIREMENTS = 256
"""Most expressions of one selector, and values of one expression."""


def _key(key: str) -> str:
    if not labels.is_key(key):
        refuse(
            "the name of a label: letters, digits, '-', '_' and '.', at most 63, behind a domain and '/' if it has one",
            "Write it as `kubectl get --show-labels` does",
            shown(key),
        )
    return key


def _value(value: str) -> str:
    if not labels.is_value(value):
        refuse(
            "the value of a label: at most 63 letters, digits, '-', '_' and '.'",
            "Write it as `kubectl get --show-labels` does",
            shown(value),
        )
    return value


def _key_of_cilium(label: str) -> str:
    source, key = labels.split(label)
    if source == labels.RESERVED:
        if key not in ENTITIES:
            expected = f"one of {', '.join(ENTITIES)} behind reserved:"
            refuse(expected, "Write one of them", shown(label), near=(key, ENTITIES))
        return label
    if source not in labels.SOURCES:
        refuse(
            f"{', '.join(f'{known}:' for known in labels.SOURCES)} or reserved: before the name of a label",
            "Write the name alone",
            shown(label),
        )
    _key(key)
    return label


def _known(label: str, below: FieldPath) -> None:
    """Refuse a label that Cilium makes of what is not known here."""
    what = labels.UNKNOWN.get(labels.split(label)[1])
    if what is not None:
        refuse(
            f"a label that workloads have; {what} is not known to this machine",
            "Select by labels of the pod and of its namespace's name",
            shown(label),
            below,
        )


LabelKey = Annotated[str, AfterValidator(_key), Field(json_schema_extra={"pattern": labels.KEY_PATTERN})]
LabelValue = Annotated[str, AfterValidator(_value), Field(json_schema_extra={"pattern": labels.VALUE_PATTERN})]
CiliumKey = Annotated[str, AfterValidator(_key_of_cilium)]

_EMPTY_FOR_NULL = BeforeValidator(lambda value: {} if value is None else value)
_NONE_FOR_NULL = BeforeValidator(lambda value: [] if value is None else value)
_FEW = Field(max_length=MAXIMUM_REQUIREMENTS)


class _Requirement(Strict):
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: Annotated[list[LabelValue], _FEW] = []

    @model_validator(mode="after")
    def _values_with_in_alone(self) -> Self:
        compares = self.operator in ("In", "NotIn")
        if compares and not self.values:
            refuse(
                f"values with {self.operator}", "Write values, or the operator Exists or DoesNotExist", "none",
                ("values",),
            )  # fmt: skip
        if self.values and not compares:
            refuse(
                f"no values with {self.operator}", "Remove them, or write In or NotIn",
                below=("values",), found=f"{len(self.values)} of them",
            )  # fmt: skip
        return self


class Requirement(_Requirement):
    """What is asked of one label."""

    key: LabelKey


class LabelSelector(Strict):
    """Pods, namespaces or nodes by their labels. One that asks nothing selects all."""

    matchLabels: Annotated[dict[LabelKey, LabelValue], _EMPTY_FOR_NULL, NULL_IS_ABSENT] = {}
    matchExpressions: Annotated[list[Requirement], _NONE_FOR_NULL, _FEW, NULL_IS_ABSENT] = []


class CiliumRequirement(_Requirement):
    """What is asked of one label, which may have its source before its key."""

    key: CiliumKey

    @model_validator(mode="after")
    def _about_what_is_known(self) -> Self:
        if self.operator != "Exists":  # every workload has these labels
            _known(self.key, ("key",))
        return self


class CiliumSelector(Strict):
    """Endpoints or nodes by their labels, which may have their source before their key."""

    matchLabels: Annotated[dict[CiliumKey, LabelValue], _EMPTY_FOR_NULL, NULL_IS_ABSENT] = {}
    matchExpressions: Annotated[list[CiliumRequirement], _NONE_FOR_NULL, _FEW, NULL_IS_ABSENT] = []

    @model_validator(mode="after")
    def _about_what_is_known(self) -> Self:
        for label in self.matchLabels:
            _known(label, ("matchLabels", label))
        return self

    @model_validator(mode="after")
    def _what_is_reserved_is_alone(self) -> Self:
        keys = [*self.matchLabels, *(expression.key for expression in self.matchExpressions)]
        reserved = [key for key in keys if labels.split(key)[0] == labels.RESERVED]
        alone = self.matchLabels if len(keys) == 1 else {}
        if reserved and not (reserved[0] in alone and not alone[reserved[0]]):
            refuse(
                'a label reserved: alone, in matchLabels and with the value ""',
                "Write fromEntities or toEntities, or one selector for each",
                f"{shown(reserved[0])} with conditions",
            )
        return self

    @property
    def entity(self) -> str | None:
        """What is selected if it is no workload: the name behind ``reserved:``."""
        source, key = labels.split(next(iter(self.matchLabels), ""))
        return key if source == labels.RESERVED else None
