"""The memory of each phase of a run on a card, from one real pass of the real classes on the meta device.

    peak = weights + adapter + optimizer + activations

Activations are what else is alive at the highest moment: saved tensors, gradients and what an operation needs for its
result. A quantized base changes the weights alone: its layers are computed from a copy of one weight in full width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from atomtune.bases.quantizing import quantized_layers
from atomtune.planning.cuda import CudaFunctions
from atomtune.planning.inputs import Step, step_inputs
from atomtune.planning.parts import Part
from atomtune.planning.storages import Storages
from atomtune.sizes import Size
from atomtune.training.config import CustomizeConfig
from atomtune.training.methods import adapt
from atomtune.training.optimization import make_optimizer

BYTES_PER_WEIGHT = {"int8": 1.0, "fp8": 1.0, "nf4": 0.5 + 4 / 64}
"""Of a linear layer's quantized weight. nf4 has a float32 scale for every 64 weights, the others one for a row."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the card at the highest moment of a phase."""

    weights: int
    adapter: int = 0
    optimizer: int = 0
    activations: int = 0

    @property
    def peak(self) -> int:
        """All of them together."""
        return self.weights + self.adapter + self.optimizer + self.activations


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors. Those that share a storage count once."""
    return sum({each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors}.values())


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def activations(work: Callable[[], Any], autocast: torch.dtype | None = None, device: str = "meta") -> int:
    """Bytes that `work` needs on the device beside what was there before, without gradients."""
    with torch.no_grad(), Storages(device) as seen, CudaFunctions(autocast):
        work()
    return seen.passing


def encode_text(part: Part, tokens: int, dtype: torch.dtype) -> dict[str | None, Memory]:
    """One text encoder, which reads one text of `tokens` tokens, by how it is quantized (None: not at all)."""
    model = part.build(dtype)
    longest = part.config.get("max_position_embeddings") or tokens
    ids = torch.zeros(1, min(tokens, longest), dtype=torch.int64)
    # T5's pipelines take the last layer, the others one from within.
    layers = {} if part.name.endswith("EncoderModel") else {"output_hidden_states": True}
    memory = Memory(size(tensors_of(model)), activations=activations(lambda: model(input_ids=ids, **layers)))
    return {None: memory} | {kind: quantized(memory, model, kind) for kind in BYTES_PER_WEIGHT}


def encode_image(part: Part, resolution: Size) -> tuple[Memory, tuple[int, int, int]]:
    """The autoencoder in float32, which encodes one image; and the shape of the latents [channels, height, width]."""
    model, shapes = part.build(torch.float32), []

    def encode() -> None:
        image = torch.zeros(1, 3, *resolution.shape, device="meta")
        encoded = model.encode(image[:, :, None] if _has_frames(part) else image)
        gaussian = getattr(encoded, "latent_dist", None)
        latents = gaussian.mean if gaussian is not None else encoded[0]
        shapes.append((latents.shape[1], *latents.shape[-2:]))

    memory = Memory(size(tensors_of(model)), activations=activations(encode))
    return memory, shapes[0]


def decode_image(part: Part, latents: tuple[int, int, int], dtype: torch.dtype, autocast: torch.dtype | None) -> Memory:
    """The autoencoder, which decodes one image from latents of this shape."""
    model = part.build(dtype)

    def decode() -> None:
        given = torch.zeros(1, *latents, dtype=dtype, device="meta")
        model.decode(given[:, :, None] if _has_frames(part) else given)

    return Memory(size(tensors_of(model)), activations=activations(decode, autocast))


def _has_frames(part: Part) -> bool:
    """Whether it is the autoencoder of a video model, whose images have a dimension of time."""
    return part.name == "AutoencoderKLQwenImage"


@dataclass(frozen=True)
class Adapted:
    """A denoiser with its adapter, on the meta device, and the optimizer after a step."""

    model: Any
    part: Part
    trained: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    autocast: torch.dtype | None

    @classmethod
    def of(cls, part: Part, config: CustomizeConfig, dtype: torch.dtype) -> Adapted:
        """The denoiser as `customize` sets it up for `config`, with the base in `dtype`. Raises `UserError`."""
        autocast = None if dtype == torch.float32 else dtype
        base = part.build(dtype)
        if config.gradient_checkpointing:
            again = partial(_contexts, autocast)
            base.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, context_fn=again))
        model = adapt(base, config)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(config, trained)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # its state is there from now on
        optimizer.zero_grad()
        return cls(model, part, trained, optimizer, autocast)

    def frozen(self) -> Memory:
        """What stays on the card: the weights, the adapter and the optimizer's state."""
        of_adapter = {id(parameter) for parameter in self.trained}
        weights = [each for each in tensors_of(self.model) if id(each) not in of_adapter]
        return Memory(size(weights), size(self.trained), size(self._state()))

    def _state(self) -> list[Tensor]:
        values = (value for state in self.optimizer.state.values() for value in state.values())
        return [value for value in values if isinstance(value, Tensor) and value.device == self.trained[0].device]

    def train(self, step: Step) -> Memory:
        """One optimizer step: forward, backward, clipping of gradients, and the update."""
        self.model.train()
        with Storages(step.device) as seen:
            with CudaFunctions(self.autocast):
                output = self.run(step)
            loss = output.float().square().mean()
            loss.backward()
            del output, loss
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return dataclasses.replace(self.frozen(), activations=seen.passing)

    def draw(self, step: Step, autocast: torch.dtype | None) -> int:
        """Bytes of activations of one denoising step."""
        self.model.eval()
        return activations(lambda: self.run(step), autocast, step.device)

    def run(self, step: Step) -> Tensor:
        """The prediction of the denoiser for one step."""
        output = self.model(**step_inputs(self.part.name, self.part.config, step), return_dict=False)[0]
        return torch.stack(output) if isinstance(output, list) else output


def _contexts(autocast: torch.dtype | None) -> tuple[Any, Any]:
    """Of a checkpointed block: the forward pass has its own, and the second one, in the backward pass, this."""
    return nullcontext(), CudaFunctions(autocast)


def quantized(memory: Memory, model: nn.Module, kind: str) -> Memory:
    """The memory of a phase with the base's linear layers quantized: their weights in fewer bytes, and beside the
    activations a copy of the largest one in full width, which its layer is computed from."""
    weights = (layer.weight for layer in quantized_layers(model, kind))
    frozen = [weight for weight in weights if not weight.requires_grad]
    saved = sum(weight.nbytes - round(weight.numel() * BYTES_PER_WEIGHT[kind]) for weight in frozen)
    copy = max((weight.nbytes for weight in frozen), default=0)
    return dataclasses.replace(memory, weights=memory.weights - saved, activations=memory.activations + copy)
