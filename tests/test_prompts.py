"""Prompts that show the subject."""

import pytest

from atomtune.moji.scenes import BACKGROUNDS
from atomtune.prompts import ANY_SUBJECT, subject_prompts


def test_on_moji_every_prompt_says_another_background():
    assert subject_prompts("moji", "sks teapot", ["white", "orange", "red"], 2) == [
        "a sks teapot on a white background",
        "a sks teapot on an orange background",
    ]


def test_of_an_adapter_that_knows_no_colours_the_backgrounds_are_far_apart():
    prompts = subject_prompts("moji", "sks teapot")
    assert len({*prompts}) == 3 and all(colour in prompt for colour, prompt in zip(ANY_SUBJECT, prompts))
    assert {*ANY_SUBJECT} <= BACKGROUNDS.keys()


@pytest.mark.parametrize("num", [1, 2, 3])
def test_other_bases_get_plain_sentences_the_shortest_first(num):
    prompts = subject_prompts("some/base", "sks dog", num=num)
    assert len({*prompts}) == num and prompts[0] == "a sks dog"
    assert all(prompt.startswith("a sks dog") for prompt in prompts)
