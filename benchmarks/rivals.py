"""Models that people design for texts and for images, fitted as people do it.

Twice: on the training examples, validation choosing the regulariser, or the epoch to end with; and
with what it chose anew, on training and validation examples together.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import LinearSVC

import mnms_jax as mnms
from mnms_jax.children.text import TextPreprocessing, TextSizes
from mnms_jax.retrain import join
from mnms_jax.tasks.embeddings import vectors_for
from mnms_jax.tasks.sentences import kept_features
from mnms_jax.tasks.text import encode, find_words, fit_encoder

_SIZES = TextSizes(vocabulary=20_000, length=64, ngrams=2**18, hashed=2**13)
_PREPROCESSING = TextPreprocessing(lowercase=True, strip=False)
_EPOCHS = 15
_BATCH = 64


class Fitted(NamedTuple):
    """What a model says of a task, with S seeds."""

    validation: float  # accuracy there; of several seeds the mean, networks at its best epoch
    # Classes predicted for the test examples, int [S, N], by what was fitted on train, and on both.
    predictions: tuple[np.ndarray, np.ndarray]


# A task and a number of seeds -> a model, as people design it, fitted.
Rival = Callable[[mnms.Task, int], Fitted]


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


def tfidf(task: mnms.Task, num_seeds: int, make_model: Callable[[float], Any]) -> Fitted:
    """Fits a linear model on the TF-IDF of words and bigrams."""

    def make_pipe(c: float) -> Any:
        words = TfidfVectorizer(
            tokenizer=find_words, token_pattern=None, ngram_range=(1, 2), sublinear_tf=True
        )
        return make_pipeline(words, make_model(c))

    return _fit_best(task, make_pipe)


def encoded_regression(task: mnms.Task, num_seeds: int) -> Fitted:
    """Fits logistic regression on what a sentence encoder makes of the texts."""
    features = FunctionTransformer(functools.partial(kept_features, "minilm_encoder"))

    def make_model(c: float) -> Any:
        return make_pipeline(features, LogisticRegression(C=c, max_iter=1000))

    return _fit_best(task, make_model, (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3))


def nb_svm(task: mnms.Task, num_seeds: int) -> Fitted:
    """Fits NB-SVM on binary unigrams and bigrams, one class against the rest."""

    def make_model(c: float) -> Any:
        words = CountVectorizer(
            tokenizer=find_words, token_pattern=None, ngram_range=(1, 2), binary=True
        )
        weighted = make_pipeline(NaiveBayesRatios(), LinearSVC(C=c))
        return make_pipeline(words, OneVsRestClassifier(weighted))

    return _fit_best(task, make_model)


def pixels_regression(task: mnms.Task, num_seeds: int) -> Fitted:
    """Fits logistic regression on pixels."""

    def flat(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1) / np.float32(255)

    def make_model(c: float) -> Any:
        return make_pipeline(FunctionTransformer(flat), LogisticRegression(C=c, max_iter=100))

    return _fit_best(task, make_model, (0.01, 0.1, 1))


def _fit_best(
    task: mnms.Task,
    make_model: Callable[[float], Any],
    inverses: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1, 3, 10),
) -> Fitted:
    """Fits a model in which nothing is random, with the regulariser that validation chooses."""
    validation, test = (task.splits[name] for name in ("validation", "test"))

    def fit(c: float, task: mnms.Task) -> Any:
        return make_model(c).fit(task.splits["train"].inputs, task.splits["train"].labels)

    models = [fit(c, task) for c in inverses]
    scores = [np.mean(model.predict(validation.inputs) == validation.labels) for model in models]
    best = int(np.argmax(scores))
    both = models[best], fit(inverses[best], join(task))
    first, anew = (model.predict(test.inputs)[None] for model in both)
    return Fitted(scores[best], (first, anew))


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


def fast_text(task: mnms.Task, num_seeds: int) -> Fitted:
    """Trains fastText's model."""

    def prepare(task: mnms.Task) -> tuple[nn.Module, Callable[[Any], np.ndarray]]:
        encoder = fit_encoder(task.splits["train"].inputs, _PREPROCESSING, _SIZES, _SIZES.length)
        encoder = encoder._replace(num_ngrams=2 * _SIZES.length)
        module = FastText(1 + len(encoder.hashes), task.num_classes)
        return module, lambda texts: encode(encoder, texts).ngrams

    return _fit_seeds(task, prepare, 0.01, num_seeds)


def text_cnn(task: mnms.Task, num_seeds: int) -> Fitted:
    """Trains a TextCNN with GloVe vectors."""

    def prepare(task: mnms.Task) -> tuple[nn.Module, Callable[[Any], np.ndarray]]:
        encoder = fit_encoder(task.splits["train"].inputs, _PREPROCESSING, _SIZES, _SIZES.length)
        module = TextCnn(vectors_for(mnms.glove50(), encoder.vocabulary), task.num_classes)
        return module, lambda texts: encode(encoder, texts).tokens

    return _fit_seeds(task, prepare, 0.001, num_seeds)


def le_net(task: mnms.Task, num_seeds: int) -> Fitted:
    """Trains LeNet-5."""
    return _fit_seeds(task, lambda task: (LeNet(task.num_classes), np.asarray), 0.001, num_seeds)


def _fit_seeds(
    task: mnms.Task,
    prepare: Callable[[mnms.Task], tuple[nn.Module, Callable[[Any], np.ndarray]]],
    rate: float,
    num_seeds: int,
) -> Fitted:
    """Trains with several seeds, each to the epoch that is its best on validation.

    Anew, all are trained to the epoch that has the best mean.
    """

    def train(task: mnms.Task, num_epochs: int) -> tuple[np.ndarray, np.ndarray]:
        module, encoded = prepare(task)
        arrays = {name: encoded(split.inputs) for name, split in task.splits.items()}
        done = [_train(task, module, arrays, rate, num_epochs, s) for s in range(num_seeds)]
        scores, predictions = zip(*done, strict=True)
        return np.array(scores), np.array(predictions)

    scores, predictions = train(task, _EPOCHS)  # [S, epochs], [S, epochs, N]
    means = scores.mean(0)
    _, anew = train(join(task), int(means.argmax()) + 1)
    return Fitted(means.max(), (predictions[range(num_seeds), scores.argmax(1)], anew[:, -1]))


def _train(
    task: mnms.Task,
    module: nn.Module,
    arrays: Mapping[str, np.ndarray],
    rate: float,
    num_epochs: int,
    seed: int,
) -> tuple[list[float], list[np.ndarray]]:
    """Trains with Adam; returns each epoch's accuracy on validation and classes of test."""
    labels = task.splits["train"].labels
    transform = optax.adam(rate)
    key = jax.random.key(seed)
    params = module.init(key, arrays["train"][:2], False)
    state = transform.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
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

    rng, scores, predictions = np.random.default_rng(seed), [], []
    for epoch in range(num_epochs):
        order = rng.permutation(len(labels))
        for start in range(0, len(labels) - _BATCH + 1, _BATCH):
            rows = order[start : start + _BATCH]
            dropout_key = jax.random.fold_in(jax.random.fold_in(key, epoch), start)
            params, state = step(params, state, dropout_key, arrays["train"][rows], labels[rows])
        found = predict(params, arrays["validation"])
        scores.append(float(np.mean(found == task.splits["validation"].labels)))
        predictions.append(predict(params, arrays["test"]))
    return scores, predictions


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
# Beside those of texts, for searches that have the encoder too.
ENCODED_RIVALS: dict[str, Rival] = {"minilm_encoder + logistic regression": encoded_regression}
