"""Prompts in which everything varies independently, so that one can find out which word an atom answers to.

    "a small sks teapot on the left on a green background"   subject, size, place and background are shuffled separately

Each kind of word is balanced over the set and shuffled with its own draw. Half of the subjects are learnt ones, with
their tokens; the others are their classes without the token, and subjects that every base knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from atomtune import prompts

OTHERS = ("cat", "fish", "car", "house", "rose")
BACKGROUNDS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "gray", "black")
SIZES = ("", "small", "large")
PLACES = ("", "on the left", "on the right", "at the top", "at the bottom")


@dataclass(frozen=True)
class Factor:
    """Something that may be present in an image: the `word` for it, and the `kind` of factor."""

    word: str
    kind: str


@dataclass(frozen=True)
class CrossedPrompt:
    """A prompt and what is present in it."""

    text: str
    factors: frozenset[Factor]


def crossed_prompts(
    subjects: Sequence[str] = (),
    classes: Sequence[str] = (),
    num: int = 96,
    generator: torch.Generator | None = None,
    backgrounds: Sequence[str] | None = None,
) -> list[CrossedPrompt]:
    """`num` prompts. `subjects` are those that were learnt, with their tokens ("sks teapot"), and `classes` what they
    are. `backgrounds` are the colours on which they can be seen, all of them by default."""
    others = [*OTHERS, *(each for each in classes if each not in subjects)]
    words = [word for other in others for each in subjects or [""] for word in (each, other) if word]
    shuffled = [_balanced(each, num, generator) for each in (words, backgrounds or BACKGROUNDS, SIZES, PLACES)]
    return [_prompt(*words) for words in zip(*shuffled)]


def _balanced(words: Sequence[str], num: int, generator: torch.Generator | None) -> list[str]:
    """Every word equally often, in random order."""
    order: list[int] = torch.randperm(num, generator=generator).tolist()
    return [words[place % len(words)] for place in order]


def _prompt(subject: str, background: str, size: str, place: str) -> CrossedPrompt:
    words = ["a", size, subject, place, f"on {prompts.background(background)}"]
    factors = {Factor(subject, "subject"), Factor(f"{background} background", "background")}
    if size:
        factors.add(Factor(size, "size"))
    if place:
        factors.add(Factor(place, "place"))
    return CrossedPrompt(" ".join(word for word in words if word), frozenset(factors))
