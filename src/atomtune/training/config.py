"""All options of a run: one dataclass whose fields are the flags of `atomtune customize` and the keys of its YAML."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from atomtune.errors import UserError, check_seed
from atomtune.files import expanded
from atomtune.method.coding import atoms_per_token
from atomtune.method.floor import check_share
from atomtune.method.sigma import SIGMAS, SigmaConfig
from atomtune.prompts import Subject, subject_prompts
from atomtune.sizes import Resolution, Size

LENGTH = ("steps", "epochs")
"""The options for the length of a run. One of them is enough."""
Text = Annotated[str, Parameter(allow_leading_hyphen=True)]
"""Text that may begin with a dash on the command line."""

if typing.TYPE_CHECKING:
    Activation = str
else:
    Activation = Literal[tuple(SIGMAS)]


@dataclasses.dataclass
class CustomizeConfig:
    """All options of a run. The defaults are the paper's; recipes (one for moji, some for PixArt-Σ) differ."""

    images: Path
    """Folder of images, or one image. Captions are read from metadata.jsonl or metadata.csv (`file_name`, `text`), or
    from name.txt or name.caption beside name.png. Instead of images, the folder may hold a folder for each subject,
    named REPEATS_TOKEN CLASS as for kohya's sd-scripts: "10_sks teapot"."""
    _: dataclasses.KW_ONLY  # on the command line too: one argument, the rest are flags
    class_name: Text | None = None
    """The class of the subject, in one or two words that the base knows: "teapot". Needed unless the names of folders
    say it."""
    out: Path
    """Folder for everything that the run writes. The same command with the same folder continues a stopped run. With
    more steps or epochs it continues a finished run."""
    base: str = "moji"
    """Base model: "moji", a folder saved by diffusers, or a hub name."""
    token: Text = "sks"
    """The word that stands for this one subject in prompts, as in "a sks teapot"."""
    license: Text | None = None
    """License of the adapter, as the Hugging Face hub spells it ("cc-by-4.0"). It is written into the card and into the
    header of the weights."""
    init_adapter: Path | None = None
    """Start from this adapter (folder of an adapter, or of a run) instead of a new one, and train it further. Its own
    settings win over the options that describe a new adapter."""
    caption: Text | None = None
    """Caption of images that have none of their own ("a TOKEN CLASS_NAME" by default)."""
    overwrite: bool = False
    """Start over if `out` already holds a run, instead of continuing it."""

    method: Literal["atoms", "lora", "dora", "oft"] = "atoms"
    """Kind of adapter. LoRA, DoRA and OFT are PEFT's; everything else in the run stays the same."""
    target_modules: tuple[str, ...] = ("attn1",)
    """Modules that are adapted, by the end of their names. Atoms sit on an attention module as a whole or on a linear
    layer; the other methods take the linear layers inside. On a base without attn1, or whose attn1 cannot carry atoms,
    attn1 stands for what suits it: the value projections, and for the other methods the attention."""
    layers_to_transform: tuple[int, ...] | None = None
    """Numbers of the blocks that are adapted, counted from 0 (all by default)."""
    num_atoms: int = 256
    """M, number of atoms in each adapted layer."""
    total_atoms: int | None = None
    """Number of atoms in the whole model, divided evenly among the adapted layers; replaces num_atoms. With 40 or so,
    every atom can be looked at. The recipe for few atoms, which has a larger learning rate, then applies."""
    activation: Activation = "topk"
    """σ: the k largest coefficients of a token by magnitude, or k a token on average over the batch, a soft threshold,
    ReLU(x - threshold), or x where it is above a threshold that is learned."""
    density: float = 0.04
    """ρ, the share of a layer's atoms that one token may use (top-k), or that the density penalty aims at."""
    threshold: float = 0.1
    """λ of soft and relu, and the first value of the λ that jumprelu learns."""
    threshold_units: Literal["absolute", "scale"] = "absolute"
    """Units of λ: absolute, those of the coefficients; scale, the running root mean square of each layer's
    coefficients."""
    unit_encoder: bool = False
    """Scale the columns of W_s to norm 1 when they are used."""
    mix_first: bool = True
    """σ(A X W_s) D, exactly k atoms a token, instead of the paper's shortcut A σ(X W_s) D."""
    rank: int = 16
    """Rank of LoRA and DoRA."""
    oft_blocks: int = 4
    """r of OFT: the number of orthogonal blocks in each adapted layer."""

    steps: int | None = None
    """Optimizer steps. If given, `epochs` is ignored."""
    epochs: int = 15
    """How many times every image is seen, if `steps` is not given."""
    batch_size: int = 1
    """Images in one forward pass of one process."""
    gradient_accumulation_steps: int = 1
    """Forward passes in one optimizer step."""
    optimizer: str = "AdamW"
    """AdamW, CAME, or any other class of torch.optim that takes plain steps (LBFGS and SparseAdam do not)."""
    optimizer_options: dict[str, float | int | bool | list[float] | str] = dataclasses.field(default_factory=dict)
    """Further arguments of the optimizer, such as {"weight_decay": 0.01}."""
    learning_rate: float = 1e-4
    """Learning rate."""
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = "constant"
    """Learning rate schedule of diffusers. A falling schedule falls over the whole run. A run that is continued to more
    steps takes its rate from the schedule of the longer run."""
    lr_warmup_steps: int = 0
    """Steps over which the learning rate rises from zero, for the schedules that have a warm-up."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    snr_gamma: float | None = None
    """γ of min-SNR loss weights (5 is usual); none by default."""
    caption_dropout: float = 0.0
    """Probability that an image's caption is replaced by the empty one, for classifier-free guidance."""
    density_start: float | None = None
    """Anneal the density (top-k) in the run's first half: ρ_t = ρ_0 (ρ/ρ_0)^min(1, 2t/T), ρ being `density`."""
    l1: float = 0.0
    """Weight in the loss of |s|₁ (eq. 5), the mean over tokens and layers."""
    orthogonality: float = 0.0
    """Weight in the loss of Σ_{i≠j} cos²(d_i, d_j) / M, the mean over layers: makes atoms more orthogonal (A.1)."""
    density_penalty: float = 0.1
    """Weight in the loss of (measured density / density - 1)², the mean over layers. For jumprelu only: it trains λ."""
    prior_preservation: bool = False
    """Also train on images of the class drawn by the base itself, so that the class keeps its variety."""
    prior_loss_weight: float = 1.0
    """Weight of the class images in the loss."""
    num_class_images: int = 50
    """Number of class images."""
    class_prompt: Text | None = None
    """Prompt of the class images ("a teapot" by default)."""
    preserve: bool = False
    """Keep the rest as it was: also train on other prompts, where the base's own answer is the target."""
    preserve_prompts: Path | None = None
    """Text file with the other prompts, one a line (by default everyday things, among them those most like the
    class)."""
    preserve_share: float = 0.2
    """Examples of other prompts for each image: with 0.2 one beside every five images, in every fifth step if
    batch_size is 1. A step takes longer by this share."""
    preserve_weight: float = 1.0
    """Weight of the other prompts in the loss, on average over steps."""
    floor: float = 0.0
    """With preserve, for atoms: an atom acts only where it is stronger than this share of the time on other prompts, 0
    to 1 (0: no floor; 1: stronger than ever). Atoms then begin as matched filters of the images against the other
    prompts. The floor is measured once, after `floor_start`. From then on it acts, and D alone trains, also in a run
    that is continued to more steps; with 1 the other prompts, which then change nothing, are left out."""
    floor_start: float = 0.15
    """Share of the run after which the floor is measured."""
    resolution: Resolution | None = None
    """Size of the training images in pixels: 1024 for a square, 1024x768 for WIDTHxHEIGHT (the base's own by
    default)."""
    aspect_ratio_buckets: bool = False
    """Scale and crop each image to the size, of about the area of the resolution, that is most like its own shape,
    instead of all to one size. A batch holds images of one size. Off, because few bases draw shapes that they were not
    trained on: moji draws squares alone."""
    random_flip: bool = False
    """Flip each image left to right half of the times that it is seen, at random. Not for subjects whose left and right
    differ, such as a text or a logo."""
    alpha_mask: bool = False
    """The alpha channel of an image says how much each part of it counts in the loss: nothing where it is transparent.
    The colours are then those that the file holds below, not mixed with white. Images without alpha count everywhere.
    """
    mixed_precision: Annotated[
        Literal["auto", "no", "fp16", "bf16", "float32", "float16", "bfloat16"], Parameter(alias="--dtype")
    ] = "auto"
    """Precision of the frozen base; the trained weights stay in float32. auto: bf16 on an accelerator (fp16 if the
    accelerator has no bf16), and no, which means float32, on a CPU."""
    device: str = "auto"
    """Where to train: auto (the accelerator if there is one), cpu, cuda, cuda:1, mps, xpu."""
    quantize: Literal["int8", "fp8", "nf4"] | None = None
    """Keep the linear layers of the frozen base in so few bits, by torchao (int8, fp8) or bitsandbytes (nf4, which
    needs a CUDA or XPU card): less memory for slightly other weights. Needs the extra `quantize`. moji is not
    quantized."""
    offload: Literal["model", "sequential", "group"] | None = None
    """On an accelerator, what images are drawn with: of the class and of other prompts, before training, by diffusers'
    offloading of whole models, or of layers one by one or in groups; and while samples of the run are decoded, the
    denoiser waits on the CPU. Training itself has the denoiser on the accelerator."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of storing them: slower, with less memory."""
    seed: int = 0
    """Seed of every random draw."""

    sample_every: int = 100
    """Steps between sample images (0: only at the end)."""
    sample_prompts: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)] = ()
    """Prompts of the sample images. By default two that show the subject: on moji, on backgrounds whose colours the
    subject in the images does not share."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    checkpoints_total_limit: int = 2
    """Number of checkpoints that are kept, the newest ones."""
    measure_every: int = 10
    """Steps between measurements of density and live atoms."""
    report_to: str = "tensorboard"
    """Tracker of accelerate, such as tensorboard or wandb; none for no tracker."""

    def __post_init__(self):
        kinds = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            setattr(self, field.name, convert(field.name, kinds[field.name], getattr(self, field.name)))
        self.mixed_precision = _SHORT.get(self.mixed_precision, self.mixed_precision)
        self.base = os.path.expanduser(self.base)
        for name, minimum in _MINIMA.items():
            value = getattr(self, name)
            if value is not None and not value >= minimum:
                raise UserError(f"{name} must be at least {minimum}, got {value}.")
        check_seed(self.seed, self.num_class_images if self.prior_preservation else 1)
        self.sigma  # noqa: B018  refuses what is out of range
        check_share(self.floor)
        if self.floor and not self.preserve:
            raise UserError(
                "a floor is measured on the other prompts of preserve: switch preserve on, or set floor to 0."
            )
        if self.floor and self.method != "atoms":
            raise UserError(f"a floor belongs to atoms, and the method is {self.method}: set floor to 0.")
        if self.preserve_prompts is not None and not self.preserve:
            raise UserError("preserve_prompts are those of preserve: switch preserve on, or leave them out.")
        if not 0 < self.preserve_share < math.inf:
            raise UserError(f"preserve_share must be above 0, got {self.preserve_share:g}.")
        if not 0 <= self.floor_start < 1:
            raise UserError(f"floor_start must be in [0, 1), got {self.floor_start:g}.")
        if self.density_start is not None:
            atoms_per_token(self.num_atoms, self.density_start)
        if self.density_start is not None and self.sigma.kind.dial != "density":
            raise UserError(f"density_start anneals the density of topk, and the activation is {self.activation}.")
        watched = [name for name in ("l1", "density_penalty") if getattr(self, name) and self._uses(name)]
        if self.gradient_checkpointing and watched:
            raise UserError(
                f"{watched[0]} needs the codes of the forward pass, which gradient_checkpointing throws away: set one "
                "of them to 0."
            )
        if not 0 <= self.caption_dropout < 1:
            raise UserError(f"caption_dropout must be in [0, 1), got {self.caption_dropout:g}.")
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate must be above zero, got {self.learning_rate:g}.")
        if not self.token.strip() or (self.class_name is not None and not self.class_name.strip()):
            raise UserError(
                "token and class_name must be words, got an empty one: the caption is 'a TOKEN CLASS_NAME'."
            )
        for text in (self.token, self.class_name, self.caption, *self.sample_prompts, self.class_prompt):
            refuse_angle_brackets(text or "")

    def _uses(self, penalty: str) -> bool:
        return penalty != "density_penalty" or self.sigma.kind.learned

    @property
    def sigma(self) -> SigmaConfig:
        """σ and its dials."""
        return SigmaConfig(self.activation, self.density, self.threshold, self.threshold_units)

    @property
    def instance_prompt(self) -> str:
        """The caption of images that have none of their own: `caption`, or "a sks teapot"."""
        return self.caption or f"a {self.token} {self.class_name}"

    def prompts(self, subject: Subject, num: int = 3) -> list[str]:
        """Prompts that show what is learnt (see `subject_prompts`); the caption alone if it does not have the token."""
        if self.caption is not None and self.token not in self.caption.split():
            return [self.caption]
        return subject_prompts(self.base, str(subject), subject.backgrounds, num)

    def total_steps(self, images: int, processes: int) -> int:
        """Optimizer steps of the whole run on so many images in so many processes."""
        in_one_step = self.batch_size * self.gradient_accumulation_steps * processes
        return self.steps or math.ceil(self.epochs * images / in_one_step)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and JSON hold them."""
        plain = {Path: str, tuple: list, Size: lambda size: size.plain}
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: next((convert(value) for kind, convert in plain.items() if isinstance(value, kind)), value)
            for name, value in values.items()
        }


