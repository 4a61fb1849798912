"""Multitask Neural Model Search in JAX.

Names are those of `__init__.pyi`, each imported when it is first used: so `--help` needn't wait for
libraries that only searches need.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
