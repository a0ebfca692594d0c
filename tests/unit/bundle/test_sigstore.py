# SPDX-License-Identifier: Apache-2.0
"""Sigstore bundles: what cosign wrote, and the conditions of Sigstore's conformance suite for managed keys.

The suite (sigstore-conformance, ``bundle-verify``) has one directory for each condition. Its files are not copied; each
condition is made anew from a bundle that cosign wrote over a file of ours. ``CONDITIONS`` names the directory that a
row stands for. Where the suite's bundle has a certificate, the row has the same condition with a key.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from hauberk.bundle import (
    MalformedSignatureError,
    SignatureError,
    SigningKeyError,
    TooFewSignaturesError,
    WrongSignatureError,
    detached,
    keys,
    parse,
    signatures,
    sigstore,
)
from hauberk.bundle.keys import Algorithm
from tests.unit.bundle.samples import DATA, a_key, cosign_bundle, cosign_file

if TYPE_CHECKING:
    from collections.abc import Callable

LOG_ENTRY = {  # the members of a log entry, with contents that prove nothing
    "logIndex": "7",
    "logId": {"keyId": b64encode(b"log").decode()},
    "kindVersion": {"kind": "hashedrekord", "version": "0.0.1"},
    "integratedTime": "1766077479",
    "inclusionPromise": {"signedEntryTimestamp": "AA=="},
    "inclusionProof": {"logIndex": "7", "rootHash": "AA==", "treeSize": "8", "hashes": [], "checkpoint": {}},
    "canonicalizedBody": "e30=",
}
TIMESTAMPS = {"rfc3161Timestamps": [{"signedTimestamp": "MAA="}]}


def the_file() -> bytes:
    return cosign_file("vault.bundle")


def the_key() -> keys.PublicKey:
    return keys.load_public(cosign_file("p256.pub"))


def material(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda bundle: bundle["verificationMaterial"].update(fields)


def material_without_key(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda bundle: bundle.update(verificationMaterial=fields)


def in_message(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda bundle: bundle["messageSignature"].update(fields)


def digest(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda bundle: bundle["messageSignature"]["messageDigest"].update(fields)


def top(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda bundle: bundle.update(fields)


def unchanged(_: dict[str, Any]) -> None:
    """As cosign wrote it."""


def verify(bundle: dict[str, Any], data: bytes | None = None, key: keys.PublicKey | None = None) -> None:
    found = signatures.verify_any(
        (key or the_key(),), 1, the_file() if data is None else data, json.dumps(bundle).encode()
    )
    assert found == (key or the_key(),)


@pytest.mark.parametrize("name", ["p256", "ed25519"])
def test_what_cosign_signed_verifies_and_is_a_bundle_of_ours(name: str) -> None:
    key = keys.load_public(cosign_file(f"{name}.pub"))
    data = the_file()
    assert signatures.verify_any((key,), 1, data, cosign_file(f"{name}.sigstore.json")) == (key,)
    assert parse(data).name == "vault"
    with pytest.raises(SignatureError):
        signatures.verify(key, data + b"\n", cosign_file(f"{name}.sigstore.json"))


def test_other_files_of_cosign_are_refused_with_advice() -> None:
    for name, text in (("p256.older-form.json", "cosign's older form"), ("p256.attestation.json", "an attestation")):
        with pytest.raises(MalformedSignatureError, match=text):
            signatures.verify(the_key(), the_file(), cosign_file(name))


# (directories of the suite, what is changed in cosign's bundle)
ACCEPTED_CONDITIONS = [
    ("managed-key-happy-path", material(tlogEntries=[LOG_ENTRY], timestampVerificationData=TIMESTAMPS)),
    ("managed-key-and-trusted-root: a key beside a trust root", material(tlogEntries=[LOG_ENTRY])),
    ("happy-path-v0.3-new-mediaType", unchanged),
    ("happy-path-v0.3", top(mediaType="application/vnd.dev.sigstore.bundle+json;version=0.3")),
    # Here logs are not asked, so what an entry says, of this file or another, can neither help nor harm.
    (
        "inclusion-proof-corrupted-hash_fail, set-invalid-signature_fail",
        material(tlogEntries=[{**LOG_ENTRY, "logIndex": "-1"}]),
    ),
]

REFUSED_CONDITIONS: list[tuple[str, Any, type[SignatureError], str]] = [
    ("bundle-unknown-version_fail", top(mediaType="application/vnd.dev.sigstore.bundle+json;version=99.9"),
     MalformedSignatureError, "version=99.9"),
    ("happy-path-v0.1", top(mediaType="application/vnd.dev.sigstore.bundle+json;version=0.1"),
     MalformedSignatureError, "version=0.1"),
    ("happy-path-v0.2", top(mediaType="application/vnd.dev.sigstore.bundle+json;version=0.2"),
     MalformedSignatureError, "version=0.2"),
    ("bundle-invalid-base64-signature_fail", in_message(signature="!!!"), MalformedSignatureError, "not base64"),
    ("message-digest-mismatch_fail", digest(digest=b64encode(sha256(b"other").digest()).decode()),
     WrongSignatureError, "messageDigest.digest: found the SHA-256"),
    ("signature-mismatch_fail",
     in_message(signature=json.loads(cosign_file("p256.attestation.json"))["dsseEnvelope"]["signatures"][0]["sig"]),
     WrongSignatureError, "did not make"),
    ("bundle-with-root-cert_fail", material_without_key(x509CertificateChain={"certificates": [{"rawBytes": ""}] * 2}),
     MalformedSignatureError, "a certificate"),
    ("bundle-empty-certificate-chain_fail", material_without_key(x509CertificateChain={"certificates": []}),
     MalformedSignatureError, "a certificate"),
    ("intoto-expired-certificate_fail", material_without_key(certificate={"rawBytes": "MAA="}),
     MalformedSignatureError, "a certificate"),
    ("dsse-invalid-sig_fail, happy-path-intoto-in-dsse-v3",
     lambda bundle: bundle.update(cosign_bundle("p256.attestation.json"), messageSignature=None),
     MalformedSignatureError, "dsseEnvelope"),
]  # fmt: skip


@pytest.mark.parametrize(("condition", "change"), ACCEPTED_CONDITIONS)
def test_accepted_conditions_of_the_suite(condition: str, change: Callable[[dict[str, Any]], object]) -> None:
    bundle = cosign_bundle()
    change(bundle)
    assert condition
    verify(bundle)


@pytest.mark.parametrize(("condition", "change", "reason", "text"), REFUSED_CONDITIONS)
def test_refused_conditions_of_the_suite(
    condition: str, change: Callable[[dict[str, Any]], object], reason: type[SignatureError], text: str
) -> None:
    bundle = cosign_bundle()
    change(bundle)
    assert condition
    with pytest.raises(reason) as caught:
        verify(bundle)
    assert type(caught.value) is reason
    assert text in str(caught.value)
    assert "expected" in str(caught.value)


def test_managed_key_wrong_key_fail() -> None:
    with pytest.raises(WrongSignatureError, match="did not make"):
        verify(cosign_bundle(), key=a_key("stranger").public())
    damaged = cosign_file("p256.pub").replace(b"A", b"B", 9)  # as the suite has it: the key itself cannot be read
    with pytest.raises(SigningKeyError):
        keys.load_public(damaged)


def test_managed_key_no_key_fail() -> None:
    with pytest.raises(SigningKeyError, match="at least one key"):
        signatures.verify_any((), 1, the_file(), cosign_file("p256.sigstore.json"))


def test_bundle_malformed_json_fail() -> None:
    whole = cosign_file("p256.sigstore.json")
    for length in range(1, len(whole) - 1):
        with pytest.raises(MalformedSignatureError):
            signatures.verify(the_key(), the_file(), whole[:length])


def test_wrong_material_fail() -> None:
    with pytest.raises(WrongSignatureError, match="messageDigest"):
        verify(cosign_bundle(), data=the_file()[:-1])
    bundle = cosign_bundle()
    del bundle["messageSignature"]["messageDigest"]
    with pytest.raises(WrongSignatureError, match="did not make"):
        verify(bundle, data=the_file()[:-1])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (top(extra=1), "the field 'extra'"),
        (top(payloadType="application/vnd.hauberk.bundle+json"), "the field 'payloadType'"),
        (top(mediaType=3), "mediaType: found a number"),
        (top(mediaType="application/vnd.dev.sigstore.bundle.v0.3.1+json"), "v0.3.1"),
        (top(mediaType="application/vnd.dev.sigstore.bundle.v0.4+json"), "v0.4"),
        (top(messageSignature=None), "messageSignature: found null"),
        (top(verificationMaterial=[]), "verificationMaterial: found a list"),
        (material_without_key(), "no field publicKey"),
        (material_without_key(public_key={"hint": ""}), "no field publicKey"),
        (material(publicKey="x"), "publicKey: found a string"),
        (material(publicKey={"hint": 1}), "hint: found a number"),
        (material(publicKey={"rawBytes": "MAA="}), "the field 'rawBytes'"),
        (material(certificate=None), "a certificate"),
        (material(extra={}), "the field 'extra'"),
        (material(tlogEntries={}), "tlogEntries: found an object"),
        (material(tlogEntries=None), "tlogEntries: found null"),
        (material(tlogEntries=["x"]), "tlogEntries[0]: found a string"),
        (material(tlogEntries=[LOG_ENTRY] * 33), "33 entries"),
        (material(timestampVerificationData=True), "timestampVerificationData: found true or false"),
        (in_message(extra=1), "the field 'extra'"),
        (in_message(signature=1), "signature: found a number"),
        (in_message(signature=""), "not base64"),
        (in_message(signature="é"), "not ASCII"),
        (in_message(signature="AAAA" * 300), "1200 characters"),
        (in_message(messageDigest=None), "messageDigest: found null"),
        (in_message(messageDigest={"digest": "AA=="}), "no field algorithm"),
        (in_message(messageDigest={"algorithm": "SHA2_256"}), "no field digest"),
        (digest(extra=1), "the field 'extra'"),
        (digest(algorithm="SHA2_512"), "'SHA2_512'"),
        (digest(algorithm=1), "algorithm: found a number"),
        (digest(digest="A" * 68), "68 characters"),
    ],
)
def test_what_is_not_exactly_that_form_is_malformed(change: Callable[[dict[str, Any]], object], text: str) -> None:
    bundle = cosign_bundle()
    change(bundle)
    with pytest.raises(MalformedSignatureError) as caught:
        verify(bundle)
    assert text in str(caught.value)


def test_protobufs_other_spellings_are_refused() -> None:
    """Its JSON parsers take these; no tool writes them, and one document is to have one reading."""
    plain = cosign_bundle()
    snake = {"media_type": plain["mediaType"], "verification_material": plain["verificationMaterial"],
             "message_signature": plain["messageSignature"]}  # fmt: skip
    with pytest.raises(MalformedSignatureError, match="underscores"):
        verify(snake)
    given = plain["messageSignature"]
    for message in (
        {"message_digest": given["messageDigest"], "signature": given["signature"]},
        {**given, "signature": given["signature"].rstrip("=")},
        {**given, "signature": given["signature"].replace("+", "-").replace("/", "_")},
    ):
        assert message != given
        with pytest.raises(MalformedSignatureError):
            verify({**plain, "messageSignature": message})


def test_the_hint_is_only_a_hint() -> None:
    for hint in ("", "SHA256:of-something-else", b64encode(sha256(b"x").digest()).decode(), "\u0000"):
        bundle = cosign_bundle()
        bundle["verificationMaterial"]["publicKey"]["hint"] = hint
        verify(bundle)
    bundle["verificationMaterial"]["publicKey"] = {}
    verify(bundle)
    stranger = a_key("stranger").public()
    bundle["verificationMaterial"]["publicKey"] = {
        "hint": b64encode(sha256(stranger.subject_public_key_info).digest()).decode()
    }
    with pytest.raises(WrongSignatureError):
        verify(bundle, key=stranger)


def test_an_empty_digest_says_nothing() -> None:
    """Cosign writes one with Ed25519 keys."""
    bundle = cosign_bundle()
    bundle["messageSignature"]["messageDigest"] = {}
    verify(bundle)
    with pytest.raises(WrongSignatureError, match="did not make"):
        verify(bundle, data=DATA)


def test_the_signature_within_is_a_detached_one_and_is_read_in_one_way() -> None:
    bundle = cosign_bundle()
    text = bundle["messageSignature"]["signature"]
    signatures.verify(the_key(), the_file(), b64decode(text))
    signatures.verify(the_key(), the_file(), text.encode())
    bundle["messageSignature"]["signature"] = b64encode(text.encode()).decode()  # base64 of base64
    with pytest.raises(MalformedSignatureError):
        verify(bundle)


def test_one_signature_is_not_enough_where_two_keys_are_needed() -> None:
    keys_known = (the_key(), a_key("second").public())
    with pytest.raises(TooFewSignaturesError, match="a Sigstore bundle, which one key made"):
        signatures.verify_any(keys_known, 2, the_file(), cosign_file("p256.sigstore.json"))


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_ours_are_read_and_look_like_cosigns(algorithm: Algorithm) -> None:
    key = a_key("own", algorithm) if algorithm is Algorithm.ECDSA_P256 else a_key("own-ed", algorithm)
    made = sigstore.sign(key, DATA)
    signatures.verify(key.public(), DATA, made)
    document = json.loads(made)
    assert list(document) == list(cosign_bundle())
    assert document["mediaType"] == cosign_bundle()["mediaType"]
    hint = b64decode(document["verificationMaterial"]["publicKey"]["hint"])
    assert hint.hex() == key.public().fingerprint
    detached.verify_one((key.public(),), DATA, detached.decode, document["messageSignature"]["signature"].encode())


def test_cosigns_hint_is_the_fingerprint() -> None:
    assert b64decode(cosign_bundle()["verificationMaterial"]["publicKey"]["hint"]).hex() == the_key().fingerprint
