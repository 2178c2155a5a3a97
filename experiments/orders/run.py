"""σ after the attention map, σ(A X W_s) D, or before it, A σ(X W_s) D: is the sparsity kept, and at what error?

Run `python -m experiments --only orders`, after fig1, whose cells are the other half of the comparison on digits.
"""

from dataclasses import replace
from pathlib import Path

from experiments.common.cells import read, spread
from experiments.common.report import Claim, grade, table
from experiments.common.signals import Layer
from experiments.common.vae import Adapter
from experiments.fig1 import run as digits_run
from experiments.fig9 import run as signals_run
from experiments.fig9.run import at_error, count

HERE = Path(__file__).parent
CHANNELS, KS = 16, (1, 2, 3, 4, 6, 9, 12)
SIGNALS = {
    f"signals-{ground}-{'after' if mix_first else 'before'}-{k}": signals_run.Config(
        Layer(density=k / 100, mix_first=mix_first, noise=noise, channels=CHANNELS, batch=16)
    )
    for ground, noise in (("clean", 0.0), ("noisy", 0.5))
    for mix_first, k in ((True, 9), *((False, k) for k in KS))
}
DIGITS = {
    f"digits-s{seed}-before-{k}": digits_run.Config(seed, Adapter(k=k, mix_first=False))
    for seed in digits_run.SEEDS
    for k in (1, 2)
}


def grid(quick: bool = False) -> dict[str, signals_run.Config | digits_run.Config]:
    if quick:
        short = {name: SIGNALS[f"signals-noisy-{name}-9"] for name in ("after", "before")}
        return {
            f"signals-noisy-{name}-9": replace(config, seeds=(0, 1), layer=replace(config.layer, steps=30))
            for name, config in short.items()
        }
    return SIGNALS | DIGITS


def measure(config: signals_run.Config | digits_run.Config) -> dict:
    return signals_run.measure(config) if isinstance(config, signals_run.Config) else digits_run.measure(config)


def on_digits(out: Path) -> dict[str, list[dict]]:
    """The cells of both orders, seed by seed: "after-2" (figure 1's), "before-1", "before-2"."""
    before = {name: values for name, values in read(out).items() if name.startswith("digits")}
    if not before:
        return {}
    after = {f"digits-{name[:2]}-after-2": v for name, v in read(out.parent / "fig1").items() if "-k2" in name}
    cells = after | before
    return {
        order: [values for name, values in cells.items() if name.endswith(order)]
        for order in ("after-2", "before-1", "before-2")
    }


def matched(cells: dict, ground: str) -> tuple[list[float], list[float]]:
    """Atoms a token at the error of top-9 after the map, for both orders, seed by seed."""
    after = cells[f"signals-{ground}-after-9"]
    return after["active"], at_error([v for name, v in cells.items() if f"{ground}-before" in name], after)


def claims(out: Path = HERE) -> list[Claim]:
    cells, digits = read(out), on_digits(out)
    claim = "codes are as sparse when σ comes before the attention map"
    rows = []
    for ground, told in (("noisy", "have noise of their own"), ("clean", "are multiples of one another")):
        if f"signals-{ground}-after-9" in cells:
            after, before = matched(cells, ground)
            error = spread(cells[f"signals-{ground}-after-9"]["nmse"])
            rows.append(
                Claim(
                    f"{claim}: signals whose {CHANNELS} channels {told}",
                    f"atoms a token at NMSE {error}: {spread(after, 1)} with σ after the map, {count(before)} "
                    "with σ before it",
                    "no more atoms at the same error, to the nearest whole one, on every seed",
                    grade(no_more(before, after)),
                    brief=f"{spread(after, 1)} atoms a token with σ after the map, {count(before)} before it",
                )
            )
    if digits:
        told = "; ".join(
            f"{spread(used(found), 1)} (read as 3: "
            f"{spread([v['all']['threes'] for v in found], 2)}) with σ {label(order)}"
            for order, found in digits.items()
        )
        rows.append(
            Claim(
                f"{claim}: digits",
                f"atoms a token: {told}",
                "no more atoms, to the nearest whole one, on every seed; one verdict over k = 1 and 2, whose rates "
                "enclose that of σ after the map",
                grade(*(no_more(used(digits[order]), used(digits["after-2"])) for order in ("before-1", "before-2"))),
            )
        )
    return rows


def used(found: list[dict]) -> list[float]:
    return [v["atoms a token"] for v in found]


def no_more(ours: list[float], theirs: list[float]) -> bool:
    return all(round(min(a, 100)) <= round(b) for a, b in zip(ours, theirs, strict=True))


def label(order: str) -> str:
    place, k = order.split("-")
    return f"{place} the map, k = {k}"


def results(out: Path = HERE) -> str:
    rows = []
    cells = read(out)
    for name in sorted(cells, key=lambda name: (name.rsplit("-", 1)[0], int(name.rsplit("-", 1)[1]))):
        if name.startswith("signals"):
            _, ground, order = name.split("-", 2)
            told = f"NMSE {spread(cells[name]['nmse'])}"
            rows.append((f"signals, {ground}", f"σ {label(order)}", spread(cells[name]["active"], 1), told))
    for order, found in on_digits(out).items():
        reached = spread([v["all"]["threes"] for v in found], 2)
        told = f"read as 3: {reached}"
        rows.append(("digits", f"σ {label(order)}", spread(used(found), 1), told))
    return table(("ground", "order", "atoms a token where they multiply D", "result"), rows)
