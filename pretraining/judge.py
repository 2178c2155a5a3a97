"""The judge that scores pictures, trained on real drawings only: `python -m pretraining.judge`.

A batch holds 48 captioned scenes (16 names, three scenes of each, so that the words other than the name count), 64
free scenes (any background, size and place), 12 of the captioned ones with the drawing's hue turned, and 4 that show
nothing.

    names      softmax over all 534 of cos(picture, "a {name}")
    captions   softmax over the batch, both ways; a caption is right for every picture it is true of
    subjects   softmax over all drawings, a fifth of the target spread over the other styles of the same name
    styles     softmax over the styles
    margins    a turned hue lowers the cosines by 0.2; pictures of nothing lie at -0.2 from the names on average

Two things learn along and are thrown away: a direction for each drawing, and a linear head by which styles shape the
features. The style head that ships is fitted to the finished features in half a minute (`fit_style`): the linear one is
right for 74 % of the scenes, the fitted one for 97 %.

`--without fluent` measures how well an unknown style is judged: it trains a second judge that never sees that style,
for a third as long, and adds what it scores there to the numbers beside the weights.
"""

import argparse
import json
import math
import random
import re
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from torch import Tensor, nn

from atomtune.files import atomic_file
from atomtune.metrics.judge import NAMES, WEIGHTS_FOLDER, Judge, embed_sentences, name_prompt
from atomtune.metrics.network import JOINT, SUBJECT, JudgeNetwork, crop, locate
from atomtune.moji.names import spoken
from atomtune.moji.scenes import (
    BACKGROUNDS,
    PLACES,
    RESOLUTION,
    SIZES,
    STYLES,
    Scene,
    caption,
    compose,
    sample_scene,
    to_array,
)
from pretraining import CACHE, autocast, state
from pretraining.drawings import Drawings

GROUPS, SCENES, FREE, TURNED, NOTHING = 16, 3, 64, 12, 4
CAPTIONED = GROUPS * SCENES
POOL = 8  # captioned scenes of each name
LEARNING_RATE, WARMUP, SCALE, MARGIN = 2e-3, 100, 16.0, 0.2
ATTRIBUTES = {"style": list(STYLES), "background": list(BACKGROUNDS), "size": list(SIZES), "place": list(PLACES)}
PALETTE = torch.tensor(list(BACKGROUNDS.values())) / 127.5 - 1


@dataclass
class Examples:
    """The training data as tensors: every drawing at every size, and the captioned scenes."""

    canvases: Tensor  # uint8 [sizes, drawings, 4, 64, 64], premultiplied, centred
    names: Tensor  # [drawings] index into NAMES
    styles: Tensor  # [drawings]
    scenes: Tensor  # [534, POOL, 5]: the drawing, then the attributes of the captioned scenes
    said: Tensor  # [534, POOL, 4]: the attributes that the caption speaks of, -1 where it says nothing
    captions: Tensor  # [534, POOL, 384]
    bare: Tensor  # [534, 384]: "a {name}"


def attributes_said(words: str, scene: Scene) -> list[int]:
    """What a caption of `scene` speaks of, as indices into `ATTRIBUTES`; -1 where it is silent."""
    rest = set(re.findall(r"\w+", words.replace(spoken(scene.name), "", 1)))
    return [
        values.index(getattr(scene, key)) if getattr(scene, key) in rest else -1 for key, values in ATTRIBUTES.items()
    ]


