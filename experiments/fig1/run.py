"""Figure 1: a VAE that knows digits 5 to 9 learns to draw 3s with a few atoms.

Run `python -m experiments.fig1.run`. A cell is one adapter on the autoencoder of one seed.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from experiments.cells import read, run_cells, spread
from experiments.digits import Classifier, classifier, digits
from experiments.report import CONDITIONS, HOLDS, NOT_HERE, Claim, table
from experiments.vae import (
    VAE,
    Adapter,
    VAEConfig,
    adapt,
    best,
    codes,
    dictionaries,
    energies,
    keep,
    pretrained,
    train,
)

HERE = Path(__file__).parent
COMMAND = "python -m experiments.fig1.run"
KEPT = 12


@dataclass(frozen=True)
class Config:
    """One cell."""

    seed: int
    adapter: Adapter
    vae: VAEConfig = field(default_factory=VAEConfig)
    draws: int = 4
    """Noisy versions of every test picture."""
    more_epochs: int = 5
    """Of training after all but 12 atoms are gone."""
    judge_epochs: int = 20


ADAPTERS = {
    "k1": Adapter(k=1),
    "k2": Adapter(k=2),
    "lora": Adapter("lora"),
}
SEEDS = (0, 1, 2)
QUICK = VAEConfig(epochs=2)


def measure(config: Config) -> dict:
    torch.manual_seed(100 + config.seed)
    judge, vae = classifier(config.judge_epochs), pretrained(config.vae, config.seed)
    latents = Latents(vae, judge, config)
    adapted = adapt(vae, config.adapter, config.vae.noise, config.seed)
    values: dict = {
        "judge accuracy": judge.accuracy(),
        "base reads 5 to 9 right": right(vae, judge, config),
        "latents that decode to 8": len(latents.stuck),
        "before": latents.score(vae),
        "all": latents.score(adapted),
    }
    if config.adapter.method == "lora":
        return values
    threes = encode(vae, digits("train", 3), config.vae.noise, 1)
    energy, own = energies(adapted, threes), codes(adapted, threes)
    alive = (own != 0).any(2).any(1).float()
    values["atoms a token"] = (own != 0).sum(-1).float().mean()
    values["atoms an image"] = (own != 0).any(2).float().sum((0, 2)).mean()
    values["atoms alive"] = alive.sum()
    kept = best(energy, KEPT)
    values["split of the best"] = kept.sum(1)
    values["energy of the best"] = (energy * kept).sum() / energy.sum()
    values["best 12"] = latents.score(pruned := keep(adapted, kept))
    values["random 12"] = mean_scores(
        [latents.score(keep(adapted, best(torch.rand_like(energy) * alive, KEPT))) for _ in range(5)]
    )
    values["others turned off"] = latents.score(gained(adapted, kept))
    gained(adapted, torch.ones_like(kept))
    train(pruned, config.adapter, config.vae.noise, config.more_epochs)
    values["best 12, trained on"] = latents.score(pruned)
    again = keep(adapted, best(torch.rand_like(energy) * alive, KEPT))
    train(again, config.adapter, config.vae.noise, config.more_epochs)
    values["random 12, trained on"] = latents.score(again)
    values["influence"] = influence(pruned, latents, kept)
    return values


@torch.no_grad()
def encode(vae: VAE, pictures: Tensor, noise: float, draws: int) -> Tensor:
    """The latents (means) of noisy pictures."""
    pictures = pictures.repeat(draws, 1, 1)
    return vae.encoder(pictures + noise * torch.randn_like(pictures))[0]


@torch.no_grad()
def decode(vae: VAE, latents: Tensor) -> Tensor:
    return vae.decoder(latents).sigmoid()


def right(vae: VAE, judge: Classifier, config: Config) -> float:
    """The share of unseen, noisy 5s to 9s that come out as what they are."""
    per_digit = [
        (judge.read(decode(vae, encode(vae, digits("test", n), config.vae.noise, 1))) == n).float()
        for n in range(5, 10)
    ]
    return torch.cat(per_digit).mean().item()


class Latents:
    """Latents of noisy unseen 3s and 8s, and what becomes of them."""

    def __init__(self, vae: VAE, judge: Classifier, config: Config) -> None:
        self.judge = judge
        self.threes = encode(vae, digits("test", 3), config.vae.noise, config.draws)
        self.eights = encode(vae, digits("test", 8), config.vae.noise, config.draws)
        self.stuck = self.threes[judge.read(decode(vae, self.threes)) == 8]
        self.eights = self.eights[judge.read(decode(vae, self.eights)) == 8]

    def share(self, vae: VAE, latents: Tensor) -> float:
        """Of these latents, how many decode to a 3."""
        return (self.judge.read(decode(vae, latents)) == 3).float().mean().item()

    def score(self, vae: VAE) -> dict[str, float]:
        return {
            "threes": self.share(vae, self.threes),
            "flips": self.share(vae, self.stuck),
            "eights": self.share(vae, self.eights),
        }


def mean_scores(scores: list[dict[str, float]]) -> dict[str, float]:
    return {name: fmean(score[name] for score in scores) for name in scores[0]}


def gained(vae: VAE, gains: Tensor) -> VAE:
    """The autoencoder itself, its gains set to these; which atoms are chosen stays as it was."""
    for own, gain in zip(dictionaries(vae), gains):
        own.gain.copy_(gain)
    return vae


def influence(vae: VAE, latents: Latents, kept: Tensor, pictures: int = 64) -> dict:
    """What each kept atom does to the picture, and whether these maps add up to what all do together.

    without   all − all but this one
    alone     this one − none
    """
    threes = latents.threes[:pictures]
    addresses = kept.nonzero().tolist()

    def picture(gains: Tensor) -> Tensor:
        return decode(gained(vae, gains), threes)

    none, whole = picture(torch.zeros_like(kept)), picture(kept)
    maps: dict[str, list[Tensor]] = {"without": [], "alone": []}
    for layer, atom in addresses:
        one = torch.zeros_like(kept)
        one[layer, atom] = 1
        maps["without"].append(whole - picture(kept - one))
        maps["alone"].append(picture(one) - none)
    gained(vae, torch.ones_like(kept))
    effect = whole - none
    values: dict = {
        f"sum misses, {name}": ((sum(each) - effect).square().sum() / effect.square().sum()).sqrt()
        for name, each in maps.items()
    }
    flipped = (latents.judge.read(none) == 8) & (latents.judge.read(whole) == 3)
    shown = int((flipped * effect.square().sum((1, 2))).argmax())  # the 8 that changes most on its way to a 3
    values["addresses"] = [f"L{layer}[{atom}]" for layer, atom in addresses]
    values["before"], values["after"] = none[shown], whole[shown]
    values["maps"] = torch.stack(maps["without"])[:, shown]
    return values


def grid(quick: bool = False) -> dict[str, Config]:
    if quick:  # too short to learn much, long enough to see that it runs
        return {
            f"s0-{name}": Config(0, replace(ADAPTERS[name], epochs=1), QUICK, draws=1, more_epochs=1, judge_epochs=2)
            for name in ("k2", "lora")
        }
    return {f"s{seed}-{name}": Config(seed, adapter) for seed in SEEDS for name, adapter in ADAPTERS.items()}


def scores(cells: dict, adapter: str, when: str, what: str) -> list[float]:
    return [values[when][what] for name, values in cells.items() if name.endswith(f"-{adapter}")]


def claims(out: Path = HERE) -> list[Claim]:
    cells = read(out / "results")

    def of(when: str, what: str, adapter: str = "k2") -> list[float]:
        return scores(cells, adapter, when, what)

    def verdict(holds: bool, nearly: bool = False) -> str:
        return HOLDS if holds else CONDITIONS if nearly else NOT_HERE

    k2 = [values for name, values in cells.items() if name.endswith("-k2")]
    before, after = of("before", "threes"), of("best 12, trained on", "threes")
    flips, eights = of("best 12, trained on", "flips"), of("best 12, trained on", "eights")
    judge = f" (classifier right on {k2[0]['judge accuracy']:.1%} of unseen digits)"
    return [
        Claim(
            "1",
            "latents of 3s decode to 3 once atoms are fine-tuned",
            "",
            f"{spread(before, 2)} before, {spread(of('all', 'threes'), 2)} with all atoms, {spread(after, 2)} with 12"
            + judge,
            verdict(min(a - b for a, b in zip(after, before)) > 0.2),
            COMMAND,
        ),
        Claim(
            "1",
            "12 atoms turn 8 into 3",
            "12 atoms",
            f"{spread(flips, 2)} of the 3s that decoded to 8; not trained on: {spread(of('best 12', 'flips'), 2)}"
            + judge,
            verdict(fmean(of("best 12", "flips")) > 0.7, fmean(flips) > 0.7),
            COMMAND,
        ),
        Claim(
            "1",
            "which 12 matters: the best beat random ones",
            "",
            f"flips: best {spread(of('best 12', 'flips'), 2)}, random {spread(of('random 12', 'flips'), 2)}; "
            f"trained on: best {spread(flips, 2)}, random {spread(of('random 12, trained on', 'flips'), 2)}",
            verdict(
                fmean(flips) > fmean(of("random 12, trained on", "flips")) + 0.1,
                fmean(of("best 12", "flips")) > fmean(of("random 12", "flips")) + 0.1,
            ),
            COMMAND,
        ),
        Claim(
            "1",
            "12 atoms do as well as LoRA of the same rank and size",
            "",
            f"flips {spread(flips, 2)} against {spread(of('all', 'flips', 'lora'), 2)}; real 8s turned to 3: "
            f"{spread(eights, 2)} against {spread(of('all', 'eights', 'lora'), 2)}",
            verdict(
                fmean(flips) > fmean(of("all", "flips", "lora")) - 0.02,
                fmean(eights) < fmean(of("all", "eights", "lora")),
            ),
            COMMAND,
        ),
        Claim(
            "1",
            "the adapter does not paint 3s everywhere",
            "",
            f"real 8s that become 3: {spread(eights, 2)}; before: {spread(of('before', 'eights'), 2)}",
            verdict(fmean(eights) < 0.1, fmean(eights) < 0.25),
            COMMAND,
        ),
        Claim(
            "1",
            "8 of the 12 atoms in the first layer, 4 in the second",
            "8 and 4",
            ", ".join(" and ".join(f"{n:.0f}" for n in values["split of the best"]) for values in k2),
            verdict(all(values["split of the best"][0] > values["split of the best"][1] for values in k2)),
            COMMAND,
        ),
        Claim(
            "1(c)",
            "the influence maps of the 12 atoms sum to the whole change",
            "",
            "‖sum − whole‖ / ‖whole‖: without each "
            + spread([values["influence"]["sum misses, without"] for values in k2], 2)
            + ", each alone "
            + spread([values["influence"]["sum misses, alone"] for values in k2], 2),
            verdict(fmean(values["influence"]["sum misses, without"] for values in k2) < 0.1),
            COMMAND,
        ),
    ]


ATOMS = ("k1", "k2")
STAGES = ("all", "best 12", "random 12", "others turned off", "best 12, trained on", "random 12, trained on")


def results(out: Path = HERE) -> str:
    cells = read(out / "results")
    stages = [("k2", "before", "before")]
    stages += [(a, when, f"top-{a[1]}, {when}{' atoms' * (when == 'all')}") for a in ATOMS for when in STAGES]
    stages.append(("lora", "all", "LoRA on to_v, rank 6 in each layer"))
    rows = []
    for adapter, when, label in stages:
        found = [scores(cells, adapter, when, what) for what in ("threes", "flips", "eights")]
        if found[0]:
            rows.append((label, *(spread(each, 2) for each in found)))
    facts = []
    for adapter in ATOMS:
        mine = [values for name, values in cells.items() if name.endswith(f"-{adapter}")]
        if mine:
            facts.append(
                (
                    f"top-{adapter[1]}",
                    *(
                        spread([v[what] for v in mine], 1)
                        for what in ("atoms a token", "atoms an image", "atoms alive")
                    ),
                    ", ".join("+".join(f"{n:.0f}" for n in v["split of the best"]) for v in mine),
                    spread([v["energy of the best"] for v in mine], 2),
                )
            )
    one = next(v for name, v in cells.items() if name.endswith("-k2"))
    base = [v["base reads 5 to 9 right"] for name, v in cells.items() if name.endswith("-k2")]
    return "\n\n".join(
        (
            f"The classifier reads {one['judge accuracy']:.1%} of unseen real digits right. Of unseen 5s to 9s that "
            f"the base denoises, it reads {spread(base, 2)} as what they were.",
            table(("share read as 3", "latents of 3s", "of those, 8 before (flips)", "real 8s"), rows),
            table(
                (
                    "",
                    "atoms a token",
                    "atoms an image",
                    "atoms alive",
                    "best 12 by layer, per seed",
                    "their share of the energy",
                ),
                facts,
            ),
        )
    )


if __name__ == "__main__":
    run_cells(HERE / "results", grid(), measure)
