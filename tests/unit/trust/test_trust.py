# SPDX-License-Identifier: Apache-2.0
"""What the trust layer refuses, each with its own reason, and the states of a boot."""

from __future__ import annotations

import base64
import json
import sys
from functools import cache
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric import utils
from hypothesis import given
from hypothesis import strategies as st

from guest_agent import parsing
from guest_agent.trust import (
    MalformedBundle,
    MalformedSeal,
    MalformedSignature,
    MalformedTrustRoot,
    NameMismatch,
    NothingVerified,
    NotTheSealedBundle,
    Stage,
    TooFewSignatures,
    Trust,
    TrustedKey,
    TrustError,
    TrustRoot,
    VerificationUnavailable,
    VersionBelowFloor,
    WrongSignature,
    verify,
)
from hauberk.bundle import PolicyFile, create, dsse, keys, signatures, sigstore
from hauberk.bundle.keys import Algorithm

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def a_bundle(version: int = 3, name: str = "vault", text: str = "x: 1\n") -> bytes:
    return create(name, version, (PolicyFile("a.yaml", text),))


@cache
def a_key(algorithm: Algorithm) -> keys.PrivateKey:
    return keys.generate(algorithm)


def pem(key: keys.PrivateKey) -> str:
    return keys.public_pem(key.public()).decode()


def root_json(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "apiVersion": "hauberk/v1",
        "kind": "TrustRoot",
        "keys": [{"name": algorithm.value, "publicKey": pem(a_key(algorithm))} for algorithm in Algorithm],
        "bundle": {"name": "vault", "minimumVersion": 2},
    }
    return json.dumps({**fields, **changes}, indent=2).encode()


@cache
def a_root() -> TrustRoot:
    return TrustRoot.load(root_json())


def signed(data: bytes, algorithm: Algorithm = Algorithm.ECDSA_P256) -> bytes:
    return signatures.sign(a_key(algorithm), data)


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_any_key_of_the_root_suffices(algorithm: Algorithm) -> None:
    data = a_bundle()
    for signature in (signed(data, algorithm), base64.b64encode(signed(data, algorithm))):
        verified = verify(a_root(), data, signature, None)
        assert [key.name for key in verified.signed_by] == [algorithm.value]
        assert verified.digest == sha256(data).hexdigest()
        assert verified.bundle.policies[0].text == "x: 1\n"


def test_envelopes_are_accepted_too() -> None:
    data = a_bundle()
    key = a_key(Algorithm.ECDSA_P256)
    for form in (sigstore.sign(key, data), dsse.add_signature(key, data)):
        verified = verify(a_root(), data, form, None)
        assert [signer.name for signer in verified.signed_by] == [Algorithm.ECDSA_P256.value]


def test_a_root_may_ask_for_several_keys() -> None:
    data = a_bundle()
    root = TrustRoot.load(root_json(threshold=2))
    assert (root.threshold, a_root().threshold) == (2, 1)
    one = dsse.add_signature(a_key(Algorithm.ED25519), data)
    two = dsse.add_signature(a_key(Algorithm.ECDSA_P256), data, one)
    assert [key.name for key in verify(root, data, two, None).signed_by] == [algorithm.value for algorithm in Algorithm]
    for form in (one, signed(data), sigstore.sign(a_key(Algorithm.ECDSA_P256), data)):
        with pytest.raises(TooFewSignatures, match="different") as caught:
            verify(root, data, form, None)
        assert f"ed25519 {a_key(Algorithm.ED25519).public().fingerprint[:16]}" in str(caught.value)


def test_the_agents_child_names_all_who_signed() -> None:
    text = (
        "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorPolicy\nmetadata: {name: p}\n"
        "spec: {selector: {matchLabels: {a: b}}, file: {matchPaths: [{path: /x}], action: Block}}\n"
    )
    data = a_bundle(text=text)
    signature = dsse.add_signature(
        a_key(Algorithm.ED25519), data, dsse.add_signature(a_key(Algorithm.ECDSA_P256), data)
    )
    parts = {"trustRoot": root_json(threshold=2), "bundle": data, "signature": signature}
    request: dict[str, object] = {name: base64.b64encode(part).decode() for name, part in parts.items()}
    request.update(task="bundle", sealedDigest=None, successors=[], accepted=None)
    request.update(engines=["bpf_lsm"], entities=[], resolvers=False)
    assert parsing.answer(json.dumps(request).encode()).get("signedBy") == "ecdsa-p256, ed25519"
    request["signature"] = base64.b64encode(dsse.add_signature(a_key(Algorithm.ED25519), data)).decode()
    answer = parsing.answer(json.dumps(request).encode())
    assert answer["error"]["kind"] == "TooFewSignatures"  # type: ignore[index] # an object


