# SPDX-License-Identifier: Apache-2.0
"""The truth table on this kernel: a few cases of containers that share a namespace, as in a guest of Kata.

With time, more of them, in each layout. The host lane has all of them, on the kernel of the machine at hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from guest_agent.engines.nftables.engine import NftablesEngine
from tests.host.network.cases import sample
from tests.host.network.test_truth import EVERY_CASE, LAYOUTS
from tests.host.network.truth import Table

if TYPE_CHECKING:
    from tests.host.network.truth import Layout

PATIENCE_SECONDS = 60


def test_some_cases_hold() -> None:
    _run("cgroup", 2)


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sample_holds(layout: Layout) -> None:
    _run(layout, 24)


def _run(layout: Layout, count: int) -> None:
    with Table(layout, NftablesEngine, PATIENCE_SECONDS) as table:
        for case in sample([case for case in EVERY_CASE if table.holds(case)], count):
            table.run(case)
    assert not table.tally.differences, str(table.tally)
    assert table.tally.refused > 100, str(table.tally)
    assert table.tally.events > 100, str(table.tally)
