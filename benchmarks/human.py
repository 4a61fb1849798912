"""Models that people design, against the best children of a search, on the same splits.

Claim: the best child of a search is at least as good as the best of them. Each is fitted on the
training examples; validation chooses its regulariser, or the epoch that it ends with; the test
examples are looked at once. Of texts: logistic regression and a linear SVM on TF-IDF, NB-SVM (Wang
& Manning 2012), fastText's model (Joulin et al. 2017) and TextCNN (Kim 2014). Of images: logistic
regression on pixels and LeNet-5 (LeCun et al. 1998).

Command: python -m experiments.multitask --tasks=vader_movie,vader_amazon,vader_tweets,vader_nyt,\
trec6,sms_spam --num_trials=64 --nocompare_random --workdir=runs/six
         python -m benchmarks.human --searched=runs/six
Cost: ten minutes on two CPU cores, after the search.
"""

import csv
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.table
from absl import flags
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import LinearSVC

import mnms_jax as mnms
from mnms_jax.children.text import TextPreprocessing, TextSizes
from mnms_jax.tasks.embeddings import vectors_for
from mnms_jax.tasks.text import encode, find_words, fit_encoder

_SEARCHED = flags.DEFINE_string("searched", "runs/six", "Folder of a search that has ended.")
_ENTRIES = flags.DEFINE_list(
    "searched_tasks", [], "The search's tasks as it was given them; by default their names."
)

_SIZES = TextSizes(vocabulary=20_000, length=64, ngrams=2**18, hashed=2**13)
_PREPROCESSING = TextPreprocessing(lowercase=True, strip=False)
_EPOCHS = 15
_BATCH = 64

# A task -> the classes predicted for its test examples, int [N].
Rival = Callable[[mnms.Task], np.ndarray]


class Row(NamedTuple):
    """One model on one task."""

    task: str
    model: str
    test: float  # accuracy
    low: float  # its 95 % interval
    high: float
    behind_child: float  # by how much it is worse than the best child, on the same examples
    behind_low: float
    behind_high: float


class NaiveBayesRatios:
    """Binary counts times how much more frequent they are within a class (Wang & Manning 2012)."""

    def fit(self, counts: Any, labels: np.ndarray) -> "NaiveBayesRatios":
        """Learns the ratios of two classes, labels being 0 and 1."""
        shares = [1 + np.asarray(counts[labels == c].sum(0)).ravel() for c in (0, 1)]
        self.ratios = np.log((shares[1] / shares[1].sum()) / (shares[0] / shares[0].sum()))
        return self

    def transform(self, counts: Any) -> Any:
        """Returns the weighted counts."""
        return counts.multiply(self.ratios).tocsr()

    def get_params(self, deep: bool = True) -> dict:
        """Returns no parameters; for scikit-learn's copies."""
        return {}


def tfidf(task: mnms.Task, make_model: Callable[[float], Any]) -> np.ndarray:
    """Fits a linear model on the TF-IDF of words and bigrams."""
    words = TfidfVectorizer(
        tokenizer=find_words, token_pattern=None, ngram_range=(1, 2), sublinear_tf=True
    )
    return _best_of(task, lambda c: make_pipeline(words, make_model(c)))


def nb_svm(task: mnms.Task) -> np.ndarray:
    """Fits NB-SVM on binary unigrams and bigrams, one class against the rest."""
    words = CountVectorizer(
        tokenizer=find_words, token_pattern=None, ngram_range=(1, 2), binary=True
    )

    def make_model(c: float) -> Any:
        return make_pipeline(
            words, OneVsRestClassifier(make_pipeline(NaiveBayesRatios(), LinearSVC(C=c)))
        )

    return _best_of(task, make_model)


def _best_of(
    task: mnms.Task,
    make_model: Callable[[float], Any],
    inverses: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1, 3, 10),
) -> np.ndarray:
    train, validation, test = (task.splits[name] for name in ("train", "validation", "test"))
    models = [make_model(c).fit(train.inputs, train.labels) for c in inverses]
    scores = [np.mean(model.predict(validation.inputs) == validation.labels) for model in models]
    return models[int(np.argmax(scores))].predict(test.inputs)


