# SPDX-License-Identifier: Apache-2.0
"""Programs for maintainers: what they find goes into tests as data."""