def test_without_the_library_nothing_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    data, root, root_bytes = a_bundle(), a_root(), root_json()
    signature = signed(data)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    for action in (lambda: verify(root, data, signature, None), lambda: TrustRoot.load(root_bytes)):
        with pytest.raises(VerificationUnavailable, match="cryptography"):
            action()


def test_each_refusal_has_its_own_reason() -> None:
    data = a_bundle()
    stranger = keys.generate(Algorithm.ECDSA_P256)
    not_a_bundle = b'{"name":"vault","name":"vault"}\n'
    cases: list[tuple[bytes, bytes, str | None, type[TrustError]]] = [
        (data, signatures.sign(stranger, data), None, WrongSignature),
        (data + b"\n", signed(data), None, WrongSignature),
        (data, b"", None, MalformedSignature),
        (data, b"x" * 5000, None, MalformedSignature),
        (data, signed(data) + b"\0", None, MalformedSignature),
        (not_a_bundle, signed(not_a_bundle), None, MalformedBundle),
        (b"x" * (8 * 1024 * 1024 + 1), b"", None, MalformedBundle),
        (a_bundle(name="other"), signed(a_bundle(name="other")), None, NameMismatch),
        (a_bundle(1), signed(a_bundle(1)), None, VersionBelowFloor),
        (data, signed(data), "0" * 64, NotTheSealedBundle),
        (data, signed(data), "", MalformedSeal),
        (data, signed(data), sha256(data).hexdigest().upper(), MalformedSeal),
        (data, signed(data), sha256(data).hexdigest() + "\n", MalformedSeal),
    ]
    for bundle, signature, seal, reason in cases:
        with pytest.raises(TrustError) as caught:
            verify(a_root(), bundle, signature, seal)
        assert type(caught.value) is reason
        assert "found" in str(caught.value)
        assert "expected" in str(caught.value)


def test_nothing_of_an_unsigned_bundle_is_parsed() -> None:
    with pytest.raises(WrongSignature):
        verify(a_root(), b"not json at all", signed(a_bundle()), None)


def test_the_floor_itself_is_accepted() -> None:
    assert verify(a_root(), a_bundle(2), signed(a_bundle(2)), None).bundle.version == 2


def test_the_seal_replaces_no_other_check() -> None:
    data, old = a_bundle(), a_bundle(1)
    with pytest.raises(WrongSignature):
        verify(a_root(), data, signed(old), sha256(data).hexdigest())
    with pytest.raises(VersionBelowFloor):
        verify(a_root(), old, signed(old), sha256(old).hexdigest())


def test_the_twin_signature_admits_the_same_bundle_and_no_other() -> None:
    data = a_bundle()
    r, s = utils.decode_dss_signature(signed(data))
    twin = utils.encode_dss_signature(r, P256_ORDER - s)
    trust = Trust.empty(a_root()).admit(data, signed(data))
    again = trust.admit(data, twin)
    assert again == trust


