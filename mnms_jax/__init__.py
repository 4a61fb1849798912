"""Multitask Neural Model Search in JAX."""

from mnms_jax.advantage import rank_advantage as rank_advantage
from mnms_jax.advantage import relative_advantage as relative_advantage
from mnms_jax.advantage import standardized_advantage as standardized_advantage
from mnms_jax.children.text import make_text_family as make_text_family
from mnms_jax.config import Config as Config
from mnms_jax.controller import make_policy as make_policy
from mnms_jax.controller import make_random_policy as make_random_policy

__version__ = "0.1.0"
