# SPDX-License-Identifier: MIT
"""A rendered world of coloured shapes gives as many captioned pictures as wanted, from a key.

Users import

    scene, render, caption                 a scene from a key, its picture, its words
    reader                                 a scene read back from a picture
"""
