"""The controller against the best tuners, on tables of known rewards, each task left out in turn.

Claim: from scratch it isn't worse than Optuna's TPE at 100 and 200 trials; with the trials of the
other tasks it is ahead of every tuner here from 10 trials on. `random` and `cold` search all tasks,
and their trials are the sources of all methods that use any.

Command, after `pip install ".[report,rivals]"`: python -m benchmarks.peers --json=peers.json
Variants: --tables=fcnet --compare=random,cold,tpe,transfer --num_seeds=3
Cost: SMAC takes 0.3 s a trial on a CPU core, Syne Tune's quantiles ten seconds a search, all others
some ten milliseconds a trial. An interrupted run resumes.

SMAC, PyGlove and Syne Tune answer from virtual environments of their own, which are built at first
in the folder `peers` of the cache. They are told which decisions are numbers that ascend.
"""

import contextlib
import functools
import importlib.metadata
import itertools
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

import mnms_jax as mnms
from mnms_jax.comparison import ALL_TASKS, mean_interval, trial_counts
from mnms_jax.methods import Sources
from mnms_jax.store import TrialLog
from mnms_jax.tasks.packaged import cache_folder

_TABLES = flags.DEFINE_list("tables", ["fcnet", "nasbench201"], "Tables, see mnms_jax.load_table.")
_METHODS = flags.DEFINE_list(
    "compare",
    [
        *("random", "cold", "evolution", "portfolio", "tpe", "tpe_enqueued", "transfer"),
        *("smac", "pyglove", "bounding_box", "quantile"),
    ],
    "Methods to compare: peers, and those of mnms_jax.make_methods.",
)
_SEEDS = flags.DEFINE_integer("num_seeds", 5, "Number of seeds.", lower_bound=1)
_NUM_TRIALS = flags.DEFINE_integer("budget", 200, "Trials of a search.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("folder", "runs/peers", "Folder of the results.")
_JSON = flags.DEFINE_string("json", "", "File for the regrets.")

_SYNE_TUNE = ("syne-tune==0.16.0", "huggingface_hub", "fastparquet")


class Peer(NamedTuple):
    """A tuner of somebody else's."""

    requirements: tuple[str, ...]  # the tuner itself comes first
    uses_sources: bool = False


PEERS = {
    "smac": Peer(("smac==2.4.1",)),
    "pyglove": Peer(("pyglove==0.4.5", "numpy")),
    "bounding_box": Peer(_SYNE_TUNE, uses_sources=True),
    "quantile": Peer(_SYNE_TUNE, uses_sources=True),
}


def environment(requirements: Sequence[str]) -> pathlib.Path:
    """Returns the Python of a virtual environment with these packages, which it builds once.

    Raises:
      mnms.UserError: pip failed; its own message stands above.
    """
    folder = cache_folder() / "peers" / requirements[0]
    python = folder / "bin" / "python"
    done = folder / "done"
    if not done.exists():
        logging.info("building %s", folder)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if subprocess.run([*pip, *requirements], check=False).returncode:
            raise mnms.UserError(f"pip can't install {' '.join(requirements)}, see above")
        done.touch()
    return python


class Worker:
    """A process that runs a peer's searches; it starts with the first one.

    Args:
      name: of the peer.
      log: file for what it writes beside its answers.
    """

    def __init__(self, name: str, log: pathlib.Path):
        self._name, self._log, self._numbers = name, log, itertools.count()

    @functools.cached_property
    def _process(self) -> subprocess.Popen:
        with self._log.open("w") as errors:
            return subprocess.Popen(
                worker_command(self._name),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def start(self, problem: Mapping[str, Any]) -> int:
        """Starts a search, and returns its number."""
        number = next(self._numbers)
        self.call(number, do="start", problem=problem)
        return number

    def call(self, search: int, **request: Any) -> Any:
        """Returns the answer to a request.

        Raises:
          mnms.UserError: the process has ended.
        """
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"search": search, **request}) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise mnms.UserError(f"the process of {self._name} has ended, see {self._log}")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        if "_process" in vars(self):
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate()


def worker_command(name: str) -> list[str]:
    """Returns what starts a peer's process, and sees that its packages are there.

    Raises:
      mnms.UserError: they can't be installed.
    """
    script = pathlib.Path(__file__).with_name("peer_worker.py")
    return [str(environment(PEERS[name].requirements)), str(script), name]


def make_peer(name: str, worker: Worker, num_trials: int) -> mnms.Method:
    """Returns a peer as a method, whose searches a worker runs."""

    def make(space: mnms.SearchSpace, sources: Sources, number: int, key: jax.Array) -> mnms.Search:
        (random,) = mnms.make_methods(["random"])
        blank = random.make(space, sources, number, key)
        problem = describe(space, sources, int(jax.random.bits(key)) % 2**31, num_trials)
        search = worker.start(problem)
        asked: list[np.ndarray] = []  # by round: asking twice gives the same
        told: list[float] = []

        def ask(state: mnms.SearchState) -> mnms.Proposal:
            if int(state.step) == len(asked):
                designs = np.array(worker.call(search, do="ask", number=number), np.int32)
                asked.append(designs)
            return blank.ask(state)._replace(actions=jnp.asarray(asked[int(state.step)]))

        def tell(
            state: mnms.SearchState, proposal: mnms.Proposal, rewards: jax.Array
        ) -> tuple[mnms.SearchState, dict]:
            known = np.asarray(rewards, np.float64)
            told.extend(known[np.isfinite(known)])
            worst = min(told, default=0.0)  # what failed trials count as
            filled = np.where(np.isfinite(known), known, worst)
            trials = list(zip(asked[int(state.step)].tolist(), filled.tolist(), strict=True))
            worker.call(search, do="tell", trials=trials)
            return blank.tell(state, proposal, rewards)

        return mnms.Search(blank.init, ask, tell)

    return mnms.Method(name, make, PEERS[name].uses_sources)


