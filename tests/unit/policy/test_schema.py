# SPDX-License-Identifier: Apache-2.0
"""The schema for editors agrees with the models: it accepts what they accept, and refuses typing errors."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from hauberk.policy import documents, models, schema
from hauberk.policy.models.messages import fields_at
from tests.tools.facts import document_of
from tests.unit.policy.documents_of_each_kind import ALL, CILIUM, KUBERNETES, NETWORK
from tests.unit.policy.test_models_mutations import a_document_and, fields, owner_and_name
from tests.unit.policy.test_published import FACTS

if TYPE_CHECKING:
    from hauberk.policy.documents import FieldPath

SCHEMA = schema.policy_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
EXAMPLES = sorted((Path(__file__).parents[3] / "examples").rglob("*.yaml"))


def accepts(value: object) -> bool:
    return VALIDATOR.is_valid(value)


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(schema.policy_schema_text()) == SCHEMA
    assert schema.policy_schema_text() == schema.policy_schema_text()


@pytest.mark.parametrize("text", ALL)
def test_every_field_of_every_kind_is_accepted(text: str) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(text))] == []


def test_published_policies_are_accepted_and_those_that_are_refused_are_not() -> None:
    for number, fact in enumerate(FACTS):
        assert accepts(document_of(fact, number)) == ("odd" not in fact), fact


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.name))
def test_examples_are_accepted(path: Path) -> None:
    found = documents.read(path.read_bytes(), str(path), [])
    assert found
    policies = [document.value for document in found if models.check(document)[0]]
    assert len(policies) == len(found)
    assert all(accepts(policy) for policy in policies)


@given(a_document_and(), st.sampled_from(["x", "_", "S"]))
def test_a_misspelt_field_is_refused(mutated: tuple[dict[str, Any], FieldPath], suffix: str) -> None:
    document, path = mutated
    owner, name = owner_and_name(document, path)
    owner[name + suffix] = owner.pop(name)
    assert not accepts(document)


@given(a_document_and(), st.sampled_from([1.5, [["x"]], {"unheardOf": "y"}, None]))
def test_what_the_schema_refuses_the_models_refuse(mutated: tuple[dict[str, Any], FieldPath], value: object) -> None:
    document, path = mutated
    owner, name = owner_and_name(document, path)
    owner[name] = value
    policies, _ = models.examine([("p.yaml", json.dumps(document).encode())])
    assert accepts(document) == bool(policies)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("action", "block"), ("severity", 11), ("path", "relative"), ("path", "/x/"), ("dir", "relative/"),
        ("execname", "bin/sh"), ("protocol", "tpc"), ("protocol", "tcp,"), ("capability", "CAP_CHOWN"),
        ("syscall", ["opne"]), ("name", "no preset"), ("class", ""), ("subClass", 256), ("level", 0),
        ("cidr", "localhost"), ("endPort", 65536), ("iface", ["a/b"]), ("limit", "5TB"),
        ("duration", "5"), ("apiVersion", "v1"), ("kind", "Pod"), ("operator", "in"), ("allowedArgs", ["x"] * 21),
        ("pattern", "relative*"), ("type", 256), ("type", "Ecko"), ("family", "IPv5"), ("fromEntities", ["hots"]),
        ("policyTypes", ["ingress"]), ("toPorts", []), ("icmps", []), ("toFQDNs", [{}]), ("specs", []),
        ("nodeSelector", None), ("port", ["443"]),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused(field: str, value: object) -> None:
    refuses(field, value, ALL)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("port", "0", NETWORK), ("port", 443, NETWORK), ("from", [], NETWORK), ("port", 443, CILIUM),
        ("port", "1-2", CILIUM), ("port", "443", KUBERNETES), ("port", 0, KUBERNETES), ("from", [{}], KUBERNETES),
        ("protocol", "ANY", KUBERNETES), ("protocol", "tcp", CILIUM), ("apiVersion", "cilium.io/v2", KUBERNETES),
    ],
)  # fmt: skip
def test_a_value_that_one_kind_does_not_take_is_refused(field: str, value: object, text: str) -> None:
    refuses(field, value, (text,))


def refuses(field: str, value: object, texts: tuple[str, ...]) -> None:
    tried = 0
    for text in texts:
        plain = yaml.safe_load(text)
        for path in fields(plain):
            if path[-1] == field and not (value == "/x/" and "syscalls" in path):  # these may name directories
                document = copy.deepcopy(plain)
                owner, name = owner_and_name(document, path)
                if type(owner[name]) is type(value) or field in ("port", "from", "type", "nodeSelector"):
                    owner[name] = value
                    assert not accepts(document), path
                    tried += 1
    assert tried


def test_fields_are_described() -> None:
    named = {name for kind in models.KINDS for path in _mappings(kind) for name in fields_at(models.KINDS[kind], path)}
    assert set(schema._DESCRIPTIONS) <= named  # noqa: SLF001 - a description of a field that is gone is a mistake


def _mappings(kind: str) -> list[FieldPath]:
    documents_of_kind = [plain for text in ALL if (plain := yaml.safe_load(text))["kind"] == kind]
    return [path[:-1] for plain in documents_of_kind for path in fields(plain)]
