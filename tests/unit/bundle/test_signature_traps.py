# SPDX-License-Identifier: Apache-2.0
"""The ways in which verifiers of signatures have been led astray, one test for each, named after it.

They come from the DSSE specification's warnings, from advisories on other verifiers (a payload of one kind taken for
another, CVE-2022-35929; an envelope about another file than the one given) and from what ``openssl`` does quietly.
"""

from __future__ import annotations

import base64
import json
import subprocess
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from hauberk.bundle import (
    MalformedSignatureError,
    SignatureError,
    SigningKeyError,
    TooFewSignaturesError,
    WrongSignatureError,
    detached,
    document,
    dsse,
    envelope,
    keys,
    signatures,
    sigstore,
)
from hauberk.bundle.keys import Algorithm
from tests.unit.bundle.samples import DATA, OTHER_DATA, P256_ORDER, a_key, entry, envelope_of

if TYPE_CHECKING:
    from pathlib import Path

FIRST, SECOND, STRANGER = (a_key(name) for name in ("first", "second", "stranger"))
EDWARDS = a_key("edwards", Algorithm.ED25519)
KNOWN = (FIRST.public(), SECOND.public())
BOTH = (FIRST.public(), EDWARDS.public())


def twin(signature: bytes) -> bytes:
    """Give the other ECDSA signature that anybody can make from one."""
    r, s = utils.decode_dss_signature(signature)
    return utils.encode_dss_signature(r, P256_ORDER - s)


def forms(key: keys.PrivateKey, data: bytes = DATA) -> list[bytes]:
    """Give a signature in every form."""
    raw = signatures.sign(key, data)
    return [raw, base64.b64encode(raw), sigstore.sign(key, data), dsse.add_signature(key, data)]


@pytest.mark.parametrize("keyid", ["", SECOND.public().fingerprint, "no such key", "\u0000", None])
def test_keyid_is_only_a_hint(keyid: str | None) -> None:
    fields = {} if keyid is None else {"keyid": keyid}
    by_first = {"sig": entry(FIRST)["sig"], **fields}
    assert signatures.verify_any(KNOWN, 1, DATA, envelope_of(by_first)) == (FIRST.public(),)
    by_stranger = {"sig": entry(STRANGER)["sig"], **fields}
    with pytest.raises(TooFewSignaturesError):
        signatures.verify_any(KNOWN, 1, DATA, envelope_of(by_stranger))


def test_one_keyid_under_two_signatures_makes_no_difference() -> None:
    entries = [entry(FIRST, keyid="same"), entry(SECOND, keyid="same")]
    assert signatures.verify_any(KNOWN, 2, DATA, envelope_of(*entries)) == KNOWN


def test_the_algorithm_comes_from_the_key() -> None:
    for key, other in ((FIRST, EDWARDS), (EDWARDS, FIRST)):
        for form in forms(key):
            assert signatures.verify_any(BOTH, 1, DATA, form) == (key.public(),)
            with pytest.raises(SignatureError):
                signatures.verify_any((other.public(),), 1, DATA, form)


@pytest.mark.parametrize("algorithm", ["none", "HS256", "ed25519", "ecdsa-p256"])
def test_an_algorithm_named_by_the_envelope_is_not_heard(algorithm: str) -> None:
    by_first = entry(FIRST, alg=algorithm, scheme=algorithm)
    assert signatures.verify_any(BOTH, 1, DATA, envelope_of(by_first, alg=algorithm)) == (FIRST.public(),)
    worthless = {"sig": base64.b64encode(sha256(DATA).digest()).decode(), "alg": algorithm}
    with pytest.raises(TooFewSignaturesError):
        signatures.verify_any(BOTH, 1, DATA, envelope_of(worthless, alg=algorithm))


def test_lengths_count_bytes() -> None:
    assert dsse.pre_authentication_encoding("é".encode(), "ü/ö") == "DSSEv1 5 ü/ö 2 é".encode()
    assert dsse.pre_authentication_encoding(b"") == b"DSSEv1 35 application/vnd.hauberk.bundle+json 0 "
    # The specification's own example.
    example = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert dsse.pre_authentication_encoding(b"hello world", "http://example.com/HelloWorld") == example


def test_lengths_keep_type_and_payload_apart() -> None:
    assert dsse.pre_authentication_encoding(b"b c", "a") != dsse.pre_authentication_encoding(b"c", "a b")