def gather(drawings: Drawings, without: str | None) -> Examples:
    """All drawings but those of the style `without`, and a fixed pool of captioned scenes (none of those kept out)."""
    styles = {name: [style for style in drawings.styles[name] if style != without] for name in NAMES}
    pairs = [(name, style) for name in NAMES for style in styles[name]]
    index = {pair: number for number, pair in enumerate(pairs)}
    canvases = np.zeros((len(SIZES), len(pairs), RESOLUTION, RESOLUTION, 4), np.uint8)
    for row, (size, pixels) in enumerate(SIZES.items()):
        start = (RESOLUTION - pixels) // 2
        for number, (name, style) in enumerate(pairs):
            square = drawings.drawing(Scene(name, style, "white", size)).resize(
                (pixels, pixels), Image.Resampling.LANCZOS
            )
            drawing = np.array(square, dtype=float)
            drawing[..., :3] *= drawing[..., 3:] / 255
            canvases[row, number, start : start + pixels, start : start + pixels] = drawing.round()
    rng, scenes, said, sentences = random.Random(0), [], [], [name_prompt(name) for name in NAMES]
    for name in NAMES:
        for _ in range(POOL):
            scene = sample_scene(name, styles[name], rng)
            words = caption(scene, rng)
            attributes = [values.index(getattr(scene, key)) for key, values in ATTRIBUTES.items()]
            scenes.append([index[name, scene.style], *attributes])
            said.append(attributes_said(words, scene))
            sentences.append(words)
    cache = CACHE / f"judge-sentences{'-without-' + without if without else ''}.pt"
    if (stored := state.load(cache)) is None:
        stored = {"embedded": embed_sentences(sentences)}
        state.save(cache, **stored)
    return Examples(
        canvases=torch.from_numpy(canvases).permute(0, 1, 4, 2, 3),
        names=torch.tensor([NAMES.index(name) for name, _ in pairs]),
        styles=torch.tensor([list(STYLES).index(style) for _, style in pairs]),
        scenes=torch.tensor(scenes).view(len(NAMES), POOL, -1),
        said=torch.tensor(said).view(len(NAMES), POOL, -1),
        captions=stored["embedded"][len(NAMES) :].view(len(NAMES), POOL, -1),
        bare=stored["embedded"][: len(NAMES)],
    )


def compose_all(
    canvases: Float[Tensor, "batch 4 64 64"],
    backgrounds: Float[Tensor, "batch 3"],
    shift: Float[Tensor, "batch 2"],
    scale: Float[Tensor, " batch"],
    generator: torch.Generator,
) -> Float[Tensor, "batch 3 64 64"]:
    """Pictures in [-1, 1] of premultiplied drawings in [0, 1], scaled and moved (pixels).

    Of all drawings 30 % are mirrored, and each is turned by up to 6°.
    """
    batch = len(canvases)
    mirror = 1.0 - 2.0 * (torch.rand(batch, generator=generator) < 0.3)
    angle = (torch.rand(batch, generator=generator) - 0.5) * math.radians(12)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    turn = torch.stack((torch.stack((mirror * cos, mirror * sin), -1), torch.stack((-sin, cos), -1)), 1)
    offset = -turn @ (shift / (RESOLUTION / 2))[..., None]
    grid = F.affine_grid(torch.cat((turn, offset), -1), [batch, 4, RESOLUTION, RESOLUTION], align_corners=False)
    moved = F.grid_sample(canvases, grid, align_corners=False)
    colour, alpha = moved[:, :3], moved[:, 3:]
    return 2 * colour - alpha + (1 - alpha) * backgrounds[:, :, None, None]


def degrade(pictures: Float[Tensor, "batch 3 64 64"], generator: torch.Generator) -> Float[Tensor, "batch 3 64 64"]:
    """What an autoencoder or a sampler does to pictures: a little blur, noise, smooth errors and other contrast."""

    def amount(most: float, share: float) -> Tensor:
        chosen = torch.rand(len(pictures), 1, 1, 1, generator=generator) < share
        return torch.rand(len(pictures), 1, 1, 1, generator=generator) * most * chosen

    coarse = F.interpolate(F.avg_pool2d(pictures, 2), scale_factor=2, mode="bilinear")
    pictures = torch.lerp(pictures, coarse, amount(0.9, 0.5))
    rough = torch.randn(len(pictures), 3, 16, 16, generator=generator)
    pictures = pictures + amount(0.15, 0.3) * F.interpolate(rough, scale_factor=4, mode="bilinear")
    pictures = pictures + amount(0.12, 0.5) * torch.randn(pictures.shape, generator=generator)
    pictures = pictures * (1 + amount(0.15, 0.5) - amount(0.15, 0.5)) + amount(0.08, 0.3) - amount(0.08, 0.3)
    return pictures.clamp(-1, 1)


