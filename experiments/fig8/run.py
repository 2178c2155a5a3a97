"""Figure 8: the Fourier bases of 64 points that the signals of figures 2 and 9 are made of. Nothing is trained.

Run `python -m experiments --only fig8`.
"""

from dataclasses import dataclass
from pathlib import Path

from experiments.common.cells import read
from experiments.common.report import Claim, grade, table
from experiments.common.signals import HIGH, LENGTH, LOW, fourier_bases

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Config:
    """The only cell; nothing can be set."""

    length: int = LENGTH


def grid(quick: bool = False) -> dict[str, Config]:
    return {"bases": Config()}


def measure(config: Config) -> dict:
    """How far the bases are from orthogonal, and the subspaces of figure 2 from each other."""
    phi = fourier_bases().double()
    gram = phi @ phi.T / config.length
    off = gram - gram.diag().diag()
    return {
        "count": len(phi),
        "largest off-diagonal product": off.abs().max().item(),
        "largest product between low and high": gram[list(LOW)][:, list(HIGH)].abs().max().item(),
    }


def claims(out: Path = HERE) -> list[Claim]:
    values = read(out)["bases"]
    product = values["largest product between low and high"]
    return [
        Claim(
            "frequencies (0 to 24)/64 and (25 to 32)/64 span orthogonal subspaces",
            f"{values['count']} bases of mean square 1; largest product between low and high {product:.0e}",
            "products below 1e-5, which is float32's rounding",
            grade(product < 1e-5),
            brief=f"largest product {product:.0e}",
        )
    ]


def results(out: Path = HERE) -> str:
    return table(("quantity", "value"), [(name, f"{value:.2g}") for name, value in read(out)["bases"].items()])
