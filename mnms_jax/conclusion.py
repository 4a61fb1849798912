"""The end of an experiment: the best children, tested once, kept, and tabled."""

import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax
import rich.console
from absl import logging

from mnms_jax.bench import Bench
from mnms_jax.card import escape, search_quality, write_card
from mnms_jax.config import Config, TransferConfig
from mnms_jax.controller import choice_frequencies
from mnms_jax.export import Child, save_child
from mnms_jax.report import (
    Finalists,
    Specialization,
    TaskSummary,
    find_specialization,
    print_summary,
    summary_json,
    top_records,
)
from mnms_jax.reward import ACCURACY, SIZES, measure, parse_reward
from mnms_jax.saved_controller import SavedController, save_controller
from mnms_jax.search import SearchState
from mnms_jax.sinks import TrackedChild, write_hyperparameters
from mnms_jax.sources import to_save
from mnms_jax.store import TrialRecord, write_json
from mnms_jax.tasks.reference import fit_reference
from mnms_jax.training.fit import Request
from mnms_jax.types import Policy


def conclude(
    config: Config,
    bench: Bench,
    path: pathlib.Path,
    policy: Policy,
    state: SearchState,
    records: Sequence[TrialRecord],
    random_records: Sequence[TrialRecord] | None,
    sources: SavedController | None,
) -> dict:
    """Tests the best children, fits the references, writes all into the folder and prints it.

    Args:
      config: of the search.
      bench: its tasks and children.
      path: its folder.
      policy: its controller's.
      state: its last state.
      records: its trials.
      random_records: those of random search; None: there was none.
      sources: what it started from.

    Returns:
      The final table as plain JSON data.
    """
    space = bench.family.space
    summaries = []
    for task_id, task in enumerate(bench.tasks):
        logging.info("testing the best children on %s", task.name)
        best = path / "best" / task.name
        finalists = _test(bench, task_id, records, config, best)
        random = None
        if random_records is not None:
            rival = dataclasses.replace(config, learner="random")
            random = _test(bench, task_id, random_records, rival)
        reference = fit_reference(task, config.reward)
        summaries.append(TaskSummary(task.name, finalists, random, reference))
        if finalists.records:
            _write_card(config, bench, task_id, summaries[-1], best)
    frequencies = {
        task.name: choice_frequencies(policy, space, state.params, jax.random.key(0), task_id)
        for task_id, task in enumerate(bench.tasks)
    }
    specialization = find_specialization(space, frequencies)
    if config.save_controller and config.learner != "random":
        learned = (state.params, records, sources, config.reward, config.skip_connection)
        saved = to_save(space, bench.tasks, *learned)
        save_controller(path / "controller", saved)
    summary = summary_json(summaries, specialization, config.reward)
    write_json(path / "summary.json", summary)
    if "tensorboard" in config.track:
        write_hyperparameters(path / "tensorboard" / "best", _tracked(summaries))
    _print(config, path, summaries, specialization)
    return summary


def _tracked(summaries: Sequence[TaskSummary]) -> Iterator[TrackedChild]:
    """Yields each task's best children with what they were rewarded on validation and test."""
    for summary in summaries:
        found = summary.finalists
        for record, test in zip(found.records, found.test_rewards, strict=True):
            rewards = {"validation": record.reward, "test": test}
            known = {split: value for split, value in rewards.items() if value is not None}
            yield TrackedChild(summary.task, record.trial, record.decisions, known)


def _test(
    bench: Bench,
    task_id: int,
    records: Sequence[TrialRecord],
    config: Config,
    best: pathlib.Path | None = None,
) -> Finalists:
    """Tests a task's best children; saves the first one into `best`."""
    task = bench.tasks[task_id]
    test = task.splits["test"]
    top = top_records(records, task.name)
    reward, rewards, metrics = parse_reward(config.reward), [], []
    for record, child in zip(top, _retrain(bench, task_id, top), strict=True):
        sizes = {name: record.metrics[name] for name in SIZES if name in record.metrics}
        metrics.append({**measure(test.labels, child.predict_proba(test.inputs)), **sizes})
        rewards.append(reward(metrics[-1])[0])
        if best is not None and record is top[0]:
            save_child(best, child)
    num_trials = sum(record.task == task.name for record in records)
    label = f"{config.learner} transfer" if isinstance(config, TransferConfig) else config.learner
    return Finalists(label, num_trials, top, tuple(rewards), tuple(metrics))


def _write_card(
    config: Config, bench: Bench, task_id: int, summary: TaskSummary, best: pathlib.Path
) -> None:
    task, trial = bench.tasks[task_id], summary.finalists.records[0]
    origin = (
        f"Found by {escape(summary.finalists.label)} search with seed {config.seed}, trial "
        f"{trial.trial} on the task, and trained on the training examples alone."
    )
    quality = search_quality(summary, task, config.reward)
    write_card(best, task, config.tasks[task_id], trial.decisions, quality, origin)


def _retrain(bench: Bench, task_id: int, records: Sequence[TrialRecord]) -> Iterator[Child]:
    """Yields the children of trials, trained again exactly as they were then."""
    task = bench.tasks[task_id]
    for record in records:
        outcome, variables = bench.trainer.fit(
            Request(task_id, task.name, record.trial, record.decisions)
        )
        accuracy, logged = float(outcome.accuracy), record.metrics.get(ACCURACY, record.reward)
        if accuracy != logged:
            logging.warning(
                "trial %d of %s had accuracy %s and has %s now: another machine or version?",
                record.trial,
                task.name,
                logged,
                accuracy,
            )
        yield bench.make_child(task_id, record.decisions, variables)


def _print(
    config: Config,
    path: pathlib.Path,
    summaries: Sequence[TaskSummary],
    specialization: Sequence[Specialization],
) -> None:
    console = rich.console.Console(width=None if sys.stdout.isatty() else 120)
    print_summary(summaries, specialization, console, config.reward)
    learns = config.learner != "random"
    written = ["trials.jsonl", "summary.json", "best/TASK", "checkpoints", *config.track]
    written += ["report"] * config.live_report
    written += ["controller"] * (config.save_controller and learns)
    written += ["random (the trials of random search)"] * (config.compare_random and learns)
    console.print(f"written to {path.resolve()}: {', '.join(written)}", soft_wrap=True)
