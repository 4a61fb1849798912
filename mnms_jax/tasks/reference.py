"""A classical reference on the same splits: TF-IDF and logistic regression."""

from typing import NamedTuple

import numpy as np

from mnms_jax.tasks.text import find_words
from mnms_jax.types import Task

_MANY_CLASSES = 50
_MOST_WEIGHTS = 2**25  # of a model for many classes: 256 MiB


class Reference(NamedTuple):
    """Accuracies of the reference."""

    validation: float
    test: float


def tfidf_logistic_regression(task: Task) -> Reference:
    """Fits words and bigrams on the training texts; validation chooses the inverse regulariser.

    The vocabulary is the training texts' alone, and the test texts are looked at once.
    """
    # Imported here, since it takes a second.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.pipeline import make_pipeline

    train, validation, test = (task.splits[name] for name in ("train", "validation", "test"))
    if len(np.unique(train.labels)) < 2:
        share = [float(np.mean(split.labels == train.labels[0])) for split in (validation, test)]
        return Reference(*share)
    # With many classes, one against the rest at a time, of fewer words: else memory runs out.
    many = task.num_classes > _MANY_CLASSES
    models = [
        make_pipeline(
            TfidfVectorizer(
                tokenizer=find_words,
                token_pattern=None,
                ngram_range=(1, 2),
                sublinear_tf=True,
                max_features=_MOST_WEIGHTS // task.num_classes if many else None,
            ),
            SGDClassifier(loss="log_loss", alpha=1 / (inverse * len(train.texts)), random_state=0)
            if many
            else LogisticRegression(C=inverse, max_iter=1000),
        ).fit(train.texts, train.labels)
        for inverse in (0.3, 1.0, 3.0, 10.0)
    ]
    scores = [float(model.score(validation.texts, validation.labels)) for model in models]
    best = int(np.argmax(scores))
    return Reference(scores[best], float(models[best].score(test.texts, test.labels)))
