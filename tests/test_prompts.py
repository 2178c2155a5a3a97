"""Prompts that show the subject."""

import pytest

from atomtune.analysis.prompts import crossed_prompts
from atomtune.cli.inspect import _prompts_about
from atomtune.cli.merge import _trained_prompts
from atomtune.moji.scenes import BACKGROUNDS
from atomtune.prompts import ANY_SUBJECT, subject_prompts, without_tokens
from atomtune.storage.folders import save_adapter
from atomtune.storage.merging import merge
from atomtune.storage.reading import adapter_info
from tests.tiny_pixart import adapted


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


def test_the_backgrounds_that_suit_a_subject_go_with_its_adapter_into_all_that_is_made_of_it(base, tmp_path):
    for name, colours in (("a", ["white", "orange"]), ("b", ["black"])):
        words = {"token": name, "class_name": "dog", "backgrounds": colours}
        save_adapter(adapted(base), tmp_path / name, base="moji", **words)
        info = adapter_info(tmp_path / name)
        assert info.trained_for == words
        about = _prompts_about(info, 8)
        assert len(about) == 8 and all(any(f" {colour} background" in text for colour in colours) for text in about)
    merged = adapter_info(merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both"))
    assert _trained_prompts(merged) == ["a a dog on a white background", "a b dog on a black background"]


def test_names_of_atoms_are_looked_for_where_the_subject_is_seen():
    texts = [prompt.text for prompt in crossed_prompts(["sks teapot"], ["teapot"], 60, backgrounds=["white", "orange"])]
    assert {text.split()[-2] for text in texts} == {"white", "orange"}


def test_a_token_is_taken_away_as_a_word():
    assert without_tokens("a small sks teapot beside desks, sks.", ["sks", ""]) == "a small teapot beside desks, ."
    assert without_tokens("a <v> cat in the style of openmoji", ["<v>", "openmoji"]) == "a cat in the style of"
