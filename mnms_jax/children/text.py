"""Wide-and-deep text children, and their search space.

The decisions are those of Houlsby et al. (2019, arXiv:1902.00751, appendix), which continue
Wong et al. (2018): a deep tower over word embeddings (mean pooling, optionally a convolution too)
and a wide, linear tower over n-grams (Cheng et al. 2016, arXiv:1606.07792). We add the optimiser.
"""

import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mnms_jax.children.dense import (
    NORMALIZATIONS,
    Normalization,
    dense_hyperparameters,
    dense_layers,
    padded_units,
    unpadded,
)
from mnms_jax.children.layers import (
    ACTIVATIONS,
    Convolutions,
    activate,
    activation_coefficients,
    embed,
    keep_mask,
    make_child_model,
    round_up,
    uniform_param,
)
from mnms_jax.children.ragged import Ragged
from mnms_jax.space import Decision, SearchSpace
from mnms_jax.types import (
    AnyArray,
    Array,
    ChildFamily,
    ChildModel,
    ChildSpec,
    Choice,
    OptimizerSettings,
    UserError,
)


class TextSizes(NamedTuple):
    """Bounds on the inputs of text children."""

    vocabulary: int  # V, rows of a word table: padding, unknown, then the commonest words
    length: int  # most words of a text
    ngrams: int  # rows of the wide tower's weights
    hashed: int  # rows of a table of hashed n-grams


class TextPreprocessing(NamedTuple):
    """How texts become tokens."""

    lowercase: bool
    strip: bool  # only words count, no punctuation


class TextArchitecture(NamedTuple):
    """What chooses the compiled program of a text child."""

    embedding: str  # name of the module
    rows: int  # V, of the table; a sentence encoder has none: 0
    size: int  # E, length of an embedding
    pretrained: bool  # the table comes with the data
    trained: bool  # the table is a parameter
    hashed: bool  # the sequence is of hashed n-grams, of words or of characters, not words
    conv_widths: tuple[int, ...]
    conv_filters: int
    hidden_layers: int
    hidden_size: int  # most units of a hidden layer
    ngrams: int  # rows of the wide tower's weights
    subwords: bool = False  # the n-grams are of characters

    @property
    def sequence(self) -> str:
        """What is embedded: "tokens", "ngrams" or "subwords"."""
        return "subwords" if self.subwords else "ngrams" if self.hashed else "tokens"

    @property
    def encoded(self) -> bool:
        """Whether a sentence encoder embeds the text as a whole."""
        return not self.rows

    @property
    def pooled(self) -> bool:
        """Whether the embedding of the text never changes, so that the data holds it."""
        return not self.trained and not self.conv_widths

    def __str__(self) -> str:
        made = {"tokens": "random", "ngrams": "hashed", "subwords": "subwords"}[self.sequence]
        table = self.embedding or f"{made}{self.size}"
        conv = f" conv{'+'.join(map(str, self.conv_widths))}x{self.conv_filters}"
        hidden = f" {self.hidden_layers}x{self.hidden_size}" if self.hidden_layers else " linear"
        frozen = "" if self.trained else " frozen"
        return table + frozen + conv * bool(self.conv_widths) + hidden


class TextHyperparameters(NamedTuple):
    """What the program of a text child takes as traced inputs."""

    conv_activation: AnyArray  # [7], see layers.ACTIVATIONS
    conv_normalization: AnyArray  # index into dense.NORMALIZATIONS
    conv_dropout: AnyArray
    conv_embedding_dropout: AnyArray
    hidden_size: AnyArray  # units of each hidden layer
    hidden_activation: AnyArray  # [7]
    normalization: AnyArray  # index into dense.NORMALIZATIONS
    hidden_dropout: AnyArray


class TextBatch(NamedTuple):
    """Inputs of a text child; its architecture uses either of the first two, the other is None."""

    pooled: AnyArray | None  # [B, E], mean embedding of the words, or an encoder's of the text
    tokens: Ragged | None  # int32 [B, L], 0 is padding
    ngrams: AnyArray  # int32 [B, W], hashed n-grams
    weights: AnyArray  # [B, W], their TF-IDF


PRESETS: dict[str, TextSizes] = {
    "cpu": TextSizes(vocabulary=8192, length=40, ngrams=2**14, hashed=2**13),
    "full": TextSizes(vocabulary=2**15, length=256, ngrams=2**18, hashed=2**16),
}
_RANDOM_SIZES = {"cpu": (32,), "full": (32, 64, 128)}
_HASHED_SIZES = {"cpu": (32,), "full": (32, 64)}