def pixels_regression(task: mnms.Task) -> np.ndarray:
    """Fits logistic regression on pixels."""

    def flat(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1) / np.float32(255)

    def make_model(c: float) -> Any:
        return make_pipeline(FunctionTransformer(flat), LogisticRegression(C=c, max_iter=100))

    return _best_of(task, make_model, (0.01, 0.1, 1))


class FastText(nn.Module):
    """The mean of the embeddings of words and bigrams, and a linear layer."""

    rows: int
    num_classes: int
    size: int = 50

    @nn.compact
    def __call__(self, ngrams: jax.Array, training: bool) -> jax.Array:
        """Returns logits [B, C] for n-grams, int32 [B, W], 0 being padding."""
        there = (ngrams > 0)[..., None]
        total = jnp.sum(nn.Embed(self.rows, self.size)(ngrams) * there, 1)
        return nn.Dense(self.num_classes)(total / jnp.maximum(there.sum(1), 1))


class TextCnn(nn.Module):
    """Three widths of 100 filters over fine-tuned word vectors, as "CNN-non-static"."""

    table: Any
    num_classes: int

    @nn.compact
    def __call__(self, tokens: jax.Array, training: bool) -> jax.Array:
        """Returns logits [B, C] for words, int32 [B, L], 0 being padding."""
        table = self.param("table", lambda _: jnp.asarray(self.table))
        x = table[tokens] * (tokens > 0)[..., None]
        maxima = [nn.relu(nn.Conv(100, (width,))(x)).max(1) for width in (3, 4, 5)]
        x = nn.Dropout(0.5, deterministic=not training)(jnp.concatenate(maxima, -1))
        return nn.Dense(self.num_classes)(x)


