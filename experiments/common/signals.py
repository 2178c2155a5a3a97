"""Masked 1-D signals and one attention layer that completes them: the ground of figures 2, 8 and 9.

    basis     φ_f(t) = cos(2π f t / 64), f = 0 … 32, scaled to mean square 1
    signal    x = Σ_f a_f φ_f / √F,  a_f ~ N(0, 1),  over the F frequencies in use
    tokens    X_c = p_c x_obs (+ noise): channel c sees the signal with its own gain at 16 of 64 times, zero elsewhere
    target    x, the whole signal, from every token;   error: NMSE = Σ error² / Σ signal² on fresh signals

Problems this small cost more in Python than in arithmetic, so all seeds are one tensor program: every tensor has a
leading dimension [seeds], and the layer is called through `torch.vmap`.
"""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from atomtune.method.attention import DictionaryAttention
from atomtune.method.coding import top_k
from atomtune.method.dictionary import SparseDictionary
from atomtune.method.sigma import Sigma, SigmaConfig
from experiments.common.row_adam import RowAdam

LENGTH, OBSERVED = 64, 16
LOW, HIGH = tuple(range(25)), tuple(range(25, 33))


def fourier_bases() -> Float[Tensor, "frequencies time"]:
    """The 33 cosines of 64 points, orthogonal, mean square 1."""
    f, t = torch.arange(LENGTH // 2 + 1)[:, None], torch.arange(LENGTH)
    bases = torch.cos(2 * torch.pi * f * t / LENGTH)
    return bases / bases.square().mean(1, keepdim=True).sqrt()


@dataclass(frozen=True)
class Layer:
    """One attention layer and how it is trained."""

    num_atoms: int = 100
    activation: str = "topk"  # or soft, relu, batchk
    density: float = 0.09
    threshold: float = 0.1
    mix_first: bool = True
    layout: str = "channels"  # tokens are channels of 64 times; flagged: and the mask, 128 wide; time: tokens are times
    start: str = "zero"  # or random: D at step 0
    optimizer: str = "row"  # or adam: for D
    attention: str = "uniform"  # or trained
    unit_encoder: bool = False  # keep the columns of W_s at norm 1, which a fixed threshold needs
    noise: float = 0.0  # of each channel, relative to the signal
    channels: int = 4
    batch: int = 32
    steps: int = 600
    lr: float = 1e-2


class Signals:
    """A stream of signals for every seed: its own frequencies, mask, channel gains and random draws.

    Args:
        seeds: the seeds; the leading dimension of everything.
        pool: the frequencies to choose from.
        count: how many are chosen, once for each seed.
        layer: the layout and noise of the tokens.
        active: how many of the chosen ones each signal is made of, drawn anew every time; 0: all of them.
    """

    def __init__(
        self, seeds: tuple[int, ...], pool: tuple[int, ...], count: int, layer: Layer, active: int = 0
    ) -> None:
        self.layer, self.active = layer, active
        chosen, masks, gains = [], [], []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            masks.append(torch.zeros(LENGTH).index_fill(0, torch.randperm(LENGTH, generator=generator)[:OBSERVED], 1.0))
            gain = torch.randn(layer.channels, generator=generator)
            gains.append(1 + gain - gain.mean())  # uniform attention then returns x_obs itself
            chosen.append(torch.tensor(pool)[torch.randperm(len(pool), generator=generator)[:count]].sort().values)
        self.frequencies = torch.stack(chosen)
        self.bases = fourier_bases()[self.frequencies]  # [seeds, count, time]
        self.observed, self.gains = torch.stack(masks), torch.stack(gains)
        generator = torch.Generator().manual_seed(1)
        self.positions, self.directions = torch.randn(LENGTH + 2, 128, generator=generator).split([LENGTH, 2])
        self.generators = [torch.Generator().manual_seed(1000 + seed) for seed in seeds]

    def normal(self, *shape: int) -> Float[Tensor, "seeds ..."]:
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])

    def draw(self, size: int) -> tuple[Float[Tensor, "seeds size tokens width"], Float[Tensor, "seeds size time"]]:
        """Tokens X and the signals they should become."""
        count = self.bases.shape[1]
        amplitudes = self.normal(size, count) / (self.active or count) ** 0.5
        if self.active:
            amplitudes = amplitudes * torch.zeros_like(amplitudes).scatter(
                -1, self.normal(size, count).topk(self.active).indices, 1.0
            )
        x = amplitudes @ self.bases
        seen = x * self.observed[:, None]
        if self.layer.layout == "time":  # a token is one time: its value along one direction, and its position
            flag = self.observed[:, None].expand_as(seen)
            return torch.stack([seen, flag], -1) @ self.directions + self.positions, x
        tokens = self.gains[:, None, :, None] * seen[:, :, None]
        if self.layer.noise:
            noise = self.normal(size, self.layer.channels, LENGTH) * self.observed[:, None, None]
            tokens = tokens + self.layer.noise * noise
        if self.layer.layout == "flagged":
            tokens = torch.cat([tokens, self.observed[:, None, None].expand_as(tokens)], -1)
        return tokens, x


