# SPDX-License-Identifier: Apache-2.0
"""``make demo``: the main job, shown on a real kernel, one line per step."""
