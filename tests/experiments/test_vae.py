"""The autoencoder's patches, and what is counted and cut on its decoder; no digits are needed."""

import pytest
import torch
from peft import inject_adapter_in_model
from torch.testing import assert_close

from atomtune import AtomConfig, adapted_layers
from experiments.a1.run import nonlinearity
from experiments.common.vae import VAE, VAEConfig, best, codes, dictionaries, energies, keep

SMALL = VAEConfig(width=16, heads=2, encoder_layers=1, decoder_layers=2, latents=4)


@pytest.fixture
def vae() -> VAE:
    """Adapted with random atoms, top-2 of 10."""
    torch.manual_seed(0)
    vae = VAE(SMALL).eval().requires_grad_(False)
    inject_adapter_in_model(AtomConfig(target_modules=["attn"], num_atoms=10, density=0.2), vae.decoder)
    for own in dictionaries(vae):
        torch.nn.init.normal_(own.decoder.weight)
    return vae


def test_patches_are_put_back_where_they_were_taken(vae):
    picture = torch.rand(2, 28, 28)
    patches = []
    vae.encoder.embed.register_forward_pre_hook(lambda _, args: patches.append(args[0]))
    vae.encoder(picture)
    assert_close(patches[0][:, 5], picture[:, 7:14, 7:14].flatten(1))  # the second patch of the second row
    vae.decoder.to_pixels.register_forward_hook(lambda *_: patches[0])
    assert_close(vae.decoder(torch.zeros(2, 4)), picture)


def test_energies_are_mean_size_of_code_times_size_of_atom(vae):
    latents = torch.randn(3, 4)
    S = codes(vae, latents)
    assert S.shape == (2, 3, 16, 10)
    assert ((S != 0).sum(-1) == 2).all()
    for layer, own in enumerate(dictionaries(vae)):
        D = own.decoder.weight
        assert_close(energies(vae, latents)[layer], S[layer].abs().mean((0, 1)) * D.norm(dim=1))


def test_only_kept_atoms_are_chosen(vae):
    latents = torch.randn(3, 4)
    kept = best(torch.rand(2, 10), 6)
    assert kept.sum() == 6
    pruned = keep(vae, kept)
    assert not codes(pruned, latents)[(kept == 0)[:, None, None].expand(2, 3, 16, 10)].any()
    assert codes(vae, latents)[(kept == 0)[:, None, None].expand(2, 3, 16, 10)].any()  # the original is whole


def test_an_effect_that_is_linear_has_no_nonlinearity(vae):
    """With everything between the atoms and the pixels made linear, first order is all there is."""
    vae, latents = vae.double(), torch.randn(3, 4, dtype=torch.float64)
    firing = [int(codes(vae, latents)[1].abs().sum((0, 1)).argmax())]
    assert nonlinearity(vae, latents, 1, firing)["nonlinearity"] > 0.001
    vae.decoder.norm = torch.nn.Identity()
    torch.nn.init.zeros_(vae.decoder.blocks[1].mlp[2].weight)  # pyright: ignore[reportIndexIssue, reportArgumentType]
    assert nonlinearity(vae, latents, 1, firing)["nonlinearity"] < 1e-6
    assert len(adapted_layers(vae)) == 2


def test_the_first_order_of_an_effect_is_its_derivative(vae):
    """∂f/∂g by `jvp` through both layers against a difference in float64, so small that no later top-k chooses anew."""
    vae, latents, h = vae.double(), torch.randn(3, 4, dtype=torch.float64), 1e-7
    gain = dictionaries(vae)[0].gain

    def output(g: float) -> torch.Tensor:
        gain[3] = g
        return vae.decoder(latents)

    with torch.no_grad():
        full, first_order = output(1) - output(0), (output(h) - output(-h)) / (2 * h)
    gain[3] = 1
    expected = (full - first_order).norm() / full.norm()
    assert expected > 0.001
    assert nonlinearity(vae, latents, 0, [3])["nonlinearity"] == pytest.approx(expected.item(), rel=1e-5)
