# SPDX-License-Identifier: Apache-2.0
"""The differential test's parts: the same generated questions to ``hauberk policy explain`` and to the kernel."""
