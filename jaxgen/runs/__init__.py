# SPDX-License-Identifier: MIT
"""One training run is made here, from its options to its folder.

Users import

    run.train, run.restore                 train into a folder; the state that was trained
    experiment                             System, Examples, optimizer_of, the keys of a run
    command_line                           RunOptions, parse, read
"""
