"""How far two adapters overlap, before they are merged: do they add the same directions, at the same tokens?

    ΔO_a, ΔO_b    what each adds to a layer's output at a token, both active, on prompts of a and on prompts of b
    span          U_a: the fewest directions that hold 90 % of Σ_m ‖u_m d_m‖², u_m = mean |s_m| on a's own prompts
    angles        cos θ_i = singular values of U_aᵀ U_b, the principal angles between two spans
    span overlap  Σ cos²θ_i / min(r_a, r_b): 0 if orthogonal, 1 if one contains the other; random: max(r_a, r_b) / C_o
    acting        ‖ΔO‖ is at least half of its root mean square on the adapter's own prompts
    cosine        Σ ΔO_a·ΔO_b / √(Σ‖ΔO_a‖² Σ‖ΔO_b‖²): below 0 they cancel each other, above 0 they add up

With top-k every token uses k atoms of each adapter, so "acting" is about how much is added, not whether.
Under classifier-free guidance the half with the prompt is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from atomtune import sampling
from atomtune.adapters import AtomLayer, adapted_layers
from atomtune.atoms import Layer
from atomtune.bases import denoiser
from atomtune.errors import UserError
from atomtune.recording import LayerTrace
from atomtune.tracing import Trace, trace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

HELD = 0.9  # share of Σ‖u_m d_m‖² that a span holds
ACTING = 0.5  # share of the root mean square on the adapter's own prompts
COSINE = 0.1  # of what the two add: nearer to 0 they neither cancel nor add up
SHARED = 2.0  # times chance: with less span overlap they have no directions in common


@dataclass
class LayerOverlap:
    """One layer that both adapters adapt. Two numbers are (on the first's prompts, on the second's)."""

    address: str
    """In the first adapter."""
    ranks: tuple[int, int]
    """Directions in each span."""
    cosines: Float[Tensor, " angles"]
    """cos θ_i, the largest first."""
    span_overlap: float
    """Mean cos²θ over the smaller span."""
    chance: float
    """`span_overlap` of two random spans of these ranks, on average."""
    both: tuple[float, float]
    """Share of tokens at which both act."""
    independent: tuple[float, float]
    """What that share would be if each acted whatever the other does."""
    cosine: tuple[float, float]
    """Cosine between the two ΔO, over all tokens."""


@dataclass
class Overlap:
    """Two adapters on one model. Two numbers are (on the first's prompts, on the second's), or (first, second)."""

    atoms: tuple[int, int]
    """How many atoms each adapter has."""
    alive: tuple[tuple[int, int], tuple[int, int]]
    """For each adapter, how many of its atoms fire on the first's prompts and on the second's."""
    alive_in_both: tuple[int, int]
    """For each adapter, how many of its atoms fire on both."""
    strength: tuple[float, float]
    """For each adapter, its ΔO on the other's prompts over its ΔO on its own (root mean squares, shared layers)."""
    layers: list[LayerOverlap]
    """The layers that both adapt, in the order of the model."""

    def mean(self, number: Callable[[LayerOverlap], float]) -> float:
        """The mean of a number over the layers that both adapt."""
        return sum(map(number, self.layers)) / len(self.layers)

    @property
    def relation(self) -> str:
        """Whether the two disturb each other, by means over the layers.

        "against": the cosine is below -`COSINE` on the prompts of one, so they cancel each other there. "together": it
        is above `COSINE`, and the span overlap is `SHARED` times that of chance, so both push the same directions.
        "apart": neither.
        """
        if not self.layers:
            return "apart"
        cosines = [self.mean(lambda layer: layer.cosine[0]), self.mean(lambda layer: layer.cosine[1])]
        shared = self.mean(lambda layer: layer.span_overlap) >= SHARED * self.mean(lambda layer: layer.chance)
        if min(cosines) < -COSINE:
            return "against"
        return "together" if shared and max(cosines) > COSINE else "apart"


def verdict(overlap: Overlap) -> str:
    """Whether the two disturb each other, in a sentence."""
    if not overlap.layers:
        return "They adapt different layers, so neither disturbs the other there."
    return {
        "apart": "They hardly disturb each other.",
        "together": "They push the same directions, and merged at full strength each changes the other.",
        "against": "They work against each other: part of what one adds the other takes away.",
    }[overlap.relation]


def overlap(
    pipe: DiffusionPipeline,
    prompts: tuple[Sequence[str], Sequence[str]],
    adapters: tuple[str, str],
    num: int = 1,
    seed: int = 0,
    steps: int | None = None,
) -> Overlap:
    """Draw `num` images of each prompt of each adapter, both active, and measure how they overlap.

    Both must be loaded (`load_adapter(pipe, folder, adapter_name)`). Raises `UserError`.
    """

    def run(own: Sequence[str]) -> None:
        sampling.generate(pipe, list(own), num, seed, steps)

    return measure(denoiser(pipe), (lambda: run(prompts[0]), lambda: run(prompts[1])), adapters)


