# %% [markdown]
# # Transfer: a new task starts from what was learned
#
# A controller that has searched on some tasks, the *sources*, knows which designs are worth trying. On a
# new task, the *target*, it should find a good one in fewer trials than a search from scratch. A guard
# watches whether the sources really tell something of the target. That takes twelve minutes of computing, on two
# cores less.

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
# What to learn from, what to search on then, and for how long.

# %% tags=["parameters"]
SOURCES = ["vader_movie", "vader_amazon", "sms_spam"]
TARGET = "vader_tweets"
SOURCE_TRIALS = 32  # on each source
NUM_TRIALS = 24  # on the target
ROUND_SIZE = 2
WORKDIR = "runs/notebook_transfer"

# %%
import json
import pathlib

import matplotlib.pyplot as plt
import numpy as np

import mnms_jax as mnms

# %% [markdown]
# First the sources, searched all at once. What is learned is kept in `WORKDIR/sources/controller`: the
# policy, the tasks' embeddings and all trials.

# %%
mnms.run_experiment(
    mnms.Config(
        tasks=tuple(SOURCES),
        num_trials=SOURCE_TRIALS,
        workdir=f"{WORKDIR}/sources",
        compare_random=False,
    )
)
controller = mnms.load_controller(f"{WORKDIR}/sources/controller")
for name, size in zip(controller.task_names, np.asarray(controller.trials.size), strict=True):
    print(f"{name}: {size} different trials")

# %% [markdown]
# Then the target, twice: with transfer, and from scratch with the same number of trials.

# %%
shared = {"tasks": (TARGET,), "num_trials": NUM_TRIALS, "round_size": ROUND_SIZE}
transfer = mnms.TransferConfig(
    from_=f"{WORKDIR}/sources",
    workdir=f"{WORKDIR}/transfer",
    compare_random=True,
    **shared,
)
mnms.run_experiment(transfer)
mnms.run_experiment(
    mnms.Config(workdir=f"{WORKDIR}/scratch", compare_random=False, **shared),
)

# %% [markdown]
# Best validation accuracy after each trial. One seed shows what happens, not what is better: `python -m
# experiments.transfer --leave_one_out` compares over tasks and seeds, with intervals.


# %%
def best_so_far(folder):
    rows = map(json.loads, (pathlib.Path(folder) / "trials.jsonl").read_text().splitlines())
    return np.fmax.accumulate(np.array([row["reward"] for row in rows], float))


for name, folder in (
    ("transfer", "transfer"),
    ("from scratch", "scratch"),
    ("random search", "transfer/random"),
):
    plt.plot(best_so_far(f"{WORKDIR}/{folder}"), label=name)
plt.title(TARGET)
plt.xlabel("trial")
plt.ylabel("best validation accuracy")
plt.legend()
plt.show()

# %% [markdown]
# Of the first ten trials every other one is a source's best design. Which are they, and what did they
# earn here?

# %%
rows = [
    json.loads(line)
    for line in pathlib.Path(f"{WORKDIR}/transfer/trials.jsonl").read_text().splitlines()
]
for row in rows[:10:2]:
    print(row["trial"], row["reward"], row["decisions"])

# %% [markdown]
# The controller of this search has the sources' tasks and the target in it, and can be a source again.

# %%
print(mnms.load_controller(f"{WORKDIR}/transfer/controller").task_names)
