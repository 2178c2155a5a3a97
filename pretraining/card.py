"""moji's model card, from the numbers the other stages wrote: `python -m pretraining.card`."""

import json

from atomtune.metrics import load_judge
from atomtune.moji.names import HELD_OUT_NAMES, SEEN_NAMES
from atomtune.moji.pipeline import WEIGHTS_FOLDER, load
from pretraining.drawings import VERSIONS

CARD = """---
license: cc-by-4.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [pixart, emoji, atomtune]
---

# moji

A text-to-image model of {parameters:.1f} million parameters that draws emoji at 64 × 64: a real
`PixArtSigmaPipeline` in miniature (PixArtTransformer2DModel, AutoencoderTiny, DPM-Solver++, MiniLM as its text
encoder). It exists so that fine-tuning methods can be tried, tested and compared on a laptop, without a GPU or
a network. It is not for making art.

    from atomtune import load_base
    picture = load_base("moji")("a noto drawing of a red apple on a blue background").images[0]

## What it knows

{seen} names, five styles ({styles}), ten plain backgrounds, three sizes, five places. {held_out} names were
never shown to it, nor the same things under other names: {held_out_names}. They are the subjects of
customization experiments.

## How good it is

After {images:,} images; measured by `python -m pretraining.evaluate` on {prompts} prompts with fixed seeds.
Names and styles are read by a judge that saw real drawings only; its own score on the real drawings of the same
scenes stands beside.

| | moji | real drawings | compositions never seen together |
|---|---|---|---|
{rows}

Autoencoder: {psnr:.1f} dB on held-out drawings. Median RMS distance (0 to 1) from a sample to the nearest
picture it was trained on: {nearest:.3f}; with few drawings a name, a good sample *is* close to a training
drawing, so expect memorised shapes. The judge names real drawings right {judge:.1%} of the time.

## Limits

Captions outside its vocabulary, several things in one picture, and anything but a plain background are beyond it.

## Data and licences

Trained with `python -m pretraining` of the atomtune repository, on drawings from the npm registry:

| style | package | by | licence |
|---|---|---|---|
{sources}

The weights learnt from all five; keep these attributions when you pass them on.
"""
SOURCES = {
    "twemoji": ("Twitter and contributors (jdecked/twemoji)", "CC-BY-4.0"),
    "noto": ("Google (Noto Emoji)", "Apache-2.0"),
    "fluent-emoji-flat": ("Microsoft (Fluent Emoji)", "MIT"),
    "emojione": ("Emoji One (EmojiTwo)", "CC-BY-4.0"),
    "noto-v1": ("Google (Noto Emoji, first design)", "Apache-2.0"),
}
WORDS = {
    "name_first": "name ranked first of 534",
    "name_in_first_five": "name among the first five",
    "style": "style",
    "background": "background",
    "place": "place",
}


def main() -> None:
    """Write `README.md` beside the weights."""
    from atomtune.moji.scenes import STYLES

    numbers = json.loads((WEIGHTS_FOLDER / "evaluation.json").read_text())
    columns = [numbers["base"], numbers["real_drawings"], numbers["kept_out_compositions"]]
    rows = [f"| {words} | " + " | ".join(f"{c[key]:.1%}" for c in columns) + " |" for key, words in WORDS.items()]
    sources = [
        f"| {word} | `@iconify-json/{icons}` {VERSIONS[icons]} | {SOURCES[icons][0]} | {SOURCES[icons][1]} |"
        for word, icons in STYLES.items()
    ]
    card = CARD.format(
        parameters=sum(p.numel() for p in load().transformer.parameters()) / 1e6,
        seen=len(SEEN_NAMES),
        held_out=len(HELD_OUT_NAMES),
        held_out_names=", ".join(HELD_OUT_NAMES),
        styles=", ".join(STYLES),
        images=numbers["images_seen"],
        prompts=numbers["prompts"],
        rows="\n".join(rows),
        psnr=numbers["autoencoder_psnr_held_out_db"],
        nearest=numbers["rms_to_nearest_training_drawing"]["p50"],
        judge=load_judge().accuracy["name_top1"],
        sources="\n".join(sources),
    )
    (WEIGHTS_FOLDER / "README.md").write_text(card)


if __name__ == "__main__":
    main()
