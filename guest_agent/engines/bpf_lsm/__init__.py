# SPDX-License-Identifier: Apache-2.0
"""The BPF LSM engine: rules become one table per workload (``automaton``, ``plan``), which a kernel program walks."""
