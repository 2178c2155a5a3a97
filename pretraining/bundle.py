"""All that pretraining needs on a machine with a card and no network, in a folder: `python -m pretraining.bundle DIR`.

    drawings.npz        every drawing at every size, compressed                            8 MiB
    text.safetensors    MiniLM with the words of captions alone, 8 bits a weight          11 MiB
    words.json          the tokens of each word
    model/              MiniLM's tokenizer and configuration                               1 MiB

`Reader` turns captions into what MiniLM's own tokenizer and weights give, to about one percent. There,
`python -m pretraining.bundle DIR --unpack SITE` writes into SITE, which belongs on PYTHONPATH, the package in which
moji's pipeline looks for its text encoder, and puts the drawings where `pretraining.evaluate` looks for them.

`--experiments` makes a bundle for `python -m experiments` instead, 26 MiB: the drawings of what moji has never seen,
and MiniLM in 16 bits with every word in our own texts.
"""

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertModel

from atomtune.moji.names import HELD_OUT_NAMES, SEEN_NAMES, spoken
from atomtune.moji.pipeline import TEXT_ENCODER, text_encoder
from atomtune.moji.scenes import BACKGROUNDS, PLACES, SIZES, STYLES
from pretraining import CACHE, autocast
from pretraining.drawings import Drawings

EMBEDDING = "embeddings.word_embeddings.weight"


def words() -> list[str]:
    """Every word a caption can have."""
    fixed = ["a", "an", "drawing", "of", "on", "the", "at", "background", ",", *STYLES, *BACKGROUNDS, *SIZES, *PLACES]
    return sorted({*fixed, *(word for name in SEEN_NAMES for word in spoken(name).split())})


def words_of_texts() -> list[str]:
    """Every word in the sources of the library and of the experiments, whose prompts are among them."""
    root = Path(__file__).parent.parent
    files = [file for room in ("src/atomtune", "experiments") for file in (root / room).rglob("*.py")]
    texts = [file.read_text(encoding="utf-8").lower() for file in files]
    return sorted({word for text in texts for word in re.findall(r"[a-z]+|[0-9]+|[^\sa-z0-9]", text)})


def write(folder: Path, drawings: Drawings, experiments: bool = False) -> None:
    """Write the bundle into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: Any = drawings.arrays
    if experiments:
        arrays = {key: array for key, array in arrays.items() if key.partition("|")[0] in HELD_OUT_NAMES}
    np.savez_compressed(folder / "drawings.npz", allow_pickle=False, **arrays)
    tokenizer, encoder = text_encoder()
    tokens = {
        word: tokenizer(word, add_special_tokens=False).input_ids
        for word in [*words(), *(words_of_texts() if experiments else ())]
    }
    special = [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id]
    used = special + sorted({token for ids in tokens.values() for token in ids} - set(special))
    row = {token: index for index, token in enumerate(used)}
    numbered = {word: [row[token] for token in ids] for word, ids in tokens.items()}
    written = {"config": encoder.config.to_diff_dict(), "words": numbered, "rows": used}
    (folder / "words.json").write_text(json.dumps(written))
    tokenizer.save_pretrained(folder / "model")
    encoder.config.save_pretrained(folder / "model")
    state = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("pooler")}
    state[EMBEDDING] = state[EMBEDDING][used]
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if experiments:
            stored[name] = tensor.half() if tensor.is_floating_point() else tensor
        elif tensor.is_floating_point() and tensor.ndim == 2:  # eight bits an entry, and a scale for each 32 of them
            groups = tensor.unflatten(1, (-1, 32))
            scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-6).half().float() / 127
            stored[name], stored[f"{name}.scale"] = (groups / scale).round().to(torch.int8), scale.half()
        else:
            stored[name] = tensor
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / "text.safetensors")


def read_state(folder: Path) -> dict[str, Tensor]:
    """MiniLM's weights in float32, with rows for the words of the bundle alone."""
    stored = load_file(folder / "text.safetensors")
    scales = {name.removesuffix(".scale"): stored.pop(name) for name in [*stored] if name.endswith(".scale")}
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in stored.items()}
    return state | {name: (stored[name].float() * scale.float()).flatten(1) for name, scale in scales.items()}


def unpack(folder: Path, site: Path) -> None:
    """Make the package of moji's text encoder in `site`; cache the drawings. Words that the bundle does not have are
    not numbers, so that a prompt with one is seen to fail."""
    model = site / TEXT_ENCODER / "model"
    shutil.copytree(folder / "model", model, dirs_exist_ok=True)
    (site / TEXT_ENCODER / "__init__.py").touch()
    state, config = read_state(folder), json.loads((folder / "words.json").read_text())
    every = torch.full((config["config"]["vocab_size"], state[EMBEDDING].shape[1]), torch.nan)
    every[config["rows"]] = state[EMBEDDING]
    save_file(state | {EMBEDDING: every}, model / "model.safetensors", metadata={"format": "pt"})
    CACHE.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "drawings.npz", CACHE / "drawings.npz")


class Reader:
    """Captions to MiniLM's token embeddings, on any device."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        written = json.loads((folder / "words.json").read_text())
        self.words: dict[str, list[int]] = written["words"]
        state = read_state(folder)
        config = BertConfig(**written["config"] | {"vocab_size": len(state[EMBEDDING])})
        self.encoder = BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)
        self.encoder.load_state_dict(state)
        self.encoder.to(device)  # pyright: ignore[reportArgumentType]

    def tokens(self, captions: list[str], length: int) -> tuple[Tensor, Tensor]:
        """Token ids and mask, [batch, length]: begin, the caption, end, padding."""
        ids = torch.zeros(len(captions), length, dtype=torch.long)
        for i, caption in enumerate(captions):
            own = [token for word in caption.replace(",", " ,").split() for token in self.words[word]]
            ids[i, : len(own) + 2] = torch.tensor([1, *own, 2])
        return ids, (ids != 0).float()

    @torch.no_grad()
    def read(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [batch, length, 384] in float32 and the mask, where the encoder is; zero where nothing is said."""
        device = self.encoder.device
        ids, mask = ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)
        read = mask[:, None, None, :].bool()  # in this shape it is not looked at, for which we would have to wait
        with autocast(device.type):
            hidden = self.encoder(ids, attention_mask=read).last_hidden_state
        return hidden.float() * mask[..., None], mask


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experiments", action="store_true", help="write the one for `python -m experiments`")
    parser.add_argument("--unpack", type=Path, metavar="SITE", help="make the text encoder's package there instead")
    options = parser.parse_args()
    if options.unpack:
        unpack(options.folder, options.unpack)
    else:
        write(options.folder, Drawings(), options.experiments)
