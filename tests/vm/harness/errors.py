# SPDX-License-Identifier: Apache-2.0
"""The one exception of the harness, in a module of its own so that every other module may raise it."""

from __future__ import annotations


class HarnessError(Exception):
    """The guest could not be prepared or started. The message says what is missing and what to do."""
