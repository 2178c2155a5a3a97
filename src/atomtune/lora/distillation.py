"""From a LoRA to atoms: dictionary learning on what the LoRA adds while given prompts are drawn.

    LoRA     ΔO* = α/r · (X Aᵀ) Bᵀ       X [N, C_i]: what the layer sees
    atoms    ΔO = σ(X W_s) D              min over W_s and D of ‖ΔO − ΔO*‖² / ‖ΔO*‖², layer by layer

Atom m starts at the direction of what the LoRA adds to some token, d_m = ΔO*_i / ‖ΔO*_i‖, and its column of W_s at the
one for which the coefficient is the projection on it, x · w_m = ΔO*(x) · d_m. A token then chooses, by σ, the atoms
that are most like what the LoRA adds to it; from there both are trained. Without σ (density 1) nothing needs to be
learned: the LoRA's own components, see `conversion`, are the answer, and it is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from atomtune import bases, sampling
from atomtune.adapters import AtomConfig, AtomLayer, adapted_layers
from atomtune.errors import UserError, check_seed
from atomtune.files import expanded
from atomtune.lora import loading
from atomtune.lora.conversion import lora_to_atoms, refuse_other_than_lora
from atomtune.method.dictionary import SparseDictionary
from atomtune.storage import folders

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from peft import PeftModel

LEARNING_RATE, BATCH = 3e-3, 1024


@dataclass(frozen=True)
class Explained:
    """How much of what the LoRA adds in one layer its atoms add, on tokens that they were not fitted to."""

    name: str
    """Of the layer, as in the model."""
    share: float
    """1 − ‖ΔO − ΔO*‖² / ‖ΔO*‖²."""
    weight: float
    """‖ΔO*‖² of a token, its mean: how much the LoRA does here."""


def distill(
    pipe: DiffusionPipeline,
    model: PeftModel,
    prompts: Sequence[str],
    *,
    num_atoms: int = 128,
    density: float = 0.05,
    steps: int = 500,
    tokens: int = 8192,
    num: int = 2,
    seed: int = 0,
    sampling_steps: int | None = None,
    resolution: int | None = None,
    progress: Callable[[Collection[Any]], Iterable[Any]] = iter,
) -> list[Explained]:
    """Put linear atoms in place of the LoRA on `model`, the denoiser of `pipe`; return how much of it they explain.

    `num` images of each prompt are drawn with the LoRA; of what every layer sees, `tokens` tokens are kept, a fifth
    of them to measure on. `progress` wraps the layers, as `tqdm` does. Raises `UserError` unless it is a plain LoRA.
    """
    from peft import get_peft_model

    if not prompts:
        raise UserError("there is nothing to distill on: give prompts that the LoRA was made for.")
    check_seed(seed, num)
    refuse_other_than_lora(model)
    generator = torch.Generator().manual_seed(seed)
    with _recorded(model, tokens, generator) as seen:
        sampling.generate(pipe, list(prompts), num, seed, sampling_steps, resolution=resolution)
    distilled = lora_to_atoms(model)  # takes the LoRA out, and answers the same
    factors = {
        name: (dictionary.encoder.weight.detach(), dictionary.decoder.weight.detach())
        for name, dictionary in _dictionaries(distilled).items()
    }
    if density < 1:
        target: Any = list(factors)
        config = AtomConfig(target_modules=target, num_atoms=num_atoms, density=density)
        distilled = get_peft_model(distilled.unload(), config)  # pyright: ignore
    found = []
    for name, dictionary in progress(_dictionaries(distilled).items()):
        x, (W, D) = seen[name].tokens, factors[name]
        wanted, test = (x @ W.T) @ D, len(x) // 5
        if density < 1:
            fit(dictionary, x[test:], wanted[test:], W.T @ D, steps, generator)
        with torch.no_grad():
            missed, whole = dictionary(x[:test]) - wanted[:test], wanted[:test]
            dictionary.usage.copy_(dictionary.codes(x[:test]).abs().mean(0))
        share = 1 - missed.square().sum() / whole.square().sum().clamp_min(1e-30)
        found.append(Explained(name, float(share), float(whole.square().sum(1).mean())))
    bases.set_denoiser(pipe, distilled.eval())
    return found


def fit(
    dictionary: SparseDictionary,
    x: Float[Tensor, "tokens width"],
    wanted: Float[Tensor, "tokens out"],
    product: Float[Tensor, "width out"],
    steps: int,
    generator: torch.Generator,
) -> None:
    """Learn W_s and D so that σ(x W_s) D is near `wanted` = x · `product`."""
    size, lengths = wanted.square().mean().sqrt().clamp_min(1e-12), wanted.norm(dim=1).cpu().clamp_min(1e-12)
    few = len(x) < dictionary.num_atoms
    chosen = torch.multinomial(lengths, dictionary.num_atoms, few, generator=generator).to(x.device)
    directions = torch.nn.functional.normalize(wanted[chosen], dim=1)
    with torch.no_grad():
        dictionary.encoder.weight.copy_(directions @ product.T / size)
        dictionary.decoder.weight.copy_(directions)
        first = dictionary(x)  # atoms that are alike add up: start at the best common length
        dictionary.decoder.weight *= (first * wanted).sum() / size / first.square().sum().clamp_min(1e-12)
    parameters = [dictionary.encoder.weight, dictionary.decoder.weight]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (min(BATCH, len(x)),), generator=generator).to(x.device)
        with torch.enable_grad():
            loss = (dictionary(x[rows]) - wanted[rows] / size).square().mean()
            gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        optimizer.step()
        schedule.step()
    for parameter in parameters:
        parameter.grad = None
    with torch.no_grad():
        dictionary.decoder.weight *= size


def diffusers_file(path: Path) -> Path | None:
    """The weights, where `path` is a LoRA as diffusers writes it and not a PEFT folder."""
    file = path / "pytorch_lora_weights.safetensors" if path.is_dir() else path
    return None if path.is_dir() and not file.is_file() else file


def load_lora(pipe: DiffusionPipeline, path: str | Path) -> PeftModel:
    """Attach a LoRA to the pipeline's denoiser: a PEFT folder, a run, or a `.safetensors` file as diffusers or kohya's
    scripts write it. What a file has for text encoders is left out, and that is logged as a warning.

    Raises `UserError`, and leaves the denoiser as it was, if there is no LoRA that can be read or fits this base.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    path = expanded(path)
    if (file := diffusers_file(path)) is None:
        return folders.load_adapter(pipe, path)
    state, options = loading.fitted(pipe, loading.read(file), file)
    model = get_peft_model(bases.denoiser(pipe), LoraConfig(**options))
    set_peft_model_state_dict(model, {f"base_model.model.{key}": value for key, value in state.items()})
    bases.set_denoiser(pipe, model)
    return model.eval()


