import io

import pytest
from rich.console import Console

from atomtune.training.progress import TrainingBar


@pytest.mark.parametrize("steps", [250, 10_000])
def test_the_bar_fits_80_columns(steps):
    bar = TrainingBar(steps, 0, disable=False)
    shown = io.StringIO()
    bar.progress.live.console = Console(file=shown, width=80, force_terminal=True, color_system=None)
    bar.progress.start()
    bar.update(steps - 1, 0.0278, {"active_per_token": 10.0, "live_atoms": 1930})
    bar.progress.refresh()
    bar.progress.stop()
    text = shown.getvalue()
    assert f"{steps - 1}/{steps}" in text.replace(" ", "")
    assert "loss 0.028" in text and "10.0 a token 1930 alive" in text