@pytest.mark.parametrize("tail", [b"\0", b" x", b"{}", b"\n\n\x00", b"0"])
def test_nothing_may_follow_a_signature(tail: bytes) -> None:
    for key in (FIRST, EDWARDS):
        for form in forms(key):
            with pytest.raises(MalformedSignatureError):
                signatures.verify(key.public(), DATA, form + tail)


@pytest.mark.parametrize("tail", [b"\0", b"0"])
def test_nothing_may_follow_the_signature_in_an_envelope(tail: bytes) -> None:
    for key in (FIRST, EDWARDS):
        made = json.loads(sigstore.sign(key, DATA))
        longer = base64.b64decode(made["messageSignature"]["signature"]) + tail
        made["messageSignature"]["signature"] = base64.b64encode(longer).decode()
        with pytest.raises(MalformedSignatureError):
            signatures.verify(key.public(), DATA, json.dumps(made).encode())
        raw = base64.b64decode(str(entry(key)["sig"])) + tail
        with pytest.raises(TooFewSignaturesError):
            signatures.verify(key.public(), DATA, envelope_of({"sig": base64.b64encode(raw).decode()}))


def test_a_name_twice_in_an_object_is_refused() -> None:
    good = envelope_of(entry(FIRST))
    for name in (b"payload", b"payloadType", b"signatures", b"sig", b"keyid"):
        twice = good.replace(b'"%b":' % name, b'"%b": "", "%b":' % (name, name), 1)
        with pytest.raises(MalformedSignatureError, match="twice"):
            signatures.verify(FIRST.public(), DATA, twice)
    made = sigstore.sign(FIRST, DATA)
    for name in (b"mediaType", b"publicKey", b"hint", b"messageSignature", b"digest", b"signature"):
        twice = made.replace(b'"%b":' % name, b'"%b": "", "%b":' % (name, name), 1)
        with pytest.raises(MalformedSignatureError, match="twice"):
            signatures.verify(FIRST.public(), DATA, twice)


@pytest.mark.parametrize("name", ["Payload", "PAYLOADTYPE", "Signatures", "payloadtype"])
def test_a_name_in_another_case_is_refused(name: str) -> None:
    """Some JSON readers take ``Payload`` for ``payload``, and the last one wins."""
    good = json.loads(envelope_of(entry(FIRST)))
    with pytest.raises(MalformedSignatureError, match=f"the field '{name}'"):
        signatures.verify(FIRST.public(), DATA, json.dumps({**good, name: "x"}).encode())
    with pytest.raises(MalformedSignatureError, match="the field 'SIG'"):
        signatures.verify(FIRST.public(), DATA, envelope_of(entry(FIRST, SIG="x")))


def test_the_twin_of_an_ecdsa_signature_is_no_second_signature() -> None:
    """Both verify, so a signature identifies nothing; what counts is the key, and what is signed is known by digest."""
    raw = base64.b64decode(str(entry(FIRST)["sig"]))
    assert twin(raw) != raw
    pair = envelope_of(
        {"sig": base64.b64encode(raw).decode()}, {"sig": base64.b64encode(twin(raw)).decode(), "keyid": "second"}
    )
    assert signatures.verify_any(KNOWN, 1, DATA, pair) == (FIRST.public(),)
    with pytest.raises(TooFewSignaturesError, match="1 more by a key that counts already"):
        signatures.verify_any(KNOWN, 2, DATA, pair)
    assert signatures.verify_any(KNOWN, 1, DATA, twin(signatures.sign(FIRST, DATA))) == (FIRST.public(),)


def test_a_key_that_signs_twice_counts_once() -> None:
    twice = envelope_of(entry(FIRST, keyid="a"), entry(FIRST, keyid="b"))
    with pytest.raises(TooFewSignaturesError, match=r"by 1 of the 2 known keys \([0-9a-f]{16}\), 1 more by a key"):
        signatures.verify_any(KNOWN, 2, DATA, twice)


def test_a_key_named_twice_is_one_key() -> None:
    """Also when its file spells it in another way (the point compressed)."""
    handle = FIRST.handle.public_key()
    assert isinstance(handle, ec.EllipticCurvePublicKey)
    point = handle.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    body = base64.b64encode(bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point)
    compressed = keys.load_public(b"-----BEGIN PUBLIC KEY-----\n" + body + b"\n-----END PUBLIC KEY-----\n")
    assert compressed == FIRST.public()
    for again in (FIRST.public(), compressed):
        with pytest.raises(SigningKeyError, match="found 2, expected 1 to 1"):
            signatures.verify_any((FIRST.public(), again), 2, DATA, envelope_of(entry(FIRST), entry(FIRST)))