@dataclass
class Reservoir:
    """`size` of all the tokens that were ever added, each as likely as any other: those of the smallest random keys."""

    size: int
    generator: torch.Generator
    keys: Tensor = field(default_factory=lambda: torch.empty(0))
    tokens: Tensor = field(default_factory=lambda: torch.empty(0))

    def add(self, x: Float[Tensor, "*batch width"]) -> None:
        x = x.detach().flatten(0, -2).float()
        new = torch.rand(len(x), generator=self.generator)
        rows = new.topk(min(self.size, len(new)), largest=False).indices  # so that no more than these are copied
        keys = torch.cat([self.keys, new[rows]])
        x = x[rows.to(x.device)]
        x = torch.cat([self.tokens, x]) if len(self.keys) else x
        kept = keys.topk(min(self.size, len(keys)), largest=False).indices
        self.keys, self.tokens = keys[kept], x[kept.to(x.device)]


@contextmanager
def _recorded(model: PeftModel, tokens: int, generator: torch.Generator) -> Iterator[dict[str, Reservoir]]:
    """`tokens` tokens of what each of the LoRA's layers sees in the block."""
    from peft.tuners.lora import LoraLayer

    seen: dict[str, Reservoir] = {}
    hooks = []
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer) and isinstance(layer, nn.Module):
            own = seen[name] = Reservoir(tokens, generator)
            hooks.append(layer.register_forward_pre_hook(partial(lambda own, _layer, inputs: own.add(inputs[0]), own)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _dictionaries(model: PeftModel) -> dict[str, SparseDictionary]:
    layers = set(adapted_layers(model))
    return {
        name: layer.dictionary("default")
        for name, layer in model.get_base_model().named_modules()
        if layer in layers and isinstance(layer, AtomLayer)
    }