class LeNet(nn.Module):
    """LeNet-5, for images of 28 x 28 pixels and others."""

    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, training: bool) -> jax.Array:
        """Returns logits [B, C] for images [B, H, W, channels]."""
        x = images / 127.5 - 1
        for filters in (6, 16):
            x = nn.avg_pool(nn.tanh(nn.Conv(filters, (5, 5))(x)), (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for units in (120, 84):
            x = nn.tanh(nn.Dense(units)(x))
        return nn.Dense(self.num_classes)(x)


def fast_text(task: mnms.Task) -> np.ndarray:
    """Trains fastText's model."""
    encoder = fit_encoder(task.splits["train"].inputs, _PREPROCESSING, _SIZES, _SIZES.length)
    encoder = encoder._replace(num_ngrams=2 * _SIZES.length)
    module = FastText(_SIZES.ngrams, task.num_classes)
    return _train(task, module, lambda texts: encode(encoder, texts).ngrams, 0.01)


def text_cnn(task: mnms.Task) -> np.ndarray:
    """Trains a TextCNN with GloVe vectors."""
    encoder = fit_encoder(task.splits["train"].inputs, _PREPROCESSING, _SIZES, _SIZES.length)
    table = vectors_for(mnms.glove50(), encoder.vocabulary)
    module = TextCnn(table, task.num_classes)
    return _train(task, module, lambda texts: encode(encoder, texts).tokens, 0.001)


def le_net(task: mnms.Task) -> np.ndarray:
    """Trains LeNet-5."""
    return _train(task, LeNet(task.num_classes), np.asarray, 0.001)


def _train(
    task: mnms.Task, module: nn.Module, prepare: Callable[[Any], np.ndarray], rate: float
) -> np.ndarray:
    """Trains with Adam, and predicts by the weights of the epoch with the best validation."""
    arrays = {name: prepare(split.inputs) for name, split in task.splits.items()}
    labels = task.splits["train"].labels
    transform = optax.adam(rate)
    params = module.init(jax.random.key(0), arrays["train"][:2], False)
    state = transform.init(params)

    @jax.jit
    def step(params: Any, state: Any, key: jax.Array, x: Any, y: Any) -> tuple[Any, Any]:
        def loss(params: Any) -> jax.Array:
            logits = module.apply(params, x, True, rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        updates, moved = transform.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), moved

    @jax.jit
    def classify(params: Any, x: Any) -> jax.Array:
        logits: Any = module.apply(params, x, False)
        return logits.argmax(-1)

    def predict(params: Any, x: np.ndarray) -> np.ndarray:
        parts = [classify(params, x[start : start + 500]) for start in range(0, len(x), 500)]
        return np.concatenate(parts)

    rng, best = np.random.default_rng(0), (-1.0, params)
    for epoch in range(_EPOCHS):
        order = rng.permutation(len(labels))
        for start in range(0, len(labels) - _BATCH + 1, _BATCH):
            rows = order[start : start + _BATCH]
            key = jax.random.fold_in(jax.random.key(epoch), start)
            params, state = step(params, state, key, arrays["train"][rows], labels[rows])
        found = predict(params, arrays["validation"])
        score = float(np.mean(found == task.splits["validation"].labels))
        best = max(best, (score, params), key=lambda pair: pair[0])
    return predict(best[1], arrays["test"])


RIVALS: dict[str, dict[str, Rival]] = {
    "text": {
        "TF-IDF + logistic regression": functools.partial(
            tfidf, make_model=lambda c: LogisticRegression(C=10 * c, max_iter=1000)
        ),
        "TF-IDF + linear SVM": functools.partial(tfidf, make_model=lambda c: LinearSVC(C=c)),
        "NB-SVM": nb_svm,
        "fastText": fast_text,
        "TextCNN with GloVe": text_cnn,
    },
    "image": {"pixels + logistic regression": pixels_regression, "LeNet-5": le_net},
}


def interval(share: float, number: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share that was seen in so many examples (Wilson 1927)."""
    z = 1.96
    centre = share + z**2 / (2 * number)
    half = z * np.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
    return (centre - half) / (1 + z**2 / number), (centre + half) / (1 + z**2 / number)


def compare(task: mnms.Task, best: pathlib.Path) -> list[Row]:
    """Returns the best child's and all rivals' test accuracies on a task."""
    test = task.splits["test"]
    child = mnms.load_child(best).predict_proba(test.inputs).argmax(-1) == test.labels
    correct = {"best child": child}
    for name, rival in RIVALS[task.kind].items():
        correct[name] = rival(task) == test.labels
    rows = []
    for name, own in correct.items():
        difference = child.astype(float) - own
        mean, error = difference.mean(), 1.96 * difference.std() / np.sqrt(len(own))
        behind = (mean, mean - error, mean + error)
        rows.append(Row(task.name, name, own.mean(), *interval(own.mean(), len(own)), *behind))
    return rows


def main() -> None:
    """Compares all tasks of a search, prints a table, and writes human.csv into its folder."""
    workdir = pathlib.Path(_SEARCHED.value)
    summary = json.loads((workdir / "summary.json").read_text())
    config = json.loads((workdir / "config.json").read_text())
    entries = _ENTRIES.value or config.get("entries", list(summary["tasks"]))
    rows: list[Row] = []
    # Rivals have as many examples to learn from as the search had.
    for task in mnms.load_tasks(entries, None, config.get("max_train_examples") or None):
        if task.kind not in RIVALS:
            raise mnms.UserError(f"task {task.name!r} is of {task.kind}s: nothing to compare with")
        rows += compare(task, workdir / "best" / task.name)
    with (workdir / "human.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(rows)
    table = rich.table.Table(title="test accuracy in %, 95 % interval; behind the best child")
    for column in ("task", "model", "test", "behind"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row.task,
            row.model,
            f"{100 * row.test:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]",
            f"{100 * row.behind_child:.1f} [{100 * row.behind_low:.1f}, "
            f"{100 * row.behind_high:.1f}]",
        )
    rich.console.Console(width=120).print(table)
    names = list(dict.fromkeys(row.model for row in rows))
    means = {n: np.mean([row.test for row in rows if row.model == n]) for n in names}
    print("mean over tasks:", ", ".join(f"{n} {100 * mean:.1f}" for n, mean in means.items()))


if __name__ == "__main__":
    mnms.run_main(main)
