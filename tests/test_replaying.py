"""Replay: the same images to the bit, with fewer runs of the denoiser."""

import numpy as np
import pytest

from atomtune import generate
from atomtune.bases import denoiser
from atomtune.replaying import Replay
from atomtune.steering import board
from tests.analysis.tiny import adapted_pixart

STEPS = 6
PROMPT = "a sks dog"


@pytest.fixture
def replay() -> Replay:
    return Replay(adapted_pixart())


def same(one, other) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_what_is_drawn_is_what_generate_draws(replay):
    pipe = replay.pipe
    preset = {"density": {"L0": 0.1}, "gain": {"L1": 2.0}, "schedule": {"999": 1.0, "0": 0.5}}
    drawn = replay.draw(PROMPT, 3, STEPS, "default", preset)
    base = replay.draw(PROMPT, 3, STEPS)
    assert board(pipe).preset() == {}
    with denoiser(pipe).disable_adapter():
        assert same(base, generate(pipe, PROMPT, seed=3, steps=STEPS)[0].image)
    board(pipe).apply(preset)
    assert same(drawn, generate(pipe, PROMPT, seed=3, steps=STEPS)[0].image)
    assert not same(drawn, base)


def test_only_the_steps_that_changed_are_computed(replay):
    def computed(**options) -> int:
        before = replay.computed
        replay.draw(PROMPT, 0, STEPS, **options)
        return replay.computed - before

    late = {"schedule": {"500": 0.0, "400": 1.0}}  # the base for the first half
    assert computed() == STEPS
    assert computed() == 0
    assert computed(adapter="default", preset=late) < STEPS
    assert computed(adapter="default", preset=late) == 0
    assert computed(adapter="default", preset=late | {"gain": {"L0": 2}}) < STEPS
    assert computed(adapter="default", preset={"schedule": {"0": 0.0}}) == 0  # never acts: the base
    assert computed(adapter="default") == STEPS
    replay.forget()
    assert computed() == STEPS


def test_a_replayed_image_is_the_same_to_the_bit(replay):
    late = {"schedule": {"500": 0.0, "400": 1.0}}
    alone = Replay(replay.pipe).draw(PROMPT, 0, STEPS, "default", late)
    replay.draw(PROMPT, 0, STEPS)
    assert same(replay.draw(PROMPT, 0, STEPS, "default", late), alone)
    assert replay.replayed > 0


def test_dials_of_the_board_do_not_act_and_stay(replay):
    trained = replay.draw(PROMPT, 0, STEPS, "default")
    board(replay.pipe)["L0"].gain = 3.0
    assert same(Replay(replay.pipe).draw(PROMPT, 0, STEPS, "default"), trained)
    assert board(replay.pipe).preset() == {"gain": {"L0": 3.0}}


def test_memory_has_an_end(replay):
    replay.draw(PROMPT, 0, 2)
    one = replay.kept_bytes
    small = Replay(replay.pipe, largest=one)
    for seed in range(4):
        small.draw(PROMPT, seed, 2)
        assert small.kept_bytes <= one
    small.forget()
    assert small.kept_bytes == 0


def test_a_trace_sees_every_step(replay):
    replay.draw(PROMPT, 0, STEPS, "default")
    image, seen = replay.trace(PROMPT, 0, STEPS)
    assert same(image, replay.draw(PROMPT, 0, STEPS, "default"))
    assert len(seen.layers[0].by_timestep) == STEPS


def test_a_stopped_drawing_leaves_all_as_it_was(replay):
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        replay.draw(PROMPT, 0, STEPS, "default", {"gain": {"L0": 2}}, on_step=stop)
    assert board(replay.pipe).preset() == {}
    replay.draw(PROMPT, 0, STEPS)
    assert replay.computed == STEPS
