"""Figure 4's prompts and its table."""

import pytest

pytest.importorskip("resvg_py", reason="pretraining renders with resvg-py, of the extra `dev`")

from experiments.customization import tasks
from experiments.single import run


@pytest.mark.parametrize("name", run.SUBJECTS)
def test_prompts_are_changed_by_nothing_by_one_word_and_by_several(name):
    task = tasks.of_moji(name)
    asked = run.prompts(task)
    assert [len(own) for own in asked.values()] == [2, 2, 2]
    captions = [text for text, _ in task.images]
    assert {*asked["none"]} <= {*captions} and not {*asked["word"], *asked["several"]} & {*captions}
    for prompt in asked["word"]:
        assert sum(a != b for a, b in zip(prompt.split(), captions[0].split(), strict=True)) in (1, 2)  # "an orange"
    for prompt in asked["several"]:
        assert any(word in prompt for word in ("small", "large"))


def test_only_subjects_that_both_fit_are_compared():
    def cell(loss: float, fidelity: float) -> dict:
        scores = {"fidelity": 0.5, "alignment": 0.5, "destroyed": 0.0}
        own = dict.fromkeys(run.CHANGES, scores)
        return {"atom": own | {"loss": 1.0}, "lora": own | {"loss": loss, "word": scores | {"fidelity": fidelity}}}

    found = {"a": cell(1.01, 0.4), "b": cell(0.9, 0.0)}
    assert run.differences(found, "word", "fidelity") == pytest.approx([0.1])
