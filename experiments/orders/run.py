"""σ after the attention map, σ(A X W_s) D, or before it, A σ(X W_s) D: is the sparsity kept, and at what error?

Run `python -m experiments.orders.run`, after fig1, whose cells are the other half of the comparison on digits.
"""

from dataclasses import replace
from pathlib import Path
from statistics import fmean

from experiments.cells import read, run_cells, spread
from experiments.fig1 import run as digits_run
from experiments.fig9 import run as signals_run
from experiments.report import CONDITIONS, HOLDS, NOT_HERE, Claim, table
from experiments.signals import Layer
from experiments.vae import Adapter

HERE = Path(__file__).parent
COMMAND = "python -m experiments.orders.run"
CHANNELS = 16
SIGNALS = {
    f"signals-{ground}-{'after' if mix_first else 'before'}-{k}": signals_run.Config(
        Layer(density=k / 100, mix_first=mix_first, noise=noise, channels=CHANNELS, batch=16)
    )
    for ground, noise in (("clean", 0.0), ("noisy", 0.5))
    for mix_first, k in ((True, 9), (False, 9), (False, 4), (False, 1))
}
DIGITS = {f"digits-s{seed}-before": digits_run.Config(seed, Adapter(k=2, mix_first=False)) for seed in digits_run.SEEDS}


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
    """The cells of both orders, seed by seed."""
    after = read(out.parent / "fig1" / "results")
    before = {name: values for name, values in read(out / "results").items() if name.startswith("digits")}
    pairs = [(after[f"s{name.split('-')[1][1:]}-k2"], values) for name, values in before.items()]
    return {"after": [pair[0] for pair in pairs], "before": [pair[1] for pair in pairs]}


def claims(out: Path = HERE) -> list[Claim]:
    cells, rows = read(out / "results"), []
    claim = "codes stay sparse when σ comes before the attention map"
    after, before = cells["signals-noisy-after-9"], cells["signals-noisy-before-9"]
    rows.append(
        Claim(
            "orders",
            f"{claim}: signals whose {CHANNELS} channels have noise of their own",
            "",
            f"atoms a token: {spread(after['active'], 1)} at NMSE {spread(after['nmse'])} with σ after the map, "
            f"{spread(before['active'], 1)} at {spread(before['nmse'])} with σ before it",
            HOLDS if fmean(before["active"]) < 1.5 * fmean(after["active"]) else NOT_HERE,
            COMMAND,
        )
    )
    if "signals-clean-before-9" in cells:
        clean = cells["signals-clean-before-9"]
        rows.append(
            Claim(
                "orders",
                f"{claim}: signals whose channels are multiples of one another",
                "",
                f"atoms a token {spread(clean['active'], 1)} at NMSE {spread(clean['nmse'])}: all tokens choose alike",
                CONDITIONS if fmean(clean["active"]) < 1.5 * 9 else NOT_HERE,
                COMMAND,
            )
        )
    if (pairs := on_digits(out))["before"]:
        told = {
            order: (
                spread([v["atoms a token"] for v in found], 1),
                spread([v["all"]["threes"] for v in found], 2),
            )
            for order, found in pairs.items()
        }
        dense = fmean(v["atoms a token"] for v in pairs["before"]) > 3
        rows.append(
            Claim(
                "orders",
                f"{claim}: digits, top-2",
                "",
                f"atoms a token: {told['after'][0]} (latents of 3s read as 3: {told['after'][1]}) with σ after the "
                f"map, {told['before'][0]} ({told['before'][1]}) with σ before it",
                NOT_HERE if dense else HOLDS,
                COMMAND,
            )
        )
    return rows


def results(out: Path = HERE) -> str:
    rows = []
    for name, v in read(out / "results").items():
        if name.startswith("signals"):
            _, ground, order, k = name.split("-")
            rows.append(
                (f"signals, {ground}", f"σ {order} the map", k, spread(v["active"], 1), f"NMSE {spread(v['nmse'])}")
            )
    for order, found in on_digits(out).items():
        if found:
            reached = spread([v["all"]["threes"] for v in found], 2)
            rows.append(
                (
                    "digits",
                    f"σ {order} the map",
                    "2",
                    spread([v["atoms a token"] for v in found], 1),
                    f"read as 3: {reached}",
                )
            )
    return table(("ground", "order", "k", "atoms a token where they multiply D", "result"), rows)


if __name__ == "__main__":
    run_cells(HERE / "results", grid(), measure)
