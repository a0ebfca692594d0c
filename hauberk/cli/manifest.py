# SPDX-License-Identifier: Apache-2.0
"""The manifest's optional part on the command line: options of ``bundle build``, and how ``bundle show`` tells it."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from datetime import datetime

    from hauberk.bundle import Bundle, SuccessorRule, Target, Terms

_POSTURES = ("block", "audit", "allow")


def add_options(build: argparse.ArgumentParser) -> None:
    """Add the options of ``bundle build`` that make the optional part."""
    for name in ("capabilities", "device", "network"):
        build.add_argument(f"--{name}-posture", choices=_POSTURES, help=f"the same for {name} rules")
    target = build.add_mutually_exclusive_group()
    target.add_argument(
        "--image-digest",
        action="append",
        metavar="sha256:…",
        help="only containers of this image get the policies, all others the default; may be repeated",
    )
    target.add_argument(
        "--target-label",
        action="append",
        metavar="KEY=VALUE",
        help="only containers with this label get the policies, all others the default; may be repeated",
    )
    successor = build.add_mutually_exclusive_group()
    successor.add_argument(
        "--successor-trust-root",
        action="store_true",
        help="a higher version may take this one's place before the next boot, signed as the trust root demands",
    )
    successor.add_argument(
        "--successor-key",
        nargs="+",
        action="extend",
        metavar="PUB",
        help="the same, signed with these keys (public, PEM) whatever the trust root's are",
    )
    build.add_argument("--successor-threshold", type=int, metavar="K", help="how many of these keys must sign (1)")
    build.add_argument(
        "--expires", metavar="TIME", help="advice: warn from then on, as in 2027-01-31T00:00:00Z; nothing stops"
    )


def terms_of(arguments: argparse.Namespace) -> Terms:
    """Give what the options ask for. Raises MalformedBundleError, SigningKeyError or OSError."""
    from hauberk.bundle import terms  # noqa: PLC0415 - nothing is imported before a command runs

    return terms.Terms(
        target=_target(arguments),
        successor=_successor(arguments),
        expires=None if arguments.expires is None else terms.check_expires(arguments.expires, "--expires"),
        postures=tuple(
            (name, terms.Posture(chosen))
            for name in terms.FURTHER_POSTURES
            if (chosen := getattr(arguments, f"{name}_posture")) is not None
        ),
    )


def _target(arguments: argparse.Namespace) -> Target | None:
    from hauberk.bundle import errors, terms  # noqa: PLC0415 - as above

    if arguments.image_digest:
        digests = {terms.check_image_digest(digest, "--image-digest") for digest in arguments.image_digest}
        return terms.Target(image_digests=tuple(sorted(digests)))
    if not arguments.target_label:
        return None
    labels: dict[str, str] = {}
    for text in arguments.target_label:
        key, equals, value = text.partition("=")
        if not equals or key in labels:
            found = "the label twice" if key in labels else "no '='"
            message = (
                f"--target-label {errors.quote(text)}: found {found}, expected KEY=VALUE, each key once: correct it"
            )
            raise errors.MalformedBundleError(message)
        labels.update([terms.check_label(key, value, "--target-label")])
    return terms.Target(labels=tuple(sorted(labels.items())))


def _successor(arguments: argparse.Namespace) -> SuccessorRule | None:
    from hauberk.bundle import errors, files, keys, terms  # noqa: PLC0415 - as above

    if arguments.successor_threshold is not None and not arguments.successor_key:
        message = (
            "--successor-threshold: found it without keys, expected --successor-key: name the keys, or leave it out"
        )
        raise errors.MalformedBundleError(message)
    if not arguments.successor_key:
        return terms.SuccessorRule() if arguments.successor_trust_root else None
    found = [
        {
            "name": PurePath(path).stem,
            "publicKey": keys.public_pem(
                keys.load_public(files.read_bounded(path, keys.MAXIMUM_KEY_BYTES), path)
            ).decode(),
        }
        for path in arguments.successor_key
    ]
    threshold = 1 if arguments.successor_threshold is None else arguments.successor_threshold
    return terms.check_rule(found, threshold, "--successor-key")


def as_json(bundle: Bundle) -> dict[str, Any]:
    """Give the optional part as ``show --json`` prints it: as in the manifest, null where it is not set."""
    told: dict[str, Any] = {"target": None, "successor": None, "expires": None, **bundle.terms.as_json()}
    postures = {name: posture.value for name, posture in bundle.terms.postures}
    return {"posture": {"file": bundle.posture.value, **postures}, **told}


def as_text(bundle: Bundle, now: datetime) -> list[str]:
    """Give the optional part as lines for people."""
    found = bundle.terms
    lines = [f"          {name}: {posture.value}" for name, posture in found.postures]
    if found.target is None:
        lines.append("target    every container")
    elif found.target.image_digests:
        lines += _list("target    containers of one of these images:", found.target.image_digests)
    else:
        lines += _list("target    containers with all of these labels:", [f"{k}={v}" for k, v in found.target.labels])
    if found.successor is None:
        lines.append("successor none before the next boot")
    else:
        lines.append(f"successor {found.successor.describe()}")
    if found.expires is not None:
        lines.append(
            f"expires   {found.expires} (advice{', and past by the clock here' if found.expired(now) else ''})"
        )
    return lines


def _list(title: str, entries: tuple[str, ...] | list[str]) -> list[str]:
    return [title, *(f"  {entry}" for entry in entries)]
