"""Models that people design, against the best designs of a search, on the same splits.

Claim: the best design of a search is at least as good as the best of them. Twice, as people do it:
fitted on the training examples, validation choosing the regulariser, or the epoch to end with; and
with what it chose fitted anew on training and validation examples together. What is random is
trained with several seeds, the search's designs as much as the rivals. The design is chosen as
`experiments.retrain` does it. The test examples choose nothing. Of texts: logistic regression and a
linear SVM on TF-IDF, NB-SVM (Wang & Manning 2012), fastText's model (Joulin et al. 2017) and
TextCNN (Kim 2014); where the search had a sentence encoder, logistic regression on it too. Of
images: logistic regression on pixels and LeNet-5 (LeCun et al. 1998).

Command: python -m experiments.multitask --tasks=vader_movie,vader_amazon,vader_tweets,vader_nyt,\
trec6,sms_spam --num_trials=128 --nocompare_random --workdir=runs/six
         python -m benchmarks.human --searched=runs/six
Cost: about an hour on two busy CPU cores, after the search.
"""

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import rich.console
import rich.table
from absl import flags

import mnms_jax as mnms
from benchmarks.rivals import ENCODED_RIVALS, RIVALS, Fitted
from mnms_jax.bench import Bench, make_bench
from mnms_jax.retrain import Candidate, confirm, join, open_bench
from mnms_jax.store import TrialLog, TrialRecord
from mnms_jax.training.fit import Request

_SEARCHED = flags.DEFINE_string("searched", "runs/six", "Folder of a search that has ended.")
_ENTRIES = flags.DEFINE_list(
    "searched_tasks", [], "The search's tasks as it was given them; by default their names."
)
_SEEDS = flags.DEFINE_integer("model_seeds", 5, "Seeds of all that is random.")
_DESIGNS = flags.DEFINE_integer("designs", 10, "The search's best, to choose from.")

_FITTED_ON = ("train", "train + validation")
_BEST, _CONFIRMED = "best design", "confirmed design"


class Row(NamedTuple):
    """One model on one task."""

    task: str
    model: str
    fitted_on: str
    seeds: int
    validation: float  # accuracy, of what was fitted on train
    test: float  # mean accuracy
    deviation: float  # over seeds; 0 for one
    low: float  # 95 % interval of the mean, by the number of test examples
    high: float
    behind: float  # by how much it is worse than the confirmed design, on the same examples
    behind_low: float
    behind_high: float