def make_text_family(
    preset: str = "cpu",
    pretrained: Mapping[str, int] | None = None,
    *,
    subwords: bool = False,
    encoders: Mapping[str, int] | None = None,
) -> ChildFamily:
    """Returns the text children of a preset.

    Args:
      preset: "full" (all choices) or "cpu" (the same decisions with fewer and lighter choices, for
        children that train in about a second on two cores).
      pretrained: length E of each pre-trained embedding by name; {"glove50": 50} by default.
      subwords: whether embeddings of words' hashed n-grams of characters are choices too, which
        have something for words that were never seen, in any language (Bojanowski et al. 2017,
        "Enriching Word Vectors with Subword Information", arXiv:1607.04606).
      encoders: numbers E that each sentence encoder gives for a text, by name; none by default.
        They are frozen, and leave no words to convolve.

    Raises:
      UserError: an unknown preset, or a pre-trained embedding called like a built-in one.
    """
    if preset not in PRESETS:
        raise UserError(f"space {preset!r} is unknown; there are {', '.join(sorted(PRESETS))}")
    pretrained = {"glove50": 50} if pretrained is None else dict(pretrained)
    pretrained = {name: padded_size(size) for name, size in pretrained.items()}
    encoders = dict(encoders or {})
    sizes = PRESETS[preset]
    tables = {f"random{size}": (sizes.vocabulary, size, "words") for size in _RANDOM_SIZES[preset]}
    kinds = ("hashed", "subwords") if subwords else ("hashed",)
    tables |= {
        f"{kind}{size}": (sizes.hashed, size, kind)
        for kind in kinds
        for size in _HASHED_SIZES[preset]
    }
    tables |= {name: (0, size, "words") for name, size in encoders.items()}
    for name in pretrained:
        if name in tables:
            raise UserError(f"embedding name {name!r} is taken; call it otherwise")
    modules = {
        **{name: (sizes.vocabulary, size, "words") for name, size in pretrained.items()},
        **tables,
    }
    words = tuple(name for name in modules if name not in encoders)
    space = SearchSpace(_decisions(preset == "cpu", tuple(modules), words, tuple(pretrained)))

    def make_spec(design: Mapping[str, Choice]) -> ChildSpec:
        name = str(design["embedding"])
        rows, size, kind = modules[name]
        convolved = design.get("convolution", False)
        widths = range(2, int(design["conv_max_ngram"]) + 1) if convolved else ()
        architecture = TextArchitecture(
            embedding=name if name in pretrained or name in encoders else "",
            rows=rows,
            size=size,
            pretrained=name in pretrained,
            trained=name not in encoders and (name not in pretrained or bool(design["fine_tune"])),
            hashed=kind != "words",
            conv_widths=tuple(widths),
            conv_filters=int(design["conv_filters"]) if widths else 0,
            hidden_layers=int(design["hidden_layers"]),
            hidden_size=padded_units(design),
            ngrams=sizes.ngrams,
            subwords=kind == "subwords",
        )
        return ChildSpec(
            architecture,
            TextPreprocessing(bool(design["lowercase"]), bool(design["strip"])),
            _hyperparameters(design),
            _optimizers(design),
            int(design["samples"]),
            unpadded(architecture, design),
        )

    return ChildFamily(space, make_spec, make_text_model)


def padded_size(size: int) -> int:
    """Returns the length to which embeddings of this length are padded with zeros.

    On CPUs, XLA adds up gradients of 50 numbers twenty times slower than of 52.
    """
    return round_up(size, 4)


@functools.cache
def make_text_model(architecture: Hashable, num_classes: int) -> ChildModel:
    """Returns the child of an architecture, always the same object for the same arguments.

    Its constants are the pre-trained table [V, E], or None where it isn't used.
    """
    assert isinstance(architecture, TextArchitecture)
    return make_child_model(_WideAndDeep(architecture, num_classes))


class _WideAndDeep(nn.Module):
    architecture: TextArchitecture
    num_classes: int

    def setup(self) -> None:
        self.wide = _WideTower(self.architecture.ngrams, self.num_classes)
        self.deep = _DeepTower(self.architecture, self.num_classes)

    def __call__(
        self,
        batch: TextBatch,
        table: Array | None,
        hyper: TextHyperparameters,
        seed: Array,
        training: Array,
    ) -> Array:
        return self.wide(batch) + self.deep(batch, table, hyper, seed, training)


class _WideTower(nn.Module):
    rows: int
    num_classes: int

    @nn.compact
    def __call__(self, batch: TextBatch) -> Array:
        table = self.param("table", nn.initializers.zeros, (self.rows, self.num_classes))
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        return jnp.einsum("bw,bwc->bc", batch.weights, embed(table, batch.ngrams)) + bias[None]


