"""Small CLIP and DINOv2 of the real classes, with random weights: python -m tests.metrics.tiny_models OUT"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
)

SIDE = 16
SIZE: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_clip(folder: Path) -> Path:
    letters = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", *letters, *(letter + "</w>" for letter in letters), "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[], model_max_length=12)
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    text = SIZE | {"vocab_size": len(words), "max_position_embeddings": 12, "bos_token_id": 0}
    text |= {"eos_token_id": len(words) - 1}
    vision = SIZE | {"image_size": SIDE, "patch_size": 4}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def write_dino(folder: Path) -> Path:
    size = {name: value for name, value in SIZE.items() if name != "intermediate_size"}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        Dinov2Model(Dinov2Config(**size, image_size=SIDE, patch_size=4)).save_pretrained(folder)
    crop = {"height": SIDE, "width": SIDE}
    BitImageProcessor(size={"shortest_edge": SIDE}, crop_size=crop).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    write_clip(Path(sys.argv[1]) / "clip")
    write_dino(Path(sys.argv[1]) / "dino")
