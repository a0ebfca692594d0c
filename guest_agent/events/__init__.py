# SPDX-License-Identifier: Apache-2.0
"""Kernel events become alerts with KubeArmor's field names, and alerts reach their readers."""
