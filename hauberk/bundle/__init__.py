# SPDX-License-Identifier: Apache-2.0
"""Signed bundles of policies: build, read, sign, verify.

``build`` and ``parse`` are the two ends of the format; keys and signatures are in :mod:`hauberk.bundle.keys` and
:mod:`hauberk.bundle.signatures`. What a machine accepts (trust root, floors, the seal) is not decided here but in the
agent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hauberk.bundle.document import Bundle, Default, PolicyFile, create, parse
from hauberk.bundle.errors import (
    BundleError,
    MalformedBundleError,
    MalformedSignatureError,
    MissingLibraryError,
    PolicyFilesError,
    SignatureError,
    SigningKeyError,
    TooFewSignaturesError,
    WrongSignatureError,
)
from hauberk.bundle.terms import Posture, SuccessorRule, Target, Terms

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "Bundle",
    "BundleError",
    "Default",
    "MalformedBundleError",
    "MalformedSignatureError",
    "MissingLibraryError",
    "PolicyFile",
    "PolicyFilesError",
    "Posture",
    "SignatureError",
    "SigningKeyError",
    "SuccessorRule",
    "Target",
    "Terms",
    "TooFewSignaturesError",
    "WrongSignatureError",
    "build",
    "create",
    "parse",
]


def build(directory: str | Path, name: str, version: int, default: str = "deny", posture: str = "block") -> bytes:
    """Give the bytes of the bundle that the policy files below ``directory`` make; the same for the same files.

    Raises ``PolicyFilesError`` with every located problem, ``MalformedBundleError`` for a name, version, default or
    posture that no bundle can have, ``OSError``. :func:`hauberk.bundle.builder.assemble` also gives the warnings.
    """
    from hauberk.bundle import builder  # noqa: PLC0415 - the agent only parses: YAML and models are not its to load

    return builder.build(directory, name, version, default, posture)
