"""The judge: how well an image fits its prompt, and whether it shows the same subject.

It was trained on real drawings alone, never on generated images (`python -m pretraining.judge`), for moji's 64 × 64
scenes; images of other sizes are resized. How often the judge is right is in `Judge.accuracy`; `print(judge)`
prints this in one sentence, which belongs beside its numbers.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from atomtune.errors import UserError
from atomtune.metrics.network import JudgeNetwork
from atomtune.metrics.pixels import ImageLike, as_array
from atomtune.moji.names import HELD_OUT_NAMES, SEEN_NAMES, spoken
from atomtune.moji.pipeline import text_encoder
from atomtune.moji.scenes import STYLES

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
NAMES = [*SEEN_NAMES, *HELD_OUT_NAMES]
_BATCH = 256


def name_prompt(name: str) -> str:
    """The shortest prompt for a name: "a red apple"."""
    return f"a {spoken(name)}"


@cache
def _minilm():
    return text_encoder()


@torch.no_grad()
def embed_sentences(sentences: Sequence[str]) -> Float[Tensor, "batch 384"]:
    """MiniLM's sentence embeddings: the mean over a sentence's tokens, at unit length."""
    tokenizer, encoder = _minilm()
    parts = []
    for start in range(0, len(sentences), _BATCH):
        tokens = tokenizer(list(sentences[start : start + _BATCH]), padding=True, return_tensors="pt")
        mask = tokens["attention_mask"][..., None]
        parts.append((encoder(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1))
    return F.normalize(torch.cat(parts), dim=-1)


class Judge:
    """Scores images (PIL, or uint8 [height, width, 3]); one number for each image, as a numpy array."""

    def __init__(self, network: JudgeNetwork, accuracy: dict[str, float | int]) -> None:
        self.network = network.eval()
        self.accuracy = accuracy
        """What `pretraining.judge` measured on scenes the judge had not seen, see `metrics/weights/judge.json`."""

    def __str__(self) -> str:
        """How far the judge's numbers can be trusted, in one sentence to print beside them."""
        of = {key: round(value, 3) + 0.0 for key, value in self.accuracy.items()}  # no "-0.000"
        return (
            f"The judge itself, on real drawings it had not seen: names {of['name_top1']:.1%} and styles "
            f"{of['style']:.1%} right (names in a style it was not taught {of['without_fluent_name_top1']:.1%}); "
            f"alignment {of['alignment_real']:.3f} with a drawing's own prompt, {of['alignment_wrong_name']:.3f} "
            f"with another subject's; fidelity {of['fidelity_same_drawing']:.3f} to the same drawing elsewhere, "
            f"{of['fidelity_other_name']:.3f} to another subject."
        )

    def features(self, images: Sequence[ImageLike]) -> Float[np.ndarray, "images 320"]:
        """The image tower's features: of subject, style, background, size and place. For `vendi`."""
        return self._features(images).numpy()

    def alignment(self, images: Sequence[ImageLike], prompts: Sequence[str]) -> Float[np.ndarray, " images"]:
        """Cosine in [-1, 1] between each image and its prompt: subject, style and background.

        A prompt is a sentence ("a teapot on a blue background") or one of moji's names ("red-apple"). A word the judge
        was not taught ("sks") is better left out. Places have no effect (top and bottom score alike): `place_and_size`
        reads them exactly. Raises ValueError when there is not one prompt for each image.
        """
        _one_each(images, prompts, "prompts")
        different = list(dict.fromkeys(prompts))
        sentences = [name_prompt(prompt) if prompt in NAMES else prompt for prompt in different]
        with torch.no_grad():
            words = self.network.words(embed_sentences(sentences))
            shown = self.network.joint(self._features(images))
        return (shown * words[[different.index(prompt) for prompt in prompts]]).sum(-1).numpy()

    def rank(self, images: Sequence[ImageLike], names: Sequence[str]) -> np.ndarray:
        """How many of the 534 names fit each image better than its own name: 0 for an image that is recognised.

        Raises UserError for a name that is not one of `atomtune.moji.names`.
        """
        _one_each(images, names, "names")
        if unknown := sorted(set(names) - set(NAMES)):
            raise UserError(f"the judge does not know {unknown}: give names of atomtune.moji.names, as 'red-apple'.")
        with torch.no_grad():
            scores = self.network.joint(self._features(images)) @ self.network.name_embeddings.T
        own = scores.gather(1, torch.tensor([[NAMES.index(name)] for name in names]))
        return (scores > own).sum(1).numpy()

    def style(self, images: Sequence[ImageLike]) -> list[str]:
        """The most likely of the five drawing styles, for each image."""
        with torch.no_grad():
            best = self.network.style(self._features(images)).argmax(1)
        words = list(STYLES)
        return [words[i] for i in best.tolist()]

    def fidelity(self, images: Sequence[ImageLike], references: Sequence[ImageLike]) -> Float[np.ndarray, " images"]:
        """For each image, the mean over `references` of the cosine in [-1, 1] between their subjects.

        Background, size and place do not count: two scenes of one drawing are near 1, of one subject in two styles
        between, of two subjects near 0.
        """
        with torch.no_grad():
            ours, theirs = (self.network.subject(self._features(group)) for group in (images, references))
        return (ours @ theirs.T).mean(1).numpy()

    @torch.no_grad()
    def _features(self, images: Sequence[ImageLike]) -> Tensor:
        return torch.cat([self.network(part) for part in _batches(images)])


def _batches(images: Sequence[ImageLike]) -> Iterator[Tensor]:
    for start in range(0, len(images), _BATCH):
        pixels = torch.from_numpy(np.stack([as_array(image) for image in images[start : start + _BATCH]]))
        yield pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def _one_each(images: Sequence[ImageLike], others: Sequence[str], what: str) -> None:
    if len(images) != len(others):
        raise ValueError(f"{what} must be one for each image, got {len(others)} for {len(images)} images.")


@cache
def load_judge() -> Judge:
    """The judge whose weights ship with the package, in float32 on the CPU."""
    network = JudgeNetwork(len(NAMES), len(STYLES))
    network.load_state_dict(
        {name: value.float() for name, value in load_file(WEIGHTS_FOLDER / "judge.safetensors").items()}
    )
    return Judge(network, json.loads((WEIGHTS_FOLDER / "judge.json").read_text(encoding="utf-8")))


def vendi(features: Float[np.ndarray, "images width"]) -> float:
    """How many different images there are in effect, from 1 (all the same) to their number: the Vendi score.

    The exponential of the entropy of the eigenvalues of K / n, with K the cosines between the features.
    """
    from vendi_score.vendi import score_dual

    return float(score_dual(np.asarray(features, dtype=float)))
