# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: EM102 - the parts of one message, put together in one place
"""What a bundle says about itself beyond its name and version: for whom it is, what may follow it, until when.

Every field is optional and has one spelling, so that "not set" is "not there" and a bundle still has one digest.

* **target** narrows. A container outside gets the bundle's default, so nothing is loosened by a target as long as that
  is deny; with another default the author is warned. What a target is compared with (image digests, labels) is told by
  the host unless the guest pulled the image itself.
* **successor** says whose signatures a higher version needs that is to take this bundle's place before the next boot.
  Not there: none ever.
* **expires** is advice. A guest has no clock it can trust: an expiry that stopped anything would be a lever for the
  host and no protection.
* **posture** of further classes of rules.

Public keys are carried as PEM in the one form Hauberk writes; whether they are keys is asked when they are used, which
takes the library for signatures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import pairwise
from typing import TypeVar

from hauberk.bundle.errors import MalformedBundleError, quote

MAXIMUM_SUCCESSOR_KEYS = 16
MAXIMUM_TARGETS = 1000
MAXIMUM_LABEL_CHARACTERS = 316  # a Kubernetes label key with its prefix
FURTHER_POSTURES = ("capabilities", "device", "network")
TRUST_ROOT = "trustRoot"
_IMAGE_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_KEY_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._@-]{0,61}[A-Za-z0-9])?")
_PEM = re.compile(
    r"-----BEGIN PUBLIC KEY-----\n([A-Za-z0-9+/]{64}\n){0,15}[A-Za-z0-9+/]{1,64}={0,2}\n-----END PUBLIC KEY-----\n"
)
_EXPIRES = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_EXPIRES_FORM = "%Y-%m-%dT%H:%M:%SZ"
_Choice = TypeVar("_Choice", bound=StrEnum)


class Posture(StrEnum):
    """What an allow-list answers for what none of its rules matches (KubeArmor's default posture)."""

    BLOCK = "block"
    AUDIT = "audit"
    ALLOW = "allow"


@dataclass(frozen=True, slots=True)
class Target:
    """The containers a bundle's policies are for: of one of these images, or with all of these labels; never both."""

    image_digests: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    def as_json(self) -> dict[str, object]:
        """Give the manifest's field."""
        if self.image_digests:
            return {"imageDigests": sorted(self.image_digests)}
        return {"labels": dict(self.labels)}


@dataclass(frozen=True, slots=True)
class NamedKey:
    """A public key as the manifest carries it: PEM, and its owner's name for texts."""

    name: str
    public_key: str


@dataclass(frozen=True, slots=True)
class SuccessorRule:
    """Who may sign a successor: the machine's trust root (no keys here), or ``threshold`` of these keys."""

    keys: tuple[NamedKey, ...] = ()
    threshold: int = 0

    @property
    def by_trust_root(self) -> bool:
        """Whether the machine's own keys and threshold count."""
        return not self.keys

    def as_json(self) -> dict[str, object]:
        """Give the manifest's field."""
        if self.by_trust_root:
            return {"signedBy": TRUST_ROOT}
        keys = [{"name": key.name, "publicKey": key.public_key} for key in self.keys]
        return {"keys": keys, "threshold": self.threshold}

    def describe(self) -> str:
        """Say it in words."""
        if self.by_trust_root:
            return "signed as the machine's trust root demands"
        named = ", ".join(key.name for key in self.keys)
        return f"signed by {self.threshold} of {len(self.keys)} keys: {named}"


@dataclass(frozen=True, slots=True)
class Terms:
    """The optional part of a manifest. ``postures`` are those of classes other than file, sorted by class."""

    target: Target | None = None
    successor: SuccessorRule | None = None
    expires: str | None = None  # RFC 3339, UTC, whole seconds
    postures: tuple[tuple[str, Posture], ...] = ()

    def as_json(self) -> dict[str, object]:
        """Give the manifest's optional fields but ``posture``, which has a part that is not optional."""
        found: dict[str, object] = {}
        if self.target is not None:
            found["target"] = self.target.as_json()
        if self.successor is not None:
            found["successor"] = self.successor.as_json()
        if self.expires is not None:
            found["expires"] = self.expires
        return found

    def expired(self, now: datetime) -> bool:
        """Whether the moment of expiry is not after ``now``, as far as that clock can be believed."""
        return self.expires is not None and datetime.strptime(self.expires, _EXPIRES_FORM).replace(tzinfo=UTC) <= now


OPTIONAL_FIELDS = ("expires", "successor", "target")
NO_TERMS = Terms()


def read(fields: dict[str, object], postures: dict[str, object]) -> Terms:
    """Read the optional fields of a manifest and the optional ones of its posture.

    Raises ``MalformedBundleError``.
    """
    return Terms(
        target=_target(fields["target"]) if "target" in fields else None,
        successor=_successor(fields["successor"]) if "successor" in fields else None,
        expires=check_expires(fields["expires"]) if "expires" in fields else None,
        postures=tuple(
            (name, choice(postures[name], f"bundle.posture.{name}", Posture))
            for name in FURTHER_POSTURES
            if name in postures
        ),
    )


def check_expires(found: object, where: str = "bundle.expires") -> str:
    """Return a moment of expiry, or raise ``MalformedBundleError``: RFC 3339 in UTC with whole seconds."""
    if isinstance(found, str) and _EXPIRES.fullmatch(found):
        try:
            datetime.strptime(found, _EXPIRES_FORM).replace(tzinfo=UTC)
        except ValueError:
            pass
        else:
            return found
    raise refusal(where, quote(found), "a moment like 2027-01-31T00:00:00Z", "write it in UTC with whole seconds")


def check_image_digest(found: object, where: str) -> str:
    """Return an image's digest, or raise ``MalformedBundleError``."""
    if isinstance(found, str) and _IMAGE_DIGEST.fullmatch(found):
        return found
    expected = "sha256: and 64 lower-case hexadecimal digits"
    raise refusal(where, quote(found), expected, "take the digest of the image's manifest from your registry")


def check_label(key: object, value: object, where: str) -> tuple[str, str]:
    """Return a label, or raise ``MalformedBundleError``: printable texts, the key not empty."""
    for found, least in ((key, 1), (value, 0)):
        if not isinstance(found, str) or not least <= len(found) <= MAXIMUM_LABEL_CHARACTERS or not found.isprintable():
            expected = f"a printable text of {least} to {MAXIMUM_LABEL_CHARACTERS} characters"
            raise refusal(where, quote(found), expected, "correct the label")
    return str(key), str(value)


def _fields(found: object) -> str:
    if not isinstance(found, dict):
        return type(found).__name__
    return quote(", ".join(sorted(found))) if found else "nothing"


def _target(found: object) -> Target:
    where = "bundle.target"
    if not isinstance(found, dict) or len(found) != 1 or not {"imageDigests", "labels"} >= set(found):
        raise refusal(where, _fields(found), "an object with either imageDigests or labels", "choose one of them")
    if "labels" in found:
        labels = found["labels"]
        if not isinstance(labels, dict) or not 1 <= len(labels) <= MAXIMUM_TARGETS:
            raise refusal(f"{where}.labels", _size(labels), f"an object of 1 to {MAXIMUM_TARGETS} labels", "correct it")
        pairs = (check_label(key, labels[key], f"{where}.labels") for key in sorted(labels))
        return Target(labels=tuple(pairs))
    digests = found["imageDigests"]
    if not isinstance(digests, list) or not 1 <= len(digests) <= MAXIMUM_TARGETS:
        expected = f"a list of 1 to {MAXIMUM_TARGETS} digests"
        raise refusal(f"{where}.imageDigests", _size(digests), expected, "name the images, or leave the target out")
    checked = tuple(check_image_digest(one, f"{where}.imageDigests[{index}]") for index, one in enumerate(digests))
    for index, (one, following) in enumerate(pairwise(checked)):
        if one >= following:
            place = f"{where}.imageDigests[{index + 1}]"
            raise refusal(place, quote(following), f"a digest that sorts after {one}", "rebuild the bundle")
    return Target(image_digests=checked)


def _successor(found: object) -> SuccessorRule:
    where = "bundle.successor"
    if isinstance(found, dict) and set(found) == {"signedBy"}:
        if found["signedBy"] != TRUST_ROOT:
            raise refusal(
                f"{where}.signedBy", quote(found["signedBy"]), quote(TRUST_ROOT), "or name keys and a threshold"
            )
        return SuccessorRule()
    if not isinstance(found, dict) or set(found) != {"keys", "threshold"}:
        raise refusal(where, _fields(found), "either signedBy, or keys and threshold", "choose one of them")
    return check_rule(found["keys"], found["threshold"], where)


def check_rule(keys: object, threshold: object, where: str) -> SuccessorRule:
    """Return the rule that these keys make, or raise ``MalformedBundleError``."""
    if not isinstance(keys, list) or not 1 <= len(keys) <= MAXIMUM_SUCCESSOR_KEYS:
        raise refusal(f"{where}.keys", _size(keys), f"a list of 1 to {MAXIMUM_SUCCESSOR_KEYS} keys", "name the keys")
    named: list[NamedKey] = []
    for index, entry in enumerate(keys):
        place = f"{where}.keys[{index}]"
        if not isinstance(entry, dict) or set(entry) != {"name", "publicKey"}:
            raise refusal(place, quote(entry), "an object with name and publicKey", "correct it")
        name, pem = entry["name"], entry["publicKey"]
        if not isinstance(name, str) or not _KEY_NAME.fullmatch(name) or any(name == key.name for key in named):
            expected = "a name of its own: 1 to 63 of A-Z, a-z, 0-9, '.', '_', '@', '-'"
            raise refusal(f"{place}.name", quote(name), expected, "rename the key")
        if not isinstance(pem, str) or not _PEM.fullmatch(pem):
            expected = "a public key in PEM as `hauberk bundle keygen` writes it"
            raise refusal(f"{place}.publicKey", quote(pem), expected, "take the .pub file")
        if same := next((key.name for key in named if key.public_key == pem), None):
            raise refusal(
                f"{place}.publicKey", f"the same key as {quote(same)}", "each key once", "remove one of the two"
            )
        named.append(NamedKey(name, pem))
    if not isinstance(threshold, int) or isinstance(threshold, bool) or not 1 <= threshold <= len(named):
        expected = f"how many of the {len(named)} keys must sign: 1 to {len(named)}"
        raise refusal(f"{where}.threshold", quote(threshold), expected, "correct it")
    return SuccessorRule(tuple(named), threshold)


def _size(found: object) -> str:
    return f"{len(found)} entries" if isinstance(found, list | dict) else type(found).__name__


def choice(found: object, where: str, kind: type[_Choice]) -> _Choice:
    """Return the member of ``kind`` that is spelt so, or raise ``MalformedBundleError``."""
    if isinstance(found, str) and found in tuple(kind):
        return kind(found)
    raise refusal(where, quote(found), f"one of {', '.join(kind)}", "choose one of them")


def refusal(where: str, found: str, expected: str, action: str) -> MalformedBundleError:
    """Make the error that says what was found, what was expected and what to do."""
    message = f"{where}: found {found}, expected {expected}: {action}"
    return MalformedBundleError(message)