@pytest.mark.parametrize("threshold", [0, -1, 3, 1 << 64])
def test_a_threshold_that_is_always_or_never_reached_is_refused(threshold: int) -> None:
    with pytest.raises(SigningKeyError, match="expected 1 to 2, the number of different keys"):
        signatures.verify_any(KNOWN, threshold, DATA, envelope_of(entry(FIRST), entry(SECOND)))


def test_signatures_of_strangers_are_passed_over_and_counted() -> None:
    entries = [entry(STRANGER), entry(FIRST), {"sig": base64.b64encode(b"no signature").decode()}, entry(SECOND)]
    assert signatures.verify_any(KNOWN, 2, DATA, envelope_of(*entries)) == KNOWN
    with pytest.raises(TooFewSignaturesError) as caught:
        signatures.verify_any(KNOWN, 2, DATA, envelope_of(*entries[:3]))
    assert "with 3 signatures: by 1 of the 2 known keys" in str(caught.value)
    assert "2 that no known key made" in str(caught.value)
    assert "expected 2 different known keys" in str(caught.value)


def test_a_payload_of_another_kind_is_refused_even_when_signed() -> None:
    """Whoever signs statements of another kind with the same key has not signed a bundle."""
    other = "application/vnd.in-toto+json"
    made = detached.sign(FIRST, dsse.pre_authentication_encoding(DATA, other))
    sig = {"sig": base64.b64encode(made).decode()}
    with pytest.raises(WrongSignatureError, match=r"payloadType: found 'application/vnd\.in-toto"):
        signatures.verify(FIRST.public(), DATA, envelope_of(sig, payloadType=other))
    with pytest.raises(TooFewSignaturesError):
        signatures.verify(FIRST.public(), DATA, envelope_of(sig))


def test_an_envelope_about_another_file_is_refused() -> None:
    for form in (dsse.add_signature(FIRST, OTHER_DATA), sigstore.sign(FIRST, OTHER_DATA)):
        with pytest.raises(WrongSignatureError):
            signatures.verify(FIRST.public(), DATA, form)
    swapped = envelope_of(entry(FIRST, OTHER_DATA), payload=base64.b64encode(DATA).decode())
    with pytest.raises(TooFewSignaturesError):
        signatures.verify(FIRST.public(), DATA, swapped)


def test_a_signature_of_the_bare_file_is_none_of_an_envelope_and_the_reverse() -> None:
    bare = base64.b64encode(signatures.sign(FIRST, DATA)).decode()
    with pytest.raises(TooFewSignaturesError, match="signs the bundle itself instead of its DSSE encoding"):
        signatures.verify(FIRST.public(), DATA, envelope_of({"sig": bare}))
    with pytest.raises(WrongSignatureError):
        signatures.verify(FIRST.public(), DATA, str(entry(FIRST)["sig"]).encode())


def test_both_alphabets_of_base64_are_read_but_not_mixed() -> None:
    """DSSE asks for both. Of each there is one spelling: padded, without white space."""
    data = b"\xfb\xef\xbe\xff"  # its base64 is ++++/w==
    key = FIRST.public()

    def envelope_with(payload: str, sig: str) -> bytes:
        fields = {"payload": payload, "payloadType": dsse.PAYLOAD_TYPE, "signatures": [{"sig": sig}]}
        return json.dumps(fields).encode()

    sig = next(found for found in iter(lambda: str(entry(FIRST, data)["sig"]), "") if {"+", "/"} <= set(found))
    url = sig.replace("+", "-").replace("/", "_")
    mixed = sig.replace("+", "-")
    for payload in ("++++/w==", "----_w=="):
        for form in (sig, url):
            signatures.verify(key, data, envelope_with(payload, form))
        for form in (mixed, sig.rstrip("=") + "===", sig + "\n", " " + sig, ""):
            with pytest.raises(MalformedSignatureError):
                signatures.verify(key, data, envelope_with(payload, form))
    for payload in ("++++_w==", "++++/w=", "++++/w", "++++/x==", "++++/w==\n", "+ +++/w==", "", "++++"):
        with pytest.raises(WrongSignatureError):
            signatures.verify(key, data, envelope_with(payload, sig))


def test_base64_of_base64_is_no_signature() -> None:
    doubled = base64.b64encode(str(entry(FIRST)["sig"]).encode()).decode()
    with pytest.raises(TooFewSignaturesError):
        signatures.verify(FIRST.public(), DATA, envelope_of({"sig": doubled}))


