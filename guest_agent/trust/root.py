# SPDX-License-Identifier: Apache-2.0
"""The trust root: the keys and floors a machine was built with.

It lies in the measured image, so its bytes are as trustworthy as the agent's own; it is read strictly all the same,
because a typing error in it (a floor under a misspelt name, a key twice) would loosen silently what it was to fix.
The algorithm of each key is read from the key. Keys are compared by their SubjectPublicKeyInfo, not by their names or
their spelling.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from guest_agent.trust.errors import MalformedTrustRoot, VerificationUnavailable
from hauberk.bundle import canonical, document, keys
from hauberk.bundle.errors import MalformedBundleError, MissingLibraryError, SigningKeyError, quote
from hauberk.bundle.signatures import check_threshold

API_VERSION = "hauberk/v1"
KIND = "TrustRoot"
MAXIMUM_ROOT_BYTES = 256 * 1024
MAXIMUM_KEYS = 16
_KEY_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._@-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key that may sign, and the name its owner gave it (for texts only)."""

    name: str
    public: keys.PublicKey


@dataclass(frozen=True, slots=True)
class TrustRoot:
    """What this machine accepts: a bundle of this name, of at least this version, signed by enough of these keys."""

    keys: tuple[TrustedKey, ...]
    bundle_name: str
    minimum_version: int
    threshold: int = 1  # how many different keys must have signed

    def __post_init__(self) -> None:
        """Refuse a root that trusts nobody or one key twice, however it was made. Raises ``MalformedTrustRoot``."""
        if not 1 <= len(self.keys) <= MAXIMUM_KEYS:
            _refuse("trust root.keys", f"{len(self.keys)} keys", f"1 to {MAXIMUM_KEYS}", "name the keys that may sign")
        by_key: dict[keys.PublicKey, str] = {}
        names: set[str] = set()
        for index, key in enumerate(self.keys):
            where = f"trust root.keys[{index}]"
            if not _KEY_NAME.fullmatch(key.name) or key.name in names:
                expected = "a name of its own: 1 to 63 of A-Z, a-z, 0-9, '.', '_', '@', '-'"
                _refuse(f"{where}.name", quote(key.name), expected, "rename the key")
            if (other := by_key.get(key.public)) is not None:
                found = f"the same key as {quote(other)} (fingerprint {key.public.fingerprint[:16]})"
                _refuse(f"{where}.publicKey", found, "each key once", "remove one of the two")
            names.add(key.name)
            by_key[key.public] = key.name
        try:
            check_threshold(self.threshold, len(self.keys), "trust root.threshold")
            document.check_name(self.bundle_name, "trust root.bundle.name")
            document.check_version(self.minimum_version, "trust root.bundle.minimumVersion")
        except (MalformedBundleError, SigningKeyError) as error:
            raise MalformedTrustRoot(str(error)) from error

    @classmethod
    def load(cls, data: bytes) -> TrustRoot:
        """Read a trust root from JSON; white space and the order of keys are free, everything else is strict.

        Raises ``MalformedTrustRoot``; ``VerificationUnavailable`` if keys cannot be read for want of the library.
        """
        try:
            found = canonical.load(data, maximum_bytes=MAXIMUM_ROOT_BYTES, what="trust root")
        except MalformedBundleError as error:
            raise MalformedTrustRoot(str(error)) from error
        fields = _object(found, "trust root", ("apiVersion", "kind", "keys", "bundle"), optional=("threshold",))
        for name, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
            if fields[name] != expected:
                advice = "use the Hauberk that this trust root was written for"
                _refuse(f"trust root.{name}", quote(fields[name]), quote(expected), advice)
        entries = fields["keys"]
        if not isinstance(entries, list):
            _refuse("trust root.keys", type(entries).__name__, "a list of keys", "correct it")
        if len(entries) > MAXIMUM_KEYS:
            _refuse("trust root.keys", f"{len(entries)} keys", f"1 to {MAXIMUM_KEYS}", "name the keys that may sign")
        threshold = fields.get("threshold", 1)
        if not isinstance(threshold, int) or isinstance(threshold, bool):
            expected = "an integer: how many different keys must sign"
            _refuse("trust root.threshold", quote(threshold), expected, "correct it")
        bundle = _object(fields["bundle"], "trust root.bundle", ("name", "minimumVersion"))
        try:
            return cls(
                keys=tuple(_key(entry, f"trust root.keys[{index}]") for index, entry in enumerate(entries)),
                bundle_name=document.check_name(bundle["name"], "trust root.bundle.name"),
                minimum_version=document.check_version(bundle["minimumVersion"], "trust root.bundle.minimumVersion"),
                threshold=threshold,
            )
        except MissingLibraryError as error:
            raise VerificationUnavailable(str(error)) from error
        except (MalformedBundleError, SigningKeyError) as error:
            raise MalformedTrustRoot(str(error)) from error


def _key(found: object, where: str) -> TrustedKey:
    fields = _object(found, where, ("name", "publicKey"))
    name, pem = fields["name"], fields["publicKey"]
    if not isinstance(name, str):
        _refuse(f"{where}.name", type(name).__name__, "a string", "name the key")
    if not isinstance(pem, str) or not pem.isascii():
        _refuse(f"{where}.publicKey", quote(pem), "a string: the public key in PEM", "copy it from the .pub file")
    return TrustedKey(name, keys.load_public(pem.encode(), f"{where}.publicKey"))


def _object(found: object, where: str, names: tuple[str, ...], *, optional: tuple[str, ...] = ()) -> dict[str, object]:
    if not isinstance(found, dict):
        _refuse(where, type(found).__name__, f"an object with the fields {', '.join(names)}", "correct it")
    if missing := [name for name in names if name not in found]:
        _refuse(where, f"no field {', '.join(missing)}", f"the fields {', '.join(names)}", "add it")
    if unknown := sorted(set(found) - set(names) - set(optional)):
        _refuse(
            where,
            f"the unknown field {quote(unknown[0])}",
            f"no fields but {', '.join((*names, *optional))}",
            "correct its name or remove it",
        )
    return found


def _refuse(where: str, found: str, expected: str, action: str) -> NoReturn:
    message = f"{where}: found {found}, expected {expected}: {action}, and build the image anew"
    raise MalformedTrustRoot(message)
