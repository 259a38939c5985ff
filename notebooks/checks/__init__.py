# SPDX-License-Identifier: MIT
"""Answers to the notebooks' exercises are judged here, offline; one module a notebook.

A check prints one line that begins with "right", "wrong" or "no answer yet". It works the truth out
by another route than the answer, or knows a fingerprint of it only, so that reading on here gives
nothing away.
"""

import hashlib
from collections.abc import Callable


def number(answer: float | None, truth: Callable[[], float], hint: str, rtol: float = 0.01) -> None:
    """Judges a number; `truth` works the right one out and is called only when needed."""
    if answer is None:
        return print("no answer yet: replace None by your number")
    right = abs(answer - truth()) <= rtol * abs(truth())
    print(f"right: {answer:.4g}" if right else f"wrong: {answer:.4g}. {hint}")


def choice(question: str, answer: str | int | None, fingerprint: str, hint: str) -> None:
    """Judges a word or an integer by its fingerprint, which `fingerprint_of` gives."""
    if answer is None:
        return print("no answer yet: replace None by your choice")
    right = fingerprint_of(question, answer) == fingerprint
    print(f"right: {answer}" if right else f"wrong: {answer}. {hint}")


def fingerprint_of(question: str, answer: str | int) -> str:
    """Twelve digits that belong to an answer and do not show it."""
    text = f"{question}: {str(answer).strip().lower()}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def same(
    answer: Callable[..., float] | None,
    truth: Callable[..., float],
    cases: list[tuple],
    hint: str,
    rtol: float = 1e-4,
) -> None:
    """Judges a function: on every case it has to give the number that `truth` gives."""
    if answer is None:
        return print("no answer yet: replace None by your function")
    for case in cases:
        value, expected = float(answer(*case)), float(truth(*case))
        if not abs(value - expected) <= rtol * max(1e-3, abs(expected)):
            return print(f"wrong: {value:.5g} where it should be another number. {hint}")
    print(f"right: in all of {len(cases)} cases")
