# %% [markdown]
# # Many devices
#
# Two things are spread here: whole searches on a table, as one program that is mapped over devices, and
# the training of children, whose results don't depend on how they are spread. Four CPU devices stand in
# for four accelerators; on a GPU or TPU machine leave the variable out. It takes less than a minute of computing.

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
NUM_SEEDS = 64
NUM_TRIALS = 200
METHOD = "evolution"
NUM_CHILDREN = 8

# %% [markdown]
# The number of devices is fixed before the first of them is used: restart the notebook to change it.

# %%
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import mnms_jax as mnms

devices = jax.devices()
print(devices)

# %% [markdown]
# ## Searches over devices
#
# A strategy is a pure function of a table and a key. `play_seeds` vmaps it over keys and shards them over
# devices. The table below is made up: two tasks with 4 x 4 x 4 designs each and some noise.

# %%
space = mnms.SearchSpace([mnms.Decision(name, (0, 1, 2, 3)) for name in "abc"])
rng = np.random.default_rng(0)
means = rng.uniform(size=(2, 64, 1))
table = mnms.RewardTable(
    rewards=(means + 0.05 * rng.normal(size=(2, 64, 3))).astype(np.float32),
    num_seeds=np.full((2, 64), 3, np.int32),
    rows=np.arange(64, dtype=np.int32),
    strides=np.array([16, 4, 1], np.int32),
)
benchmark = mnms.TableBenchmark("made up", space, ("one", "two"), "reward", table, None)
setup = mnms.TableSetup(space, sources=(), targets=(0, 1), num_trials=NUM_TRIALS)
strategy = mnms.make_strategy(METHOD, setup)
keys = jax.random.split(jax.random.key(0), NUM_SEEDS)

# %%
arrays = jax.tree.map(jnp.asarray, table)
counts = [count for count in (1, 2, 4) if count <= len(devices)]
seconds, played = [], []
for count in counts:
    run = mnms.play_seeds(strategy, devices[:count])
    jax.block_until_ready(run(arrays, keys))  # compiles
    start = time.perf_counter()
    played.append(jax.block_until_ready(run(arrays, keys)))
    seconds.append(time.perf_counter() - start)
print(dict(zip(counts, np.round(seconds, 3).tolist(), strict=True)))

# %% [markdown]
# The designs tried are the same on any number of devices. Speed follows the cores behind the devices:
# four devices on two cores gain nothing over two.

# %%
print("same trials:", all(np.array_equal(p.actions, played[0].actions) for p in played))
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5))
left.bar([str(count) for count in counts], NUM_SEEDS / np.array(seconds))
left.set(xlabel="devices", ylabel="searches a second")
right.plot(mnms.regret(benchmark, setup.targets, played[0]).mean(axis=(0, 1)))
right.set(xlabel="trial", ylabel="mean regret")
plt.show()

# %% [markdown]
# ## Children over devices
#
# A trainer spreads each program's children over the devices that it is given. A trial's randomness comes
# from the seed, the task's name and the trial's number alone, so its reward has nothing to do with its
# neighbours.

# %%
tasks = mnms.load_tasks(["wine"])
family = mnms.make_record_family("cpu")
inputs = mnms.RecordInputs(tasks)
design = {
    "scaling": "standard",
    "input_dropout": 0.0,
    "hidden_layers": 1,
    "hidden_size": 32,
    "hidden_activation": "relu",
    "normalization": "none",
    "hidden_dropout": 0.0,
    "linear": False,
    "optimizer": "adam",
    "learning_rate": 0.003,
    "schedule": "linear",
    "regularization": 0.0,
    "samples": 1_000,  # so few that seeds differ
}
requests = [mnms.Request(0, "wine", trial, design) for trial in range(NUM_CHILDREN)]
rewards = {}
for count in (counts[0], counts[-1]):
    trainer = mnms.Trainer(
        family,
        inputs.child_data,
        num_classes=inputs.num_classes,
        devices=devices[:count],
    )
    print(trainer.layout)
    results = dict(trainer.train(requests))
    rewards[count] = [results[i].reward for i in range(NUM_CHILDREN)]
for count, values in rewards.items():
    print(count, np.round(values, 3))

# %% [markdown]
# ## Several machines
#
# The same command on every machine; the first process writes, and the others train their share:
#
# ```bash
# python -m experiments.multitask --distributed --coordinator_address=HOST:PORT \
#     --num_processes=2 --process_id=0
# ```
#
# On SLURM, Open MPI, Kubernetes and Cloud TPUs `--distributed` alone is enough: JAX finds out the rest.
