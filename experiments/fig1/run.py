"""Figure 1: a VAE that knows digits 5 to 9 learns to draw 3s with a few atoms.

Run `python -m experiments --only fig1`. A cell is one adapter on the autoencoder of one seed.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from experiments.common.cells import read, spread
from experiments.common.digits import Classifier, classifier, digits
from experiments.common.report import Claim, everywhere_less, grade, table
from experiments.common.vae import (
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
KEPT = 12
SHOWN = 8  # pictures in the figure


@dataclass(frozen=True)
class Config:
    """One cell."""

    seed: int
    adapter: Adapter
    vae: VAEConfig = field(default_factory=VAEConfig)
    draws: int = 4
    """Noisy versions of every test picture."""
    more_epochs: int = 5
    """Of training after all but 12 atoms are gone; whatever is compared with them is trained on as long."""
    judge_epochs: int = 20


ADAPTERS = {
    "k1": Adapter(k=1),
    "k2": Adapter(k=2),
    "twelve": Adapter(k=2, num_atoms=KEPT // 2),
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
    if config.adapter.method == "atoms" and 2 * config.adapter.num_atoms > KEPT:
        values |= cut(adapted, latents, config)
    train(adapted, config.adapter, config.vae.noise, config.more_epochs)
    values["all, trained on"] = latents.score(adapted)
    return values


def cut(adapted: VAE, latents: "Latents", config: Config) -> dict:
    """How many atoms are used, and what 12 of them do: the best and random ones, as they are and trained on."""
    threes = encode(adapted, digits("train", 3), config.vae.noise, 1)
    energy, own = energies(adapted, threes), codes(adapted, threes)
    alive = (own != 0).any(2).any(1).float()
    kept = best(energy, KEPT)
    pruned, *randoms = (
        keep(adapted, mask) for mask in (kept, *(best(torch.rand_like(energy) * alive, KEPT) for _ in range(5)))
    )
    values: dict = {
        "atoms a token": (own != 0).sum(-1).float().mean(),
        "atoms an image": (own != 0).any(2).float().sum((0, 2)).mean(),
        "atoms alive": alive.sum(),
        "split of the best": kept.sum(1),
        "energy of the best": (energy * kept).sum() / energy.sum(),
        "best 12": latents.score(pruned),
        "random 12": mean_scores([latents.score(each) for each in randoms]),
        "others turned off": latents.score(gained(adapted, kept)),
    }
    gained(adapted, torch.ones_like(kept))
    for each in (pruned, *randoms):
        train(each, config.adapter, config.vae.noise, config.more_epochs)
    values["best 12, trained on"] = latents.score(pruned)
    values["random 12, trained on"] = mean_scores([latents.score(each) for each in randoms])
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

    @torch.no_grad()
    def logits(gains: Tensor) -> Tensor:
        return gained(vae, gains).decoder(threes)

    one = torch.stack(
        [torch.zeros_like(kept).index_put((torch.tensor(i), torch.tensor(j)), torch.tensor(1.0)) for i, j in addresses]
    )
    none, whole = logits(torch.zeros_like(kept)), logits(kept)
    without, alone = (torch.stack([logits(gains) for gains in each]) for each in (kept - one, one))
    gained(vae, torch.ones_like(kept))
    values: dict = {}
    for what, form in (("pixels", torch.sigmoid), ("logits", torch.nn.Identity())):
        effect = form(whole) - form(none)
        for name, maps in (("without", form(whole) - form(without)), ("alone", form(alone) - form(none))):
            values[f"sum misses, {name}, {what}"] = (maps.sum(0) - effect).norm() / effect.norm()
    none, whole, maps = none.sigmoid(), whole.sigmoid(), whole.sigmoid() - without.sigmoid()
    flipped = (latents.judge.read(none) == 8) & (latents.judge.read(whole) == 3)
    size = (whole - none).square().sum((1, 2)) * flipped
    shown = size.topk(SHOWN).indices  # the 8s that change most on their way to 3s
    values["addresses"] = [f"L{layer}[{atom}]" for layer, atom in addresses]
    values["before"], values["after"] = none[shown], whole[shown]
    values["maps"] = maps[:, shown[0]]
    return values


def grid(quick: bool = False) -> dict[str, Config]:
    if quick:  # too short to learn much, long enough to see that it runs
        return {
            f"s0-{name}": Config(0, replace(ADAPTERS[name], epochs=1), QUICK, draws=1, more_epochs=1, judge_epochs=2)
            for name in ("k2", "twelve", "lora")
        }
    return {f"s{seed}-{name}": Config(seed, adapter) for seed in SEEDS for name, adapter in ADAPTERS.items()}


def scores(cells: dict, adapter: str, when: str, what: str) -> list[float]:
    return [values[when][what] for name, values in cells.items() if name.endswith(f"-{adapter}")]


def claims(out: Path = HERE) -> list[Claim]:
    cells = read(out)

    def of(when: str, what: str, adapter: str = "k2") -> list[float]:
        return scores(cells, adapter, when, what)

    def told(what: str, *stages: str, adapter: str = "k2") -> str:
        return ", ".join(f"{spread(of(when, what, adapter), 2)} {LABELS[when]}" for when in stages)

    k2 = [values for name, values in cells.items() if name.endswith("-k2")]
    best, random, on = "best 12", "random 12", ", trained on"
    lora = {what: of(f"all{on}", what, "lora") for what in ("flips", "eights")}
    judge = f" (classifier right on {k2[0]['judge accuracy']:.1%} of unseen digits)"
    misses = {
        what: [values["influence"][f"sum misses, {what}, pixels"] for values in k2] for what in ("without", "alone")
    }
    return [
        Claim(
            "latents of 3s decode to 3 once atoms are fine-tuned",
            told("threes", "before", "all", f"{best}{on}") + judge,
            "fewer than half before and more than half after, on every seed; one verdict over all atoms and the 12",
            grade(*(max(of("before", "threes")) < 0.5 < min(of(when, "threes")) for when in ("all", f"{best}{on}"))),
            brief=f"latents of 3s that decode to 3: {told('threes', 'before', f'{best}{on}')}",
        ),
        Claim(
            "12 atoms turn 8s into 3s",
            f"of the 3s that decoded to 8: {told('flips', best, f'{best}{on}')}{judge}",
            "more than half on every seed; one verdict over the 12 as they were cut and trained on",
            grade(*(min(of(when, "flips")) > 0.5 for when in (best, f"{best}{on}"))),
            "12 atoms",
        ),
        Claim(
            "which 12 are kept matters",
            f"flips: {told('flips', best, random, f'{best}{on}', f'{random}{on}')}",
            "the best flip more on every seed; one verdict over the 12 as they were cut and trained on",
            grade(*(everywhere_less(of(f"{random}{end}", "flips"), of(f"{best}{end}", "flips")) for end in ("", on))),
        ),
        Claim(
            "12 atoms flip as many as LoRA of the same rank, size and epochs",
            f"flips: {spread(of(f'{best}{on}', 'flips'), 2)} best 12 of 200, "
            f"{spread(of(f'all{on}', 'flips', 'twelve'), 2)} only 12 from the start, {spread(lora['flips'], 2)} LoRA",
            "no fewer than LoRA on every seed; one verdict over both kinds of 12",
            grade(
                not_below(of(f"{best}{on}", "flips"), lora["flips"]),
                not_below(of(f"all{on}", "flips", "twelve"), lora["flips"]),
            ),
        ),
        Claim(
            "real 8s stay 8s",
            "real 8s that become 3: "
            f"{told('eights', 'all', best, f'{best}{on}')}"
            f"; {spread(of(f'all{on}', 'eights', 'twelve'), 2)} only 12 from the start; "
            f"{spread(lora['eights'], 2)} LoRA",
            "fewer than one in ten become 3, on every seed; one verdict over all atoms, the 12 as cut and trained on",
            grade(*(max(of(when, "eights")) < 0.1 for when in ("all", best, f"{best}{on}"))),
        ),
        Claim(
            "8 of the 12 atoms lie in the first layer, 4 in the second",
            ", ".join(" and ".join(f"{n:.0f}" for n in values["split of the best"]) for values in k2) + " on the seeds",
            "more in the first than in the second on every seed",
            grade(all(values["split of the best"][0] > values["split of the best"][1] for values in k2)),
            "8 and 4",
        ),
        Claim(
            "the influence maps of the 12 atoms sum to the whole change (c)",
            f"‖sum − whole‖ / ‖whole‖: {spread(misses['without'], 2)} for all minus all but one, "
            f"{spread(misses['alone'], 2)} for one minus none",
            "below 0.1 on every seed, for both ways to make a map",
            grade(*(max(each) < 0.1 for each in misses.values())),
        ),
    ]


def not_below(ours: list[float], theirs: list[float]) -> bool:
    return all(a >= b for a, b in zip(ours, theirs, strict=True))


LABELS = {
    "before": "before",
    "all": "with all atoms",
    "all, trained on": "with all atoms trained on",
    "best 12": "with the best 12",
    "random 12": "with random 12",
    "best 12, trained on": "with the best 12 trained on",
    "random 12, trained on": "with random 12 trained on",
}
ATOMS = ("k1", "k2")
STAGES = (
    "all",
    "best 12",
    "random 12",
    "others turned off",
    "all, trained on",
    "best 12, trained on",
    "random 12, trained on",
)


def results(out: Path = HERE) -> str:
    cells = read(out)
    stages = [("k2", "before", "before")]
    stages += [(a, when, f"top-{a[1]}, {when.replace('all', 'all atoms')}") for a in ATOMS for when in STAGES]
    for adapter, label in (
        ("twelve", "top-2, only 12 atoms from the start"),
        ("lora", "LoRA on to_v, rank 6 in each layer"),
    ):
        stages += [(adapter, "all", label), (adapter, "all, trained on", f"{label}, trained on")]
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
    misses = [
        (
            "all − all but one" if way == "without" else "one − none",
            *(
                spread(
                    [v["influence"][f"sum misses, {way}, {what}"] for name, v in cells.items() if name.endswith("-k2")],
                    2,
                )
                for what in ("pixels", "logits")
            ),
        )
        for way in ("without", "alone")
    ]
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
            table(("‖sum of maps − change‖ / ‖change‖, top-2", "pixels", "logits"), misses),
        )
    )
