"""Others' tuners as methods: each runs in a process of its own, from an environment of its own."""

import contextlib
import functools
import importlib.metadata
import itertools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

import mnms_jax as mnms
from mnms_jax.methods import Sources
from mnms_jax.tasks.packaged import cache_folder

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
                env=os.environ | {"PYTHONHASHSEED": "0"},  # SMAC's designs depend on it
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


def find_versions(methods: Sequence[str]) -> dict[str, str]:
    """Returns the versions of whoever is compared with."""
    versions = {name: PEERS[name].requirements[0] for name in methods if name in PEERS}
    if any(name.startswith("tpe") for name in methods):
        versions["tpe"] = f"optuna=={importlib.metadata.version('optuna')}"
    return versions
