# SPDX-License-Identifier: MIT
"""Published models are read into parameter trees here, and written: files, names, configs.

Users import

    hub.open_checkpoint                    a folder, a single file or a Hub id -> Checkpoint
    diffusers                              Checkpoint, read, write: diffusers' folders
    layout.load, layout.to_tensors         tensors <-> parameters of a linen module
    tokenizer                              read, build, train, write
"""