_MINIMA = {
    "steps": 1, "epochs": 1, "batch_size": 1, "gradient_accumulation_steps": 1, "num_atoms": 1, "total_atoms": 1,
    "rank": 1, "oft_blocks": 1, "num_class_images": 1, "checkpoint_every": 1,
    "checkpoints_total_limit": 1, "measure_every": 1, "sample_every": 0, "lr_warmup_steps": 0, "max_grad_norm": 0,
    "preserve_weight": 0, "prior_loss_weight": 0, "snr_gamma": 0,
    "threshold": 0, "l1": 0, "orthogonality": 0, "density_penalty": 0,
}  # fmt: skip
_SHORT: dict[str, Any] = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping", tuple: "a list"}


def convert(name: str, kind: Any, value: Any) -> Any:
    """Convert a value from YAML or Python to its field's type. (YAML reads 1e-4 as text, and has lists for tuples.)"""
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if type(None) in inner:
        return None if value is None else convert(name, inner[0], value)
    if origin is typing.Literal:
        if value not in inner:
            raise UserError(f"{name} must be one of {', '.join(inner)}, got {value!r}.")
        return value
    if origin is Size:
        return Size.of(value)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(convert(name, inner[0], item) for item in value)
    if origin is Path and isinstance(value, str | Path):
        return expanded(value)
    if origin is float and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):
            value = float(value)
    finite = not isinstance(value, float) or math.isfinite(value) or name == "max_grad_norm"  # inf: no clipping
    if not isinstance(value, origin) or (origin is int and isinstance(value, bool)) or not finite:
        raise UserError(f"{name} must be {_KINDS.get(origin, 'text')}, got {value!r}.")
    return value


def refuse_angle_brackets(text: str) -> None:
    """Raise `UserError` for `<v>`-like tokens."""
    if found := re.search(r"<[^<>]*>", text):
        raise UserError(
            f"{found[0]!r} in {text!r} would be lost: caption cleaning parses HTML and strips it; use a plain rare "
            "word such as 'sks'."
        )
