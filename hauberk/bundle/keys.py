# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: EM101 - the parts of one message, put together in one place
"""Signing keys: ECDSA on P-256, and Ed25519. Nothing else.

The algorithm is a property of the key and is read from it, never from a signature or an envelope: who can name the
algorithm of his own proof chooses the weakest. A public key is kept as the DER of its SubjectPublicKeyInfo
(RFC 5280 §4.1), written anew by the library, so that two spellings of one key are one key; its SHA-256 is the name
that Sigstore uses as a hint too.

``cryptography`` is imported when a key is first touched: it costs more memory and start-up time than everything else
here.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING

from hauberk.bundle.errors import MissingLibraryError, SigningKeyError, quote

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MAXIMUM_KEY_BYTES = 16 * 1024
MAXIMUM_PASSPHRASE_BYTES = 1024
_PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,64})-----[ \t]*\r?\n([A-Za-z0-9+/=\s]*)-----END \1-----")
_PEM_LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,64})-----")
_ADVICE = "make a key pair with `hauberk bundle keygen`"


class Algorithm(StrEnum):
    """How a key signs. The value is the spelling of ``keygen --algorithm``."""

    ECDSA_P256 = "ecdsa-p256"  # with SHA-256; FIPS 186-5
    ED25519 = "ed25519"  # RFC 8032, not pre-hashed


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that verifies. Equal when the key is the same, however its file was spelt."""

    algorithm: Algorithm
    subject_public_key_info: bytes  # DER

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the SubjectPublicKeyInfo, 64 hexadecimal digits."""
        return sha256(self.subject_public_key_info).hexdigest()

    def handle(self) -> EllipticCurvePublicKey | Ed25519PublicKey:
        """Give the library's own object."""
        return _load_public(self.subject_public_key_info)


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key that signs. Its bytes never appear in its ``repr``."""

    algorithm: Algorithm
    handle: EllipticCurvePrivateKey | Ed25519PrivateKey

    def __repr__(self) -> str:
        """Name the algorithm and nothing else."""
        return f"PrivateKey({self.algorithm.value})"

    def public(self) -> PublicKey:
        """Give the public half."""
        return _public_key(self.handle.public_key())


def require_library() -> None:
    """Raise ``MissingLibraryError`` unless the ``cryptography`` library can be imported."""
    try:
        import cryptography.hazmat.primitives  # noqa: F401, PLC0415 - lazily, see the module's text
    except ImportError as error:
        message = (
            f"found no usable Python library `cryptography` ({error}), expected it for signing and verifying:"
            " install it (Debian: python3-cryptography; or pip install cryptography)"
        )
        raise MissingLibraryError(message) from error


def generate(algorithm: Algorithm) -> PrivateKey:
    """Make a new private key from the system's random source."""
    require_library()
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519  # noqa: PLC0415

    if algorithm is Algorithm.ED25519:
        return PrivateKey(algorithm, ed25519.Ed25519PrivateKey.generate())
    return PrivateKey(algorithm, ec.generate_private_key(ec.SECP256R1()))


