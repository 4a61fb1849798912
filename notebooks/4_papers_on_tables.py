# %% [markdown]
# # The papers' claims, on a table of known rewards
#
# Wong & Gesmundo (2017, arXiv:1710.10776) and Wong, Houlsby, Lu & Gesmundo (2018, arXiv:1803.02780) claim
# that one controller can search for several tasks at once, and that a pre-trained one finds good designs
# for a new task in far fewer trials. Neither paper came with code or tables. Here their controllers play
# on HPOBench-MLP, in which all 30,000 designs of a perceptron are already trained on eight data sets: a
# whole search is one compiled function. Seven methods with 16 seeds each take about four minutes of computing.

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
# The tables (37 MB) are fetched once from the Python package index. Most of the time goes into
# compilation; more seeds narrow the intervals.

# %% tags=["parameters"]
TABLE = "hpobench_mlp"
METHODS = [
    *("random", "mnms2017_cold", "mnms2017_multitask", "mnms2017"),
    *("tnaml2018_cold", "tnaml2018_multitask", "tnaml2018"),
]
NUM_SEEDS = 16
NUM_TRIALS = 100  # on each of the three targets
NUM_SOURCE_TRIALS = 200  # on each of the five sources

# %%
import matplotlib.pyplot as plt
import numpy as np

import mnms_jax as mnms

# %% [markdown]
# Searches are mapped over devices; each core is made one, before anything else uses them.

# %%
mnms.use_cores_as_devices()
table = mnms.load_table(TABLE)
print(f"{table.name}: {table.metric}; tasks {', '.join(table.task_names)}")
for decision in table.space.decisions:
    print(f"  {decision.name}: {decision.choices}")

# %% [markdown]
# `_cold` is a fresh controller for each task, `_multitask` a fresh one for all targets at once, and
# without a suffix the controller was trained on the sources and gets a random new task embedding, as
# published. Regret is 0 for the best design of the table and 1 for its median one.

# %%
regrets = mnms.run_tabular(
    table,
    METHODS,
    num_seeds=NUM_SEEDS,
    num_trials=NUM_TRIALS,
    num_source_trials=NUM_SOURCE_TRIALS,
)
print(regrets.shape, "methods, seeds, tasks, trials")

# %% [markdown]
# Claim 1: *pre-training saves trials.* Claim 2: *several tasks at once are searched better than each by
# itself.* Bands are 95 % intervals over the seeds.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
trials = np.arange(1, NUM_TRIALS + 1)
for axis, paper in zip(axes, ("mnms2017", "tnaml2018"), strict=True):
    for index, method in enumerate(METHODS):
        if method != "random" and not method.startswith(paper):
            continue
        by_seed = regrets[index].mean(axis=1)  # over the tasks
        mean = by_seed.mean(axis=0)
        half = 1.96 * by_seed.std(axis=0) / np.sqrt(NUM_SEEDS)
        axis.plot(trials, mean, label=method)
        axis.fill_between(trials, mean - half, mean + half, alpha=0.2)
    axis.set(title=paper, xlabel="trials on each task", ylabel="regret")
    axis.legend()
plt.show()

# %% [markdown]
# How many trials does a pre-trained controller need for what a fresh one has at the end?

# %%
mean = dict(zip(METHODS, regrets.mean(axis=(1, 2)), strict=True))
for paper in ("mnms2017", "tnaml2018"):
    if paper in mean:
        reached = np.flatnonzero(mean[paper] <= mean[f"{paper}_cold"][-1])
        when = f"after {reached[0] + 1}" if len(reached) else "not within"
        print(f"{paper}: {when} of {NUM_TRIALS} trials")

# %% [markdown]
# With 48 seeds and 200 trials (`benchmarks/RESULTS.md`): the first claim holds with either paper's
# controller and each of the learners; the second one from 50 trials on, and not at 10. From scratch a
# published controller isn't ahead of random search by more than noise until 100 trials. The library's
# default adds a model of rewards: `"cold"` and `"transfer"` among the methods.