class LargestOfBatch(Sigma):
    """k atoms a token on average: the k·N largest coefficients of the whole batch are kept."""

    def forward(self, coefficients: Float[Tensor, "*batch atoms"]) -> Float[Tensor, "*batch atoms"]:
        flat = coefficients.flatten()
        return top_k(flat, self.k_now[0] * (flat.numel() // coefficients.shape[-1])).view_as(coefficients)


class Coded(nn.Module):
    """The layer, telling its codes too."""

    def __init__(self, layer: DictionaryAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.layer.codes(tokens)
        return self.layer.dictionary.synthesize(codes), codes


def build(seed: int, own: Layer) -> Coded:
    """The layer with the weights of one seed."""
    width, out, heads = {"channels": (64, 64, 1), "flagged": (128, 64, 1), "time": (128, 128, 4)}[own.layout]
    activation = "topk" if own.activation == "batchk" else own.activation
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = DictionaryAttention(width, own.num_atoms, out, heads, mix_first=own.mix_first)
        sigma = SigmaConfig(activation, own.density, own.threshold)
        layer.dictionary = SparseDictionary(width, own.num_atoms, out, sigma, heads)
        if own.activation == "batchk":
            layer.dictionary.sigma = LargestOfBatch(own.num_atoms, sigma)
        if own.attention == "uniform":
            nn.init.zeros_(layer.to_q.weight)
        if own.start == "random":
            columns = torch.empty(out, own.num_atoms)  # the numbers that the stored cells began with
            layer.dictionary.decoder.weight.data.copy_(nn.init.normal_(columns, std=own.num_atoms**-0.5).T)
    return Coded(layer)


ENCODER, DICTIONARY = "layer.dictionary.encoder.weight", "layer.dictionary.decoder.weight"
COEFFICIENTS = ("layer.to_q.weight", "layer.to_k.weight", ENCODER)


class Replicas:
    """The same layer for every seed. `weights` are stacked: [seeds, ...]."""

    def __init__(self, seeds: tuple[int, ...], own: Layer) -> None:
        built = [build(seed, own) for seed in seeds]
        weights, self.buffers = stack_module_state(built)  # pyright: ignore[reportArgumentType]
        self.weights: dict[str, Tensor] = {name: weight.detach() for name, weight in weights.items()}
        self.own, self.skeleton = own, built[0]

    def copy(self) -> "Replicas":
        twin = copy.copy(self)
        twin.weights = {name: weight.clone() for name, weight in self.weights.items()}
        return twin

    def __call__(self, tokens: Tensor) -> tuple[Tensor, Float[Tensor, "seeds size tokens atoms"]]:
        """Output and codes."""
        with sdpa_kernel(SDPBackend.MATH):  # the kernel that vmap knows
            return vmap(lambda weights, buffers, x: functional_call(self.skeleton, (weights, buffers), (x,)))(
                self.weights, self.buffers, tokens
            )

    def errors(self, output: Tensor, x: Float[Tensor, "seeds size time"]) -> Tensor:
        """Output minus what it should be."""
        if self.own.layout == "time":
            return output.mean(-1) - x  # a token's output is read along one fixed direction
        return output - x[:, :, None]

    def train(self, signals: Signals, *, coefficients: bool, atoms: bool) -> "Replicas":
        """Train W_s (and the attention map, unless it is uniform), D, or both; the learning rate falls to zero."""
        own = self.own
        names = [name for name in COEFFICIENTS if name == ENCODER or own.attention == "trained"] if coefficients else []
        trained = {name: nn.Parameter(self.weights[name]) for name in [*names, *([DICTIONARY] if atoms else [])]}
        self.weights |= trained
        rest = [weight for name, weight in trained.items() if own.optimizer == "adam" or name != DICTIONARY]
        optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(rest, lr=own.lr)] if rest else []
        if atoms and own.optimizer == "row":
            optimizers.append(RowAdam([trained[DICTIONARY]], lr=own.lr))
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, own.steps) for each in optimizers]
        for _ in range(own.steps):
            tokens, x = signals.draw(own.batch)
            output, _ = self(tokens)
            loss = self.errors(output, x).square().flatten(1).mean(1).sum()  # seeds do not meet
            loss.backward()
            for each in (*optimizers, *schedules):
                each.step()
            for weight in trained.values():
                weight.grad = None
            if own.unit_encoder and ENCODER in trained:
                with torch.no_grad():
                    trained[ENCODER].div_(trained[ENCODER].norm(dim=-1, keepdim=True))
        self.weights = {name: weight.detach() for name, weight in self.weights.items()}
        return self

    @torch.no_grad()
    def measure(self, signals: Signals, size: int = 256) -> dict[str, Float[Tensor, " seeds"]]:
        """NMSE, the atoms one token uses after the map, and the atoms alive over all tokens."""
        tokens, x = signals.draw(size)
        output, codes = self(tokens)
        tokens_a_signal = x.new_ones(()) if self.own.layout == "time" else self.own.channels
        return {
            "nmse": self.errors(output, x).square().flatten(1).sum(1) / (tokens_a_signal * x.square().sum((1, 2))),
            "active": (codes != 0).sum(-1).float().mean((1, 2)),
            "alive": (codes != 0).flatten(1, 2).any(1).sum(-1).float(),
        }

    @property
    def atoms(self) -> Float[Tensor, "seeds atoms out"]:
        return self.weights[DICTIONARY]
