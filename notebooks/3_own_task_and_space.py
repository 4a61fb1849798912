# %% [markdown]
# # Your own task and search space
#
# A file needs no code (`--tasks=NAME=PATH`). In Python anything can be a task, and any model whose
# parameters are a pytree can be a child: here two sets of points in the plane, one with interleaved
# half moons and one with rings, and small networks with a choice of features, width and optimiser. That
# takes about a minute of computing.

# %%
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("mnms_jax") is None:  # e.g. on Colab
    source = os.environ.get("MNMS_JAX_SOURCE") or input("Where is mnms_jax? (git+https://...) ")
    command = [sys.executable, "-m", "pip", "install", "--quiet", f"mnms_jax[report] @ {source}"]
    subprocess.run(command, check=True)

# %% tags=["parameters"]
NUM_ROUNDS = 12
TRIALS_PER_ROUND = 4  # on each task
NUM_SAMPLES = (5_000, 20_000, 50_000)  # training examples seen, one of the decisions

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_circles, make_moons

import mnms_jax as mnms

# %% [markdown]
# ## Tasks
#
# A `Task` has a name, the names of its classes, and three splits of inputs and labels.


# %%
def make_task(name, generate):
    points, labels = generate(n_samples=1500, noise=0.15, random_state=0)
    inputs, labels = points.astype(np.float32), labels.astype(np.int32)
    cut = {"train": slice(1000), "validation": slice(1000, 1250), "test": slice(1250, None)}
    splits = {split: mnms.Split(inputs[rows], labels[rows]) for split, rows in cut.items()}
    return mnms.Task(name, splits, ("0", "1"), kind="points")


tasks = [
    make_task("moons", make_moons),
    make_task("rings", lambda **options: make_circles(factor=0.6, **options)),
]

# %% [markdown]
# ## Search space
#
# A flat list of decisions. The width matters only if there are hidden layers: otherwise the decision is
# inactive, has no probability, and two equal designs have equal encodings.

# %%
space = mnms.SearchSpace(
    [
        mnms.Decision("features", ("linear", "squares")),
        mnms.Decision("hidden_layers", (0, 1, 2)),
        mnms.Decision("width", (4, 16, 64), {"hidden_layers": (1, 2)}),
        mnms.Decision("optimizer", ("sgd", "adam")),
        mnms.Decision("learning_rate", (0.001, 0.01, 0.1)),
        mnms.Decision("samples", NUM_SAMPLES),
    ]
)
actions = space.encode(
    {
        "features": "squares",
        "hidden_layers": 0,
        "optimizer": "adam",
        "learning_rate": 0.01,
        "samples": NUM_SAMPLES[0],
    }
)
print(actions, space.active(actions))

# %% [markdown]
# ## Child family
#
# A `ChildFamily` says how a design becomes a model. Its `ChildSpec` sorts the decisions: what changes
# shapes or the graph is the *architecture*, and chooses a compiled program that all tasks share;
# the optimiser's settings and the number of samples are inputs of that program.


# %%
class Network(nn.Module):
    squares: bool
    hidden_layers: int
    width: int
    num_classes: int

    @nn.compact
    def __call__(self, x):
        if self.squares:
            x = jnp.concatenate([x, x**2], -1)
        for _ in range(self.hidden_layers):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(self.num_classes)(x)


class Child(nn.Module):
    """The group of parameters called `network` is what the optimiser below trains."""

    architecture: tuple
    num_classes: int

    @nn.compact
    def __call__(self, x, constants, hyperparameters, seed, training):
        return Network(*self.architecture, self.num_classes, name="network")(x)


def make_spec(design):
    architecture = (
        design["features"] == "squares",
        design["hidden_layers"],
        design.get("width", 0),
    )
    optimizer = mnms.OptimizerSettings(design["optimizer"], design["learning_rate"], 0.0)
    return mnms.ChildSpec(architecture, (), {}, {"network": optimizer}, design["samples"])


def make_model(architecture, num_classes):
    return mnms.make_child_model(Child(architecture, num_classes))


family = mnms.ChildFamily(space, make_spec, make_model)


def child_data(task_id, spec):
    """Rows to train on, then rows to evaluate on; the same shapes for all tasks."""
    splits = tasks[task_id].splits
    arrays = {name: splits[name].inputs for name in ("train", "validation")}
    num_rows = {name: len(rows) for name, rows in arrays.items()}
    return mnms.make_child_data(tasks[task_id], num_rows, arrays, constants={})


trainer = mnms.Trainer(family, child_data, num_classes=2)

# %% [markdown]
# ## Search
#
# `ask` proposes a round's designs for all tasks, `tell` brings their rewards back. Both are pure,
# compiled functions of arrays; everything that a search knows is in its state.

# %%
policy = mnms.make_policy(space, num_tasks=len(tasks))
learner = mnms.make_ppo_learner(policy)
search = mnms.make_search(
    space,
    policy,
    learner,
    num_tasks=len(tasks),
    trials_per_task=TRIALS_PER_ROUND,
    ranker=mnms.make_ranker(space),
)
state = search.init(jax.random.key(0))
trials = []
for round_index in range(NUM_ROUNDS):
    proposal = search.ask(state)
    requests = mnms.make_requests(space, [t.name for t in tasks], proposal, round_index)
    rewards = np.full(len(requests), np.nan)  # NaN: the trial failed
    for i, result in trainer.train(requests):
        if result.reward is not None:
            rewards[i] = result.reward
            trials.append((requests[i].task_name, result.reward, requests[i].design))
    state, metrics = search.tell(state, proposal, rewards)
print(f"{len(trials)} trials, {trainer.stats.programs} compiled programs")

# %% [markdown]
# Rings need curved boundaries, which squares give at once; moons need hidden layers.

# %%
for task in tasks:
    best = max((trial for trial in trials if trial[0] == task.name), key=lambda trial: trial[1])
    print(f"{task.name}: {best[1]:.3f} by {best[2]}")

for task in tasks:
    own = [reward for name, reward, _ in trials if name == task.name]
    plt.plot(own, ".", label=task.name)
plt.xlabel("trial")
plt.ylabel("validation accuracy")
plt.legend()
plt.show()

# %% [markdown]
# What the policy has come to propose, as frequencies of the choices of `features`:

# %%
for task_id, task in enumerate(tasks):
    frequencies = mnms.choice_frequencies(policy, space, state.params, jax.random.key(1), task_id)
    shares = frequencies[0, :2].round(2).tolist()
    print(task.name, dict(zip(("linear", "squares"), shares, strict=True)))
