# SPDX-License-Identifier: Apache-2.0
"""Keys, a bundle and envelopes that the tests of signatures share."""

from __future__ import annotations

import json
from base64 import b64encode
from functools import cache
from pathlib import Path
from typing import Any

from hauberk.bundle import PolicyFile, create, detached, dsse, keys
from hauberk.bundle.keys import Algorithm

DATA = create("vault", 1, (PolicyFile("a.yaml", "x: 1\n"),))
OTHER_DATA = create("vault", 2, (PolicyFile("a.yaml", "x: 1\n"),))
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
COSIGN = Path(__file__).parents[2] / "data/signatures/cosign"


@cache
def a_key(name: str, algorithm: Algorithm = Algorithm.ECDSA_P256) -> keys.PrivateKey:
    """Give the key of this name; the same one each time."""
    assert name
    return keys.generate(algorithm)


def entry(key: keys.PrivateKey, data: bytes = DATA, **fields: object) -> dict[str, object]:
    """Give one of the ``signatures`` of a DSSE envelope, made for its payload."""
    made = detached.sign(key, dsse.pre_authentication_encoding(data))
    return {"keyid": key.public().fingerprint, "sig": b64encode(made).decode(), **fields}


def envelope_of(*entries: object, **fields: object) -> bytes:
    """Give a DSSE envelope of ``DATA``, as JSON of one's own making rather than of the code under test."""
    document = {
        "payload": b64encode(DATA).decode(),
        "payloadType": "application/vnd.hauberk.bundle+json",
        "signatures": list(entries),
    }
    return json.dumps({**document, **fields}).encode()


def cosign_file(name: str) -> bytes:
    """Give a file that cosign took or wrote."""
    return (COSIGN / name).read_bytes()


def cosign_bundle(name: str = "p256.sigstore.json") -> dict[str, Any]:
    """Give a Sigstore bundle of cosign's as JSON values, to be changed."""
    document: dict[str, Any] = json.loads(cosign_file(name))
    return document