def measure(model: nn.Module, runs: tuple[Callable[[], Any], Callable[[], Any]], adapters: tuple[str, str]) -> Overlap:
    """The same for any model: `runs` call it on inputs of the first adapter, and of the second. Raises `UserError`."""
    for name in adapters:
        if not adapted_layers(model, name):
            raise UserError(f"{type(model).__name__} carries no atoms under the name {name!r}: load the adapter first.")
    shared = [layer for layer in adapted_layers(model, adapters[0]) if adapters[1] in layer.atoms_dictionaries]
    traces = [[trace(model, name) for name in adapters] for _ in runs]  # [run][adapter]
    with both_at_work(model, adapters):
        products = [_watch(run, both, shared, adapters) for run, both in zip(runs, traces)]  # [run][layer] [3, tokens]
    fired = [[torch.cat([layer.fired > 0 for layer in one.layers]) for one in both] for both in traces]
    power = torch.tensor([[float(sum(each[name].mean() for each in run)) for name in (0, 1)] for run in products])
    return Overlap(
        atoms=(len(fired[0][0]), len(fired[0][1])),
        alive=(_sums(fired[0][0], fired[1][0]), _sums(fired[0][1], fired[1][1])),
        alive_in_both=_sums(fired[0][0] & fired[1][0], fired[0][1] & fired[1][1]),
        strength=(float((power[1, 0] / power[0, 0]).sqrt()), float((power[0, 1] / power[1, 1]).sqrt())),
        layers=[
            _layer(
                layer,
                _layer_trace(traces[0][0], layer, adapters[0]),
                _layer_trace(traces[1][1], layer, adapters[1]),
                on_a,
                on_b,
            )
            for layer, on_a, on_b in zip(shared, *products)
        ],
    )


def principal_cosines(
    a: Float[Tensor, "rows_a width"], b: Float[Tensor, "rows_b width"], held: float = HELD
) -> tuple[Float[Tensor, " angles"], tuple[int, int]]:
    """cos θ between the spans that hold `held` of Σ‖row‖² of two matrices, the largest first; and their ranks."""
    spans = []
    for matrix in (a, b):
        _, values, directions = torch.linalg.svd(matrix.double(), full_matrices=False)
        shares = values.square().cumsum(0) / values.square().sum()
        spans.append(directions[: 1 + int((shares < held - 1e-12).sum())])
    cosines = torch.linalg.svdvals(spans[0] @ spans[1].T).clamp(max=1)
    return cosines, (len(spans[0]), len(spans[1]))


@contextmanager
def both_at_work(model: nn.Module, adapters: tuple[str, str]) -> Iterator[None]:
    """Both adapters act inside the block; afterwards those that did before."""
    layers = [module for module in model.modules() if isinstance(module, AtomLayer)]
    before = [list(layer.active_adapters) for layer in layers]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for layer in layers:
            layer.set_adapter(list(adapters), inference_mode=True)
        yield
    finally:
        for layer, names in zip(layers, before):
            layer.set_adapter(names, inference_mode=True)
        for parameter in trained:
            parameter.requires_grad_()


@dataclass
class _Products:
    """‖ΔO_a‖², ‖ΔO_b‖² and ΔO_a·ΔO_b at every token of one layer, while a model runs with both."""

    trace: Trace
    outputs: list[Tensor] = field(default_factory=list)
    runs: list[Tensor] = field(default_factory=list)

    def __call__(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        """A forward hook of both dictionaries; of the two, the first comes first."""
        output = output.detach().float()
        self.outputs.append(output[self.trace.guided_rows(len(output))])
        if len(self.outputs) == 2:
            a, b = self.outputs
            self.runs.append(torch.stack([(x * y).sum(-1).flatten() for x, y in ((a, a), (b, b), (a, b))]).cpu())
            self.outputs = []


def _watch(
    run: Callable[[], Any], traces: Sequence[Trace], shared: Sequence[AtomLayer], adapters: tuple[str, str]
) -> list[Float[Tensor, "3 tokens"]]:
    watches = [_Products(traces[0]) for _ in shared]
    with ExitStack() as stack:
        for one in traces:
            stack.enter_context(one)
        for layer, watch in zip(shared, watches):
            for name in adapters:
                stack.enter_context(layer.dictionary(name).decoder.register_forward_hook(watch))
        run()
    return [torch.cat(watch.runs, dim=1) for watch in watches]


def _layer(
    layer: AtomLayer,
    a: LayerTrace,
    b: LayerTrace,
    on_a: Float[Tensor, "3 tokens_a"],
    on_b: Float[Tensor, "3 tokens_b"],
) -> LayerOverlap:
    """`a` and `b` are the traces on each one's own prompts."""
    used = [own.usage[:, None] * own.dictionary.atoms() for own in (a, b)]
    cosines, ranks = principal_cosines(used[0], used[1])
    power = (on_a[0].mean(), on_b[1].mean())
    acting = [torch.stack([on[name] >= ACTING**2 * power[name] for name in (0, 1)]) for on in (on_a, on_b)]
    shares = [act.float().mean(1) for act in acting]
    return LayerOverlap(
        address=Layer(a.dictionary).address,
        ranks=ranks,
        cosines=cosines,
        span_overlap=float(cosines.square().mean()),
        chance=max(ranks) / layer.out_features,
        both=(float(acting[0].all(0).float().mean()), float(acting[1].all(0).float().mean())),
        independent=(float(shares[0].prod()), float(shares[1].prod())),
        cosine=(_cosine(on_a), _cosine(on_b)),
    )


def _layer_trace(traced: Trace, layer: AtomLayer, adapter: str) -> LayerTrace:
    return traced[Layer(layer.dictionary(adapter)).address]


def _cosine(products: Float[Tensor, "3 tokens"]) -> float:
    a, b, ab = products.double().sum(1)
    return float(ab / (a * b).sqrt())


def _sums(one: Tensor, two: Tensor) -> tuple[int, int]:
    return int(one.sum()), int(two.sum())
