"""moji: the base model that comes with the package, a PixArt-Σ pipeline in miniature that draws emoji at 64 × 64."""

from atomtune.moji.pipeline import MojiPipeline, load, random_pipeline

__all__ = ["MojiPipeline", "load", "random_pipeline"]
