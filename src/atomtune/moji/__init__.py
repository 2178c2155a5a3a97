"""moji: the base model that comes with the package, a PixArt-Σ pipeline in miniature that draws emoji at 64 × 64.

The public names are listed in `__init__.pyi`, and imported when they are used: names and scenes need no diffusers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
