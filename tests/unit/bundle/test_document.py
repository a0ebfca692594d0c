# SPDX-License-Identifier: Apache-2.0
"""The bundle's format: one spelling, strictly read."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.bundle import MalformedBundleError, PolicyFile, Posture, canonical, create, document, parse
from hauberk.bundle.terms import FURTHER_POSTURES, NamedKey, SuccessorRule, Target, Terms

FILE_NAMES = st.from_regex(r"([a-zé0-9_-]{1,8}/){0,2}[a-zé0-9_-]{1,12}\.ya?ml", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)
IMAGE, OTHER_IMAGE = f"sha256:{'0' * 64}", f"sha256:{'f' * 64}"
KEY = {"name": "a", "publicKey": f"-----BEGIN PUBLIC KEY-----\n{'A' * 64}\n{'B' * 60}\n-----END PUBLIC KEY-----\n"}
LABELS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=20)
TERMS = st.builds(
    Terms,
    target=st.none()
    | st.builds(
        lambda numbers: Target(image_digests=tuple(f"sha256:{number:064x}" for number in sorted(numbers))),
        st.sets(st.integers(0, 2**256 - 1), min_size=1, max_size=3),
    )
    | st.builds(
        lambda labels: Target(labels=tuple(sorted(labels.items()))),
        st.dictionaries(LABELS, LABELS, min_size=1, max_size=3),
    ),
    successor=st.sampled_from([None, SuccessorRule(), SuccessorRule((NamedKey(KEY["name"], KEY["publicKey"]),), 1)]),
    expires=st.none()
    | st.datetimes(min_value=datetime(2000, 1, 1)).map(lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%SZ")),  # noqa: DTZ001
    postures=st.dictionaries(st.sampled_from(FURTHER_POSTURES), st.sampled_from(Posture)).map(
        lambda found: tuple(sorted(found.items()))
    ),
)
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


@given(POLICIES, st.integers(1, 2**31 - 1), st.sampled_from(document.Default), st.sampled_from(Posture), TERMS)
def test_what_is_written_is_read_back_and_written_alike(
    policies: dict[str, str], version: int, default: document.Default, posture: Posture, terms: Terms
) -> None:
    files = tuple(PolicyFile(file, text) for file, text in policies.items())
    data = create("a.b-c", version, files, default, posture, terms)
    assert data == create("a.b-c", version, files[::-1], default, posture, terms)
    bundle = parse(data)
    assert (bundle.name, bundle.version, bundle.default, bundle.posture) == ("a.b-c", version, default, posture)
    assert bundle.terms == terms
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
        ({"posture": {"file": "block", "network": "deny"}}, "bundle.posture.network"),
        ({"posture": {"file": "block", "usb": "block"}}, "unknown field 'usb'"),
        ({"target": {}}, "bundle.target"),
        ({"target": None}, "bundle.target"),
        ({"target": {"imageDigests": [IMAGE], "labels": {"a": "b"}}}, "bundle.target"),
        ({"target": {"imageDigests": []}}, "bundle.target.imageDigests"),
        ({"target": {"imageDigests": IMAGE}}, "bundle.target.imageDigests"),
        ({"target": {"imageDigests": [IMAGE.upper()]}}, "imageDigests[0]"),
        ({"target": {"imageDigests": [IMAGE + "0"]}}, "imageDigests[0]"),
        ({"target": {"imageDigests": [IMAGE, IMAGE]}}, "imageDigests[1]"),
        ({"target": {"imageDigests": [OTHER_IMAGE, IMAGE]}}, "imageDigests[1]"),
        ({"target": {"labels": {}}}, "bundle.target.labels"),
        ({"target": {"labels": ["a"]}}, "bundle.target.labels"),
        ({"target": {"labels": {"": "b"}}}, "bundle.target.labels"),
        ({"target": {"labels": {"a": 1}}}, "bundle.target.labels"),
        ({"target": {"labels": {"a": "\n"}}}, "bundle.target.labels"),
        ({"successor": None}, "bundle.successor"),
        ({"successor": {}}, "bundle.successor"),
        ({"successor": {"signedBy": "anybody"}}, "bundle.successor.signedBy"),
        ({"successor": {"signedBy": "trustRoot", "threshold": 1}}, "bundle.successor"),
        ({"successor": {"keys": [KEY]}}, "bundle.successor"),
        ({"successor": {"keys": [], "threshold": 1}}, "0 entries"),
        ({"successor": {"keys": KEY, "threshold": 1}}, "bundle.successor.keys"),
        ({"successor": {"keys": [KEY], "threshold": 0}}, "bundle.successor.threshold"),
        ({"successor": {"keys": [KEY], "threshold": 2}}, "bundle.successor.threshold"),
        ({"successor": {"keys": [KEY], "threshold": True}}, "bundle.successor.threshold"),
        ({"successor": {"keys": [KEY], "threshold": "1"}}, "bundle.successor.threshold"),
        ({"successor": {"keys": [KEY, KEY], "threshold": 1}}, "keys[1].name"),
        ({"successor": {"keys": [KEY, {**KEY, "name": "b"}], "threshold": 1}}, "the same key as 'a'"),
        ({"successor": {"keys": [{"name": "a"}], "threshold": 1}}, "keys[0]"),
        ({"successor": {"keys": [{**KEY, "name": 1}], "threshold": 1}}, "keys[0].name"),
        ({"successor": {"keys": [{**KEY, "publicKey": "x"}], "threshold": 1}}, "keys[0].publicKey"),
        ({"successor": {"keys": [{**KEY, "publicKey": KEY["publicKey"] + "\n"}], "threshold": 1}}, "publicKey"),
        ({"successor": {"keys": [{**KEY, "extra": 1}], "threshold": 1}}, "keys[0]"),
        ({"expires": None}, "bundle.expires"),
        ({"expires": 1}, "bundle.expires"),
        ({"expires": "2027-02-30T00:00:00Z"}, "bundle.expires"),
        ({"expires": "2027-02-03T00:00:00+00:00"}, "bundle.expires"),
        ({"expires": "2027-02-03T00:00:00.5Z"}, "bundle.expires"),
        ({"expires": "2027-02-03"}, "bundle.expires"),
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


def test_the_optional_fields_have_these_bytes() -> None:
    terms = Terms(
        target=Target(image_digests=(OTHER_IMAGE, IMAGE)),
        successor=SuccessorRule((NamedKey(KEY["name"], KEY["publicKey"]),), 1),
        expires="2027-01-31T00:00:00Z",
        postures=(("network", Posture.AUDIT),),
    )
    data = create("vault", 3, (PolicyFile("a.yaml", ""),), conditions=terms)
    found = json.loads(data)
    assert found["target"] == {"imageDigests": [IMAGE, OTHER_IMAGE]}
    assert found["successor"] == {"keys": [KEY], "threshold": 1}
    assert (found["expires"], found["posture"]) == ("2027-01-31T00:00:00Z", {"file": "block", "network": "audit"})
    assert json.loads(create("vault", 3, (PolicyFile("a.yaml", ""),), conditions=Terms(successor=SuccessorRule())))[
        "successor"
    ] == {"signedBy": "trustRoot"}


def test_expiry_is_compared_with_a_clock_that_is_given() -> None:
    terms = Terms(expires="2027-01-31T00:00:00Z")
    assert not terms.expired(datetime(2027, 1, 30, 23, 59, 59, tzinfo=UTC))
    assert terms.expired(datetime(2027, 1, 31, tzinfo=UTC))
    assert not Terms().expired(datetime(2027, 1, 31, tzinfo=UTC))


def test_a_rule_is_said_in_words() -> None:
    assert "trust root" in SuccessorRule().describe()
    assert "1 of 1 keys: a" in SuccessorRule((NamedKey(KEY["name"], KEY["publicKey"]),), 1).describe()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_json_cannot_say_is_not_written(number: float) -> None:
    with pytest.raises(MalformedBundleError, match="no form for"):
        canonical.encode({"a": number})
