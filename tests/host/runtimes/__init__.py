# SPDX-License-Identifier: Apache-2.0
"""Container engines with what ``hauberk install`` puts, as root."""
