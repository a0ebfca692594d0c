# SPDX-License-Identifier: Apache-2.0
"""DSSE envelopes: several people sign one bundle in turn; see also the traps."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.bundle import (
    MalformedSignatureError,
    SignatureError,
    TooFewSignaturesError,
    detached,
    dsse,
    signatures,
)
from hauberk.bundle.keys import Algorithm
from tests.unit.bundle.samples import DATA, OTHER_DATA, a_key, entry, envelope_of

FIRST, SECOND, STRANGER = (a_key(name) for name in ("first", "second", "stranger"))
THIRD = a_key("third", Algorithm.ED25519)
SIGNED_BY_FIRST = envelope_of(entry(FIRST))
KNOWN = (FIRST.public(), SECOND.public(), THIRD.public())


def test_people_sign_in_turn() -> None:
    made = dsse.add_signature(FIRST, DATA)
    with pytest.raises(TooFewSignaturesError):
        signatures.verify_any(KNOWN, 2, DATA, made)
    made = dsse.add_signature(THIRD, DATA, made)
    assert signatures.verify_any(KNOWN, 2, DATA, made) == (FIRST.public(), THIRD.public())
    made = dsse.add_signature(SECOND, DATA, made)
    assert signatures.verify_any(KNOWN, 3, DATA, made) == KNOWN
    assert signatures.verify_any(KNOWN, 1, DATA, made) == KNOWN  # all that signed are named
    assert dsse.add_signature(THIRD, DATA, made) == made


def test_what_is_written_is_what_the_specification_asks_for() -> None:
    document = json.loads(dsse.add_signature(FIRST, DATA))
    assert list(document) == ["payload", "payloadType", "signatures"]
    assert b64decode(document["payload"], validate=True) == DATA
    assert document["payloadType"] == "application/vnd.hauberk.bundle+json"
    (signature,) = document["signatures"]
    assert signature["keyid"] == FIRST.public().fingerprint
    signed = b"DSSEv1 35 application/vnd.hauberk.bundle+json %d " % len(DATA) + DATA
    raw = b64decode(signature["sig"], validate=True)
    assert detached.is_valid(FIRST.public(), signed, raw)


def test_adding_keeps_what_others_wrote() -> None:
    theirs = entry(STRANGER, extension={"kind": "theirs"})
    added = json.loads(dsse.add_signature(FIRST, DATA, envelope_of(theirs, note="kept")))
    assert added["signatures"][0] == theirs
    assert added["note"] == "kept"
    assert len(added["signatures"]) == 2


@pytest.mark.parametrize(
    ("existing", "text"),
    [
        (b"", "no DSSE envelope"),
        (b"MEUCIQ==", "no DSSE envelope"),
        (b"{}", "no DSSE envelope"),
        (b'{"mediaType": "x"}', "no DSSE envelope"),
        (b"{", "no JSON"),
        (dsse.add_signature(FIRST, OTHER_DATA), "expected the very bundle"),
        (envelope_of(*[{"sig": "AAAA"}] * 32), "room for one more"),
        (envelope_of({"sig": ""}), "not base64"),
    ],
)
def test_what_cannot_be_added_to_is_refused(existing: bytes, text: str) -> None:
    with pytest.raises(SignatureError, match=text):
        dsse.add_signature(FIRST, DATA, existing)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'{"payloadType": 1}', "no field payload, signatures"),
        (envelope_of(payloadType=1), "payloadType: found a number"),
        (envelope_of(payload=None), "payload: found null"),
        (envelope_of(payload="é"), "not ASCII"),
        (envelope_of(signatures={}), "signatures: found an object"),
        (envelope_of("x"), "signatures[0]: found a string"),
        (envelope_of({}), "signatures[0]: found no field sig"),
        (envelope_of({"sig": 1}), "signatures[0].sig: found a number"),
        (envelope_of({"sig": "é"}), "signatures[0].sig: found characters"),
        (envelope_of({"sig": "A" * 1025}), "1025 characters"),
        (envelope_of({"sig": "AAAA", "keyid": None}), "keyid: found null"),
        (b"[]", "neither|not base64"),
        (b'{"payload": "", "signatures": []}', "neither mediaType nor payloadType"),
        (b'{"x": {}}', "neither mediaType nor payloadType"),
    ],
)
def test_what_is_not_exactly_that_form_is_malformed(content: bytes, text: str) -> None:
    with pytest.raises(MalformedSignatureError) as caught:
        signatures.verify(FIRST.public(), DATA, content)
    assert any(part in str(caught.value) for part in text.split("|"))


def test_an_envelope_without_signatures_is_signed_by_nobody() -> None:
    with pytest.raises(TooFewSignaturesError, match="with 0 signatures: by 0 of the 1 known keys; expected 1"):
        signatures.verify(FIRST.public(), DATA, envelope_of())


def test_unknown_fields_are_ignored_as_the_specification_asks() -> None:
    extended = envelope_of(entry(FIRST, extension={"ext": [1]}), additional={"a": None})
    signatures.verify(FIRST.public(), DATA, extended)


def test_a_mistake_is_looked_for_among_few_signatures_only() -> None:
    bare = envelope_of(*[{"sig": b64encode(detached.sign(FIRST, DATA)).decode()}] * 32)
    for keys, hinted in (((FIRST.public(),), True), (KNOWN, False)):
        with pytest.raises(TooFewSignaturesError) as caught:
            signatures.verify_any(keys, 1, DATA, bare)
        assert ("signs the bundle itself" in str(caught.value)) is hinted


@given(st.data())
def test_only_distinct_known_keys_count(data: st.DataObject) -> None:
    people = [FIRST, SECOND, THIRD, STRANGER]
    chosen = data.draw(st.lists(st.sampled_from(people), max_size=8))
    known = data.draw(st.lists(st.sampled_from(people), min_size=1, max_size=8))
    distinct = list(dict.fromkeys(key.public() for key in known))
    threshold = data.draw(st.integers(1, len(distinct)))
    content = envelope_of(*(entry(key) for key in chosen))
    expected = tuple(key for key in distinct if key in {signer.public() for signer in chosen})
    if len(expected) >= threshold:
        assert signatures.verify_any([key.public() for key in known], threshold, DATA, content) == expected
    else:
        with pytest.raises(TooFewSignaturesError):
            signatures.verify_any([key.public() for key in known], threshold, DATA, content)


@given(st.data())
def test_any_changed_byte_changes_nothing_or_is_refused(data: st.DataObject) -> None:
    """What may change without harm: white space, the hint, and bits nobody reads. Never who signed what."""
    content = bytearray(SIGNED_BY_FIRST)
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = signatures.verify_any(KNOWN, 1, DATA, bytes(content))
    except SignatureError:
        return
    assert found == (FIRST.public(),)
    before, after = (json.loads(SIGNED_BY_FIRST)[name] for name in ("payload", "payloadType"))
    assert (json.loads(content)["payload"], json.loads(content)["payloadType"]) == (before, after)