def describe(
    space: mnms.SearchSpace, sources: Sources, seed: int, num_trials: int
) -> dict[str, Any]:
    """Returns what a peer is told at its start."""
    bank = jax.tree.map(np.asarray, sources.trials)
    known = np.isfinite(bank.rewards) & np.asarray(sources.trials.valid)
    return {
        "sizes": {decision.name: len(decision.choices) for decision in space.decisions},
        "ordered": {decision.name: is_ordered(decision.choices) for decision in space.decisions},
        "seed": seed,
        "num_trials": num_trials,
        "sources": [
            list(zip(actions[rows].tolist(), rewards[rows].tolist(), strict=True))
            for actions, rewards, rows in zip(bank.actions, bank.rewards, known, strict=True)
            if rows.any()
        ],
    }


def is_ordered(choices: Sequence[Any]) -> bool:
    """Returns whether choices are numbers that ascend."""
    numbers = [c for c in choices if isinstance(c, int | float) and not isinstance(c, bool)]
    return len(numbers) == len(choices) and numbers == sorted(numbers)


def play(table: str, methods: Sequence[mnms.Method], workdir: pathlib.Path) -> np.ndarray:
    """Runs or resumes all searches on a table; returns their regrets, [M, S, T, N]."""
    benchmark = mnms.load_table(table)
    setup = mnms.LeaveOneOutSetup(
        benchmark.space,
        benchmark.task_names,
        tuple(methods),
        mnms.table_objective(benchmark),
        tuple(range(_SEEDS.value)),
        _NUM_TRIALS.value,
    )
    mnms.run_leave_one_out(
        setup,
        workdir,
        contenders=[name for name in ("cold", "transfer") if name in _METHODS.value],
        threshold_trials=500,
        identity={"table": table, "space": benchmark.space.fingerprint},
    )
    return np.stack(
        [
            np.concatenate(
                [
                    read_regrets(benchmark, workdir / f"seed_{seed}" / method.name)
                    for seed in setup.seeds
                ]
            )
            for method in methods
        ]
    )


def read_regrets(benchmark: mnms.TableBenchmark, folder: pathlib.Path) -> np.ndarray:
    """Returns the regrets of a method's searches of one seed by their log, [1, T, N]."""
    shape = (1, len(benchmark.task_names), _NUM_TRIALS.value)
    actions = np.zeros((*shape, benchmark.space.num_decisions), np.int32)
    rewards = np.full(shape, np.nan)
    for record in TrialLog(folder / "trials.jsonl").records:
        where = 0, benchmark.task_names.index(record.task), record.trial
        actions[where] = benchmark.space.encode(record.decisions)
        rewards[where] = np.nan if record.reward is None else record.reward
    tasks = range(len(benchmark.task_names))
    return mnms.regret(benchmark, tasks, mnms.Played(jnp.asarray(actions), jnp.asarray(rewards)))


def summarise(table: str, methods: Sequence[str], regrets: np.ndarray) -> list[dict[str, Any]]:
    """Returns mean regrets with their 95 % intervals over the seeds, by task, method and trials."""
    names = (ALL_TASKS, *mnms.load_table(table).task_names)
    by_task = np.concatenate([regrets.mean(axis=2, keepdims=True), regrets], axis=2)
    rows = []
    for t, task in enumerate(names):
        for m, method in enumerate(methods):
            for count in trial_counts(regrets.shape[-1]):
                mean, low, high = map(float, mean_interval(by_task[m, :, t, count - 1]))
                rows.append(
                    {
                        **{"benchmark": table, "task": task, "method": method, "trials": count},
                        **{"regret": mean, "low": low, "high": high},
                    }
                )
    return rows


def find_versions(methods: Sequence[str]) -> dict[str, str]:
    """Returns the versions of whoever is compared with."""
    versions = {name: PEERS[name].requirements[0] for name in methods if name in PEERS}
    if any(name.startswith("tpe") for name in methods):
        versions["tpe"] = f"optuna=={importlib.metadata.version('optuna')}"
    return versions


def main() -> None:
    """Compares on each table, then writes all regrets."""
    workdir = pathlib.Path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    rows = []
    with contextlib.ExitStack() as stack:

        def make(name: str) -> mnms.Method:
            if name not in PEERS:
                return mnms.make_methods([name])[0]
            worker = stack.enter_context(contextlib.closing(Worker(name, workdir / f"{name}.log")))
            return make_peer(name, worker, _NUM_TRIALS.value)

        methods = [make(name) for name in _METHODS.value]
        versions = find_versions(_METHODS.value)
        logging.info("versions: %s", versions)
        for table in _TABLES.value:
            rows += summarise(table, _METHODS.value, play(table, methods, workdir / table))
    if _JSON.value:
        path = pathlib.Path(_JSON.value)
        path.write_text(json.dumps({"versions": versions, "regrets": rows}, indent=2) + "\n")


if __name__ == "__main__":
    mnms.run_main(main)
