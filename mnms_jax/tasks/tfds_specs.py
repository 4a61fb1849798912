"""Which data sets of TensorFlow Datasets (TFDS) are tasks, and what their features are called.

Left out are sets of pairs (GLUE's mrpc, qqp, mnli and others), for a child reads one text, and a
pair in one doesn't tell what is compared with what; amazon_us_reviews, whose features are nested;
and sentiment140, whose test split has a class that its train split lacks
(tfds:sentiment140?label=polarity&test=train holds out a part of train instead).
"""

import re
from typing import Any, NamedTuple

from mnms_jax.tasks.columns import parse_options
from mnms_jax.types import UserError


class TfdsSpec(NamedTuple):
    """A data set's names in TFDS."""

    dataset: str  # "<name>" or "<name>/<config>"
    text: str | None = None  # the feature with the text; None: "text", if there is such a one
    image: str | None = None  # the feature with the image; None: "image", if there's no text
    # The feature with the class. Of fractions, the class is whether it is at least a half; "*"
    # is the one that is true of all features that are true or false.
    label: str = "label"
    train: str = "train"  # the split to learn from
    validation: str = "train"  # a labelled split; that to learn from: a tenth of it
    test: str = "test"  # likewise
    url: str | None = None  # what TFDS downloads first; None: unknown, so nothing is downloaded
    named: bool = False  # whether a file names the classes, so that a folder without it is broken


TFDS_TASKS: dict[str, TfdsSpec] = {
    # Wang et al. (2018), GLUE; Socher et al. (2013), SST. The official test labels are secret.
    "sst2": TfdsSpec(
        "glue/sst2",
        text="sentence",
        test="validation",
        url="https://dl.fbaipublicfiles.com/glue/data/SST-2.zip",
        named=True,
    ),
    # Warstadt et al. (2018), Neural Network Acceptability Judgments; likewise in GLUE.
    "cola": TfdsSpec(
        "glue/cola",
        text="sentence",
        test="validation",
        url="https://dl.fbaipublicfiles.com/glue/data/CoLA.zip",
        named=True,
    ),
    # Maas et al. (2011), Learning Word Vectors for Sentiment Analysis.
    "imdb": TfdsSpec(
        "imdb_reviews/plain_text",
        url="http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
        named=True,
    ),
    # Zhang et al. (2015), Character-level Convolutional Networks for Text Classification.
    "ag_news": TfdsSpec(
        "ag_news_subset",
        text="description",
        url="https://drive.google.com/uc?export=download&id=0Bz8a_Dbh9QhbUDNpeUdjb0wxRms",
        named=True,
    ),
    "yelp_polarity": TfdsSpec(
        "yelp_polarity_reviews",
        url="https://s3.amazonaws.com/fast-ai-nlp/yelp_review_polarity_csv.tgz",
        named=True,
    ),
    # Li & Roth (2002), Learning Question Classifiers.
    "trec": TfdsSpec(
        "trec",
        label="label-coarse",
        url="http://cogcomp.org/Data/QA/QC/train_5500.label",
        named=True,
    ),
    # Larson et al. (2019), An Evaluation Dataset for Intent Classification: those in scope.
    "clinc150": TfdsSpec(
        "clinc_oos",
        label="intent_name",
        validation="validation",
        url="https://github.com/jereliu/datasets/raw/master/clinc_oos.zip",
    ),
    # Cohan et al. (2019), Structural Scaffolds for Citation Intent Classification.
    "scicite": TfdsSpec(
        "scicite",
        text="string",
        validation="validation",
        url="https://s3-us-west-2.amazonaws.com/ai2-s2-research/scicite/scicite.tar.gz",
        named=True,
    ),
    # Demszky et al. (2020), GoEmotions: the comments with a single emotion.
    "goemotions": TfdsSpec(
        "goemotions",
        text="comment_text",
        label="*",
        validation="validation",
        url="https://github.com/google-research/google-research/raw/master/goemotions/data/train.tsv",
    ),
    # Borkan et al. (2019), Nuanced Metrics for Measuring Unintended Bias: toxic to half the raters.
    "civil_comments": TfdsSpec(
        "civil_comments/CivilComments",
        label="toxicity",
        validation="validation",
        url="https://storage.googleapis.com/jigsaw-unintended-bias-in-toxicity-classification/"
        "civil_comments_v1.2.zip",
    ),
    # Wulczyn et al. (2017), Ex Machina: Personal Attacks Seen at Scale.
    "wikipedia_toxicity": TfdsSpec(
        "wikipedia_toxicity_subtypes/EnglishSubtypes",
        label="toxicity",
        url="https://storage.googleapis.com/jigsaw-unintended-bias-in-toxicity-classification/"
        "wikipedia_toxicity_subtypes_v0.3.zip",
    ),
    # LeCun et al. (1998), Gradient-Based Learning Applied to Document Recognition.
    "mnist": TfdsSpec(
        "mnist",
        url="https://storage.googleapis.com/cvdf-datasets/mnist/train-images-idx3-ubyte.gz",
    ),
    # Xiao et al. (2017), Fashion-MNIST.
    "fashion_mnist": TfdsSpec(
        "fashion_mnist",
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-images-idx3-ubyte.gz",
        named=True,
    ),
    # Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images.
    "cifar10": TfdsSpec(
        "cifar10",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        named=True,
    ),
    "cifar100": TfdsSpec(
        "cifar100",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        named=True,
    ),
    # Netzer et al. (2011), Reading Digits in Natural Images with Unsupervised Feature Learning.
    "svhn_cropped": TfdsSpec(
        "svhn_cropped",
        url="http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
    ),
    # Nilsback & Zisserman (2008), Automated Flower Classification over a Large Number of Classes.
    "oxford_flowers102": TfdsSpec(
        "oxford_flowers102",
        validation="validation",
        url="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz",
        named=True,
    ),
}
_PREFIX = "tfds:"
_DATASET = re.compile(r"[\w-]+(/[\w.-]+)?")
_OPTIONS = ("text", "image", "label", "train", "validation", "test")


def is_tfds_task(entry: str) -> bool:
    """Returns whether a task is of TFDS: a key of TFDS_TASKS, or tfds:NAME."""
    return entry in TFDS_TASKS or entry.startswith(_PREFIX)


def parse_tfds_task(entry: str) -> tuple[str, TfdsSpec]:
    """Returns a task's name, and its names in TFDS.

    Args:
      entry: a key of TFDS_TASKS, or tfds:NAME or tfds:NAME/CONFIG for any data set, with
        ?KEY=VALUE&KEY=VALUE behind it or not. Keys are the features text or image, and label, and
        the splits train, validation and test, which are called as `TfdsSpec` says by default.

    Raises:
      UserError: it says something else.
    """
    if entry in TFDS_TASKS:
        return entry, TFDS_TASKS[entry]
    dataset, _, query = entry.removeprefix(_PREFIX).partition("?")
    if not (entry.startswith(_PREFIX) and _DATASET.fullmatch(dataset)):
        known = ", ".join(sorted(TFDS_TASKS))
        raise UserError(f"unknown TFDS task {entry!r}: choose from {known}, or tfds:NAME/CONFIG")
    options: dict[str, Any] = {**parse_options(entry, query, _OPTIONS)}
    if "text" in options and "image" in options:
        raise UserError(f"task {entry!r}: name a text or an image, not both")
    return dataset.replace("/", "-"), TfdsSpec(dataset, **options)
