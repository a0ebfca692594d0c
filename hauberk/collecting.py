# SPDX-License-Identifier: Apache-2.0
"""The garbage collector, for work that makes very many objects and no cycle of them."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def suspended_collection() -> Iterator[None]:
    """Suspend the garbage collector, which would go through all new objects again after every few of them.

    Afterwards it is as it was, so this may stand within itself.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
