"""Convert a LoRA into atoms: dictionary learning on what the LoRA adds while prompts are drawn.

    LoRA     ΔO* = α/r · (X Aᵀ) Bᵀ       X [N, C_i]: the input tokens of the layer
    atoms    ΔO = σ(X W_s) D              min over W_s and D of ‖ΔO − ΔO*‖² / ‖ΔO*‖², layer by layer

Atom m starts at the direction of what the LoRA adds to some token, d_m = ΔO*_i / ‖ΔO*_i‖, and its column of W_s at the
one for which the coefficient is the projection on it, x · w_m = ΔO*(x) · d_m. A token then chooses, by σ, the atoms
that are most like what the LoRA adds to it; from there W_s and D are trained. With density 1 every token uses all atoms
and nothing needs to be learned: the LoRA's own components, see `conversion`, give exactly what the LoRA adds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
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
from atomtune.adapters.model import refuse_taken_name
from atomtune.errors import UserError, check_seed
from atomtune.files import expanded
from atomtune.lora import loading
from atomtune.lora.conversion import lora_to_atoms, refuse_other_than_lora
from atomtune.method.dictionary import SparseDictionary
from atomtune.sizes import GivenSize
from atomtune.storage import folders
from atomtune.tracing import bare_model

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from peft import PeftModel

LEARNING_RATE, BATCH = 3e-3, 1024


@dataclass(frozen=True)
class Explained:
    """How much of what the LoRA adds in one layer its atoms add, on tokens that they were not fitted to."""

    name: str
    """Name of the layer in the model."""
    share: float
    """1 − ‖ΔO − ΔO*‖² / ‖ΔO*‖²."""
    weight: float
    """Mean of ‖ΔO*‖² over tokens: how much the LoRA adds in this layer."""


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
    resolution: GivenSize | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Explained]:
    """Replace the LoRA on `model`, the denoiser of `pipe`, by linear atoms; return how much of the LoRA they explain.

    `num` images of each prompt are drawn with the LoRA. `tokens` input tokens of each layer are kept, a fifth of them
    only for measuring. `on_progress(done, total)` is called after each layer. Raises `UserError` unless the adapter is
    a plain LoRA.
    """
    if not prompts:
        raise UserError("there is nothing to distill on: give prompts that the LoRA was made for.")
    check_seed(seed, num)

    def draw() -> None:
        sampling.generate(pipe, list(prompts), num, seed, sampling_steps, resolution=resolution)

    options: Any = {"num_atoms": num_atoms, "density": density, "steps": steps, "tokens": tokens, "seed": seed}
    distilled, explained = distill_model(model, draw, **options, on_progress=on_progress)
    bases.set_denoiser(pipe, distilled)
    return explained


def distill_model(
    model: PeftModel,
    run: Callable[[], object],
    *,
    num_atoms: int = 128,
    density: float = 0.05,
    steps: int = 500,
    tokens: int = 8192,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[PeftModel, list[Explained]]:
    """As `distill`, for a model of any kind: `run()` runs it on the examples to distill on, such as some texts.

    Returns the model with the atoms, and how much of the LoRA they explain. Raises `UserError` unless the adapter is a
    plain LoRA, or if a layer of it saw fewer than 5 tokens.
    """
    from peft import get_peft_model

    check_seed(seed)
    refuse_other_than_lora(model)
    generator = torch.Generator().manual_seed(seed)
    with _recorded(model, tokens, generator) as inputs, torch.no_grad():
        run()
    if few := [name for name, seen in inputs.items() if len(seen.keys) < 5]:
        raise UserError(
            f"{few[0]} saw {len(inputs[few[0]].keys)} tokens, too few to distill on: run the model on more examples."
        )
    distilled = lora_to_atoms(model)  # without the LoRA, but with the same outputs
    factors = {
        name: (dictionary.encoder.weight.detach(), dictionary.decoder.weight.detach())
        for name, dictionary in _dictionaries(distilled).items()
    }
    if density < 1:
        target: Any = list(factors)
        config = AtomConfig(target_modules=target, num_atoms=num_atoms, density=density)
        distilled = get_peft_model(distilled.unload(), config)  # pyright: ignore
    explained, dictionaries = [], _dictionaries(distilled)
    for done, (name, dictionary) in enumerate(dictionaries.items(), 1):
        x = inputs[name].tokens
        W, D = (factor.to(x) for factor in factors[name])
        output, test = (x @ W.T) @ D, len(x) // 5
        if density < 1:
            fit(dictionary, x[test:], output[test:], W.T @ D, steps, generator)
        with torch.no_grad():
            expected = output[:test]
            error = dictionary(x[:test]) - expected
            dictionary.usage.copy_(dictionary.codes(x[:test]).abs().mean(0))
        share = 1 - error.square().sum() / expected.square().sum().clamp_min(1e-30)
        explained.append(Explained(name, float(share), float(expected.square().sum(1).mean())))
        on_progress(done, len(dictionaries))
    return distilled.eval(), explained


def fit(
    dictionary: SparseDictionary,
    x: Float[Tensor, "tokens width"],
    output: Float[Tensor, "tokens out"],
    product: Float[Tensor, "width out"],
    steps: int,
    generator: torch.Generator,
) -> None:
    """Learn W_s and D so that σ(x W_s) D is near `output` = x · `product`."""
    size, lengths = output.square().mean().sqrt().clamp_min(1e-12), output.norm(dim=1).cpu().clamp_min(1e-12)
    few = len(x) < dictionary.num_atoms
    chosen = torch.multinomial(lengths, dictionary.num_atoms, few, generator=generator).to(x.device)
    directions = torch.nn.functional.normalize(output[chosen], dim=1)
    with torch.no_grad():
        dictionary.encoder.weight.copy_(directions @ product.T / size)
        dictionary.decoder.weight.copy_(directions)
        first = dictionary(x)  # similar atoms add up, so all start at the one length that fits best
        dictionary.decoder.weight *= (first * output).sum() / size / first.square().sum().clamp_min(1e-12)
    parameters = [dictionary.encoder.weight, dictionary.decoder.weight]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (min(BATCH, len(x)),), generator=generator).to(x.device)
        with torch.enable_grad():
            loss = (dictionary(x[rows]) - output[rows] / size).square().mean()
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
    """The file of weights, if `path` is a LoRA as diffusers writes it; None for a PEFT folder."""
    file = path / "pytorch_lora_weights.safetensors" if path.is_dir() else path
    return None if path.is_dir() and not file.is_file() else file


def load_lora(pipe: DiffusionPipeline, path: str | Path, adapter_name: str = "default") -> PeftModel:
    """Attach a LoRA to the pipeline's denoiser: a PEFT folder, a run, or a `.safetensors` file as diffusers or kohya's
    scripts write it. Weights for text encoders are left out, with a warning in the log.

    Beside an adapter that is there already, such as atoms, it is loaded and not yet active, as by `load_adapter`.

    Raises `UserError`, and leaves the denoiser as it was, if there is no LoRA that can be read or fits this base.
    """
    from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict

    path = expanded(path)
    if (file := diffusers_file(path)) is None:
        return folders.load_adapter(pipe, path, adapter_name)
    before = bases.denoiser(pipe)
    refuse_taken_name(before, adapter_name, "LORA")
    state, options = loading.fitted(pipe, loading.read(file), file)
    with warnings.catch_warnings():  # PEFT's, of a second adapter on the model
        warnings.filterwarnings(
            "ignore", "(Already found a `peft_config`|You are trying to modify a model)", UserWarning
        )
        model = get_peft_model(bare_model(before), LoraConfig(**options), adapter_name)
    set_peft_model_state_dict(model, {f"base_model.model.{key}": value for key, value in state.items()}, adapter_name)
    if isinstance(before, PeftModel):
        model = folders.beside(before, model, before.active_adapters)
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
        x = x.detach().flatten(0, -2)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        new = torch.rand(len(x), generator=self.generator)
        rows = new.topk(min(self.size, len(new)), largest=False).indices  # so that no more than these are copied
        keys = torch.cat([self.keys, new[rows]])
        x = x[rows.to(x.device)]
        x = torch.cat([self.tokens, x]) if len(self.keys) else x
        kept = keys.topk(min(self.size, len(keys)), largest=False).indices
        self.keys, self.tokens = keys[kept], x[kept.to(x.device)]


@contextmanager
def _recorded(model: PeftModel, tokens: int, generator: torch.Generator) -> Iterator[dict[str, Reservoir]]:
    """Keep `tokens` input tokens of each layer of the LoRA, of all that the layer gets inside the block."""
    from peft.tuners.lora import LoraLayer

    inputs: dict[str, Reservoir] = {}
    hooks = []
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer) and isinstance(layer, nn.Module):
            kept = inputs[name] = Reservoir(tokens, generator)
            hooks.append(layer.register_forward_pre_hook(partial(lambda kept, _layer, args: kept.add(args[0]), kept)))
    try:
        yield inputs
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
