"""σ by threshold, against the formulas in float64, and what follows the coefficients while training."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch.testing import assert_close

from atomtune.errors import UserError
from atomtune.method.coding import batch_threshold, jump_relu, step
from atomtune.method.dictionary import SparseDictionary
from atomtune.method.estimates import PACE
from atomtune.method.sigma import BANDWIDTH, SIGMAS, SigmaConfig
from tests.adapters.tiny import atom_config, run, transformer, wake


def coefficients(tokens: int, atoms: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, atoms, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 12), st.integers(1, 9), st.data())
def test_batch_topk_keeps_k_a_token_on_average(tokens, atoms, data):
    k = data.draw(st.integers(1, atoms))
    c = coefficients(tokens, atoms, tokens)
    σ = SigmaConfig("batch_topk", density=k / atoms).build(atoms).double()
    S = σ(c)
    λ = c.abs().flatten().sort(descending=True).values[k * tokens - 1]
    assert_close(batch_threshold(c, k), λ)
    assert torch.equal(S, torch.where(c.abs() >= λ, c, 0)) and int((S != 0).sum()) == k * tokens


def test_afterwards_batch_topk_is_the_threshold_that_did_so():
    σ = SigmaConfig("batch_topk", density=4 / 32).build(32).double()
    for seed in range(60):
        σ(coefficients(256, 32, seed))
        σ.update_estimates()
    σ.eval()
    fresh = coefficients(512, 32, 99)
    assert float((σ(fresh) != 0).double().sum(1).mean()) == pytest.approx(4, rel=0.1)
    assert torch.equal(σ(fresh)[:1], σ(fresh[:1]))  # whatever else is in the batch
    for k in (1, 8, 16):  # another density is another λ, read between the octaves that were followed
        σ.set_density(k / 32)
        assert float((σ(fresh) != 0).double().sum(1).mean()) == pytest.approx(k, rel=0.25)


def test_groups_of_a_concatenation_have_a_threshold_each():
    σ = SigmaConfig("batch_topk", density=(0.1, 0.3)).build(10).double()
    σ.set_group_sizes([4, 6])
    c = coefficients(50, 10)
    S = σ(c)
    assert int((S[:, :4] != 0).sum()) == 50 and int((S[:, 4:] != 0).sum()) == 150


def test_jumprelu_and_its_pseudo_derivative():
    """∂σ/∂c = H(c − λ);  ∂σ/∂λ = −(λ/ε) rect((c − λ)/ε)."""
    c = coefficients(40, 5).requires_grad_()
    λ = torch.tensor([0.1, 0.3, 0.5, 0.7, 1.0], dtype=torch.float64, requires_grad=True)
    ε, upstream = 0.4, coefficients(40, 5, 1)
    σ = jump_relu(c, λ, ε)
    assert_close(σ, torch.where(c > λ, c, 0))
    (σ * upstream).sum().backward()
    rect = ((c - λ).abs() < ε / 2).double()
    assert_close(c.grad, upstream * (c > λ))
    assert_close(λ.grad, (-λ / ε * rect * upstream).sum(0))
    λ.grad = None
    H = step(c, λ, ε)
    assert torch.equal(H, (c > λ).double())
    (H * upstream).sum().backward()
    assert_close(λ.grad, (-rect / ε * upstream).sum(0))


@pytest.mark.parametrize("activation", ["soft", "relu", "jumprelu"])
def test_units_of_scale_follow_the_root_mean_square_while_training(activation):
    σ: Any = SigmaConfig(activation, threshold=0.5, threshold_units="scale").build(6).double()
    batches = [(1 + n) * coefficients(100, 6, n) for n in range(4)]
    r = 0.0
    for c in batches:
        now = float(c.square().mean().sqrt())
        r = now if not r else (1 - PACE) * r + PACE * now
        σ(c)
        σ.update_estimates()
    assert_close(σ.current_threshold, torch.full((6,), 0.5 * r, dtype=torch.float64), check_dtype=False)
    σ.eval()
    before = copy.deepcopy(σ.state_dict())
    S = σ(batches[0])
    assert all(torch.equal(value, before[name]) for name, value in σ.state_dict().items())
    assert_close(S != 0, batches[0].abs() > 0.5 * r if activation == "soft" else batches[0] > 0.5 * r)


def test_a_unit_encoder_acts_at_norm_one_however_long_its_columns():
    dictionary = SparseDictionary(6, 10, 7, unit_encoder=True).double()
    x, W_s = coefficients(20, 6), dictionary.encoder.weight.T
    expected = x @ (W_s / W_s.norm(dim=0))
    assert_close(dictionary.coefficients(x), expected)
    with torch.no_grad():
        dictionary.encoder.weight *= 50
    assert_close(dictionary.coefficients(x), expected)


@pytest.mark.parametrize("options", [{"activation": "batch_topk"}, {"activation": "jumprelu"},
                                     {"activation": "relu", "threshold_units": "scale"}], ids=str)  # fmt: skip
def test_pruning_takes_the_thresholds_along(options):
    dictionary: Any = SparseDictionary(6, 10, 7, SigmaConfig(density=0.3, **options)).double()
    torch.nn.init.normal_(dictionary.decoder.weight)
    for seed in range(5):
        dictionary(coefficients(64, 6, seed))
        dictionary.sigma.update_estimates()
    σ: Any = dictionary.sigma
    if σ.learned:
        σ.log_threshold.data += torch.linspace(0, 1, 10)
    dictionary.eval()
    x = coefficients(30, 6, 9)
    mask = torch.arange(10) % 3 > 0
    dictionary.keep_only(mask)
    expected = dictionary(x)
    dictionary.prune()
    assert dictionary.num_atoms == 6
    assert_close(dictionary(x), expected)
    assert all(len(value) == 6 for name, value in σ.state_dict().items() if name != "k")


def test_density_is_a_dial_of_batch_topk_and_of_no_threshold():
    for activation, kind in SIGMAS.items():
        σ = SigmaConfig(activation).build(10)
        if kind.dial == "density":
            σ.set_density(0.5)
            assert σ.density == 0.5 and σ.density_changed
        else:
            with pytest.raises(UserError, match=f"density belongs to top-k; this adapter uses {activation}"):
                σ.set_density(0.5)


def test_jumprelu_starts_at_its_threshold_and_only_its_logarithm_trains():
    σ: Any = SigmaConfig("jumprelu", threshold=0.3).build(4)
    assert_close(σ.log_threshold.detach(), torch.full((4,), math.log(0.3)))
    σ(coefficients(20, 4).float()).sum().backward()
    assert σ.log_threshold.grad is not None and BANDWIDTH > 0


@pytest.mark.parametrize(
    "options",
    [{"activation": "batch_topk"}, {"activation": "jumprelu", "threshold_units": "scale"},
     {"activation": "soft", "threshold_units": "scale", "unit_encoder": True}],
    ids=str,
)  # fmt: skip
def test_what_was_followed_while_training_is_saved_with_the_adapter(tmp_path, options):
    model = wake(get_peft_model(transformer(), atom_config(**options)))
    run(model.train()).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    expected = run(model.eval())
    assert not torch.equal(expected, run(transformer()))
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(transformer(), str(tmp_path)).eval()
    assert torch.equal(run(again), expected)
    trained = {name.split(".")[-1] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"weight"} | ({"log_threshold"} if "jumprelu" in options.values() else set())


@pytest.mark.parametrize("activation", SIGMAS)
def test_several_densities_before_there_are_several_groups(activation):
    """All atoms are in the first group."""
    c = coefficients(50, 10)
    one, two = (SigmaConfig(activation, density=ρ).build(10).double() for ρ in (0.3, (0.3, 0.5)))
    assert torch.equal(one(c), two(c))


@pytest.mark.parametrize("left", [20, 3])
@pytest.mark.parametrize("groups", [[32], [24, 8]])
def test_batch_topk_keeps_its_threshold_when_atoms_are_pruned_and_when_it_is_loaded(left, groups):
    """Also with fewer atoms left than k. The density stays a dial, and training goes on."""

    def dictionary(atoms: int) -> Any:
        return SparseDictionary(6, atoms, 7, SigmaConfig("batch_topk", (0.2,) * len(groups)))

    torch.manual_seed(0)
    full = dictionary(32)
    full.group.copy_(torch.arange(len(groups)).repeat_interleave(torch.tensor(groups)))
    full.update_layout()
    torch.nn.init.normal_(full.decoder.weight)
    for _ in range(5):
        full(torch.randn(64, 6))
        full.sigma.update_estimates()
    full.eval()
    full.keep_only(torch.randperm(32) < left)
    x = torch.randn(200, 6)
    expected = full(x)
    full.prune()
    assert_close(full(x), expected)
    again = dictionary(left).eval()
    again.load_state_dict(full.state_dict())
    assert_close(again(x), expected)
    active = []
    for density in (0.05, 0.2, 1.0):
        again.sigma.set_density(density)
        active.append(int((again.codes(x) != 0).sum()))
    assert active == sorted(active)
    again.sigma.reset_density()
    assert_close(again(x), expected)
    again.train()(x)
    again.sigma.update_estimates()
