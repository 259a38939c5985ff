# SPDX-License-Identifier: MIT
"""Warm starts: programs that were traced before are read from a folder instead of traced again.

Import from here: `stored_programs.Store`.
"""

__all__ = ["stored_programs"]