def private_pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """Write a private key as PEM PKCS #8 (RFC 5958), encrypted if a passphrase is given."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(check_passphrase(passphrase))
    return key.handle.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def public_pem(key: PublicKey) -> bytes:
    """Write a public key as PEM SubjectPublicKeyInfo (RFC 7468 §13)."""
    text = binascii.b2a_base64(key.subject_public_key_info, newline=False)
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN PUBLIC KEY-----", *lines, b"-----END PUBLIC KEY-----", b""])


def load_public(pem: bytes, what: str = "public key") -> PublicKey:
    """Read a public key from PEM: exactly one ``PUBLIC KEY`` block and nothing beside it.

    ``what`` names the key in errors. Raises ``SigningKeyError``, ``MissingLibraryError``.
    """
    _bounded(pem, what)
    block = _PEM_BLOCK.fullmatch(pem.strip())
    if block is None or block[1] != b"PUBLIC KEY":
        raise _refusal(what, _what_pem_is_there(pem), "one PEM block PUBLIC KEY and nothing else", _public_advice(pem))
    try:
        der = binascii.a2b_base64(b"".join(block[2].split()), strict_mode=True)
    except binascii.Error as error:
        found = f"base64 that cannot be read ({error})"
        raise _refusal(what, found, "a PEM block PUBLIC KEY", "copy the file again") from error
    return _public_key(_load_public(der, what))


def load_private(pem: bytes, passphrase: bytes | None = None, what: str = "private key") -> PrivateKey:
    """Read a private key from PEM (PKCS #8 as ``keygen`` writes it, or OpenSSL's older forms).

    Raises ``SigningKeyError``, ``MissingLibraryError``. No error text holds anything of the key.
    """
    require_library()
    from cryptography.exceptions import InternalError, UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519  # noqa: PLC0415

    _bounded(pem, what)
    expected = "a PEM block PRIVATE KEY (PKCS #8)"
    label = _PEM_LABEL.search(pem)
    if label is None or not label[1].endswith((b"PRIVATE KEY", b"EC PARAMETERS")):
        raise _refusal(what, _what_pem_is_there(pem), expected, f"give the private half, or {_ADVICE}")
    if b"SIGSTORE" in label[1]:
        raise _refusal(what, "a key encrypted by cosign", expected, _ADVICE)
    if passphrase is not None:
        check_passphrase(passphrase)
    try:
        handle = serialization.load_pem_private_key(pem, passphrase)
    except TypeError:  # the library's answer when key and passphrase do not go together
        if passphrase is None:
            raise _refusal(
                what, "an encrypted key", "a passphrase with it", "name the file that holds it: --passphrase-file"
            ) from None
        raise _refusal(what, "a key that is not encrypted", "an encrypted one", "leave out --passphrase-file") from None
    except (ValueError, UnsupportedAlgorithm, InternalError):  # the last one for an X448 key of another's length
        if passphrase is not None:
            raise _refusal(
                what, "a key that the passphrase does not open", expected, "check the passphrase and the key file"
            ) from None
        raise _refusal(what, "a key that cannot be read", expected, _ADVICE) from None
    if isinstance(handle, ed25519.Ed25519PrivateKey):
        return PrivateKey(Algorithm.ED25519, handle)
    if isinstance(handle, ec.EllipticCurvePrivateKey) and isinstance(handle.curve, ec.SECP256R1):
        return PrivateKey(Algorithm.ECDSA_P256, handle)
    raise _refusal(what, _describe(handle), "an ECDSA key on P-256 or an Ed25519 key", _ADVICE)


def check_passphrase(passphrase: bytes) -> bytes:
    """Return a passphrase that can be used, or raise ``SigningKeyError``."""
    if not passphrase or len(passphrase) > MAXIMUM_PASSPHRASE_BYTES or b"\0" in passphrase:
        found = f"{len(passphrase)} bytes" if passphrase else "none"
        expected = f"1 to {MAXIMUM_PASSPHRASE_BYTES} bytes without NUL"
        raise _refusal("passphrase", found, expected, "write one line into the passphrase file")
    return passphrase


def _load_public(der: bytes, what: str = "public key") -> EllipticCurvePublicKey | Ed25519PublicKey:
    require_library()
    from cryptography.exceptions import InternalError, UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519  # noqa: PLC0415

    try:
        handle = serialization.load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm, InternalError) as error:
        raise _refusal(what, f"a key that cannot be read ({error})", "ECDSA on P-256 or Ed25519", _ADVICE) from error
    if isinstance(handle, ed25519.Ed25519PublicKey):
        return handle
    if isinstance(handle, ec.EllipticCurvePublicKey) and isinstance(handle.curve, ec.SECP256R1):
        return handle
    raise _refusal(what, _describe(handle), "an ECDSA key on P-256 or an Ed25519 key", _ADVICE)


def _public_key(handle: EllipticCurvePublicKey | Ed25519PublicKey) -> PublicKey:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415

    der = handle.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if not isinstance(handle, ed25519.Ed25519PublicKey):
        return PublicKey(Algorithm.ECDSA_P256, der)
    return PublicKey(Algorithm.ED25519, der)


def _describe(handle: object) -> str:
    curve = getattr(handle, "curve", None)
    if curve is not None:
        return f"an elliptic-curve key on {curve.name}"
    bits = getattr(handle, "key_size", None)
    name = type(handle).__name__.removesuffix("PublicKey").removesuffix("PrivateKey").lstrip("_")
    return f"an {name} key" + (f" of {bits} bits" if bits else "")


def _bounded(pem: bytes, what: str) -> None:
    if not pem.strip():
        raise _refusal(what, "an empty file", "a PEM block", "check the path and whether writing it succeeded")
    if len(pem) > MAXIMUM_KEY_BYTES:
        raise _refusal(
            what, f"{len(pem)} bytes or more", f"at most {MAXIMUM_KEY_BYTES}", "check that this is the key file"
        )


def _what_pem_is_there(pem: bytes) -> str:
    labels = [label.decode() for label in _PEM_LABEL.findall(pem)]
    if not labels:
        return "no PEM block"
    if len(labels) > 1:
        return f"{len(labels)} PEM blocks ({', '.join(quote(label) for label in labels[:4])})"
    return f"a PEM block {quote(labels[0])}, or text beside it"


def _public_advice(pem: bytes) -> str:
    if b"PRIVATE KEY-----" in pem:
        return "this is a private key: keep it away from here; `openssl pkey -in KEY -pubout` writes its public half"
    if b"BEGIN CERTIFICATE-----" in pem:
        return "`openssl x509 -in FILE -pubkey -noout` writes the certificate's key"
    return "`openssl pkey -in KEY -pubout` writes this form"


def _refusal(what: str, found: str, expected: str, action: str) -> SigningKeyError:
    return SigningKeyError(f"{what}: found {found}, expected {expected}: {action}")
