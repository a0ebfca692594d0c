# SPDX-License-Identifier: Apache-2.0
"""Property tests: as long as they take (machines differ), no database in the tree, the failing example printed."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("hauberk", deadline=None, database=None, print_blob=True)
settings.load_profile("hauberk")
