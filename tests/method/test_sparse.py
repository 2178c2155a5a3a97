"""Products without the zeros against the plain formulas, in float64."""

import pytest
import torch
from torch.testing import assert_close

from atomtune.method import sparse
from atomtune.method.dictionary import SparseDictionary
from atomtune.method.sigma import SigmaConfig

T, C, M, K, OUT = 7, 12, 64, 3, 10


def dictionary(**options) -> SparseDictionary:
    new = SparseDictionary(C, M, OUT, SigmaConfig(density=K / M), **options).double()
    torch.nn.init.normal_(new.decoder.weight, generator=torch.Generator().manual_seed(1))
    new.gain.copy_(torch.linspace(-1, 2, M))
    return new


def inputs() -> torch.Tensor:
    return torch.randn(2, T, C, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)


def plain(own: SparseDictionary, x: torch.Tensor) -> torch.Tensor:
    """ΔO = (S ∘ g) D, S = φ(σ(κ ∘ x W_s)), written out."""
    W_s, D = own.encoder.weight.T, own.decoder.weight
    if own.encoder.unit:
        W_s = W_s / W_s.norm(dim=0)
    c = x @ W_s
    if own.kept is not None:
        c = c * own.kept
    S = c * (c.abs() >= c.abs().sort(dim=-1).values[..., -K, None])
    if own.floor.threshold is not None:
        S = S * (S.abs() > own.floor.threshold)
    return (S * own.gain) @ D


def keep_some(own: SparseDictionary) -> None:
    own.keep_only(torch.arange(M) % 3 > 0)


def keep_fewer_than_k(own: SparseDictionary) -> None:
    own.keep_only(torch.arange(M) < K - 1)


def raise_floor(own: SparseDictionary) -> None:
    with own.floor.measuring():
        own(inputs().detach().roll(1, 0) / 2)
    own.floor.set(0.9)


@pytest.mark.parametrize("dial", [lambda own: None, keep_some, keep_fewer_than_k, raise_floor])
@pytest.mark.parametrize("unit", [False, True])
def test_output_and_gradients_are_those_of_the_formula(dial, unit):
    own, x = dictionary(unit_encoder=unit), inputs()
    dial(own)
    assert own.sigma.is_worthwhile(x.device)
    found, wanted = own(x), plain(own, x)
    assert_close(found, wanted)
    variables = [x, own.encoder.weight, own.decoder.weight]
    g = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert_close(torch.autograd.grad(found, variables, g), torch.autograd.grad(wanted, variables, g))


def test_gradients_are_those_of_finite_differences():
    own, x = dictionary(), inputs()
    W_s, D = own.encoder.weight, own.decoder.weight

    def output(x, weight, atoms):
        codes, index = sparse.coefficients_at(x, weight, own.sigma.places)
        return sparse.combine(codes, index, atoms)

    assert torch.autograd.gradcheck(output, (x, W_s, D))


def test_gradients_in_bf16_autocast_are_those_without_it_but_for_rounding():
    own, x = dictionary().float(), inputs().detach().float().requires_grad_()
    own.sigma.set_density(1.0)  # all are chosen, because rounding would choose others
    variables = [x, own.encoder.weight, own.decoder.weight]
    index = torch.arange(M).expand(2, T, M)

    def gradients(half: bool) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            codes, places = own.encoder(x, lambda coefficients: index)
            out = own.decoder(codes, places)
        return torch.autograd.grad(out.float().square().sum(), variables)

    for rounded, exact in zip(gradients(True), gradients(False)):
        assert rounded.dtype == exact.dtype
        assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_frozen_parts_get_no_gradient():
    own, x = dictionary(), inputs().detach()
    own.encoder.requires_grad_(False)
    own(x).sum().backward()
    assert own.encoder.weight.grad is None
    assert own.decoder.weight.grad is not None
    own.requires_grad_(False)
    assert not own(x).requires_grad


def test_groups_choose_among_their_own():
    own = SparseDictionary(C, 2 * M, OUT, SigmaConfig(density=[K / M, 1 / M])).double()
    torch.nn.init.normal_(own.decoder.weight)
    own.group[M:] = 1
    own.update_layout()
    own.sigma.k.copy_(torch.tensor([K, 1]))
    own.sigma.set_group_sizes([M, M])
    x = inputs().detach()
    assert own.sigma.is_worthwhile(x.device)
    assert_close(own(x), own.synthesize(own.codes(x)))
    assert ((own.codes(x) != 0)[..., :M].sum(-1) == K).all()
    assert ((own.codes(x) != 0)[..., M:].sum(-1) == 1).all()


def test_codes_that_somebody_watches_are_whole():
    own, seen = dictionary(), []
    handle = own.decoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    watched = own(inputs())
    handle.remove()
    assert seen[0].shape == (2, T, M)
    assert_close(watched, own(inputs()))


def test_a_lower_density_is_that_of_training_to_the_bit():
    trained, turned = dictionary(), dictionary()
    trained.sigma.set_density(1 / M)
    trained.sigma.k_trained = trained.sigma.k_max = trained.sigma.k_now
    turned.sigma.set_density(1 / M)
    turned.encoder.load_state_dict(trained.encoder.state_dict())
    assert torch.equal(trained(inputs()), turned(inputs()))


def test_memory_grows_with_k_and_not_with_all_atoms():
    """What is kept for the backward pass, with ten times as many atoms and the same k."""

    def kept(num_atoms: int) -> int:
        own, found = SparseDictionary(C, num_atoms, OUT, SigmaConfig(density=K / num_atoms)), []

        def keep(tensor):
            if not any(tensor.data_ptr() == p.data_ptr() for p in own.parameters()):
                found.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            own(inputs().float())
        return sum(found)

    assert kept(10 * M) == kept(M)
