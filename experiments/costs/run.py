"""§3.5: parameters, storage and operations, counted on the real configurations: `python -m experiments --only costs`

No weights are loaded and nothing is computed: models are on the meta device, and PyTorch counts the operations.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from peft import LoraConfig, OFTConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

import atomtune
from atomtune import AtomConfig
from experiments.common.cells import read
from experiments.common.report import Claim, grade, table

HERE = Path(__file__).parent
PIXART: dict[str, Any] = {  # PixArt-alpha/PixArt-Sigma-XL-2-1024-MS
    "num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "cross_attention_dim": 1152,
    "caption_channels": 4096, "sample_size": 128, "interpolation_scale": 2, "in_channels": 4, "out_channels": 8,
    "use_additional_conditions": False,
}  # fmt: skip
SIZES = {"1024": 128, "512": 64}  # pixels of the image → side of its latents
WORDS = 300
PROJECTIONS = [f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
M, DENSITY, RANK = 256, 0.04, 16
METHODS: dict[str, tuple[str, dict[str, Any] | None]] = {  # heading, what is adapted by which method
    "frozen": ("the frozen model", None),
    "lora": ("LoRA, r = 16, on q, k, v and out", {"kind": "lora", "target_modules": PROJECTIONS}),
    "dora": ("DoRA, r = 16", {"kind": "dora", "target_modules": PROJECTIONS}),
    "oft": ("OFT, r = 4", {"kind": "oft", "target_modules": PROJECTIONS}),
    "after": ("atoms beside attention, σ(A X W_s) D", {"target_modules": ["attn1"], "mix_first": True}),
    "before": ("atoms beside attention, A σ(X W_s) D", {"target_modules": ["attn1"], "mix_first": False}),
    "linear": ("atoms on the values", {"target_modules": ["attn1.to_v"]}),
    "both": ("atoms on the values of both attentions", {"target_modules": ["attn1.to_v", "attn2.to_v"]}),
}


@dataclass(frozen=True)
class Config:
    """One cell: a method on PixArt-Σ, and the size of the image."""

    method: str
    pixels: str

    @property
    def settings(self) -> dict[str, Any]:
        own = {"method": METHODS[self.method][1], "latents": SIZES[self.pixels], "words": WORDS}
        return own | {"atoms": M, "density": DENSITY, "rank": RANK}


def grid(quick: bool = False) -> dict[str, Config]:
    pixels = list(SIZES)[-1:] if quick else SIZES
    return {f"{method}-{size}": Config(method, size) for size in pixels for method in METHODS}


def measure(config: Config) -> dict[str, Any]:
    with torch.device("meta"):
        base = PixArtTransformer2DModel(**PIXART).eval()
        model = base if METHODS[config.method][1] is None else adapted(base, dict(METHODS[config.method][1] or {}))
        side = SIZES[config.pixels]
        inputs = {
            "hidden_states": torch.empty(1, 4, side, side),
            "encoder_hidden_states": torch.empty(1, WORDS, 4096),
            "timestep": torch.empty(1, dtype=torch.long),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**inputs)
    found: dict[str, Any] = {"flops": counter.get_total_flops()}
    if config.method != "frozen":
        found["parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if config.method in ("after", "before", "linear", "both"):
        found |= formulas(atomtune.board(model), (side // 2) ** 2)
    return found


def adapted(base: Any, options: dict[str, Any]) -> Any:
    kind = options.pop("kind", "atoms")
    if kind == "oft":
        return get_peft_model(base, OFTConfig(r=4, oft_block_size=0, **options))
    if kind in ("lora", "dora"):
        return get_peft_model(base, LoraConfig(r=RANK, use_dora=kind == "dora", **options))
    return get_peft_model(base, AtomConfig(num_atoms=M, density=DENSITY, **options))


def formulas(atoms: Any, places: int) -> dict[str, int]:
    """§3.5, summed over layers of N tokens: C_i M + M C_o parameters; C_i M + ρ M C_o stored, if of D the atoms that
    are used are kept; 2 N M (C_i + C_o) operations, and 2 N² M more where the map mixes M coefficients."""
    found = {"parameters_formula": 0, "stored_formula": 0, "flops_formula": 0}
    for name, dictionary in zip(atoms.names, atoms.dictionaries):
        num_atoms, width = dictionary.encoder.weight.shape
        out = dictionary.decoder.weight.shape[1]
        tokens = WORDS if "attn2" in name else places
        found["parameters_formula"] += num_atoms * (width + out)
        found["stored_formula"] += round(num_atoms * (width + DENSITY * out))
        found["flops_formula"] += 2 * tokens * num_atoms * (width + out)
        if name.endswith("attn1"):
            found["flops_formula"] += 2 * tokens**2 * num_atoms
    return found


def results(out: Path = HERE) -> str:
    found, rows = read(out), []
    for name, cell in found.items():
        method, size = name.rsplit("-", 1)
        frozen = found[f"frozen-{size}"]["flops"]
        more = cell["flops"] - frozen
        rows.append(
            [
                f"{size} px",
                METHODS[method][0],
                f"{cell['parameters']:,}" if "parameters" in cell else "–",
                f"{cell['parameters_formula']:,}" if "parameters_formula" in cell else "–",
                f"{cell['stored_formula']:,}" if "stored_formula" in cell else "–",
                f"{cell['flops'] / 1e12:.3f}",
                f"{100 * more / frozen:+.2f} %" if more else "–",
                f"{100 * cell['flops_formula'] / frozen:+.2f} %" if "flops_formula" in cell else "–",
            ]
        )
    rows.sort(key=lambda row: (-int(row[0].split()[0]), [title for title, _ in METHODS.values()].index(row[1])))
    head = ["image", "method", "parameters", "C_i M + M C_o", "stored, C_i M + ρ M C_o", "TFLOP, forward"]
    return table([*head, "over the frozen model", "by the formula"], rows)


def claims(out: Path = HERE) -> list[Claim]:
    found = read(out)
    atoms = {name: cell for name, cell in found.items() if "parameters_formula" in cell}
    frozen, own = found["frozen-1024"]["flops"], found["after-1024"]
    counted, formula = ((own["flops"] - frozen) / frozen, own["flops_formula"] / frozen)
    numbers = f"{own['parameters']:,} beside PixArt-Σ's self-attention, M = {M}"
    return [
        Claim(
            "parameters are C_i M + M C_o in each layer",
            f"{numbers}; LoRA of rank {RANK} {found['lora-1024']['parameters']:,}",
            "equal in every configuration",
            grade(*(cell["parameters"] == cell["parameters_formula"] for cell in atoms.values())),
            "17M",
            brief=f"{own['parameters']:,} parameters",
        ),
        Claim(
            "operations are those of the encoder, the map over M coefficients, and D",
            f"{100 * counted:.2f} % over the frozen model at 1024 pixels, by the formula {100 * formula:.2f} %",
            "within 1 % of the formula in every configuration",
            grade(
                *(
                    abs(cell["flops"] - found[f"frozen-{name.rsplit('-', 1)[1]}"]["flops"] - cell["flops_formula"])
                    <= 0.01 * cell["flops_formula"]
                    for name, cell in atoms.items()
                )
            ),
        ),
    ]
