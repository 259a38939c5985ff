# SPDX-License-Identifier: MIT
"""Files and data sets become examples: uint8 images with labels or captions.

Users import

    sets.open_source, sets.load            a data set by name or path
    source                                 Source, Dataset, from_arrays, read_all
    caption_folder                         pictures with captions
    stream                                 shuffled batches from the host
    pixels                                 what a pixel of any type means
"""