def test_r_and_s_without_der_are_no_signature() -> None:
    r, s = utils.decode_dss_signature(base64.b64decode(str(entry(FIRST)["sig"])))
    plain = base64.b64encode(r.to_bytes(32, "big") + s.to_bytes(32, "big")).decode()
    with pytest.raises(TooFewSignaturesError):
        signatures.verify(FIRST.public(), DATA, envelope_of({"sig": plain}))


def test_what_is_huge_is_refused_before_it_is_read() -> None:
    limit = signatures.MAXIMUM_SIGNATURE_BYTES
    for content, text in (
        (b"{" + b" " * limit, f"at most {limit}"),
        (b'{"a":[' + b"0," * envelope.MAXIMUM_VALUES, "JSON of some"),
        (b"{" * (envelope.MAXIMUM_VALUES + 1), "JSON of some"),
        (b'{"a":' + b"[" * (envelope.MAXIMUM_VALUES - 10), "nested too deeply|no JSON"),
        (b"0" * (limit + 1), f"{limit + 1} bytes or more"),
    ):
        with pytest.raises(MalformedSignatureError, match=text):
            signatures.verify(FIRST.public(), DATA, content)


def test_the_largest_bundle_fits_into_an_envelope() -> None:
    data = b"\xff" * document.MAXIMUM_BUNDLE_BYTES  # slashes, which may be escaped
    made = dsse.add_signature(FIRST, data)
    assert len(made) <= signatures.MAXIMUM_SIGNATURE_BYTES
    signatures.verify(FIRST.public(), data, made)


def test_many_signatures_are_refused() -> None:
    room = [{"sig": "AAAA"}] * (dsse.MAXIMUM_SIGNATURES - 1)
    assert signatures.verify_any(KNOWN, 1, DATA, envelope_of(*room, entry(FIRST))) == (FIRST.public(),)
    with pytest.raises(MalformedSignatureError, match="33 entries"):
        signatures.verify_any(KNOWN, 1, DATA, envelope_of(*room, entry(FIRST), entry(SECOND)))


@pytest.mark.parametrize("content", [b"\xff", b"{\xff}", b'{"a":NaN}', b'{"a":1.5}', b'{"a":' + b"9" * 99 + b"}"])
def test_json_that_readers_disagree_on_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedSignatureError):
        signatures.verify(FIRST.public(), DATA, content)


def openssl(*arguments: str, cwd: Path) -> int:
    return subprocess.run(["openssl", *arguments], cwd=cwd, check=False, capture_output=True, timeout=60).returncode


def openssl_key(directory: Path, algorithm: Algorithm) -> keys.PublicKey:
    kind = ["ED25519"] if algorithm is Algorithm.ED25519 else ["EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    assert openssl("genpkey", "-algorithm", *kind, "-out", "key.pem", cwd=directory) == 0
    assert openssl("pkey", "-in", "key.pem", "-pubout", "-out", "pub.pem", cwd=directory) == 0
    (directory / "bundle").write_bytes(DATA)
    return keys.load_public((directory / "pub.pem").read_bytes())


def test_without_rawin_openssl_signs_the_beginning_of_a_file(tmp_path: Path) -> None:
    """It ends with success, and the signature fits every file that begins alike."""
    public = openssl_key(tmp_path, Algorithm.ECDSA_P256)
    (tmp_path / "beginning").write_bytes(DATA[:64])  # this openssl takes at most that; older ones took whole files
    assert openssl("pkeyutl", "-sign", "-inkey", "key.pem", "-in", "beginning", "-out", "sig", cwd=tmp_path) == 0
    for data in (DATA, DATA[:64] + b"anything"):
        with pytest.raises(WrongSignatureError, match="without -rawin"):
            signatures.verify(public, data, (tmp_path / "sig").read_bytes())


def test_openssl_dgst_leaves_an_empty_file_for_an_ed25519_key(tmp_path: Path) -> None:
    public = openssl_key(tmp_path, Algorithm.ED25519)
    assert openssl("dgst", "-sha256", "-sign", "key.pem", "-out", "sig", "bundle", cwd=tmp_path) != 0
    assert (tmp_path / "sig").read_bytes() == b""
    with pytest.raises(MalformedSignatureError, match="`openssl dgst` leaves an empty file for Ed25519 keys"):
        signatures.verify(public, DATA, b"")
