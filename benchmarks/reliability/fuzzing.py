"""Files of strangers, spoiled in many ways: each is read, or refused with one sentence.

An input is a file that is right, with a few of its parts replaced: values of a configuration, shapes, types and
numbers of weights, lines, single bytes. Of each, `UserError` is the only exception that may come out, within `SECONDS`,
and while at most `MEMORY` more bytes may be asked for. hypothesis makes the inputs, always the same ones for a seed.
"""

from __future__ import annotations

import copy
import io
import json
import math
import resource
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftType
from PIL import Image
from safetensors.torch import load, save

from atomtune import board
from atomtune.bases import denoiser, set_denoiser
from atomtune.errors import UserError
from atomtune.lora.distillation import load_lora
from atomtune.storage.folders import load_adapter, save_adapter
from atomtune.storage.metadata import CONFIG_FILE, WEIGHTS_FILE
from atomtune.storage.reading import adapter_info
from atomtune.sweeping import read_sweep
from atomtune.training.captions import read_captions
from atomtune.training.data import find_examples
from atomtune.training.recipes import configure
from tests.tiny_pixart import adapted, tiny_pixart

SECONDS, MEMORY = 5.0, 2**30

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.sampled_from([10**12, -(10**12), 2**31, 2**63, 10**400])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["a" * 10_000, "(a+)+$", "(.*)*x", "attn1", "to_q", "../..", "/etc/passwd", "topk", "é\x00"])
)
KEYS = st.text(max_size=4) | st.just("attn1")
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "nonsense"]
TYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


@st.composite
def damaged(draw: st.DrawFn, right: bytes) -> bytes:
    """The bytes with a few of them replaced, removed, doubled, or cut off."""
    raw = bytearray(right)
    for _ in range(draw(st.integers(1, 4))):
        place, length = draw(st.integers(0, len(raw))), draw(st.integers(0, 16))
        kind = draw(st.sampled_from(["replace", "remove", "double", "cut"]))
        if kind == "replace":
            raw[place : place + length] = draw(st.binary(max_size=16))
        elif kind == "remove":
            del raw[place : place + length]
        elif kind == "double":
            raw[place:place] = raw[place : place + length]
        else:
            del raw[place:]
    return bytes(raw)


@st.composite
def other_values(draw: st.DrawFn, right: dict[str, Any], more: list[str]) -> dict[str, Any]:
    """The mapping with a few values replaced, removed, or added."""
    found = copy.deepcopy(right)
    for name in draw(st.lists(st.sampled_from([*right, *more]) | st.text(max_size=6), min_size=1, max_size=3)):
        if draw(st.integers(0, 5)) == 0:
            found.pop(name, None)
        else:
            found[name] = draw(JSON)
    return found


