# SPDX-License-Identifier: MIT
"""Pictures with their story: PNG files whose text chunks say how they were made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from jaxgen import files

MOST_TEXT = 2**16  # characters of one entry; readers refuse chunks of more than a megabyte


def write(path: str | Path, picture: np.ndarray | Image.Image, text: Mapping[str, Any]) -> None:
    """Writes a PNG, uint8 [H, W, 3] or a Pillow image, with `text` as its iTXt chunks.

    Keys are plain ASCII of at most 79 characters; values become strings in UTF-8. The folder is
    made if need be, and the file appears whole or not at all.
    """
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        if not key.isascii() or not 1 <= len(key) <= 79:
            raise ValueError(f"the PNG key {key!r} must be 1 to 79 ASCII characters")
        # half of a surrogate pair is not text, and UTF-8 cannot carry it
        safe = str(value)[:MOST_TEXT].encode("utf-8", "replace").decode("utf-8")
        chunks.add_itxt(key, safe)
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    files.write_whole(Path(path), lambda partial: image.save(partial, format="PNG", pnginfo=chunks))


def read_text(path: str | Path) -> dict[str, str]:
    """The text chunks of a PNG, as `write` made them."""
    with Image.open(path) as image:
        image.load()  # chunks may stand behind the pixels
        return {key: str(value) for key, value in getattr(image, "text", {}).items()}
