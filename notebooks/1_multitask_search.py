# %% [markdown]
# # Multitask search
#
# One controller designs models for two tasks at once. It makes one decision after another (which
# embedding, how many layers, which optimiser, how long to train), each design is trained and rewarded
# with its validation accuracy, and the controller learns from the rewards of both tasks. At the end we
# compare it with random search, see how the tasks' designs differ, and use the best model. All of it takes
# seven minutes of computing, most of that the search and its comparison.

# %%
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("mnms_jax") is None:  # e.g. on Colab
    source = os.environ.get("MNMS_JAX_SOURCE") or input("Where is mnms_jax? (git+https://...) ")
    command = [sys.executable, "-m", "pip", "install", "--quiet", f"mnms_jax[report] @ {source}"]
    subprocess.run(command, check=True)

# %% [markdown]
# What to search on, and for how long. The texts and the word vectors are fetched once, into
# `~/.cache/mnms_jax`.

# %% tags=["parameters"]
TASKS = ["vader_movie", "vader_amazon"]
NUM_TRIALS = 48  # on each task, by the controller and by random search
ROUND_SIZE = 16  # children trained between two updates of the controller
WORKDIR = "runs/notebook_multitask"

# %%
import json
import pathlib

import matplotlib.pyplot as plt
import numpy as np

import mnms_jax as mnms

# %% [markdown]
# The tasks are split once and for all. Nothing below looks at a test example before the search has
# ended.

# %%
tasks = mnms.load_tasks(TASKS)
for task in tasks:
    sizes = {name: len(split.labels) for name, split in task.splits.items()}
    print(f"{task.name}: {sizes}, classes {', '.join(task.class_names)}")

# %% [markdown]
# A search is one call. Run this cell again and it goes on where it stopped, or shows what it found:
# everything is in `WORKDIR`.

# %%
config = mnms.Config(
    tasks=tuple(TASKS), num_trials=NUM_TRIALS, round_size=ROUND_SIZE, workdir=WORKDIR
)
summary = mnms.run_experiment(config)

# %% [markdown]
# The log has one line for each trial, so that anything can be drawn from it: here the best validation
# accuracy after each trial, of the controller and of random search.


# %%
def best_so_far(folder, task):
    rows = map(json.loads, (pathlib.Path(folder) / "trials.jsonl").read_text().splitlines())
    rewards = [row["reward"] for row in rows if row["task"] == task]
    return np.fmax.accumulate(np.array(rewards, float))


figure, axes = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 3.5), squeeze=False)
for axis, task in zip(axes[0], tasks, strict=True):
    axis.plot(best_so_far(WORKDIR, task.name), label="controller")
    axis.plot(best_so_far(f"{WORKDIR}/random", task.name), label="random search")
    axis.set(title=task.name, xlabel="trial", ylabel="best validation accuracy")
    axis.legend()
plt.show()

# %% [markdown]
# Does the controller treat the tasks differently? These are the decisions in which its choices differ
# most, as the total variation between the tasks' distributions (0: the same, 1: disjoint). With one
# seed part of that is chance.

# %%
for row in summary["specialization"][:5]:
    print(row)

# %% [markdown]
# The best child of each task, trained again exactly as in its trial, is kept and can be used anywhere.

# %%
for task in tasks:
    child = mnms.load_child(f"{WORKDIR}/best/{task.name}")
    test = task.splits["test"]
    accuracy = np.mean(child.predict_proba(test.inputs).argmax(-1) == test.labels)
    print(f"{task.name}: test accuracy {accuracy:.3f} of {child.decisions}")

# %% [markdown]
# Where to go from here: `2_transfer` starts a new task from what this controller learned,
# `3_own_task_and_space` brings your own data and decisions.
