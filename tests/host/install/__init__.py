# SPDX-License-Identifier: Apache-2.0
"""Installing on the machine itself, with everything that is written caught in a mount namespace."""
