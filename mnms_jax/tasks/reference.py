"""A classical reference on the same splits."""

import warnings
from typing import Any, NamedTuple

import numpy as np

from mnms_jax.children.mlp import RecordPreprocessing
from mnms_jax.reward import ACCURACY, measure, parse_reward
from mnms_jax.tasks.images import resize
from mnms_jax.tasks.records import encode_records, fit_record_encoder
from mnms_jax.tasks.text import find_words
from mnms_jax.types import Split, Task

_NAMES = {
    "text": "TF-IDF + logistic regression",
    "image": "pixels + logistic regression",
    "record": "gradient boosting",
}
_MOST_PIXELS = 32  # of a side
_MANY_CLASSES = 50
_MOST_WEIGHTS = 2**25  # of a model for many classes: 256 MiB


class Reference(NamedTuple):
    """What the reference would be rewarded with; None where that isn't defined."""

    name: str
    validation: float | None
    test: float | None


def fit_reference(task: Task, reward: str = ACCURACY) -> Reference:
    """Fits a classical model on the training examples.

    Of texts, logistic regression on the TF-IDF of words and bigrams, whose vocabulary is the
    training texts' alone; of images, the same on their pixels; of records, gradient-boosted trees.
    Validation chooses the inverse regulariser, or the learning rate, and the test examples are
    looked at once. A reward that isn't of METRICS alone isn't defined for such a model.
    """
    rewarded = parse_reward(reward)
    name = _NAMES[task.kind]
    train, validation, test = (task.splits[name] for name in ("train", "validation", "test"))
    if len(np.unique(train.labels)) < 2:
        constant = np.eye(task.num_classes)[train.labels[0]]
        values = [
            rewarded(measure(split.labels, np.tile(constant, (len(split.labels), 1))))[0]
            for split in (validation, test)
        ]
        return Reference(name, *values)
    if task.kind == "record":
        encoder = fit_record_encoder(train.inputs, RecordPreprocessing("standard"))
        train, validation, test = (
            split._replace(inputs=encode_records(encoder, split.inputs))
            for split in (train, validation, test)
        )
    make_models = {"text": _text_models, "image": _image_models, "record": _record_models}
    with warnings.catch_warnings():
        # Of too few iterations: their number is chosen, see _image_models.
        warnings.filterwarnings("ignore", ".*failed to converge", UserWarning)
        models = [model.fit(train.inputs, train.labels) for model in make_models[task.kind](task)]

    def judge(model: Any, split: Split) -> float | None:
        probabilities = np.zeros((len(split.labels), task.num_classes))
        probabilities[:, model.classes_] = model.predict_proba(split.inputs)
        return rewarded(measure(split.labels, probabilities))[0]

    rewards = [judge(model, validation) for model in models]
    best = int(np.argmax([-np.inf if reward is None else reward for reward in rewards]))
    return Reference(name, rewards[best], judge(models[best], test))


def _text_models(task: Task) -> list[Any]:
    # Imported here, since it takes a second.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.pipeline import make_pipeline

    # With many classes, one against the rest at a time, of fewer words: else memory runs out.
    many = task.num_classes > _MANY_CLASSES
    num_texts = len(task.splits["train"].labels)
    return [
        make_pipeline(
            TfidfVectorizer(
                tokenizer=find_words,
                token_pattern=None,
                ngram_range=(1, 2),
                sublinear_tf=True,
                max_features=_MOST_WEIGHTS // task.num_classes if many else None,
            ),
            SGDClassifier(loss="log_loss", alpha=1 / (inverse * num_texts), random_state=0)
            if many
            else LogisticRegression(C=inverse, max_iter=1000),
        )
        for inverse in (0.3, 1.0, 3.0, 10.0)
    ]


def _image_models(task: Task) -> list[Any]:
    del task
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    # With more iterations it takes minutes on 60,000 images, and becomes no better there.
    return [
        make_pipeline(FunctionTransformer(_scale_pixels), LogisticRegression(C=c, max_iter=100))
        for c in (0.01, 0.1, 1.0)
    ]


def _record_models(task: Task) -> list[Any]:
    del task
    from sklearn.ensemble import HistGradientBoostingClassifier

    return [
        HistGradientBoostingClassifier(learning_rate=rate, early_stopping=False, random_state=0)
        for rate in (0.03, 0.1)
    ]


def _scale_pixels(images: np.ndarray) -> np.ndarray:
    side = min(max(images.shape[1:3]), _MOST_PIXELS)
    images = resize(images, side, images.shape[3])
    return images.reshape(len(images), -1) / np.float32(255)