def turn_hue(canvases: Float[Tensor, "batch 4 64 64"], generator: torch.Generator) -> Float[Tensor, "batch 4 64 64"]:
    """Colours turned around the gray axis by 60° to 300°; alpha stays."""
    angle = math.radians(60) + torch.rand(len(canvases), generator=generator) * math.radians(240)
    cos, sin = angle.cos(), angle.sin() / 3**0.5
    same, next_, last = (1 + 2 * cos) / 3, (1 - cos) / 3 - sin, (1 - cos) / 3 + sin
    rows = [torch.stack(row, -1) for row in ((same, next_, last), (last, same, next_), (next_, last, same))]
    colours = torch.einsum("bij,bjhw->bihw", torch.stack(rows, 1), canvases[:, :3])
    return torch.cat((colours.clamp(min=0).minimum(canvases[:, 3:]), canvases[:, 3:]), 1)


def pictures_of_nothing(pictures: Float[Tensor, "batch 3 64 64"], generator: torch.Generator) -> Tensor:
    """Noise of some grain, a plain colour, or the patches of a picture in another order; [NOTHING, 3, 64, 64]."""
    results = []
    for picture in pictures[:NOTHING]:
        kind = int(torch.randint(4, (), generator=generator))
        if kind == 0:
            results.append(
                PALETTE[torch.randint(len(PALETTE), (), generator=generator)][:, None, None].expand_as(picture)
            )
        elif kind == 1:
            patches = picture.view(3, 4, 16, 4, 16).permute(1, 3, 0, 2, 4).flatten(0, 1)
            patches = patches[torch.randperm(16, generator=generator)].view(4, 4, 3, 16, 16)
            results.append(patches.permute(2, 0, 3, 1, 4).reshape(3, RESOLUTION, RESOLUTION))
        else:
            pixels = 2 ** int(torch.randint(2, 7, (), generator=generator))
            noise = torch.randn(1, 3, pixels, pixels, generator=generator).clamp(-1, 1)
            results.append(F.interpolate(noise, (RESOLUTION, RESOLUTION), mode="bilinear")[0])
    return torch.stack(results)


