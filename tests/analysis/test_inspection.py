"""inspect on a miniature PixArt-Σ: what it measures is what the pieces measure, and no dial is left turned."""

import pytest
import torch

from atomtune.analysis.influence import largest_changes
from atomtune.analysis.inspection import CHANGED, SEEN, inspect
from atomtune.analysis.ladders import counts
from atomtune.analysis.watching import watch
from atomtune.metrics import drift
from atomtune.prompts import Subject
from atomtune.sampling import generate
from atomtune.steering import board
from atomtune.tracing import trace
from tests.adapters.tiny import wake
from tests.analysis.tiny import adapted_pixart

PROMPTS = ["a red dog", "a cat on a blue background"]
QUICK = {"steps": 3, "top": 3, "naming_prompts": 5, "subjects": [Subject("sks", "dog")]}


@pytest.fixture(scope="module")
def pipe():
    return adapted_pixart()


def test_activity_adds_up_to_the_statistics_of_the_trace(pipe):
    seen = watch(pipe, [*PROMPTS, "a dog"], steps=4, batch_size=2)
    assert [len(seen.drawings), seen.phases] == [3, ["early", "middle", "late"]]
    for layer in seen.layers:
        assert layer.maps.shape == (3, 3, 16, 16)
        assert not layer.trace.kept_codes
        steps = torch.tensor([2, 1, 1])[:, None] / 4  # steps of each phase
        torch.testing.assert_close((layer.by_phase * steps).sum(1).mean(0), layer.trace.usage, rtol=2e-3, atol=1e-4)
        torch.testing.assert_close(layer.by_region.mean((0, 1)), layer.trace.usage, rtol=2e-3, atol=1e-4)


def test_inspect_draws_and_measures_all_of_it(pipe):
    progress: dict[str, tuple[int, int]] = {}
    found = inspect(
        pipe, [*PROMPTS, PROMPTS[0]], **QUICK, on_progress=lambda stage, *numbers: progress.update({stage: numbers})
    )
    assert found.prompts == PROMPTS  # said twice, drawn once
    assert len(found.rows) == 32
    assert [row.influence for row in found.rows] == sorted((row.influence for row in found.rows), reverse=True)
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    with trace(pipe.transformer) as seen:
        images = [drawing.image for drawing in generate(pipe, PROMPTS, 1, steps=3)]
    for row in found.rows:
        assert row.mean_energy == pytest.approx(seen[row.address].mean_energy, rel=1e-4)
    assert found.rows[0].influence > 0
    assert [image.tobytes() for image in found.adapted] == [image.tobytes() for image in images]
    strongest = [row for row in found.rows if not row.like][:3]
    assert sorted((view.row for view in found.views), key=strongest.index) == strongest
    shown = [(not view.comparisons, strongest.index(view.row)) for view in found.views]
    assert shown == sorted(shown)  # those whose effect can be seen first
    for view in found.views:
        assert [len(view.heats), len(view.mean_energy_by_timestep)] == [3, 3]
        assert set(view.heats[0].images) == {"all", "early", "middle", "late"}
    compared = [comparison for view in found.views for comparison in view.comparisons]
    assert compared and all(comparison.change > 0 for comparison in compared)
    assert all((largest_changes(each.boosted, each.off) >= CHANGED).mean() >= SEEN for each in compared)
    assert not any(row.name for row in found.rows)  # 5 images are too few
    assert "no run is beside it" in found.learnt.missing
    others = found.others
    assert len(others.prompts) == len(others.base) == len(others.adapted) == 6
    assert others.drift == drift(others.base, others.adapted, None) and others.drift.pixels > 0
    with pipe.transformer.disable_adapter():
        again = [drawing.image.convert("RGB") for drawing in generate(pipe, others.prompts, 1, steps=3)]
    assert [image.tobytes() for image in others.base] == [image.tobytes() for image in again]
    assert progress.keys() == {
        "base",
        "adapter",
        "others",
        "others, adapter",
        "names",
        "influence",
        "ladder",
        "density",
    }
    assert all(done == total for done, total in progress.values())


def test_the_ladder_goes_from_the_base_to_the_adapter(pipe):
    found = inspect(pipe, PROMPTS, **QUICK)
    assert [rung.value for rung in found.ladder] == [0, *counts(32), 32]
    assert [found.ladder[0].reach, found.ladder[-1].reach] == [0, 1]
    trained = [rung for rung in found.densities if rung.trained]
    assert [rung.value for rung in trained] == [0.25]
    values = [rung.value for rung in found.densities]
    assert values == sorted(values) and len(set(values)) == len(values) > 2


def test_no_dial_is_left_turned(pipe):
    atoms = board(pipe)
    atoms["L1[3]"].gain = 0.5
    atoms.drop(["L0[2]"])
    before = atoms.preset()
    inspect(pipe, PROMPTS, **QUICK)
    assert atoms.preset() == before
    atoms.reset()


def test_soft_thresholds_have_no_density_to_turn():
    assert inspect(adapted_pixart("relu"), PROMPTS, **QUICK).densities == []


def test_overlap_with_another_is_measured_and_leaves_this_one_at_work():
    pipe = adapted_pixart()
    model = pipe.transformer
    model.add_adapter("other", model.peft_config["default"])
    wake(model, "other", seed=5)
    found = inspect(pipe, PROMPTS, **QUICK, against=("other", ["a dog"]))
    assert found.overlap is not None
    assert [found.overlap.atoms, len(found.overlap.layers)] == [(32, 32), 2]
    assert model.active_adapters == ["default"]
