# SPDX-License-Identifier: MIT
"""Additions to a loaded model are read and merged here: LoRA and its relatives, as data.

What users import: nothing. `StableDiffusion.set_adapters` is the door.
"""
