"""Small synthetic data and spaces that several tests share."""

import numpy as np

from mnms_jax.children.text import PRESETS, TextSizes, make_text_family
from mnms_jax.space import Decision, SearchSpace
from mnms_jax.tasks.inputs import TextInputs
from mnms_jax.training.fit import Trainer
from mnms_jax.types import ChildFamily, Split, Task

SIZES = TextSizes(vocabulary=64, length=8, ngrams=256, hashed=128)

# Nine designs: a=1; a=2 or 3 with b=True; a=2 or 3 with b=False and one of three c.
SPACE = SearchSpace(
    [
        Decision("a", (1, 2, 3)),
        Decision("b", (True, False), {"a": (2, 3)}),
        Decision("c", ("x", "y", "z"), {"b": (False,)}),
    ]
)


def make_task(name: str, num_rows: int = 60, num_classes: int = 2, seed: int = 0) -> Task:
    """Returns texts, of three lengths, in which one of three words a class gives the label away."""
    rng = np.random.default_rng(seed)
    cues = [[f"{name}cue{c}{i}" for i in range(3)] for c in range(num_classes)]
    splits = {}
    for split, rows in (
        ("train", num_rows),
        ("validation", num_rows // 3),
        ("test", num_rows // 3),
    ):
        labels = rng.integers(num_classes, size=rows).astype(np.int32)
        texts = tuple(
            f"The {rng.choice(['film', 'book', 'play'])} was {'so ' * (i % 3)}"
            f"{rng.choice(cues[label])}, {i}!"
            for i, label in enumerate(labels)
        )
        splits[split] = Split(texts, labels)
    return Task(name, splits, tuple(f"class{c}" for c in range(num_classes)))


def make_family(**choices) -> ChildFamily:
    """Returns text children of which only the named decisions have a choice; few, fast programs."""
    family = make_text_family("cpu", {})
    fixed = {
        "embedding": ("random32",),
        "lowercase": (True,),
        "strip": (True,),
        "convolution": (False,),
        "hidden_layers": (0,),
        "optimizer": ("adam",),
        "deep_learning_rate": (0.01,),
        "deep_regularization": (0.0,),
        "wide_learning_rate": (0.01,),
        "wide_regularization": (0.0,),
        "samples": (1280,),
    }
    space = SearchSpace(Decision(name, choices.get(name, v)) for name, v in fixed.items())
    return family._replace(space=space)


def make_trainer(tasks, family, **kwargs) -> Trainer:
    """Returns a trainer over small inputs."""
    inputs = TextInputs(tasks, PRESETS["cpu"]._replace(length=8), {})
    return Trainer(family, inputs.child_data, num_classes=inputs.num_classes, **kwargs)
