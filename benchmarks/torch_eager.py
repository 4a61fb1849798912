"""Children as a PyTorch user trains them eagerly, one after another.

The computation is that of benchmarks/naive.py. Bags of embeddings (`embedding_bag`) are used where
PyTorch has them: for n-grams, and for pooling where there is no convolution.
"""

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from benchmarks.children import (
    BATCH_SIZE,
    Arrays,
    Design,
    Result,
    Rows,
    conv_widths,
    embedding_size,
    is_trained,
    num_steps,
)
from mnms_jax.children.text import TextSizes

_ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "swish": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


def to_torch(arrays: Arrays) -> Arrays:
    """Returns a child's data as tensors."""

    def convert(array: Any) -> Tensor:
        return torch.from_numpy(np.array(array))

    def rows(split: Rows) -> Rows:
        return Rows(*map(convert, split))._replace(labels=convert(split.labels).long())

    table = None if arrays.table is None else convert(arrays.table)
    return Arrays(rows(arrays.train), rows(arrays.validation), table, arrays.num_classes)


class WideTower(nn.Module):
    """A linear layer over TF-IDF n-grams."""

    def __init__(self, rows: int, num_classes: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(rows, num_classes))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, ngrams: Tensor, weights: Tensor) -> Tensor:
        """Returns [B, C] for [B, W]."""
        bags = F.embedding_bag(ngrams, self.table, per_sample_weights=weights, mode="sum")
        return bags + self.bias


class DeepTower(nn.Module):
    """Mean embedding, convolutions' maxima, hidden layers."""

    def __init__(self, design: Design, arrays: Arrays, sizes: TextSizes):
        super().__init__()
        self.design = design
        if arrays.table is None:
            hashed = str(design["embedding"]).startswith("hashed")
            rows = sizes.hashed if hashed else sizes.vocabulary
            table = torch.empty(rows, embedding_size(design)).uniform_(-0.1, 0.1)
        else:
            table = arrays.table.clone()
        self.table = nn.Parameter(table, requires_grad=is_trained(design))
        size = features = table.shape[1]
        self.convs = nn.ModuleList()
        self.conv_norms = nn.ModuleList()
        for width in conv_widths(design):
            filters = int(design["conv_filters"])
            self.convs.append(_initialized(nn.Conv1d(size, filters, width), size * width))
            norm = nn.BatchNorm1d(filters) if design["conv_batch_norm"] else nn.Identity()
            self.conv_norms.append(norm)
            features += filters
        layers: list[nn.Module] = []
        for _ in range(int(design["hidden_layers"])):
            units = int(design["hidden_size"])
            layers.append(_initialized(nn.Linear(features, units), features))
            if design["normalization"] == "batch":
                layers.append(nn.BatchNorm1d(units))
            elif design["normalization"] == "layer":
                layers.append(nn.LayerNorm(units))
            layers.append(_ACTIVATIONS[str(design["hidden_activation"])]())
            layers.append(nn.Dropout(float(design["hidden_dropout"])))
            features = units
        head = _initialized(nn.Linear(features, arrays.num_classes, bias=False), features)
        self.layers = nn.Sequential(*layers, head)
        if design["convolution"]:
            self.conv_activation = _ACTIVATIONS[str(design["conv_activation"])]()
            self.conv_dropout = nn.Dropout(float(design["conv_dropout"]))
            # Drops whole components of the embeddings.
            self.embedding_dropout = nn.Dropout1d(float(design["conv_embedding_dropout"]))

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns [B, C] for [B, L]."""
        if not self.convs:
            return self.layers(F.embedding_bag(tokens, self.table, mode="mean", padding_idx=0))
        mask = tokens > 0
        embedded = F.embedding(tokens, self.table) * mask[..., None]
        features = [embedded.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)]
        embedded = self.embedding_dropout(embedded.transpose(1, 2))
        # Windows that begin in the text; the first always, so that the maximum is finite.
        outside = ~mask[:, None]
        outside[..., 0] = False
        for conv, norm in zip(self.convs, self.conv_norms, strict=True):
            assert isinstance(conv, nn.Conv1d)
            y = conv(F.pad(embedded, (0, conv.kernel_size[0] - 1)))
            y = self.conv_activation(norm(y.masked_fill(outside, -torch.inf).amax(2)))
            features.append(self.conv_dropout(y))
        return self.layers(torch.cat(features, -1))


class Child(nn.Module):
    """A wide-and-deep classifier."""

    def __init__(self, design: Design, arrays: Arrays, sizes: TextSizes):
        super().__init__()
        self.wide = WideTower(sizes.ngrams, arrays.num_classes)
        self.deep = DeepTower(design, arrays, sizes)

    def forward(self, rows: Rows) -> Tensor:
        """Returns logits [B, C]."""
        return self.wide(rows.ngrams, rows.weights) + self.deep(rows.tokens)


def make_optimizer(design: Design, child: Child) -> torch.optim.Optimizer:
    """Returns the optimiser of both towers; L2 holds for matrices and tables alone."""
    groups = []
    for name, tower in (("deep", child.deep), ("wide", child.wide)):
        parameters = [p for p in tower.parameters() if p.requires_grad]
        rate = float(design[f"{name}_learning_rate"])
        decay = float(design[f"{name}_regularization"])
        matrices = [p for p in parameters if p.ndim > 1]
        rest = [p for p in parameters if p.ndim == 1]
        groups.append({"params": matrices, "lr": rate, "weight_decay": decay})
        groups.append({"params": rest, "lr": rate})
    if design["optimizer"] == "sgd":
        return torch.optim.SGD(groups, momentum=0.9)
    if design["optimizer"] == "adam":
        return torch.optim.Adam(groups)
    return torch.optim.Adagrad(groups, initial_accumulator_value=0.1, eps=1e-7)


def train_child(design: Design, arrays: Arrays, sizes: TextSizes, seed: int) -> Result:
    """Trains one child from nothing and evaluates it; nothing is compiled.

    Args:
      design: of the child.
      arrays: its data as tensors.
      sizes: of its tables.
      seed: of its randomness.
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    child = Child(design, arrays, sizes)
    optimizer = make_optimizer(design, child)
    steps = num_steps(design)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    num_rows, loss = len(arrays.train.labels), torch.zeros(())
    epoch = max(num_rows // BATCH_SIZE, 1)
    for step in range(steps):
        if step % epoch == 0:
            if not torch.isfinite(loss):
                return Result(None, time.perf_counter() - start, 0.0)
            order = torch.randperm(num_rows)
        first = step % epoch * BATCH_SIZE
        index = order[torch.arange(first, first + BATCH_SIZE) % num_rows]
        batch = Rows(*(x[index] for x in arrays.train))
        optimizer.zero_grad()
        loss = F.cross_entropy(child(batch), batch.labels)
        loss.backward()
        optimizer.step()
        schedule.step()
    child.eval()
    with torch.no_grad():
        predicted = child(arrays.validation).argmax(-1)
    accuracy = float((predicted == arrays.validation.labels).float().mean())
    reward = accuracy if torch.isfinite(loss) else None
    return Result(reward, time.perf_counter() - start, 0.0)


def _initialized(layer: Any, fan_in: int) -> Any:
    """Returns a layer with weights uniform of variance 1 / fan-in, and zero biases."""
    bound = (3 / fan_in) ** 0.5
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
