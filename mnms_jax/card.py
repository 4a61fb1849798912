"""Model cards: what a saved child is, how good, and how it came about, as a page beside it."""

import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import flax
import jax
import numpy as np

from mnms_jax.report import TaskSummary, show_number
from mnms_jax.reward import ACCURACY
from mnms_jax.types import Choice, Task

_UCI = "CC BY 4.0, of the UCI Machine Learning Repository"
_TERMS = {
    "spanish_id": "CC BY-SA 4.0, of wordfreq",
    **dict.fromkeys(("iris", "wine", "breast_cancer", "digits"), _UCI),
}
_UNKNOWN_TERMS = (
    "not known to mnms_jax. Ask where the data comes from before you pass the child on: its "
    "vocabulary, categories and weights come from the data"
)

_EMBEDDINGS = {
    "glove50": "\n- Embedding: GloVe (Pennington et al. 2014), PDDL 1.0",
    "minilm": "\n- Embedding: the token table of all-MiniLM-L6-v2, Apache-2.0",
    "minilm_encoder": "\n- Embedding: the sentence encoder all-MiniLM-L6-v2, Apache-2.0, which is "
    "fetched when the child is first used; it needs `pip install 'mnms_jax[encoder]'`",
}
_INPUTS = {
    "text": '["some text"]',
    "image": "images  # uint8 [N, H, W, C]",
    "record": "records  # columns of N values by name",
}
_PAGE = """\
# {name}

Classifies {kind}s. {origin}

## How good it is

{quality}

## Data

- Source: {entry}
- Examples: {sizes}
- Terms: {terms}{embedding}

{classes}

## Design

{design}

## Use

In this folder:

```python
{usage}
```

`python -m experiments.predict --workdir=. --input=FILE` predicts files of {kind}s.

Written by {versions}.
"""


_USAGE = """\
import mnms_jax

child = mnms_jax.load_child({folder})
inputs = {inputs}
child.predict(inputs)  # names of classes
child.predict_proba(inputs)  # [N, classes]
child.apply_fn(child.variables, child.encode(inputs))  # logits [N, classes], in plain JAX"""


def usage_code(folder: str, kind: str) -> str:
    """Returns Python that loads a child from a folder and predicts inputs of a kind of task."""
    return _USAGE.format(folder=json.dumps(folder, ensure_ascii=False), inputs=_INPUTS[kind])


def escape(text: object) -> str:
    """Returns a text of the user's as Markdown that shows it as it is, in one line."""
    return re.sub(r"([\\`*_\[\]<>#|~&$])", r"\\\1", " ".join(str(text).split()))


def search_quality(summary: TaskSummary, task: Task, reward: str) -> list[str]:
    """Returns what a card says of the best child of a search, as lines.

    Args:
      summary: of the task.
      task: the task.
      reward: what children were rewarded with, see `parse_reward`.
    """
    finalists, reference = summary.finalists, summary.reference
    rewards, tests = (
        np.array(values, float)  # NaN for None
        for values in ([record.reward for record in finalists.records], finalists.test_rewards)
    )
    rows = [
        ("this child", rewards[0], tests[0]),
        (f"mean of the best {len(rewards)}", rewards.mean(), tests.mean()),
        (escape(reference.name), reference.validation, reference.test),
    ]
    doubt = ""
    if reward == ACCURACY:
        error = math.sqrt(tests[0] * (1 - tests[0]) / len(task.splits["test"].labels))
        doubt = (
            f" By the size of the test set alone, that is uncertain by {show_number(error)} "
            "(standard error)."
        )
    return [
        *_table(
            (escape(reward), "validation", "test"),
            [(name, *map(show_number, values)) for name, *values in rows],
        ),
        "",
        f"This child is the best of {finalists.num_trials} trials on validation. The maximum over "
        "trials is optimistic: what to expect of new data is nearer to that on test, which chose "
        f"nothing.{doubt}",
    ]


def write_card(
    path: pathlib.Path,
    task: Task,
    entry: str,
    decisions: Mapping[str, Choice],
    quality: Sequence[str],
    origin: str,
) -> None:
    """Writes README.md into a child's folder.

    Args:
      path: the folder.
      task: that the child was trained on.
      entry: what names the task's data, see `load_tasks`.
      decisions: the child's design.
      quality: how good it is, lines of Markdown.
      origin: Markdown that says how the child came about.
    """
    import mnms_jax  # late, as it imports this

    labels = task.splits["train"].labels
    classes = [
        (escape(name), f"{np.mean(labels == number):.1%}")
        for number, name in enumerate(task.class_names)
    ]
    sizes = [f"{len(split.labels):,} for {part}" for part, split in task.splits.items()]
    versions = [f"{module.__name__} {module.__version__}" for module in (mnms_jax, jax, flax)]
    page = _PAGE.format(
        name=escape(task.name),
        kind=task.kind,
        origin=origin,
        quality="\n".join(quality),
        entry=escape(entry),
        sizes=", ".join(sizes),
        terms=_TERMS.get(task.name, _UNKNOWN_TERMS),
        embedding=_EMBEDDINGS.get(str(decisions.get("embedding")), ""),
        classes="\n".join(_table(("class", "share of train"), classes)),
        design="\n".join(
            _table(("decision", "choice"), [(escape(k), escape(v)) for k, v in decisions.items()])
        ),
        usage=usage_code(".", task.kind),
        versions=", ".join(versions),
    )
    (path / "README.md").write_text(page, encoding="utf-8")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        "|---" * len(header) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
