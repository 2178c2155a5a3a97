"""Appendix A.1: is an atom's effect on the output more nonlinear the shallower its layer?

Run `python -m experiments --only a1`. A cell is one decoder depth on one seed. For an atom with gain g in the
fine-tuned decoder f, all other atoms on:

    full = f(g=1) − f(g=0)        first-order = ∂f/∂g at g=0        nonlinearity = ‖full − first-order‖ / ‖full‖
"""

from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.common.cells import read, spread
from experiments.common.digits import digits
from experiments.common.report import Claim, everywhere_less, grade, table
from experiments.common.vae import VAE, Adapter, VAEConfig, adapt, dictionaries, energies, pretrained
from experiments.fig1.run import QUICK, encode

HERE = Path(__file__).parent
DEPTHS, SEEDS = (2, 4, 8), (0, 1, 2)


@dataclass(frozen=True)
class Config:
    """One cell."""

    seed: int
    vae: VAEConfig
    adapter: Adapter = field(default_factory=lambda: Adapter(epochs=10))
    atoms: int = 6
    """Measured in each layer: those of the most energy."""
    pictures: int = 32


def measure(config: Config) -> dict:
    torch.manual_seed(200 + config.seed)
    vae = pretrained(config.vae, config.seed)
    adapted = adapt(vae, config.adapter, config.vae.noise, config.seed)
    latents = encode(vae, digits("test", 3), config.vae.noise, 1)[: config.pictures]
    energy = energies(adapted, latents)
    values: dict = {"atom": [], "layer": [], "size": []}
    for layer, scores in enumerate(energy):
        found = [nonlinearity(adapted, latents, layer, [atom]) for atom in scores.topk(config.atoms).indices.tolist()]
        values["atom"].append(fmean(each["nonlinearity"] for each in found))
        values["size"].append(fmean(each["size"] for each in found))
        values["layer"].append(nonlinearity(adapted, latents, layer, list(range(len(scores))))["nonlinearity"])
    return values


def nonlinearity(vae: VAE, latents: Tensor, layer: int, atoms: list[int]) -> dict[str, float]:
    """Of switching these atoms of one layer on together."""
    gain = dictionaries(vae)[layer].gain
    name = next(name for name, buffer in vae.decoder.named_buffers() if buffer is gain)
    off = gain.index_fill(0, torch.tensor(atoms), 0.0)

    def output(gains: Tensor) -> Tensor:
        return functional_call(vae.decoder, {name: gains}, (latents,))

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the kernel that forward-mode derivatives know
        base, first_order = jvp(output, (off,), (gain - off,))[:2]
        full = output(gain) - base
    return {
        "nonlinearity": ((full - first_order).norm() / full.norm()).item(),
        "size": (full.norm() / base.norm()).item(),
    }


def grid(quick: bool = False) -> dict[str, Config]:
    if quick:
        return {"d2-s0": Config(0, QUICK, Adapter(epochs=1), atoms=2)}
    return {f"d{layers}-s{seed}": Config(seed, VAEConfig(decoder_layers=layers)) for layers in DEPTHS for seed in SEEDS}


def by_layer(cells: dict, layers: int, what: str) -> list[list[float]]:
    """For each layer, the values of all seeds."""
    return [list(each) for each in zip(*(v[what] for name, v in cells.items() if name.startswith(f"d{layers}-")))]


def claims(out: Path = HERE) -> list[Claim]:
    cells, rows = read(out), []
    for layers in DEPTHS:
        found = by_layer(cells, layers, "atom")
        if not found:
            continue
        pairs = [everywhere_less(deeper, shallower) for shallower, deeper in combinations(found, 2)]
        means = [spread(each, 2) for each in found]
        rows.append(
            Claim(
                f"an atom's effect is more nonlinear the shallower its layer, {layers} decoder layers",
                f"‖full − first-order‖ / ‖full‖: first layer {means[0]}, last {means[-1]}; "
                f"met by {sum(pairs)} of {len(pairs)} pairs of layers",
                "the shallower of two layers is the more nonlinear on every seed, for each pair of layers",
                grade(*pairs),
                brief=f"first layer {means[0]}, last {means[-1]} ({layers} layers)",
            )
        )
    return rows


def results(out: Path = HERE) -> str:
    cells, rows = read(out), []
    for layers in DEPTHS:
        columns = [by_layer(cells, layers, what) for what in ("atom", "layer", "size")]
        for layer, (atom, whole, size) in enumerate(zip(*columns)):
            rows.append((str(layers), f"L{layer}", spread(atom), spread(whole), spread(size)))
    head = (
        "decoder layers",
        "layer",
        "one atom: nonlinearity",
        "all its atoms: nonlinearity",
        "one atom: size of its effect",
    )
    return table(head, rows)
