# SPDX-License-Identifier: Apache-2.0
"""Policy documents -> policies in the normal form, by way of the cache where there is one.

What the command line asks is asked of the normal form. Reading it from YAML takes the YAML library, pydantic and the
models, which cost more than most questions; so this module imports them only when a text is met for the first time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hauberk.errors import PolicyError, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hauberk.policy.cache import Cache
    from hauberk.policy.rules import Rule
    from hauberk.policy.selectors import Selector, WorkloadIdentity


class NormalPolicy(NamedTuple):
    """One valid policy: whom it covers, and its rules."""

    name: str  # "namespace/name" or "name"
    kind: str
    namespace: str
    file: str
    selector: Selector
    rules: tuple[Rule, ...]

    def covers(self, workload: WorkloadIdentity) -> bool:
        """Tell whether the policy is for this workload."""
        return self.selector.matches(self.namespace, workload)


class Collection(NamedTuple):
    """What some files hold. ``problems`` are warnings alone where the files are valid."""

    policies: tuple[NormalPolicy, ...]
    problems: tuple[Problem, ...]

    @property
    def valid(self) -> bool:
        """Whether nothing refuses the files."""
        return all(problem.warning for problem in self.problems)


def examine(files: Sequence[tuple[str, bytes]], cache: Cache | None = None) -> Collection:
    """Read ``(name for messages, content)`` pairs; give all that is valid, and all that is wrong."""
    if cache is not None:
        known = cache.find(files)
        if known is not None:
            return known
    from hauberk.policy import models, normalise  # noqa: PLC0415 - heavy, and most often not needed

    policies, problems = models.examine(files)
    collection = Collection(
        tuple(
            NormalPolicy(
                policy.name,
                policy.model.kind,
                policy.model.metadata.namespace,
                policy.document.file,
                normalise.selector(policy.model),
                normalise.rules(policy),
            )
            for policy in policies
        ),
        tuple(problems),
    )
    if cache is not None and collection.valid:
        cache.keep(files, collection)
    return collection


def load(files: Sequence[tuple[str, bytes]], cache: Cache | None = None) -> tuple[NormalPolicy, ...]:
    """Read as :func:`examine` does. Raises :class:`hauberk.errors.PolicyError` unless everything is valid."""
    collection = examine(files, cache)
    if not collection.valid:
        raise PolicyError(problem for problem in collection.problems if not problem.warning)
    return collection.policies
