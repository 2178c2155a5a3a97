"""Times of methods that take turns, and what a step needs."""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from atomtune.devices import own_threads, useful_threads
from atomtune.method.coding import largest
from atomtune.method.dictionary import SparseDictionary
from atomtune.method.sigma import SigmaConfig
from atomtune.planning.storages import Storages
from benchmarks.speed.methods import METHODS
from benchmarks.speed.models import CASES, SIZES, Case, output


def bag_flops(_weight: Any, index: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Of a sum of k rows a token: PyTorch's counter does not know it. `index` and `out_val` are tensors here."""
    return 2 * index.numel() * out_val[0].shape[-1]


def bag_backward_flops(gradient: Any, index: Any, *_: Any, **__: Any) -> int:
    return 2 * index.numel() * gradient.shape[-1]


def bag_codes_flops(gradient: Any, _weight: Any, index: Any, *_: Any, **__: Any) -> int:
    return 2 * index.numel() * gradient.shape[-1]


def attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of attention on a CPU, of which PyTorch's counter knows only that on a card."""
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


aten: Any = torch.ops.aten
for formula in (bag_flops, bag_backward_flops, bag_codes_flops, attention_flops, attention_backward_flops):
    formula._get_raw = True  # pyright: ignore[reportFunctionMemberAccess]
FORMULAS = {
    aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
    aten._embedding_bag: bag_flops,
    aten._embedding_bag_dense_backward: bag_backward_flops,
    aten._embedding_bag_per_sample_weights_backward: bag_codes_flops,
}


class Step:
    """A training step (forward and backward) and a drawing step (forward alone) of one model."""

    def __init__(self, model: nn.Module, inputs: dict[str, Any], dtype: torch.dtype) -> None:
        self.model, self.inputs, self.dtype = model, inputs, dtype
        self.first = next(value for value in inputs.values() if isinstance(value, Tensor))

    def train(self) -> None:
        self.model.train()
        self.first.requires_grad_(True)
        self.output().float().square().mean().backward()
        self.model.zero_grad()
        self.first.grad = None

    @torch.no_grad()
    def draw(self) -> None:
        self.model.eval()
        self.output()

    def output(self) -> Tensor:
        half = self.dtype != torch.float32  # then as in training: what is trained is in float32
        with torch.autocast(self.first.device.type, self.dtype, enabled=half):
            return output(self.model, self.inputs)

    def memory(self) -> int:
        """Bytes that a training step takes at most, what is trained included and the frozen weights not."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        with Storages(self.first.device.type) as counted:
            self.train()
        return counted.peak + sum(p.numel() * p.element_size() for p in trained)

    def flops(self, what: str) -> int:
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            getattr(self, what)()
        return counter.get_total_flops()


def seconds(run: Any, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def steps_of(case: Case, device: torch.device, dtype: torch.dtype, methods: Iterable[str] = METHODS) -> dict[str, Step]:
    """A step of each method that the model can have, each on a model of its own with frozen weights in `dtype`."""
    torch.manual_seed(0)
    inputs = {key: _moved(value, device, dtype) for key, value in case.inputs().items()}
    steps = {}
    for name in methods:
        torch.manual_seed(0)
        with device:
            model = METHODS[name][1](nn.Module.to(case.build(), device, dtype), case)  # diffusers' own `to` warns
        if model is not None:
            steps[name] = Step(model.to(device), inputs, dtype)
    return steps


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() else None)


def measure(case: Case, rounds: int, device: torch.device, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """By method: seconds of each round, FLOPs, memory beside the frozen weights, and the files."""
    steps = steps_of(case, device, dtype)
    found: dict[str, dict[str, Any]] = {name: {"train": [], "draw": []} for name in steps}
    for name, step in steps.items():  # the first calls allocate and choose kernels
        for what in ("train", "draw"):
            getattr(step, what)()
            found[name][f"{what}_flops"] = step.flops(what)
        found[name]["memory"] = step.memory()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, step in steps.items():
                for what in ("train", "draw"):
                    found[name][what].append(seconds(getattr(step, what), device))
    finally:
        gc.enable()
    for name, step in steps.items():
        found[name] |= stored(step.model)
    return found


def stored(model: Any) -> dict[str, Any]:
    """Trained parameters; and of an adapter its bytes on disk, seconds to load it, and to swap it for another."""
    own: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}
    if not hasattr(model, "peft_config"):
        return own
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        own["bytes"] = next(Path(folder).glob("adapter_model.*")).stat().st_size
        start = time.perf_counter()
        model.load_adapter(folder, "second")
        own["load"] = time.perf_counter() - start
        swaps = []
        for _ in range(10):
            for adapter in ("second", "default"):
                start = time.perf_counter()
                model.set_adapter(adapter)
                swaps.append(time.perf_counter() - start)
        own["swap"] = float(np.median(swaps))
    return own


def gemm_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of a large product: what time is held against."""
    size = 2048 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = [seconds(lambda: a @ a, device) for _ in range(5)]
    return 2 * size**3 / min(times)


# -- threads ----------------------------------------------------------------------------------------------------------


def threads(device: torch.device, rounds: int = 15) -> dict[str, Any]:
    """Seconds of a training step on the CPU with one thread and one for each core: of moji, alone and beside a process
    that keeps a core busy, and of smaller and larger models alone."""
    if device.type != "cpu":
        return {}
    found: dict[str, Any] = {"cores": torch.get_num_threads(), "sizes": {}}
    with own_threads():
        for name, case in SIZES.items():
            step = steps_of(case, device, torch.float32, ["linear"])["linear"]
            own = found["sizes"][name] = _in_turns(step, found["cores"], 0, rounds, device)
            own |= {"parameters": sum(parameter.numel() for parameter in step.model.parameters())}
            own |= {"useful": useful_threads(step.model)}
            if name == "moji":
                found["beside"] = _in_turns(step, found["cores"], 1, rounds, device)
    found["waiting"] = {name: {place: _waiting(name, place) for place in ("alone", "beside")} for name in WAITING}
    return found


WAITING = {
    "sleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "look 4,000 times": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "4000"},
    "OpenMP's own": {},
}


def _waiting(name: str, place: str) -> list[float]:
    """Seconds of steps of moji whose threads wait so for one another, alone or beside a busy process."""
    with _busy(int(place == "beside")):
        command = [sys.executable, "-m", "benchmarks.speed.waiting"]
        done = subprocess.run(command, env=os.environ | WAITING[name], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def _busy(others: int) -> Iterator[None]:
    """Inside the block so many processes keep a core busy each."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def _in_turns(step: Step, cores: int, others: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Seconds of a training step with one thread and with one for each core, beside so many busy processes."""
    found: dict[str, Any] = {"one": [], "each": []}
    with _busy(others):
        for _ in range(rounds):
            for label, count in (("one", 1), ("each", cores)):
                torch.set_num_threads(count)
                step.train()
                found[label].append(seconds(step.train, device))
    return found


# -- whole commands ---------------------------------------------------------------------------------------------------


def commands(device: torch.device) -> dict[str, list[dict[str, float]]]:
    """Seconds of `atomtune demo`, and of `customize` and its steps in it: for the first time, and when the base's
    answers to other prompts are known."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2):
            out = Path(folder) / str(number)
            command = [sys.executable, "-m", "atomtune", "demo", "--device", str(device), "--out", str(out)]
            environment = os.environ | {"ATOMTUNE_CACHE": f"{folder}/cache"}
            start = time.perf_counter()
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            whole = time.perf_counter() - start
            numbers = json.loads((out / "summary.json").read_text())
            found.append({"demo": whole, "customize": numbers["seconds"], "steps": numbers["steps"]})
    return {"demo": found}


# -- what was tried ---------------------------------------------------------------------------------------------------

TRICKS: dict[str, tuple[str, str]] = {  # what is tried, and whether the library does so
    "bfloat16": ("the frozen base of moji in bfloat16", "if it is asked for: `--mixed-precision bf16`"),
    "plain attention": (
        "the same, with attention by two plain products",
        "no: bfloat16 is no default on a CPU",
    ),
    "medium": ("moji in float32, with the products in bfloat16 (`set_float32_matmul_precision`)", "no"),
    "compiled": (
        "moji through `torch.compile`, when it is compiled",
        "no: a run saves less than it costs",
    ),
    "topk": ("the 10 largest of 256 codes by `topk` instead of numpy's `partition`, 1,024 tokens", "on a card"),
    "kthvalue": ("the 10th largest alone, by `kthvalue`", "no"),
    "one product": ("W_s and the value projection in one product, 1,024 tokens of 1152 numbers", "no"),
}


def tricks(device: torch.device, rounds: int = 15) -> dict[str, Any]:
    """Seconds of each trick and of what the library does there, in turns."""
    case = CASES["moji"]
    plain, half = (steps_of(case, device, each, ["linear"])["linear"] for each in (torch.float32, torch.bfloat16))
    torch.compiler.config.force_disable_caches = True  # as on a machine that has not compiled it before
    model: Any = torch.compile(steps_of(case, device, torch.float32, ["linear"])["linear"].model)
    fused = Step(model, plain.inputs, torch.float32)
    codes, x = torch.randn(1024, 256, device=device), torch.randn(1024, 1152, device=device)
    value, encoder = (torch.randn(rows, 1152, device=device) for rows in (1152, 256))

    def by_products() -> None:
        with sdpa_kernel([SDPBackend.MATH]):
            half.train()

    def in_bfloat16() -> None:
        torch.set_float32_matmul_precision("medium")
        plain.train()
        torch.set_float32_matmul_precision("highest")

    tried = {
        "bfloat16": (plain.train, half.train),
        "plain attention": (plain.train, by_products),
        "medium": (plain.train, in_bfloat16),
        "compiled": (plain.train, fused.train),
        "topk": (lambda: largest(codes, 10, ordered=False), lambda: codes.abs().topk(10, sorted=False)),
        "kthvalue": (lambda: largest(codes, 10, ordered=False), lambda: codes.abs().kthvalue(247, keepdim=True)),
        "one product": (
            lambda: (F.linear(x, value), F.linear(x, encoder)),
            lambda: F.linear(x, torch.cat([value, encoder])).split([1152, 256], 1),
        ),
    }
    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    start = time.perf_counter()
    fused.train()
    found["compiling"] = time.perf_counter() - start
    for name, runs in tried.items():
        for run in runs:
            run()
        times = [[seconds(run, device) for run in runs] for _ in range(rounds)]
        found[name] = dict(zip(("as it is", "tried"), map(list, zip(*times))))
    return found


# -- growth -----------------------------------------------------------------------------------------------------------

GROWTH: dict[str, tuple[str, tuple[int, ...]]] = {
    "tokens": ("N, tokens", (256, 512, 1024, 2048, 4096)),
    "num_atoms": ("M, atoms (k = 10)", (256, 512, 1024, 2048, 4096)),
    "k": ("k, atoms a token (M = 4096)", (8, 16, 32, 64, 128)),
    "adapters": ("adapters on one layer", (1, 2, 4, 8)),
}


def layer_seconds(tokens: int, num_atoms: int, k: int, adapters: int, device: torch.device) -> list[float]:
    """A training step of linear atoms 1152 wide, without the linear layer."""
    sigma = SigmaConfig(density=k / num_atoms)
    layers = [SparseDictionary(1152, num_atoms, 1152, sigma).to(device) for _ in range(adapters)]
    x = torch.randn(tokens, 1152, device=device, requires_grad=True)

    def step() -> None:
        torch.stack([layer(x) for layer in layers]).sum(0).square().mean().backward()

    step()
    return [seconds(step, device) for _ in range(5)]


def growth(device: torch.device) -> dict[str, Any]:
    """Seconds against each of N, M, k and the number of adapters, and the exponents of power laws fitted to them."""
    found = {}
    for name, (_, sizes) in GROWTH.items():
        base = {"tokens": 1024, "num_atoms": 4096 if name == "k" else 256, "k": 10, "adapters": 1}
        medians = [float(np.median(layer_seconds(**base | {name: size}, device=device))) for size in sizes]
        slope = np.polyfit(np.log(sizes), np.log(medians), 1)[0]
        found[name] = {"sizes": list(sizes), "seconds": medians, "exponent": float(slope)}
    return found


def synthesis(device: torch.device) -> dict[str, Any]:
    """S D for M = 16,384 and k = 32, forward and backward: the products without zeros, and with them."""
    return _products(16_384, 32, device)


def crossover(device: torch.device) -> dict[str, list[Any]]:
    """The same for M of 256 to 16,384, and M/k of 4 to 64: where the library should change from one to the other."""
    sizes = [(num_atoms, num_atoms // ratio) for num_atoms in (256, 2048, 16384) for ratio in (4, 8, 12, 16, 64)]
    return {"products": [_products(*size, device) for size in sizes]}


def _products(num_atoms: int, k: int, device: torch.device, rounds: int = 7, tokens: int = 256) -> dict[str, Any]:
    """Seconds of S D, 1152 wide, forward and backward: the products without zeros, and with them, in turns."""
    from atomtune.method.sparse import combine

    D = torch.randn(num_atoms, 1152, device=device, requires_grad=True)
    index = torch.rand(tokens, num_atoms, device=device).topk(k).indices
    codes = torch.randn(tokens, k, device=device, requires_grad=True)
    whole = torch.zeros(tokens, num_atoms, device=device).scatter(-1, index, codes.detach()).requires_grad_()

    def sparse() -> None:
        combine(codes, index, D).square().mean().backward()

    def dense() -> None:
        (whole @ D).square().mean().backward()

    found: dict[str, Any] = {"sparse": [], "dense": []}
    for _ in range(rounds):
        for name, run in (("sparse", sparse), ("dense", dense)):
            found[name].append(seconds(run, device))
            for tensor in (D, codes, whole):
                tensor.grad = None
    return found | {"tokens": tokens, "num_atoms": num_atoms, "k": k}
