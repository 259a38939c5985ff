# SPDX-License-Identifier: MIT
"""A small vocabulary of CLIP's kind, and thousands of difficult strings (for tests)."""

import random

WORDS = [
    "a", "the", "of", "in", "on", "and", "with", "photo", "photograph", "picture",
    "painting", "portrait", "cat", "dog", "astronaut", "riding", "horse", "horses",
    "mountain", "lake", "sunset", "detailed", "beautiful", "'re", "'ve", "'ll", "don",
    "can", "they",
]  # fmt: skip
PIECES = [
    "a", "photo", "of", "Cat's", "dog,", "8k", "(astronaut:1.3)", "!", "!!", "...",
    "they'RE", "don't", "<|endoftext|>", "<|startoftext|>", "<|STARTOFTEXT|>",
    "<|EndOfText|>", "<|", "|>", "</w>", "<b>hi</b>", "&amp;", "&#39;", "#tag", "@me",
    "http://x.y/z?q=1&r=2", "İstanbul", "ß", "ﬁ", "ǅ", "Ω", "Ⅷ", "²", "½", "①", "٣",
    "e\u0301", "é", "a\u0308\u0323", "각", "\u1100\u1161\u11a8", "日本語", "ไทย", "हिन्दी",
    "עברית", "العربية", "Ελλάς", "😀", "👍🏽", "👨\u200d👩\u200d👧", "🇫🇷", "❤\ufe0f", "\u200b",
    "\ufeff", "\u00ad", "\u2028", "\x85", "\u3000", "\u00a0", "\x00", "\x07", "\x1b[0m",
    "\x7f", "\t", "\n", "\r\n", "_", "-", "--", "snake_case", "a1b2", "1234567", "'", "''s",
    "he'd", "I'm", "you've",
]  # fmt: skip


def small_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in CLIP's order: bytes, bytes that end a word, merges, two specials."""
    characters = byte_characters()
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges[parts[0], parts[1]] = None
            parts[:2] = [parts[0] + parts[1]]
    tokens = [*characters, *(c + "</w>" for c in characters)]
    tokens += dict.fromkeys(a + b for a, b in merges)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, list(merges)


def byte_characters() -> list[str]:
    """The printable character that byte-level encodings write for each byte; "!" comes first."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + i) for i in range(len(hidden))]


def strings(count: int, seed: int = 0) -> list[str]:
    """Empty, long, and mixed texts of all scripts; the first ones are the pieces themselves."""
    rng = random.Random(seed)
    fixed = ["", " ", "   ", "word " * 200, "a" * 3000, "😀" * 100, *PIECES]
    makers = (_pieces, _ascii, _letters, _marks, _controls, _any)
    return (fixed + [rng.choice(makers)(rng) for _ in range(count)])[:count]


def _pieces(rng: random.Random) -> str:
    return rng.choice(["", " ", "  "]).join(rng.choices(PIECES, k=rng.randrange(1, 30)))


def _ascii(rng: random.Random) -> str:
    return "".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(60)))


def _letters(rng: random.Random) -> str:
    start = rng.choice([0xC0, 0x370, 0x400, 0x590, 0x900, 0xE00, 0x1E00, 0x3040, 0x4E00, 0xAC00])
    return "".join(rng.choice([" ", chr(start + rng.randrange(250))]) for _ in range(30))


def _marks(rng: random.Random) -> str:
    return "".join(rng.choice("aeiou") + chr(rng.randrange(0x300, 0x370)) for _ in range(20))


def _controls(rng: random.Random) -> str:
    return "".join(
        rng.choice(["a ", "<|", chr(rng.randrange(32))]) for _ in range(rng.randrange(30))
    )


def _any(rng: random.Random) -> str:
    codes = (rng.randrange(0x110000) for _ in range(rng.randrange(20)))
    return "".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000)
