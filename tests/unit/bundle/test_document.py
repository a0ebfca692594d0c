# SPDX-License-Identifier: Apache-2.0
"""The bundle's format: one spelling, strictly read."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.bundle import MalformedBundleError, PolicyFile, canonical, create, document, parse

FILE_NAMES = st.from_regex(r"([a-zé0-9_-]{1,8}/){0,2}[a-zé0-9_-]{1,12}\.ya?ml", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)
POLICIES = st.dictionaries(FILE_NAMES, TEXTS, min_size=1, max_size=5)


def a_bundle(**changes: object) -> dict[str, object]:
    fields: dict[str, object] = {
        "apiVersion": "hauberk/v1",
        "kind": "Bundle",
        "name": "vault",
        "version": 3,
        "default": "deny",
        "posture": {"file": "block"},
        "policies": [{"file": "a.yaml", "text": "x: 1\n"}, {"file": "b.yml", "text": "ü\n"}],
    }
    return {**fields, **changes}


def test_the_bytes_are_exactly_these() -> None:
    data = create("vault", 3, (PolicyFile("b.yml", "ü\n"), PolicyFile("a.yaml", "x: 1\n")))
    assert (
        data
        == (
            '{"apiVersion":"hauberk/v1","default":"deny","kind":"Bundle","name":"vault","policies":'
            '[{"file":"a.yaml","text":"x: 1\\n"},{"file":"b.yml","text":"ü\\n"}],'
            '"posture":{"file":"block"},"version":3}\n'
        ).encode()
    )
    assert parse(data).digest == sha256(data).hexdigest()


@given(POLICIES, st.integers(1, 2**31 - 1), st.sampled_from(document.Default), st.sampled_from(document.Posture))
def test_what_is_written_is_read_back_and_written_alike(
    policies: dict[str, str], version: int, default: document.Default, posture: document.Posture
) -> None:
    files = tuple(PolicyFile(file, text) for file, text in policies.items())
    data = create("a.b-c", version, files, default, posture)
    assert data == create("a.b-c", version, files[::-1], default, posture)
    bundle = parse(data)
    assert (bundle.name, bundle.version, bundle.default, bundle.posture) == ("a.b-c", version, default, posture)
    assert {policy.file: policy.text for policy in bundle.policies} == policies
    assert bundle.encode() == data


@given(st.data())
def test_a_changed_byte_is_refused_or_gives_another_digest_and_no_second_spelling(data: st.DataObject) -> None:
    original = canonical.encode(a_bundle())
    offset = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[offset] ^= data.draw(st.integers(1, 255))
    try:
        bundle = parse(bytes(changed))
    except MalformedBundleError:
        return
    assert bundle.encode() == bytes(changed)
    assert bundle.digest != parse(original).digest


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_as_malformed_and_never_otherwise(data: bytes) -> None:
    with pytest.raises(MalformedBundleError):
        parse(data)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"apiVersion": "hauberk/v2"}, "apiVersion"),
        ({"kind": "TrustRoot"}, "kind"),
        ({"kind": None}, "kind"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"name": ""}, "bundle.name"),
        ({"name": "-a"}, "bundle.name"),
        ({"name": "a\n"}, "bundle.name"),
        ({"name": "A"}, "bundle.name"),
        ({"name": "a" * 64}, "bundle.name"),
        ({"name": 5}, "bundle.name"),
        ({"version": 0}, "bundle.version"),
        ({"version": -1}, "bundle.version"),
        ({"version": 2**31}, "bundle.version"),
        ({"version": True}, "bundle.version"),
        ({"version": "3"}, "bundle.version"),
        ({"default": "block"}, "bundle.default"),
        ({"default": []}, "bundle.default"),
        ({"posture": "block"}, "bundle.posture"),
        ({"posture": {"file": "deny"}}, "bundle.posture.file"),
        ({"posture": {"file": "block", "network": "block"}}, "unknown field 'network'"),
        ({"posture": {}}, "no field file"),
        ({"policies": []}, "0 entries"),
        ({"policies": {}}, "a list"),
        ({"policies": ["x"]}, "policies[0]"),
        ({"policies": [{"file": "a.yaml"}]}, "no field text"),
        ({"policies": [{"file": "a.yaml", "text": 1}]}, "policies[0].text"),
        ({"policies": [{"file": "b.yaml", "text": ""}, {"file": "a.yaml", "text": ""}]}, "sorts after 'b.yaml'"),
        ({"policies": [{"file": "a.yaml", "text": ""}, {"file": "a.yaml", "text": ""}]}, "sorts after 'a.yaml'"),
        ({"policies": [{"file": f"{i:05}.yaml", "text": ""} for i in range(10_001)]}, "10001 entries"),
    ],
)
def test_other_fields_and_values_are_refused_by_name(changes: dict[str, object], text: str) -> None:
    with pytest.raises(MalformedBundleError) as caught:
        parse(canonical.encode(a_bundle(**changes)))
    assert text in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    "file",
    ["", "a", "/a.yaml", "../a.yaml", "a/../b.yaml", "./a.yaml", "a//b.yaml", "a\\b.yaml", "a\n.yaml", "\x1b.yaml",
     "a.YAML", "x" * 1020 + ".yaml"],
)  # fmt: skip
def test_file_names_that_lead_elsewhere_or_cannot_be_shown_are_refused(file: str) -> None:
    with pytest.raises(MalformedBundleError, match=r"policies\[0\]\.file"):
        parse(canonical.encode(a_bundle(policies=[{"file": file, "text": ""}])))


@pytest.mark.parametrize("name", ["a", "0", "a.b", "a" * 63])
def test_good_names_are_accepted(name: str) -> None:
    assert parse(canonical.encode(a_bundle(name=name))).name == name


def test_ten_thousand_policies_are_accepted() -> None:
    policies = [{"file": f"{index:05}.yaml", "text": ""} for index in range(10_000)]
    assert len(parse(canonical.encode(a_bundle(policies=policies))).policies) == 10_000


def test_other_spellings_of_the_same_value_are_refused() -> None:
    value = a_bundle()
    good = canonical.encode(value)
    spellings = [
        good[:-1],
        good + b"\n",
        b" " + good,
        json.dumps(value, sort_keys=True).encode() + b"\n",
        json.dumps(value, separators=(",", ":")).encode() + b"\n",
        json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n",  # \u00fc instead of the letter
        good.replace(b'"vault"', b'"v\\u0061ult"'),
        good.replace(b":3}", b":3.0}"),
        good.replace(b":3}", b":3e0}"),
    ]
    for spelling in spellings:
        with pytest.raises(MalformedBundleError):
            parse(spelling)
    assert parse(good).version == 3


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "empty file"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"a":1,"a":1}', "key 'a' twice"),
        (b'{"a":{"b":1,"b":2}}', "key 'b' twice"),
        (b'{"version":NaN}', "NaN"),
        (b'{"version":-Infinity}', "Infinity"),
        (b'{"version":-0}', "-0"),
        (b'{"version":1e999}', "1e999"),
        (b'{"version":' + b"9" * 5000 + b"}", "5000 digits"),
        (b"[" * 200_000, "nested too deeply"),
        (b"[]", "an object"),
        (b"{} {}", "Extra data"),
        (b'{"a":"\x00"}', "control character"),
    ],
)
def test_bytes_that_parsers_disagree_about_are_refused(data: bytes, text: str) -> None:
    with pytest.raises(MalformedBundleError) as caught:
        parse(data)
    assert text in str(caught.value)


def test_lone_surrogates_are_refused_in_both_directions() -> None:
    with pytest.raises(MalformedBundleError, match="surrogate"):
        create("vault", 1, (PolicyFile("a.yaml", "\ud800"),))
    data = canonical.encode(a_bundle()).replace(b"x: 1", b"\\ud800")
    with pytest.raises(MalformedBundleError, match="surrogate"):
        parse(data)


def test_size_is_bounded_before_anything_is_read() -> None:
    with pytest.raises(MalformedBundleError, match="at most 8388608"):
        parse(b"\xff" * (8 * 1024 * 1024 + 1))
    with pytest.raises(MalformedBundleError, match="at most 8388608"):
        create("vault", 1, (PolicyFile("a.yaml", "x" * (8 * 1024 * 1024)),))


def test_hostile_text_is_quoted_and_cut_short_in_errors() -> None:
    with pytest.raises(MalformedBundleError) as caught:
        parse(canonical.encode(a_bundle(name="\x1b[2J" * 1000)))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300