def interval(share: float, number: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share that was seen in so many examples (Wilson 1927)."""
    z = 1.96
    centre = share + z**2 / (2 * number)
    half = z * np.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
    return (centre - half) / (1 + z**2 / number), (centre + half) / (1 + z**2 / number)


def fit_designs(
    benches: tuple[Bench, Bench],
    task_id: int,
    records: Sequence[TrialRecord],
    num_candidates: int,
    num_seeds: int,
) -> dict[str, Fitted]:
    """Returns the search's best design on a task, and the one that more seeds confirm.

    Args:
      benches: of the search, as it was and with validation joined to train.
      task_id: index of the task.
      records: of the search.
      num_candidates: how many designs there are to choose from.
      num_seeds: children of each design.
    """

    def fit(candidate: Candidate) -> Fitted:
        return Fitted(
            candidate.mean, (predict(benches[0], candidate), predict(benches[1], candidate))
        )

    def predict(bench: Bench, candidate: Candidate) -> np.ndarray:
        task, design, found = bench.tasks[task_id], candidate.design, []
        for seed in range(num_seeds):
            variables = bench.trainer.fit(Request(task_id, task.name, seed, design))[1]
            child = bench.make_child(task_id, design, variables)
            found.append(child.predict_proba(task.splits["test"].inputs).argmax(-1))
        return np.array(found)

    candidates = confirm(benches[0], task_id, records, num_candidates, num_seeds)
    means = [f"{c.trial} {100 * c.rewards[0]:.1f} -> {100 * c.mean:.1f}" for c in candidates]
    print(f"{benches[0].tasks[task_id].name}, trials and their means:", ", ".join(means))
    confirmed = candidates[0]
    best = max(candidates, key=lambda c: (c.rewards[0], -c.trial))
    fitted = fit(confirmed)
    return {_BEST: fitted if best is confirmed else fit(best), _CONFIRMED: fitted}


def compare(task: mnms.Task, models: Mapping[str, Fitted]) -> list[Row]:
    """Returns all models' test accuracies on a task; they have the confirmed design among them."""
    labels, rows = task.splits["test"].labels, []
    for part, fitted_on in enumerate(_FITTED_ON):
        correct = {name: fitted.predictions[part] == labels for name, fitted in models.items()}
        for name, own in correct.items():
            shares = own.mean(1)
            difference = correct[_CONFIRMED].mean(0) - own.mean(0)
            mean, error = difference.mean(), 1.96 * difference.std() / np.sqrt(len(labels))
            rows.append(
                Row(
                    *(task.name, name, fitted_on, len(own), models[name].validation),
                    *(shares.mean(), shares.std(ddof=1) if len(own) > 1 else 0.0),
                    *interval(shares.mean(), len(labels)),
                    *(mean, mean - error, mean + error),
                )
            )
    return rows


def show(rows: Sequence[Row], fitted_on: str) -> None:
    """Prints a table, and on how many tasks the designs are as good as the rivals."""
    rows = [row for row in rows if row.fitted_on == fitted_on]
    table = rich.table.Table(title=f"fitted on {fitted_on}: accuracy in %, 95 % interval")
    for column in ("task", "model", "validation", "test", "behind the confirmed design"):
        table.add_column(column)
    for row in rows:
        spread = f" ± {100 * row.deviation:.1f}" if row.seeds > 1 else ""
        table.add_row(
            row.task,
            row.model,
            f"{100 * row.validation:.1f}",
            f"{100 * row.test:.1f}{spread} [{100 * row.low:.1f}, {100 * row.high:.1f}]",
            f"{100 * row.behind:.1f} [{100 * row.behind_low:.1f}, {100 * row.behind_high:.1f}]",
        )
    rich.console.Console(width=120).print(table)
    names = list(dict.fromkeys(row.model for row in rows))
    means = {n: np.mean([row.test for row in rows if row.model == n]) for n in names}
    print("mean over tasks:", ", ".join(f"{n} {100 * mean:.1f}" for n, mean in means.items()))
    tasks = list(dict.fromkeys(row.task for row in rows))
    rivals = [
        [row for row in rows if row.task == t and row.model not in (_BEST, _CONFIRMED)]
        for t in tasks
    ]
    for chosen_by, score in {
        "test (a maximum over noise)": lambda row: row.test,
        "validation (what one could have)": lambda row: row.validation,
    }.items():
        best = [max(own, key=score) for own in rivals]
        won = sum(row.behind > -1e-9 for row in best)
        print(
            f"the best rival of each task by {chosen_by}: "
            + ", ".join(f"{row.model} {100 * row.test:.1f}" for row in best)
            + f"; mean {100 * np.mean([row.test for row in best]):.1f}; "
            f"the confirmed design is at least as good on {won} of {len(tasks)}"
        )


def main() -> None:
    """Compares all tasks of a search, prints tables, and writes human.csv into its folder."""
    workdir = pathlib.Path(_SEARCHED.value)
    config, bench = open_bench(workdir, _ENTRIES.value)
    benches = bench, make_bench(config, [join(task) for task in bench.tasks])
    records, rows = TrialLog(workdir / "trials.jsonl").records, []
    for task_id, task in enumerate(bench.tasks):
        if task.kind not in RIVALS:
            raise mnms.UserError(f"task {task.name!r} is of {task.kind}s: nothing to compare with")
        models = fit_designs(benches, task_id, records, _DESIGNS.value, _SEEDS.value)
        encoded = ENCODED_RIVALS if "minilm_encoder" in config.embeddings else {}
        for name, rival in {**RIVALS[task.kind], **encoded}.items():
            models[name] = rival(task, _SEEDS.value)
        rows += compare(task, models)
    with (workdir / "human.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(rows)
    for fitted_on in _FITTED_ON:
        show(rows, fitted_on)


if __name__ == "__main__":
    mnms.run_main(main)
