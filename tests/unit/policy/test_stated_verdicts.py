# SPDX-License-Identifier: Apache-2.0
"""What the authors of cases say that policies mean is what decisions say, for every case that real packets try."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.host.network.cases_cilium import cilium_cases
from tests.host.network.cases_kubearmor import kubearmor_cases
from tests.host.network.cases_kubernetes import kubernetes_cases
from tests.host.network.cases_together import cases_together
from tests.host.network.topology import Places, everybody
from tests.host.network.truth_verdicts import Verdicts

if TYPE_CHECKING:
    from tests.host.network.cases import Case

PLACES = Places(everybody())
SHARED = Places(everybody(shared=True))
EVERY_CASE = (*kubernetes_cases(), *cilium_cases(), *kubearmor_cases(), *cases_together())
CASES = [case for case in EVERY_CASE if any(one.stated for one in case.states)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_decisions_are_what_is_stated(case: Case) -> None:
    for state in case.states:
        verdicts = Verdicts(state, case.entities, case.names)
        for one in state.stated:
            places = SHARED if "machine and pods" in case.features else PLACES
            judged = verdicts.judge(one.probe(places), places)
            assert judged.passes is one.passes, (one, judged)


def test_each_case_of_our_own_states_what_passes_and_what_does_not() -> None:
    for case in (*cilium_cases(), *kubearmor_cases(), *cases_together()):
        assert any(one.stated for one in case.states), case.name
