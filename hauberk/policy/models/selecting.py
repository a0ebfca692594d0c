# SPDX-License-Identifier: Apache-2.0
"""Selectors as documents write them: of containers, of namespaces, of hosts."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from hauberk.policy import selectors
from hauberk.policy.models.base import NULL_IS_ABSENT, Strict, refuse, shown
from hauberk.policy.models.values import LabelPair, check_label_pair


def _nothing_for_null(value: object) -> object:
    return [] if value is None else value


_NULL_IS_EMPTY = BeforeValidator(_nothing_for_null)


def _check_ordinary(pair: str, index: int) -> None:
    """Refuse the special label in an expression: no container has it, so the policy would cover none."""
    if pair.partition("=")[0] == selectors.CONTAINER_NAME_LABEL:
        refuse(
            "a label that containers have",
            "Write it in matchLabels, where it stands for the container's name",
            shown(pair),
            ("values", index),
        )


class MatchExpression(Strict):
    """One element of ``matchExpressions`` for containers."""

    key: Literal["label"]
    operator: Literal["In", "NotIn"]
    values: Annotated[list[LabelPair], Field(min_length=1)]

    @model_validator(mode="after")
    def _labels_alone(self) -> Self:
        for index, value in enumerate(self.values):
            _check_ordinary(value, index)
        return self


class ClusterExpression(Strict):
    """One element of ``matchExpressions`` of a cluster policy: namespaces, or labels as ``key=value``."""

    key: Literal["namespace", "label"]
    operator: Literal["In", "NotIn"]
    values: Annotated[list[str], Field(min_length=1)]

    @model_validator(mode="after")
    def _values_fit_the_key(self) -> Self:
        for index, value in enumerate(self.values):
            if self.key == "label":
                check_label_pair(value, ("values", index))
                _check_ordinary(value, index)
            elif not selectors.is_name(value):
                refuse(
                    "the name of a namespace", "Write the name, or use the key label", shown(value), ("values", index)
                )
        return self


def _check_container_name(value: str) -> None:
    try:
        selectors.check_container_name(value)
    except selectors.ExpressionError as error:
        refuse(
            "a list '[a, b]' of container names or a regular expression",
            f"It has {error.message}",
            shown(value),
            ("matchLabels", selectors.CONTAINER_NAME_LABEL),
        )


def _check_host_expression(label: str, value: str) -> None:
    try:
        selectors.parse_host_expression(value)
    except selectors.ExpressionError as error:
        refuse(
            "a regular expression in which '*' stands for anything",
            f"It has {error.message}",
            shown(value),
            ("matchLabels", label),
        )


class SelectorModel(Strict):
    """``spec.selector`` of container policies. One that selects by nothing covers the policy's namespace."""

    matchLabels: dict[str, str] = {}
    matchExpressions: Annotated[list[MatchExpression], _NULL_IS_EMPTY, NULL_IS_ABSENT] = []

    @model_validator(mode="after")
    def _usable_name(self) -> Self:
        name = self.matchLabels.get(selectors.CONTAINER_NAME_LABEL)
        if name is not None:
            _check_container_name(name)
        return self


class ClusterSelector(Strict):
    """``spec.selector`` of cluster policies. Without expressions it covers all namespaces."""

    matchExpressions: Annotated[list[ClusterExpression], _NULL_IS_EMPTY, NULL_IS_ABSENT] = []


class NodeSelector(Strict):
    """``spec.nodeSelector``: hosts by their labels."""

    matchLabels: dict[str, str]

    @model_validator(mode="after")
    def _selects_something(self) -> Self:
        if not self.matchLabels:
            refuse(
                "at least one label",
                'Name the hosts that the policy covers; for every host write kubearmor.io/hostname: "*"',
                "a selector that selects by nothing",
            )
        for label in selectors.HOST_NAME_LABELS:
            value = self.matchLabels.get(label)
            if value is not None and not all(name.strip() for name in value.split(",")):
                refuse(
                    "host names with commas between them, or '*'",
                    "Remove the comma that stands before nothing, or write a name",
                    shown(value),
                    ("matchLabels", label),
                )
        for label in selectors.HOST_EXPRESSION_LABELS:
            if label in self.matchLabels:
                _check_host_expression(label, self.matchLabels[label])
        return self
