"""Transfer schedules: searches one after another, each from the controller of the one before."""

import contextlib
import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
from absl import logging

from mnms_jax.config import Config, TransferConfig
from mnms_jax.devices import from_first
from mnms_jax.experiment import run_experiment
from mnms_jax.store import claim_folder, read_json
from mnms_jax.tasks.registry import check_tasks
from mnms_jax.types import UserError

_OPTIONS = ("replay", "frozen")
_BETWEEN_TASKS = re.compile(r"\+(?=[\w-]+(?:[=+]|$)|tfds:)")  # not within a path
_PHASE = re.compile(rf"(.+?):([1-9][0-9]*)((?::(?:{'|'.join(_OPTIONS)}))*)")


class Phase(NamedTuple):
    """One search of a schedule.

    Tasks that earlier phases searched on go on, all others are new.
    """

    tasks: tuple[str, ...]
    num_trials: int  # on each, in this phase
    replay: bool = False  # learns from the trials of earlier phases too, see WarmStart
    frozen: bool = False  # learns the tasks' embeddings alone

    def __str__(self) -> str:
        options = [f":{option}" for option in _OPTIONS if getattr(self, option)]
        return f"{'+'.join(self.tasks)}:{self.num_trials}{''.join(options)}"


def parse_phase(text: str) -> Phase:
    """Returns the phase that `str` writes as `text`, e.g. sst2+imdb:16:replay.

    >>> parse_phase("sst2+imdb:16:replay").tasks
    ('sst2', 'imdb')

    Raises:
      UserError: it says something else.
    """
    found = _PHASE.fullmatch(text)
    if not found:
        raise UserError(
            f"phase {text!r}: must be TASK+TASK:TRIALS, with :replay or :frozen behind it or not"
        )
    tasks, number, options = found.groups()
    chosen = options.split(":")
    return Phase(
        tuple(_BETWEEN_TASKS.split(tasks)), int(number), *(name in chosen for name in _OPTIONS)
    )


def run_schedule(config: TransferConfig, phases: Sequence[Phase]) -> list[dict]:
    """Runs the phases of a schedule, each as an experiment in WORKDIR/phase_NUMBER.

    WORKDIR/config.json has the schedule. What was killed goes on; phases that are done stay as they
    are, those to come may be others than they were.

    Args:
      config: what holds in all phases. The first one starts from its `from_`, or from nothing.
      phases: what to do, in order.

    Returns:
      What `run_experiment` returned for each phase.

    Raises:
      UserError: see there; no phases, one that can't do as it says, or one that is done was
        another.
    """
    _check(config, phases)
    path = pathlib.Path(config.workdir).expanduser()
    names = [f"phase_{number}" for number in range(1, len(phases) + 1)]

    def read_summaries() -> bytes:
        return json.dumps([read_json(path / name / "summary.json") for name in names]).encode()

    summaries = json.loads(from_first(read_summaries))
    to_come = [name for name, summary in zip(names, summaries, strict=True) if not summary]
    description = {name: phase._asdict() for name, phase in zip(names, phases, strict=True)}
    first = jax.process_index() == 0
    if first:  # phases that were to come, and aren't any more
        described = [name for name in read_json(path / "config.json") if name.startswith("phase_")]
        dropped = [name for name in described if name not in names]
        to_come += [name for name in dropped if not read_json(path / name / "summary.json")]
    with claim_folder(path, description, to_come) if first else contextlib.nullcontext():
        before = None
        for number, (name, phase) in enumerate(zip(names, phases, strict=True)):
            over = " (done)" * (name not in to_come)
            logging.info("%s of %d: %s%s", name, len(phases), phase, over)
            if not over:
                summaries[number] = run_experiment(_config(config, phase, name, before))
            before = name
    return summaries


def _check(config: TransferConfig, phases: Sequence[Phase]) -> None:
    """Checks what would otherwise fail after some phases."""
    if not phases:
        raise UserError("--phases: name at least one")
    if not config.from_ and (phases[0].replay or phases[0].frozen):
        raise UserError(f"phase {phases[0]}: the first one has nothing to replay or to keep frozen")
    if len(phases) > 1 and not config.save_controller:
        raise UserError("--nosave_controller: a phase starts from the controller before")
    if config.learner == "random":
        raise UserError("--learner=random: random search has nothing to transfer")
    for phase in phases:
        dataclasses.replace(config, tasks=phase.tasks)
        check_tasks(phase.tasks)


def _config(config: TransferConfig, phase: Phase, name: str, before: str | None) -> Config:
    """Returns a phase's configuration: of a transfer where there is anything to start from."""
    own = dataclasses.replace(
        config,
        tasks=phase.tasks,
        num_trials=phase.num_trials,
        replay=phase.replay,
        trained="embedding" if phase.frozen else config.trained,
        imitation=config.imitation and not phase.frozen,
        workdir=f"{config.workdir}/{name}",
        from_=f"{config.workdir}/{before}" if before else config.from_,
        renamed=() if before else config.renamed,
    )
    return own if own.from_ else own.from_scratch
