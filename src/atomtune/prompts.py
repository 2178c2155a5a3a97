"""Prompts that show a learnt subject: for the samples of a run, for model cards, reports and advice.

moji draws one thing on a plain background. If the prompt does not say its colour, moji chooses one, and a blue teapot
on blue is not seen. So there the prompts name backgrounds that the subject does not share; the run measures them on its
images (`metrics.pixels.clear_backgrounds`), and they are saved with the adapter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from atomtune.bases import MOJI
from atomtune.moji.names import SEEN_NAMES, spoken
from atomtune.moji.scenes import with_article

CONTEXTS = ("", " in the snow", " on the beach", " in the jungle", " on top of a wooden floor")
"""Contexts for other bases, from the prompts by which DreamBooth was evaluated."""
EVERYDAY, MEASURED = ([spoken(name) for name in SEEN_NAMES[first::2]] for first in (0, 1))
"""Everyday things that moji and every larger base know: those that `--preserve` trains on, and those on which drift is
measured."""
ANY_SUBJECT = ("white", "black", "yellow")
"""Backgrounds for a subject whose colours are not known: no two are close to one colour."""


@dataclass(frozen=True)
class Subject:
    """One thing that an adapter learns, in the words of its prompts: "a sks teapot"."""

    token: str
    class_name: str
    backgrounds: tuple[str, ...] = ()
    """The colours that suit it, the clearest first (moji alone)."""

    def __str__(self) -> str:
        return f"{self.token} {self.class_name}"

    def is_in(self, prompt: str) -> bool:
        """Whether a prompt has its token, as a word."""
        return without_tokens(prompt, [self.token]) != " ".join(prompt.split())


def subject_prompts(base: str, subject: str, backgrounds: Sequence[str] = (), num: int = 3) -> list[str]:
    """Up to `num` different prompts for a subject ("sks teapot") on a base.

    `backgrounds` are the colours that suit the subject, the clearest first; without them, on moji, `ANY_SUBJECT`.
    """
    if base == MOJI or backgrounds:
        return [f"a {subject} on {background(colour)}" for colour in (backgrounds or ANY_SUBJECT)[:num]]
    return [f"a {subject}{context}" for context in CONTEXTS[:num]]


def without_tokens(prompt: str, tokens: Iterable[str]) -> str:
    """The prompt as one who does not know these words would ask: "a sks teapot" → "a teapot"."""
    for token in filter(None, tokens):
        prompt = re.sub(rf"(?<!\w){re.escape(token)}(?!\w)", "", prompt)
    return " ".join(prompt.split())


def background(colour: str) -> str:
    """The words for a plain background: "an orange background"."""
    return with_article(f"{colour} background")