class Losses(nn.Module):
    """The judge in training: its network, and what is thrown away afterwards."""

    def __init__(self, examples: Examples) -> None:
        super().__init__()
        self.network = JudgeNetwork(len(NAMES), len(STYLES))
        self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.proxies = nn.Parameter(torch.randn(len(examples.names), JOINT))
        self.style = nn.Linear(SUBJECT, len(STYLES))
        same = (examples.names[:, None] == examples.names).float()
        self.targets = 0.8 * torch.eye(len(same)) + 0.2 * same / same.sum(1, keepdim=True)

    def forward(self, examples: Examples, generator: torch.Generator) -> Tensor:
        """The loss of one random batch."""

        def integers(high: int, count: int) -> Tensor:
            return torch.randint(high, (count,), generator=generator)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(shape, generator=generator)

        chosen = torch.randperm(len(NAMES), generator=generator)[:GROUPS].repeat_interleave(SCENES)
        turns = torch.rand(GROUPS, POOL, generator=generator).argsort(1)[:, :SCENES].flatten()
        scenes, said, captions = (part[chosen, turns] for part in (examples.scenes, examples.said, examples.captions))
        drawing = torch.cat((scenes[:, 0], integers(len(examples.names), FREE)))
        size = torch.cat((scenes[:, 3], integers(len(SIZES), FREE)))
        canvases = examples.canvases[size, drawing].float() / 255

        pixels = torch.tensor(list(SIZES.values()))[size]
        slack = (RESOLUTION - pixels) // 2
        step = torch.tensor(list(PLACES.values()))[scenes[:, 4]] * (slack[:CAPTIONED, None] - 2)
        anywhere = uniform(-1, 1, FREE, 2) * slack[CAPTIONED:, None]
        shift = torch.cat((step + uniform(-1.5, 1.5, CAPTIONED, 2), anywhere))
        scale = torch.cat((uniform(0.94, 1.06, CAPTIONED), uniform(0.8, 1.1, FREE)))
        plain = PALETTE[integers(len(PALETTE), FREE)] + 0.1 * torch.randn(FREE, 3, generator=generator)
        free = torch.where(uniform(0, 1, FREE, 1) < 0.6, plain, uniform(-1, 1, FREE, 3)).clamp(-1, 1)
        backgrounds = torch.cat((PALETTE[scenes[:, 2]] + uniform(-0.04, 0.04, CAPTIONED, 3), free))

        turned = turn_hue(canvases[:TURNED], generator)
        changed = ((turned - canvases[:TURNED]).abs().sum((1, 2, 3)) / canvases[:TURNED, 3].sum((1, 2))) > 0.3
        canvases, backgrounds, shift, scale = (
            torch.cat((part, extra))
            for part, extra in (
                (canvases, turned),
                (backgrounds, backgrounds[:TURNED]),
                (shift, shift[:TURNED]),
                (scale, scale[:TURNED]),
            )
        )
        pictures = degrade(compose_all(canvases, backgrounds, shift, scale, generator), generator)
        pictures = torch.cat((pictures, pictures_of_nothing(pictures, generator)))

        colour, difference, center, half = locate(pictures)
        # The box is never exact in pictures that a model draws, so it is not exact here.
        moved = center + half * uniform(-0.1, 0.1, len(pictures), 2)
        crops = crop(pictures, difference, moved, half * uniform(0.9, 1.2, len(pictures), 1))
        with autocast():
            features = self.network.features(crops, colour, center, half)
        features = features.float()
        joint, subject = self.network.joint(features), self.network.subject(features)
        real, wrong = slice(0, CAPTIONED + FREE), slice(CAPTIONED + FREE, CAPTIONED + FREE + TURNED)
        names, words = self.network.words(torch.cat((examples.bare, captions))).split([len(NAMES), CAPTIONED])
        proxies = F.normalize(self.proxies, dim=-1)

        name = F.cross_entropy(SCALE * joint[real] @ names.T, examples.names[drawing])
        true = (chosen[:, None] == chosen) & ((said == -1) | (said == scenes[:, None, 1:])).all(-1)  # picture, caption
        logits = SCALE * joint[:CAPTIONED] @ words.T
        target = true.float()
        matched = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
        matched = (matched + F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True))) / 2
        drawn = F.cross_entropy(SCALE * subject[real] @ proxies.T, self.targets[drawing])
        style = F.cross_entropy(self.style(features[real, :SUBJECT]), examples.styles[drawing])

        fall = ((joint[:TURNED] - joint[wrong]) * words[:TURNED]).sum(-1)
        fall_of_subject = ((subject[:TURNED] - subject[wrong]) * proxies[drawing[:TURNED]]).sum(-1)
        margin = ((F.relu(MARGIN - fall) + F.relu(MARGIN - fall_of_subject)) * changed).mean()
        nothing = F.relu((joint[-NOTHING:] @ names.detach().T).mean(1) + MARGIN).mean()
        return name + matched + drawn + 0.3 * style + 2 * margin + nothing


