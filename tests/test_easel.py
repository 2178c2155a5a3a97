"""One base, several users: none sees what another one has set."""

import threading

import numpy as np
import pytest

from atomtune import AtomConfig, generate
from atomtune.bases import denoiser
from atomtune.dialling import Settings
from atomtune.easel import MOST, Easel, Stopped
from atomtune.errors import UserError
from atomtune.steering import board
from atomtune.storage.folders import save_adapter
from tests.tiny_pixart import adapted

ASKED = ("a sks dog", 0, 3)


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for number in range(MOST + 1):
        config = AtomConfig(target_modules=["attn1"], num_atoms=8 + number)
        save_adapter(adapted(base, config), folder / str(number), base=base, token="sks", class_name="dog")
    return [folder / str(number) for number in range(MOST + 1)]


@pytest.fixture(scope="module")
def easel(base) -> Easel:
    return Easel(base)


def same(one, other) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def alone(base, number, settings=None):
    """What a pipeline with this adapter alone draws."""
    pipe = adapted(base, AtomConfig(target_modules=["attn1"], num_atoms=8 + number))
    board(pipe).apply((settings or Settings()).preset(board(pipe)))
    return generate(pipe, ASKED[0], seed=ASKED[1], steps=ASKED[2])[0].image.convert("RGB")


def test_every_adapter_draws_as_if_it_were_alone(easel, runs, base):
    for number in (0, 1, 2, 3, 4, 0):  # the first one is unloaded and loaded again
        assert same(easel.draw(*ASKED, runs[number]), alone(base, number))
    assert len(denoiser(easel.replay.pipe).peft_config) == MOST
    assert easel.trained(runs[2]).atoms == 2 * 10


def test_users_at_once_do_not_see_each_other(easel, runs, base):
    wanted = {
        user: (user % 3, Settings(gains={"L0": float(user)}, density=0.25 if user % 2 else None)) for user in range(6)
    }
    drawn, failed = {}, []

    def use(user: int) -> None:
        number, settings = wanted[user]
        try:
            for _ in range(3):
                drawn.setdefault(user, []).append(easel.draw(*ASKED, runs[number], settings, easel.turn(str(user))))
        except Exception as error:  # an assertion in a thread is not seen
            failed.append(error)

    threads = [threading.Thread(target=use, args=(user,)) for user in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for user, (number, settings) in wanted.items():
        right = alone(base, number, settings)
        assert all(same(image, right) for image in drawn[user])


def test_a_newer_drawing_ends_an_older_one_of_the_same_user(easel, runs):
    older, other = easel.turn("me"), easel.turn("you")
    newer = easel.turn("me")
    with pytest.raises(Stopped):
        easel.draw(*ASKED, runs[0], check=older)
    easel.draw(*ASKED, runs[0], check=newer)
    easel.draw(*ASKED, runs[0], check=other)
    easel.stop("me")
    with pytest.raises(Stopped):
        easel.draw(*ASKED, runs[0], check=newer)
    easel.leave("you")
    assert "you" not in easel._turns


def test_what_was_asked_for_earlier_may_come_later_and_does_not_win(easel):
    """Two keys of a slider are two requests, which a browser sends side by side."""
    newest = easel.turn("me", 1_800_000_000_000.25)
    with pytest.raises(Stopped):
        easel.turn("me", 1_800_000_000_000.125)()
    newest()
    unsaid = easel.turn("me")  # after all that has come
    unsaid()
    with pytest.raises(Stopped):
        newest()
    easel.turn("me", 1_800_000_000_001.0)()
    with pytest.raises(Stopped):
        unsaid()
    easel.stop("me")
    easel.turn("me", 1_800_000_000_002.0)()
    easel.turn("you", 5.0)()


def test_a_merged_adapter_is_drawn_before_it_is_written(easel, runs, tmp_path):
    with easel.merged(runs[:2], "cat", [1.0, 0.0], tmp_path) as both:
        assert both.is_relative_to(tmp_path) and same(easel.draw(*ASKED, both), easel.draw(*ASKED, runs[0]))
    assert list(tmp_path.iterdir()) == []
    assert len(easel.overlap(runs[0], runs[1], easel.turn("me")).layers) == 2


def test_a_broken_adapter_is_a_sentence_and_harms_nothing(easel, runs, tmp_path, base):
    save_adapter(adapted(base), tmp_path / "broken", base=base)
    (tmp_path / "broken" / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    for _ in range(2):
        with pytest.raises(UserError):
            easel.draw(*ASKED, tmp_path / "broken")
    assert same(easel.draw(*ASKED, runs[0]), alone(base, 0))


def test_an_adapter_that_was_trained_further_is_loaded_again(easel, base, tmp_path):
    config = AtomConfig(target_modules=["attn1"], num_atoms=8)
    save_adapter(adapted(base, config), tmp_path / "run", base=base)
    before = easel.draw(*ASKED, tmp_path / "run")
    pipe = adapted(base, config)
    for dictionary in board(pipe).dictionaries:
        dictionary.decoder.weight.data.mul_(3)
    save_adapter(pipe, tmp_path / "run", base=base)
    assert not same(easel.draw(*ASKED, tmp_path / "run"), before)
