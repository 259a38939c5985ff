# SPDX-License-Identifier: MIT
"""Programs compiled for TPUs and GPUs on a machine without one."""