@given(st.data())
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    bundle = a_bundle()
    parts = [bytearray(bundle), bytearray(signed(bundle, Algorithm.ED25519))]
    part = parts[data.draw(st.integers(0, 1))]
    part[data.draw(st.integers(0, len(part) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(TrustError):
        verify(a_root(), bytes(parts[0]), bytes(parts[1]), None)


def test_a_boot_goes_from_empty_to_verified_to_sealed_and_never_back() -> None:
    data, newer = a_bundle(3), a_bundle(4)
    empty = Trust.empty(a_root())
    with pytest.raises(NothingVerified):
        empty.seal(sha256(data).hexdigest())
    verified = empty.admit(data, signed(data))
    assert (empty.stage, verified.stage) == (Stage.EMPTY, Stage.VERIFIED)
    with pytest.raises(NotTheSealedBundle):
        verified.admit(newer, signed(newer))
    with pytest.raises(NotTheSealedBundle):
        verified.seal(sha256(newer).hexdigest())
    with pytest.raises(MalformedSeal):
        verified.seal("")
    sealed = verified.seal(sha256(data).hexdigest())
    assert sealed.stage is Stage.SEALED
    with pytest.raises(NotTheSealedBundle):
        sealed.admit(newer, signed(newer))
    assert sealed.admit(data, signed(data)).stage is Stage.SEALED


def test_a_restarted_agent_takes_up_the_sealed_bundle_only() -> None:
    data, newer = a_bundle(3), a_bundle(4)
    resumed = Trust.resume(a_root(), sha256(data).hexdigest())
    assert (resumed.stage, resumed.verified) == (Stage.SEALED, None)
    with pytest.raises(NotTheSealedBundle):
        resumed.admit(newer, signed(newer))
    with pytest.raises(NothingVerified):
        resumed.seal(sha256(data).hexdigest())
    taken_up = resumed.admit(data, signed(data))
    assert taken_up.stage is Stage.SEALED
    assert taken_up.verified is not None
    for damaged in ("", "0", "g" * 64):
        with pytest.raises(MalformedSeal):
            Trust.resume(a_root(), damaged)


def key_entry(name: str, algorithm: Algorithm = Algorithm.ECDSA_P256) -> dict[str, str]:
    return {"name": name, "publicKey": pem(a_key(algorithm))}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"apiVersion": "hauberk/v2"}, "apiVersion"),
        ({"kind": "Bundle"}, "kind"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"keys": []}, "0 keys"),
        ({"threshold": 0}, "threshold: found 0, expected 1 to 2"),
        ({"threshold": 3}, "threshold: found 3, expected 1 to 2"),
        ({"threshold": True}, "threshold: found True, expected an integer"),
        ({"threshold": "2"}, "threshold: found '2', expected an integer"),
        ({"threshold": None}, "threshold: found None, expected an integer"),
        ({"Threshold": 2}, "unknown field 'Threshold'"),
        ({"keys": {}}, "a list of keys"),
        ({"keys": [1]}, "keys[0]"),
        ({"keys": [{"name": "a"}]}, "no field publicKey"),
        ({"keys": [{**key_entry("a"), "algorithm": "none"}]}, "unknown field 'algorithm'"),
        ({"keys": [{"name": "a", "publicKey": "x"}]}, "no PEM block"),
        ({"keys": [{"name": "a", "publicKey": 1}]}, "keys[0].publicKey"),
        ({"keys": [{"name": "a", "publicKey": "ü"}]}, "keys[0].publicKey"),
        ({"keys": [{**key_entry("a"), "name": "\n"}]}, "keys[0].name"),
        ({"keys": [{**key_entry("a"), "name": 1}]}, "keys[0].name"),
        ({"keys": [key_entry("a"), key_entry("b")]}, "the same key as 'a'"),
        ({"keys": [key_entry("a"), key_entry("a", Algorithm.ED25519)]}, "keys[1].name"),
        ({"keys": [key_entry(f"k{i}") for i in range(17)]}, "17 keys"),
        ({"bundle": {"name": "vault"}}, "no field minimumVersion"),
        ({"bundle": {"name": "vault", "minimumVersion": 0}}, "minimumVersion"),
        ({"bundle": {"name": "vault", "minimumVersion": True}}, "minimumVersion"),
        ({"bundle": {"name": "", "minimumVersion": 1}}, "bundle.name"),
        ({"bundle": {"name": "vault", "minimumVersion": 1, "maximumVersion": 2}}, "unknown field 'maximumVersion'"),
    ],
)
def test_a_trust_root_with_an_error_trusts_nobody(changes: dict[str, object], text: str) -> None:
    with pytest.raises(MalformedTrustRoot) as caught:
        TrustRoot.load(root_json(**changes))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"{}", b'{"keys":[],"keys":[]}', b"\xff", b"NaN", b"[" * 100_000, b" " * 300_000]
)
def test_other_bytes_are_no_trust_root(data: bytes) -> None:
    with pytest.raises(MalformedTrustRoot):
        TrustRoot.load(data)


def test_a_root_made_in_code_is_held_to_the_same() -> None:
    key = TrustedKey("a", a_key(Algorithm.ED25519).public())
    assert TrustRoot((key,), "vault", 1).keys == (key,)
    with pytest.raises(MalformedTrustRoot, match="threshold"):
        TrustRoot((key,), "vault", 1, 2)
    for bad in (
        ((), "vault", 1),
        ((key, TrustedKey("b", key.public)), "vault", 1),
        ((key,), "", 1),
        ((key,), "vault", 0),
    ):
        with pytest.raises(MalformedTrustRoot):
            TrustRoot(*bad)