class _DeepTower(nn.Module):
    architecture: TextArchitecture
    num_classes: int

    @nn.compact
    def __call__(
        self,
        batch: TextBatch,
        table: Array | None,
        hyper: TextHyperparameters,
        seed: Array,
        training: Array,
    ) -> Array:
        arch = self.architecture
        x: Any = batch.pooled
        if not arch.pooled:
            assert batch.tokens is not None
            x = self._features(batch.tokens, self._table(table, seed), hyper, seed, training)
        return dense_layers(
            self, x, arch.hidden_layers, arch.hidden_size, self.num_classes, hyper, seed, training
        )

    def _table(self, pretrained: Array | None, seed: Array) -> Array:
        arch = self.architecture
        if not arch.pretrained:
            return uniform_param(self, "table", seed, (arch.rows, arch.size), 0.1, zero_first=True)
        assert pretrained is not None
        return self.param("table", lambda _: pretrained) if arch.trained else pretrained

    def _features(
        self,
        tokens: Ragged,
        table: Array,
        hyper: TextHyperparameters,
        seed: Array,
        training: Array,
    ) -> Array:
        """Returns the mean embedding, and the convolutions' maxima over the text."""
        arch = self.architecture
        num_words = jnp.maximum(jnp.sum(tokens.values > 0, 1, keepdims=True), 1)
        if not arch.conv_widths:
            return jnp.sum(embed(table, tokens.values), 1) / num_words
        flat, layout = tokens.flatten(max(arch.conv_widths) - 1)
        embedded = embed(table, flat)
        mean = layout.reduce(jnp.sum, embedded) / num_words
        # Whole embedding components are dropped, as neighbouring words are correlated (Tompson et
        # al. 2015, "Efficient Object Localization Using Convolutional Networks").
        rate = hyper.conv_embedding_dropout * training
        embedded *= layout.repeat(keep_mask(seed, 100, rate, mean.shape))
        # Windows that begin in the text; the first always, so that the maximum is finite.
        inside = (flat > 0) | layout.first
        convolutions = Convolutions(arch.conv_widths, arch.conv_filters, name="conv")
        maxima = convolutions(embedded, inside, layout, seed)
        # The maximum comes first: normalisation and activation then take one number a filter
        # instead of one a word. Without batch norm, and but for swish, the model is the same.
        size = maxima.shape[-1]
        norm = Normalization(size, name="conv_norm")
        maxima = norm(maxima, size, hyper.conv_normalization, training)
        mask = keep_mask(seed, 101, hyper.conv_dropout * training, maxima.shape)
        return jnp.concatenate([mean, activate(maxima, hyper.conv_activation, mask)], -1)


def _hyperparameters(design: Mapping[str, Choice]) -> TextHyperparameters:
    def number(name: str) -> np.float32:
        return np.float32(design.get(name, 0.0))

    return TextHyperparameters(
        conv_activation=activation_coefficients(str(design.get("conv_activation", "relu"))),
        conv_normalization=np.int32(NORMALIZATIONS.index("batch") * number("conv_batch_norm")),
        conv_dropout=number("conv_dropout"),
        conv_embedding_dropout=number("conv_embedding_dropout"),
        **dense_hyperparameters(design),
    )


def _optimizers(design: Mapping[str, Choice]) -> dict[str, OptimizerSettings]:
    return {
        tower: OptimizerSettings(
            str(design["optimizer"]),
            float(design[f"{tower}_learning_rate"]),
            float(design[f"{tower}_regularization"]),
        )
        for tower in ("deep", "wide")
    }


def _decisions(
    cpu: bool, embeddings: tuple[str, ...], words: tuple[str, ...], pretrained: Sequence[str]
) -> list[Decision]:
    """Returns the decisions, for all embeddings, those of words, and pre-trained ones of these."""
    convolvable = None if words == embeddings else {"embedding": words}
    conv: dict[str, tuple[Choice, ...]] = {"convolution": (True,)}
    activations = ("relu", "swish", "tanh") if cpu else tuple(ACTIVATIONS)
    dropouts = (0.0, 0.2, 0.5) if cpu else (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
    layers = (0, 1, 2) if cpu else (0, 1, 2, 3, 5)
    hidden: dict[str, tuple[Choice, ...]] = {"hidden_layers": layers[1:]}
    rates = (0.001, 0.005, 0.05, 0.5) if cpu else (0.001, 0.005, 0.01, 0.05, 0.1, 0.5)
    samples = (20_000, 40_000, 80_000) if cpu else (100_000, 200_000, 500_000, 1_000_000, 2_000_000)
    table = [
        Decision("embedding", embeddings),
        Decision("fine_tune", (False, True), {"embedding": tuple(pretrained)}),
        Decision("lowercase", (True, False)),
        Decision("strip", (True, False)),
        Decision("convolution", (False, True), convolvable),
        Decision("conv_activation", activations, conv),
        Decision("conv_batch_norm", (False, True), conv),
        Decision("conv_max_ngram", (2, 3), conv),
        Decision("conv_dropout", dropouts, conv),
        Decision("conv_filters", (16, 32) if cpu else (50, 100, 150, 200), conv),
        Decision("conv_embedding_dropout", dropouts, conv),
        Decision("hidden_layers", layers),
        Decision("hidden_size", (64, 128) if cpu else (64, 128, 256), hidden),
        Decision("hidden_activation", activations, hidden),
        Decision("normalization", NORMALIZATIONS, hidden),
        Decision("hidden_dropout", dropouts, hidden),
        Decision("optimizer", ("sgd", "adam", "adagrad")),
        Decision("deep_learning_rate", rates),
        Decision("deep_regularization", (0.0, 1e-4, 1e-3, 1e-2)),
        Decision("wide_learning_rate", rates),
        Decision("wide_regularization", (0.0, 1e-4, 1e-3, 1e-2)),
        Decision("samples", samples),
    ]
    # Without a pre-trained embedding there is nothing to fine-tune.
    return [decision for decision in table if decision.name != "fine_tune" or pretrained]
