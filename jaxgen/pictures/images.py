# SPDX-License-Identifier: MIT
"""Grids, curves and animations of images, and the files that they are written to and read from.

A file appears whole or not at all.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from jaxgen import fields, files

TILE = 56  # images are shown at this many pixels or more, so that 8x8 digits can be seen
GAP = 2
BACKGROUND = 255
_MOST_TEXT = 2**16  # characters of one entry; readers refuse chunks of more than a megabyte
_MOST_BYTES = 2**28  # of a picture that is read back


def to_uint8(x: Any) -> np.ndarray:
    """float [-1, 1] -> uint8 [0, 255], rounded and clipped; what is no number becomes black."""
    levels = np.rint(
        (np.nan_to_num(np.asarray(x, np.float32), nan=-1, posinf=1, neginf=-1) + 1) * 127.5
    )
    return np.clip(levels, 0, 255).astype(np.uint8)


def measurable(x: Any) -> np.ndarray:
    """Converts as `to_uint8` does, pictures of which figures are made.

    Raises ValueError for pixels that are no number: black ones would have figures too.
    """
    if np.isnan(x).any():
        raise ValueError("pictures with pixels that are no number (nan); look at the model")
    return to_uint8(x)


def grid(images: np.ndarray, columns: int | None = None) -> Image.Image:
    """Arranges images uint8 [N, H, W, C] in rows; small ones are enlarged without blur.

    C is 1 or 3; `columns` defaults to the nearest square.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"a grid takes uint8 images [N, H, W, 1 or 3], got {images.dtype} {images.shape}"
        )
    count, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    scale = max(1, TILE // max(height, width))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    h, w = height * scale + GAP, width * scale + GAP

    canvas = np.full((rows * h + GAP, columns * w + GAP, channels), BACKGROUND, np.uint8)
    for i, image in enumerate(images):
        top, left = GAP + i // columns * h, GAP + i % columns * w
        canvas[top : top + h - GAP, left : left + w - GAP] = image
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def beside(first: np.ndarray, second: np.ndarray, columns: int = 10) -> Image.Image:
    """Arranges pairs of uint8 images [N, H, W, C]: rows alternate; N is cut to whole rows."""
    count = max(len(first) // columns, 1) * columns
    rows = []
    for start in range(0, min(count, len(first)), columns):
        rows += [first[start : start + columns], second[start : start + columns]]
    return grid(np.concatenate(rows), columns=min(columns, len(first)))


def labelled(picture: Image.Image, text: str) -> Image.Image:
    """Writes one line of text above a picture."""
    font = ImageFont.load_default(size=14)
    width = max(picture.width, int(font.getlength(text)) + 8)
    result = Image.new("RGB", (width, picture.height + 22), "white")
    result.paste(picture, (0, 22))
    ImageDraw.Draw(result).text((4, 3), text, fill="black", font=font)
    return result


def captioned(
    images: np.ndarray, captions: Sequence[str], columns: int = 6, scale: int = 2
) -> Image.Image:
    """Arranges images uint8 [N, H, W, 3], enlarged without blur, each above its caption."""
    font = ImageFont.load_default(size=11)
    height, width = images.shape[1] * scale, images.shape[2] * scale
    texts = [_wrapped(caption, font, width) for caption in captions]
    line, gap = 13, 10
    below = line * max(text.count("\n") + 1 for text in texts) + 6
    rows = -(-len(images) // columns)
    size = (columns * (width + gap) + gap, rows * (height + below + gap) + gap)
    result = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(result)
    for i, (image, text) in enumerate(zip(images, texts, strict=True)):
        left = gap + i % columns * (width + gap)
        top = gap + i // columns * (height + below + gap)
        enlarged = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
        result.paste(enlarged, (left, top))
        draw.rectangle((left - 1, top - 1, left + width, top + height), outline="#d0d0d0")
        draw.multiline_text((left, top + height + 3), text, fill="black", font=font, spacing=1)
    return result


def _wrapped(text: str, font: Any, width: int) -> str:
    """Divides text into lines of at most `width` pixels; a longer word has a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def side_by_side(pictures: Sequence[Image.Image], gap: int = 16) -> Image.Image:
    """Arranges pictures in a row, tops aligned, on white."""
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    result = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        result.paste(picture, (left, 0))
        left += picture.width + gap
    return result


def stacked(pictures: Sequence[Image.Image], gap: int = 16) -> Image.Image:
    """Arranges pictures below each other, left sides aligned, on white."""
    height = sum(picture.height for picture in pictures) + gap * (len(pictures) - 1)
    result = Image.new("RGB", (max(picture.width for picture in pictures), height), "white")
    top = 0
    for picture in pictures:
        result.paste(picture, (0, top))
        top += picture.height + gap
    return result


def read(path: str | Path) -> Image.Image:
    """Reads the picture in a PNG that `save` wrote. ValueError names any other file."""
    return _read(path)[0]


def read_text(path: str | Path) -> dict[str, str]:
    """Reads the text that `save` wrote into a PNG."""
    return _read(path)[1]


def check_file(path: Path, flag: str) -> None:
    """Raises ValueError where no PNG file can be written at `path`, the value of a flag.

    Long work should not start then. A picture may replace an older one, but no other file.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"{flag} is {files.printable(path)}; pictures are PNG: end it in .png")
    files.check_writable(path)


def save(
    path: str | Path, picture: np.ndarray | Image.Image, text: Mapping[str, Any] | None = None
) -> None:
    """Writes uint8 [H, W, 3] or a Pillow image as a PNG, making the folder if need be.

    text: entries that the file carries. Keys are plain ASCII of at most 79 characters; values
    become strings.
    """
    chunks = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        if not key.isascii() or not 1 <= len(key) <= 79:
            raise ValueError(f"the PNG key {fields.shown(key)} must be 1 to 79 ASCII characters")
        # half of a surrogate pair is not text, and UTF-8 cannot carry it
        entry = str(value)[:_MOST_TEXT].encode("utf-8", "replace").decode("utf-8")
        # tEXt is read by more programs, but holds no Unicode
        (chunks.add_text if entry.isascii() else chunks.add_itxt)(key, entry)
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    files.write_whole(Path(path), lambda partial: image.save(partial, format="PNG", pnginfo=chunks))


def save_gif(path: Path, pictures: Sequence[Image.Image], seconds: float = 0.3) -> None:
    """Writes a looping animation that rests on its last picture."""
    frames = [picture.convert("RGB") for picture in pictures]
    times = [int(1000 * seconds)] * (len(frames) - 1) + [2000]
    files.write_whole(
        Path(path),
        lambda partial: frames[0].save(
            partial, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0
        ),
    )


def save_curves(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Draws a panel for each metric over the steps, with a thick line for its running mean."""
    from matplotlib.figure import Figure

    names = [name for name in rows[0] if name != "step"] if rows else []
    if not names:
        return
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * lines), layout="constrained")
    panels = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
    steps = np.array([row["step"] for row in rows])
    for panel, name in zip(panels, names, strict=False):
        values = np.array([np.mean(row[name]) for row in rows], np.float64)
        panel.plot(steps, values, linewidth=0.6, alpha=0.45, color="tab:blue")
        panel.plot(*_smooth(steps, values), linewidth=1.8, color="tab:blue")
        panel.set_title(name, fontsize=10)
        panel.set_ylim(*_range(values))
        panel.grid(alpha=0.25)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=8)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    figure.suptitle(title, fontsize=11)
    files.write_whole(Path(path), lambda partial: figure.savefig(partial, format="png", dpi=110))


def _smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes the running mean over a twentieth of the rows, at the middle of each window."""
    window = max(len(values) // 20, 1)
    kernel = np.ones(window) / window
    means = np.convolve(values, kernel, mode="valid")
    offset = (window - 1) // 2
    return steps[offset : offset + len(means)], means


def _range(values: np.ndarray) -> tuple[float, float]:
    """Computes limits that the first wild steps do not dictate, from percentiles."""
    low, high = np.percentile(values, [0.5, 98])
    low, high = min(low, values[-1]), max(high, values[-1])
    margin = 0.08 * (high - low) or max(abs(high), 1e-3) * 0.1
    return float(low - margin), float(high + margin)


def _read(path: str | Path) -> tuple[Image.Image, dict[str, str]]:
    shown = files.printable(path)
    try:
        data = files.read_bytes(Path(path), _MOST_BYTES)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            _check_size(picture)
            picture.load()  # text may stand behind the pixels
            text = {key: str(value) for key, value in getattr(picture, "text", {}).items()}
            return picture.copy(), text
    except Exception as error:  # Pillow raises SyntaxError, struct.error, OSError, ...
        raise ValueError(
            f"{shown} cannot be read as a PNG picture ({files.printable(error)})"
        ) from error


def _check_size(picture: Image.Image) -> None:
    """Refuses before it is decoded what Pillow warns of: a short file may hold gigabytes."""
    limit, size = Image.MAX_IMAGE_PIXELS, f"{picture.width}x{picture.height}"
    if limit is not None and picture.width * picture.height > limit:
        raise ValueError(f"{size} is over Pillow's limit of {limit} pixels")


def next_number(folder: Path) -> int:
    """Adds one to the largest number that a picture in the folder has."""
    names = [re.match(r"(\d{5,})(-grid)?\.png$", path.name) for path in folder.glob("*.png")]
    return max((int(name[1]) for name in names if name), default=0) + 1
