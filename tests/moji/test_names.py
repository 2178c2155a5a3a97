"""The split between what the base sees and what it never may."""

from atomtune.moji.names import HELD_OUT_ANIMALS, HELD_OUT_NAMES, HELD_OUT_OBJECTS, SEEN_NAMES, spoken


def test_split_has_the_promised_sizes_and_no_overlap():
    assert len(HELD_OUT_ANIMALS) == 9
    assert len(HELD_OUT_OBJECTS) == 21
    assert len(SEEN_NAMES) == len(set(SEEN_NAMES)) >= 500
    assert not set(SEEN_NAMES) & set(HELD_OUT_NAMES)


def test_no_seen_name_shares_a_word_with_a_held_out_one():
    held_out = {word for name in HELD_OUT_NAMES for word in spoken(name).split()}
    assert [name for name in SEEN_NAMES if held_out & ({*name.split("-")} | {*spoken(name).split()})] == []


def test_names_are_spoken_differently():
    words = [spoken(name) for name in SEEN_NAMES + HELD_OUT_NAMES]
    assert len(words) == len(set(words))
    assert spoken("ear-of-corn") == "corn"
    assert spoken("red-apple") == "red apple"