@st.composite
def other_weights(draw: st.DrawFn, right: bytes) -> bytes:
    """A file of weights with another header, or with other numbers in tensors of other types and shapes."""
    length = struct.unpack("<Q", right[:8])[0]
    header, data = json.loads(right[8 : 8 + length]), bytearray(right[8 + length :])
    names = [name for name in header if name != "__metadata__"]
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)):
        entry = header[name]
        kind = draw(st.sampled_from(["shape", "dtype", "offsets", "remove", "rename", "numbers", "numbers", "entry"]))
        start, end = entry["data_offsets"]
        if kind == "shape":
            header[name] = entry | {"shape": draw(st.lists(SCALARS | st.integers(0, 10**13), max_size=4))}
        elif kind == "dtype":
            header[name] = entry | {"dtype": draw(st.sampled_from(DTYPES))}
        elif kind == "offsets":
            header[name] = entry | {"data_offsets": draw(st.lists(st.integers(-1, 10**13), max_size=3))}
        elif kind == "remove":
            del header[name]
        elif kind == "rename":
            header[draw(st.text(max_size=8)) + name] = header.pop(name)
        elif kind == "entry":
            header[name] = draw(JSON)
        else:  # NaN, infinity, huge and negative numbers
            number = draw(st.sampled_from([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff" * 4, b"\x00\x00\x00\x7f"]))
            data[start:end] = (number * ((end - start) // 4 + 1))[: end - start]
    if draw(st.integers(0, 6)) == 0:
        header["__metadata__"] = draw(JSON)
    text = json.dumps(header, allow_nan=True)
    if draw(st.integers(0, 9)) == 0:  # a key twice
        text = text[:-1] + f', "{names[0]}": ' + json.dumps(header.get(names[0], 0)) + "}"
    raw = text.encode("utf-8", "surrogatepass")
    size = draw(st.sampled_from([len(raw)] * 8 + [10**12, 2**63, 0, 7]))
    return struct.pack("<Q", size) + raw + bytes(data)


@st.composite
def other_tensors(draw: st.DrawFn, right: bytes) -> bytes:
    """A file of weights that is whole, with tensors of other names, shapes, types and numbers."""
    tensors = load(right)
    for name in draw(st.lists(st.sampled_from([*tensors]), min_size=1, max_size=3, unique=True)):
        tensor = tensors.pop(name)
        kind = draw(st.sampled_from(["remove", "name", "shape", "type", "numbers", "numbers"]))
        if kind == "name":
            tensors[draw(st.text(max_size=8)) + name] = tensor
        elif kind == "shape":
            tensors[name] = torch.ones(draw(st.lists(st.integers(0, 40), max_size=4)))
        elif kind == "type":
            tensors[name] = tensor.to(draw(st.sampled_from(TYPES)))
        elif kind == "numbers":
            extreme = st.sampled_from([math.nan, -math.nan, math.inf, 2.0**127])
            number = draw(extreme | st.floats(-9, 9, width=32))
            tensors[name] = torch.full(tensor.shape, number).to(tensor.dtype)
    return save(tensors)


class Inputs:
    """Right files in a folder, and for each kind of input: a strategy of spoiled ones, and what reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        torch.manual_seed(0)
        self.pipe = tiny_pixart()
        self.bare = copy.deepcopy(denoiser(self.pipe))
        self.adapters = []
        for name, config in (("atoms", None), ("lora", LoraConfig(r=2, target_modules=["to_q"]))):
            source = folder.parent / "base"
            saved = save_adapter(adapted(str(source), config), folder / name, base="tiny")
            self.adapters.append((json.loads((saved / CONFIG_FILE).read_text()), (saved / WEIGHTS_FILE).read_bytes()))
        self.board = board(adapted(str(folder.parent / "base")))
        png = io.BytesIO()
        Image.new("RGB", (24, 20), "red").save(png, "PNG")
        self.images = {".png": png.getvalue()}
        for ending in (".jpg", ".gif", ".webp", ".tif", ".bmp"):
            made = io.BytesIO()
            Image.new("RGB", (24, 20), "red").save(made, Image.registered_extensions()[ending])
            self.images[ending] = made.getvalue()

    def kinds(self) -> dict[str, tuple[st.SearchStrategy, Callable[[Any], None]]]:
        """By name."""
        folders = []
        for config, weights in self.adapters:
            text = json.dumps(config).encode()
            more = ["rank_pattern", "megatron_core", "megatron_config", "k", "modules_to_save", "num_atoms", "r"]
            types = st.sampled_from([kind.value for kind in PeftType])
            configs = other_values(config, more).map(_dumped) | types.map(
                lambda kind, config=config: _dumped(config | {"peft_type": kind})
            )
            folders.append(st.tuples(configs | damaged(text), st.just(weights)))
            folders.append(st.tuples(st.just(text), other_tensors(weights) | other_weights(weights) | damaged(weights)))
        lora = _as_diffusers(self.adapters[1][1])
        preset = {"gain": {"L0": 0.5}, "density": {"L1": 0.5}, "dropped": ["L0[3]"], "schedule": {"0": 1.0}}
        recipe = {"base": "tiny", "images": "photos", "class_name": "dog", "out": "runs/a", "num_atoms": 16, "steps": 4}
        fields = ["density", "sample_prompts", "seed", "floor", "preserve", "threshold", "activation", "init_adapter"]
        sweep = {
            "folders": {"photos/pot": "teapot", "photos/dog": "dog"},
            "methods": ["atoms", "lora"],
            "seeds": [0, 1],
            "options": {"slow": {"learning_rate": 0.001}, "fast": {"learning_rate": 0.01}},
            "out": "runs/a",
            "steps": 4,
        }
        rows = json.dumps({"file_name": "0.png", "text": "a dog"}).encode() + b"\n"
        captions = damaged(b"a sks dog\n") | st.binary(max_size=40) | st.text(max_size=20).map(_utf8)
        return {
            "adapter folders": (st.one_of(folders), self.open_adapter),
            "LoRA files": (other_tensors(lora) | other_weights(lora) | damaged(lora), self.open_lora),
            "presets": (
                other_values(preset, ["only", "floor"]).map(_dumped) | damaged(json.dumps(preset).encode()),
                self.apply_preset,
            ),
            "captions": (
                st.tuples(st.sampled_from(["0.txt", "0.png.caption", "metadata.jsonl", "metadata.csv"]), captions
                | damaged(rows) | other_values({"file_name": "0.png", "text": "a dog"}, []).map(_dumped)
                | damaged(b"file_name,text\n0.png,a dog\n")),
                self.read_captions,
            ),
            "YAML": (
                other_values(recipe, fields).map(_yaml) | damaged(_yaml(recipe)) | st.sampled_from(BOMBS),
                self.read_yaml,
            ),
            "sweeps": (
                other_values(sweep, fields).map(_yaml) | damaged(_yaml(sweep)) | st.sampled_from(BOMBS),
                self.read_sweep,
            ),
            "images": (
                st.sampled_from([*self.images.items()]).flatmap(
                    lambda item: st.tuples(st.just(item[0]), damaged(item[1]))
                ),
                self.read_image,
            ),
        }  # fmt: skip

    def open_adapter(self, files: tuple[bytes, bytes]) -> None:
        folder = self.folder / "adapter"
        folder.mkdir(exist_ok=True)
        (folder / CONFIG_FILE).write_bytes(files[0])
        (folder / WEIGHTS_FILE).write_bytes(files[1])
        adapter_info(folder).prompts()
        set_denoiser(self.pipe, copy.deepcopy(self.bare))
        self.answer(load_adapter(self.pipe, folder))

    def open_lora(self, raw: bytes) -> None:
        (self.folder / "lora.safetensors").write_bytes(raw)
        set_denoiser(self.pipe, copy.deepcopy(self.bare))
        self.answer(load_lora(self.pipe, self.folder / "lora.safetensors"))

    @torch.no_grad()
    def answer(self, model: torch.nn.Module) -> None:
        """Run what was opened once."""
        text, mask = torch.zeros(1, 3, 16), torch.ones(1, 3)
        model(torch.ones(1, 4, 8, 8), text, torch.zeros(1), {}, None, None, mask, return_dict=False)

    def apply_preset(self, raw: bytes) -> None:
        (self.folder / "preset.json").write_bytes(raw)
        self.board.apply(self.folder / "preset.json")

    def read_captions(self, named: tuple[str, bytes]) -> None:
        folder = self.folder / "captions"
        folder.mkdir(exist_ok=True)
        (folder / named[0]).write_bytes(named[1])
        try:
            read_captions([folder / "0.png"], "a sks dog")
        finally:
            (folder / named[0]).unlink()

    def read_yaml(self, raw: bytes) -> None:
        (self.folder / "options.yaml").write_bytes(raw)
        configure(self.folder / "options.yaml")

    def read_sweep(self, raw: bytes) -> None:
        (self.folder / "sweep.yaml").write_bytes(raw)
        read_sweep(self.folder / "sweep.yaml")

    def read_image(self, named: tuple[str, bytes]) -> None:
        folder = self.folder / "images"
        folder.mkdir(exist_ok=True)
        file = folder / f"0{named[0]}"
        file.write_bytes(named[1])
        try:
            find_examples(folder, "a sks dog")
        finally:
            file.unlink()


BOMBS = [
    b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n".encode() for old, new in zip("abcdefghi", "bcdefghij")
    ),
    b"class_name: &a [x,x,x,x,x,x,x,x,x]\nbase: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nimages: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
    b"token: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ncaption: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nout: &f [*e,*e,*e,*e,*e,*e,*e,*e]\n"
    b"report_to: [*f,*f,*f,*f,*f,*f,*f,*f]\n",
    b"[" * 5000, b"a: " + b"{b: " * 3000, b"!!python/object/apply:os.system [echo]\n", b"steps: 1\nsteps: 2\n",
    b"a: *b\n", b"a: &a {b: *a}\n", b"? [a]\n: 1\n", b"steps: 0x7fffffffffffffffffff\n", b"1: 2\n", b"a: 2026-13-45\n",
]  # fmt: skip
"""YAML that grows when it is written out, nests deeply, or asks for Python objects."""


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")


def _as_diffusers(weights: bytes) -> bytes:
    """PEFT's weights of a LoRA by diffusers' names, and alphas, as kohya's scripts add them."""
    prefix = "base_model.model."
    state = {f"transformer.{key.removeprefix(prefix)}": value for key, value in load(weights).items()}
    layers = {key.partition(".lora_")[0] for key in state}
    return save(state | {f"{layer}.alpha": torch.tensor(4.0) for layer in sorted(layers)})


@contextmanager
def limited() -> Iterator[None]:
    """At most `SECONDS`, and `MEMORY` more bytes than there are now."""

    overdue = []

    def late(number: int, frame: Any) -> None:
        overdue.append(number)
        raise TimeoutError(f"more than {SECONDS} s")

    # Of the processor, because other programs may have it; and of the clock, for what waits.
    timers = {signal.ITIMER_PROF: (signal.SIGPROF, SECONDS), signal.ITIMER_REAL: (signal.SIGALRM, 12 * SECONDS)}
    before = {number: signal.signal(number, late) for number, _ in timers.values()}
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MEMORY, hard))
    for timer, (_, seconds) in timers.items():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    if overdue:  # and the error was raised where Python passes over errors, as in a callback of its garbage collector
        raise TimeoutError(f"more than {SECONDS} s")


def fuzz(strategy: st.SearchStrategy, read: Callable[[Any], None], count: int, number: int = 0) -> Counter[str]:
    """Read so many inputs. Returns how many were read and refused; anything else raises, with the smallest such one."""
    each, found = case(strategy, read, count, number)
    each()
    return found


def case(
    strategy: st.SearchStrategy, read: Callable[[Any], None], count: int = 1, number: int = 0
) -> tuple[Any, Counter[str]]:
    """hypothesis' test of so many inputs, and what it will count."""
    found: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=count, database=None, deadline=None, derandomize=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(strategy)
    def each(value: Any) -> None:
        try:
            with limited():
                read(value)
            found["read"] += 1
        except UserError:
            found["refused"] += 1

    return each, found


def measure(folder: Path, count: int) -> dict[str, Any]:
    """The numbers of so many inputs of each kind."""
    from tests.tiny_pixart import save_tiny_pixart

    save_tiny_pixart(folder / "base")
    (folder / "inputs").mkdir()
    inputs, results = Inputs(folder / "inputs"), {}
    for name, (strategy, read) in inputs.kinds().items():
        start = time.monotonic()
        results[name] = dict(fuzz(strategy, read, count))
        print(name, results[name], f"{time.monotonic() - start:.0f} s", flush=True)
    return results | {"peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}
