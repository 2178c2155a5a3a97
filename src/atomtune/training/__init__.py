"""Customize: learn a subject from a few images, with an adapter on a frozen text-to-image transformer.

The public names are listed in `__init__.pyi`, and imported when they are used: options and recipes need no PEFT.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
