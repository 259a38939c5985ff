# SPDX-License-Identifier: MIT
"""Warm starts: programs that were traced before are read from a folder instead of traced again.

Import from here: `stored_programs.Store`; pipelines are saved by `StableDiffusion.save`.
"""

__all__ = ["saved_pipeline", "stored_programs"]
