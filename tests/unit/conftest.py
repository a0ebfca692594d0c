# SPDX-License-Identifier: Apache-2.0
"""Property tests: as long as they take (machines differ), no database in the tree, the failing example printed.

Commands keep what they read in a cache of the test's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

settings.register_profile("hauberk", deadline=None, database=None, print_blob=True)
settings.load_profile("hauberk")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
