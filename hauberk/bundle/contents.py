# SPDX-License-Identifier: Apache-2.0
"""What the policies of a bundle say, as far as signing them is concerned: are they valid, and whom do they cover.

Validity is ``hauberk.policy``'s to decide; it is asked about all files together, because two files may also
contradict each other. Imported when asked for: YAML and the models are large, and who only reads a bundle's envelope
needs neither.

Labels, names and namespaces of a container come from the host. A host that may choose among policies chooses the
weakest one that fits its attack, and a host that may choose none gets the bundle's default. No signature helps
against that; so the author is told before signing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hauberk.bundle.document import Default
from hauberk.bundle.errors import MissingLibraryError, quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from hauberk.bundle.document import PolicyFile
    from hauberk.bundle.terms import Terms
    from hauberk.policy.coverage import Unenforced
    from hauberk.policy.models import Policy

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class PolicySummary:
    """One policy: its name, its file, and whether what the host says about a container decides if it covers it.

    ``unenforced`` has its rules that no engine enforces as they are written.
    """

    name: str
    file: str
    selects_by_host: bool
    unenforced: tuple[Unenforced, ...] = ()


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found in the files of a bundle, as located texts.

    With any of ``problems`` the bundle is not built; ``doubts`` are told to its author.
    """

    policies: tuple[PolicySummary, ...]
    problems: tuple[str, ...]
    doubts: tuple[str, ...] = ()


def examine(files: Iterable[PolicyFile]) -> Findings:
    """Read all policies of a bundle. Raises ``MissingLibraryError`` if the libraries that read policies are missing."""
    try:
        from hauberk.policy import coverage, models, normalise  # noqa: PLC0415 - lazily, see the module's text
    except ModuleNotFoundError as error:
        message = (
            f"found no Python library `{error.name}`, expected it for reading policies:"
            " install Hauberk with its dependencies"
        )
        raise MissingLibraryError(message) from error

    policies, problems = models.examine((file.file, file.text.encode()) for file in files)

    def summary(policy: Policy) -> PolicySummary:
        selector = normalise.selector(policy.model)
        unenforced = coverage.report(normalise.rules(policy), selector.scope)
        return PolicySummary(policy.name, policy.document.file, not selector.covers_every_container, unenforced)

    summaries = tuple(map(summary, policies))
    return Findings(
        summaries,
        tuple(str(problem) for problem in problems if not problem.warning),
        tuple(str(problem) for problem in problems if problem.warning),
    )


def terms_warnings(terms: Terms, default: Default, now: datetime) -> Iterator[str]:
    """Give what the author should know of the manifest's optional part before signing it."""
    if terms.target is not None and default is not Default.DENY:
        yield (
            f"target with the default {default.value}: the target takes every container outside of it away from all"
            " policies of the bundle, and the default refuses it nothing. Which container is outside is told by the"
            " host. A target narrows what may run only with the default deny"
        )
    if terms.target is not None and terms.target.labels:
        yield (
            "target by labels: the host says which labels a container has, so it can leave any container outside, under"
            " the default, and bring any other inside. A target by image digests narrows more"
        )
    if terms.expired(now):
        yield f"expires {terms.expires}: that has passed by the clock here; agents would warn from the first moment"
    rule = terms.successor
    if rule is not None and not rule.by_trust_root and rule.threshold == 1 and len(rule.keys) > 1:
        yield (
            f"successor: any one of {len(rule.keys)} keys alone can put another bundle in this one's place; one that is"
            " stolen suffices. A --successor-threshold of 2 or more asks for several"
        )


def warnings(policies: Iterable[PolicySummary], default: Default) -> tuple[str, ...]:
    """Give what the author of a bundle should know before signing it; empty if there is nothing."""
    policies = tuple(policies)
    found: list[str] = []
    by_host = tuple(policy for policy in policies if policy.selects_by_host)
    namespaces = {policy.name.rpartition("/")[0] for policy in policies}
    if len(policies) > 1 and (by_host or len(namespaces) > 1):
        shown = by_host or policies
        named = ", ".join(f"{quote(policy.name)} ({quote(policy.file)})" for policy in shown[:_SHOWN])
        rest = len(shown) - _SHOWN
        more = f" and {rest} more" if rest > 0 else ""
        found.append(
            f"found {len(policies)} policies among which labels, names or namespaces choose: {named}{more}; expected"
            " one policy for all, because these come from the host, which can put any container under any of them:"
            " protection is at best that of the weakest policy in the bundle",
        )
    if default is not Default.DENY:
        found.append(
            f"default {default.value}: the host can name a container so that no policy covers it, and it may then do"
            " what it likes. Protection against the host needs the default deny",
        )
    unenforced = tuple(told for policy in policies for told in policy.unenforced)
    if unenforced:
        rest = len(unenforced) - _SHOWN
        more = f"; and {rest} more" if rest > 0 else ""
        found.append(
            f"found {len(unenforced)} rules that no engine enforces as they are written: a sealed machine refuses the"
            " whole bundle, a machine in host mode tells of them and goes on without. "
            + "; ".join(map(str, unenforced[:_SHOWN]))
            + more
        )
    return tuple(found)