def train(drawings: Drawings, steps: int, without: str | None = None) -> JudgeNetwork:
    """Train to `steps`, from the last checkpoint if there is one; its weights are then rounded to fp16."""
    examples = gather(drawings, without)
    torch.manual_seed(0)
    losses = Losses(examples)
    optimizer = torch.optim.AdamW(losses.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    checkpoint = CACHE / f"judge{'-without-' + without if without else ''}.pt"
    done = 0
    if last := state.load(checkpoint):
        losses.load_state_dict(last["losses"])
        optimizer.load_state_dict(last["optimizer"])
        done = last["step"]
    clock, average = time.time(), 0.0
    for step in range(done, steps):
        rate = LEARNING_RATE * min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = losses(examples, torch.Generator().manual_seed(step))
        loss.backward()
        nn.utils.clip_grad_norm_(losses.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        average += (loss.item() - average) / (step % 100 + 1) if step % 100 else loss.item() - average
        if (step + 1) % 100 == 0 or step + 1 == steps:
            state.save(checkpoint, step=step + 1, losses=losses.state_dict(), optimizer=optimizer.state_dict())
            print(
                f"{step + 1} loss {average:.3f}, {(time.time() - clock) / (step + 1 - done):.3f} s a step", flush=True
            )
    network = losses.network.eval()
    with torch.no_grad():
        network.name_embeddings.copy_(network.words(examples.bare))
    return rounded(network)


@torch.no_grad()
def rounded(network: JudgeNetwork) -> JudgeNetwork:
    """The network with its weights rounded to fp16, as they ship."""
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
    return network


def fit_style(network: JudgeNetwork, drawings: Drawings, views: int = 8, epochs: int = 30) -> JudgeNetwork:
    """Fit the style head to the features of `views` scenes of each drawing, half of them degraded; the rest stays."""
    rng, generator = random.Random(2), torch.Generator().manual_seed(2)
    pairs = [(name, style) for name in NAMES for style in drawings.styles[name]]
    scenes = [sample_scene(name, [style], rng) for name, style in pairs * views]
    parts = []
    with torch.no_grad():
        for start in range(0, len(scenes), 128):
            pixels = to_array([drawings.picture(scene) for scene in scenes[start : start + 128]])
            pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
            parts.append(network(degrade(pictures, generator) if start // 128 % 2 else pictures)[:, :SUBJECT])
    features, styles = torch.cat(parts), torch.tensor([list(STYLES).index(scene.style) for scene in scenes])
    optimizer = torch.optim.AdamW(network.to_style.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(scenes), generator=generator).split(256):
            kept = torch.rand(len(batch), SUBJECT, generator=generator) > 0.1
            F.cross_entropy(network.to_style(features[batch] * kept), styles[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    return rounded(network)


def kept_out_scene(name: str, styles: list[str], rng: random.Random) -> Scene:
    """A random scene that no captioned one was: like those of `sample_scene`, but on a background that is kept out."""
    while True:
        scene = sample_scene(name, styles, rng)
        others = [replace(scene, background=background) for background in BACKGROUNDS]
        if unseen := [other for other in others if other.kept_out]:
            return rng.choice(unseen)


def turn_hue_of(drawing: Image.Image, degrees: float = 150.0) -> Image.Image:
    """The RGBA drawing with its hues turned, its lightness kept."""
    hue, saturation, value = drawing.convert("RGB").convert("HSV").split()
    hue = hue.point(lambda level: (level + round(degrees / 360 * 256)) % 256)  # pyright: ignore[reportOperatorIssue]
    turned = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    turned.putalpha(drawing.getchannel("A"))
    return turned


@torch.no_grad()
def measure(judge: Judge, drawings: Drawings, styles: list[str], pictures: int = 1000) -> dict[str, float]:
    """How often the judge is right, on scenes it has not seen; see `metrics/weights/judge.json`."""
    rng, noise = random.Random(1), np.random.default_rng(1)
    drawn = {name: [style for style in drawings.styles[name] if style in styles] for name in NAMES}
    names = rng.choices([name for name in NAMES if drawn[name]], k=pictures)
    draw = kept_out_scene if len(styles) > 1 else sample_scene  # of a style it never saw, no scene was seen
    scenes = [draw(name, drawn[name], rng) for name in names]
    real = [drawings.picture(scene) for scene in scenes]
    words = [caption(scene) for scene in scenes]
    other = [
        replace(scene, background=rng.choice([b for b in BACKGROUNDS if b != scene.background])) for scene in scenes
    ]
    elsewhere = [drawings.picture(scene) for scene in other]
    ranks = judge.rank(real, names)
    wrong = {
        "real": real,
        "blurred": [picture.filter(ImageFilter.GaussianBlur(1.5)) for picture in real],
        "wrong_colour": [compose_turned(drawings, scene) for scene in scenes],
        "wrong_background": elsewhere,
        "wrong_name": real[1:] + real[:1],
        "noise": list(noise.integers(0, 256, (pictures, RESOLUTION, RESOLUTION, 3), dtype=np.uint8)),
    }
    ours, theirs = (judge.network.subject(torch.from_numpy(judge.features(group))) for group in (real, elsewhere))
    cosines = ours @ theirs.T
    same_name = torch.tensor([[a == b for a in names] for b in names])
    different = cosines[~same_name]
    numbers: dict[str, float] = {
        "pictures": pictures,
        "name_top1": float((ranks == 0).mean()),
        "name_top5": float((ranks < 5).mean()),
        "style": float(np.mean([a == scene.style for a, scene in zip(judge.style(real), scenes)])),
    }
    numbers |= {f"alignment_{kind}": judge.alignment(group, words).mean() for kind, group in wrong.items()}
    numbers |= {f"alignment_of_name_{kind}": judge.alignment(group, names).mean() for kind, group in wrong.items()}
    numbers |= {
        "fidelity_same_drawing": float(cosines.diagonal().mean()),
        "fidelity_same_drawing_lowest_5_percent": float(cosines.diagonal().quantile(0.05)),
        "fidelity_other_name": float(different.mean()),
        "fidelity_other_name_highest_1_percent": float(np.quantile(different.numpy(), 0.99)),
    }
    if len(styles) > 1:
        in_other_style = [
            drawings.picture(replace(scene, style=rng.choice([s for s in drawn[scene.name] if s != scene.style])))
            for scene in scenes
        ]
        theirs = judge.network.subject(torch.from_numpy(judge.features(in_other_style)))
        numbers["fidelity_other_style"] = float((ours * theirs).sum(-1).mean())
    return {key: round(float(value), 4) for key, value in numbers.items()}


def compose_turned(drawings: Drawings, scene: Scene) -> Image.Image:
    """The picture of `scene` with the colours of its drawing wrong."""
    return compose(turn_hue_of(drawings.drawing(scene)), scene)


def main(steps: int, without: str | None) -> None:
    """Train, measure and write `judge.safetensors` and `judge.json` (or add one unknown style's part to the latter)."""
    drawings = Drawings()
    report = WEIGHTS_FOLDER / "judge.json"
    network = train(drawings, steps // 3 if without else steps, without)
    if without:
        part = measure(Judge(network, {}), drawings, [without])
        numbers = json.loads(report.read_text(encoding="utf-8"))
        numbers |= {f"without_{without}_{key}": value for key, value in part.items() if key != "style"}
    else:
        judge = Judge(fit_style(network, drawings), {})
        numbers = {"steps": steps, **measure(judge, drawings, list(STYLES))}
        tensors = {
            name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in network.state_dict().items()
        }
        with atomic_file(WEIGHTS_FOLDER / "judge.safetensors") as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    with atomic_file(report) as temporary:
        temporary.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--without", choices=list(STYLES), help="measure on this style, with a judge that never saw it")
    options = parser.parse_args()
    main(options.steps, options.without)
