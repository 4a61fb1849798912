"""A child's architecture as a drawing: boxes from the inputs down to the classes, as SVG."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mnms_jax.children.cells import KINDS, CellArchitecture, cell_choices, stack_of_cells
from mnms_jax.types import Choice

_WIDTH, _HEIGHT, _GAP = 196, 46, 20  # pixels of a box, and between boxes
_MOST_LETTERS = 28  # of a line in a box


class Box(NamedTuple):
    """A part of a network."""

    title: str
    detail: str = ""


class Drawing(NamedTuple):
    """Towers side by side, each from its input down, which all end in one box."""

    towers: Sequence[Sequence[Box]]
    end: Box
    insets: Sequence[Sequence[Box]] = ()  # columns beside the towers: what their parts are made of


def outline(child: Mapping[str, Any]) -> Drawing:
    """Returns the parts of a child.

    Args:
      child: what `save_child` writes as child.json.
    """
    known: Mapping[str, Choice] = child["decisions"]
    architecture = child["architecture"]
    kind = child.get("kind", "text")
    classes = f"{len(child['class_names'])} classes"
    dense = _dense(known)
    if kind == "record":
        columns = len(child["numbers"]) + len(child["categories"])
        start = Box(f"{columns} columns", f"scaling: {known.get('scaling', '?')}")
        towers = [[start, *dense, Box("linear")]]
        if architecture["linear"] and dense:
            towers.append([start, Box("linear", "directly")])
        return Drawing(towers, Box("softmax" if len(towers) == 1 else "sum, softmax", classes))
    if kind == "image":
        side, in_cells = child["side"], "cells" in architecture
        parts = _cells(CellArchitecture(**architecture)) if in_cells else _blocks(known)
        tower = [Box(f"{side} x {side} pixels"), *parts, *dense, Box("linear")]
        insets = [_inside(known, kind) for kind in KINDS] if in_cells else []
        return Drawing([tower], Box("softmax", classes), insets)
    deep = [*_embedding(architecture, known), *dense, Box("linear")]
    wide = [Box("n-grams", f"{architecture['ngrams']} hashed"), Box("linear", "wide tower")]
    return Drawing([deep, wide], Box("sum, softmax", classes))


def draw(drawing: Drawing) -> str:
    """Returns the drawing as an SVG element; its texts are escaped."""
    rows = max(map(len, drawing.towers))
    step = _HEIGHT + _GAP
    width = (len(drawing.towers) + len(drawing.insets)) * (_WIDTH + _GAP) - _GAP
    bottom = rows * step
    parts = []
    middle = (len(drawing.towers) * (_WIDTH + _GAP) - _GAP) / 2
    for column, tower in enumerate(drawing.towers):
        left = column * (_WIDTH + _GAP)
        centre = left + _WIDTH / 2
        for row, box in enumerate(tower):
            parts.append(_box(box, left, row * step))
            below = (row + 1) * step
            if row + 1 < len(tower):
                parts.append(f'<path d="M{centre} {below - _GAP}V{below}"/>')
            else:  # to the common end
                turn = bottom - _GAP / 2
                parts.append(f'<path d="M{centre} {below - _GAP}V{turn}H{middle}V{bottom}"/>')
    parts.append(_box(drawing.end, middle - _WIDTH / 2, bottom))
    for column, inset in enumerate(drawing.insets, len(drawing.towers)):
        parts += [_box(box, column * (_WIDTH + _GAP), i * step) for i, box in enumerate(inset)]
    height = max(bottom, *(step * (len(inset) - 1) for inset in drawing.insets), 0) + _HEIGHT
    title = "architecture, from the inputs at the top to the classes"
    return (
        f'<svg class="drawing" role="img" aria-label="{title}" width="{width + 2}" '
        f'viewBox="-1 -1 {width + 2} {height + 2}">{"".join(parts)}</svg>'
    )


def _box(box: Box, left: float, top: float) -> str:
    centre = left + _WIDTH / 2
    lines = [(box.title, "", 19 if box.detail else 28), (box.detail, ' class="small"', 36)]
    texts = "".join(
        f'<text x="{centre}" y="{top + y}"{style}>{html.escape(_short(text))}</text>'
        for text, style, y in lines
        if text
    )
    size = f'width="{_WIDTH}" height="{_HEIGHT}"'
    return f'<rect x="{left}" y="{top}" {size} rx="6"/>{texts}'


def _short(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1] + "…"


def _dense(known: Mapping[str, Choice]) -> list[Box]:
    if not known.get("hidden_layers"):
        return []
    detail = f"{known['hidden_activation']}, {_normalized(known['normalization'])}"
    detail += _dropout(known.get("hidden_dropout"))
    return [Box(f"dense {known['hidden_size']}", detail)] * int(known["hidden_layers"])


def _blocks(known: Mapping[str, Choice]) -> list[Box]:
    """Returns the convolutional blocks of an image child; each has twice the filters."""
    size, filters = known["kernel_size"], int(known["filters"])
    skip = ", skip" if known["skip"] else ""
    detail = f"{known['conv_activation']}, {known['pooling']}{skip}"
    detail += ", batch norm" if known["conv_batch_norm"] else ""
    boxes = [
        Box(f"conv {size} x {size}, {filters * 2**block} filters", detail)
        for block in range(int(known["blocks"]))
    ]
    return [*boxes, Box("flatten" if known["readout"] == "flat" else "mean over positions")]


def _cells(architecture: CellArchitecture) -> list[Box]:
    """Returns the stack of an image child of cells."""
    boxes = [
        Box(f"{KINDS[kind]} cell", f"{filters} filters")
        for kind, filters in stack_of_cells(architecture)
    ]
    return [
        Box("conv 3 x 3", f"{architecture.filters} filters"),
        *boxes,
        Box("mean over positions"),
    ]


def _inside(known: Mapping[str, Choice], kind: str) -> list[Box]:
    """Returns what is within a kind of cell: its blocks, each the sum of two operations."""
    choices = (cell_choices(known, kind, what) for what in ("operation", "input"))
    blocks = [
        Box(f"block{number} = {' + '.join(operations)}", f"of {' and '.join(inputs)}")
        for number, (operations, inputs) in enumerate(zip(*choices, strict=True))
    ]
    return [Box(f"within a {kind} cell", "what none takes goes on"), *blocks]


def _embedding(architecture: Mapping[str, Any], known: Mapping[str, Choice]) -> list[Box]:
    """Returns how a text child makes a vector of a text."""
    name, rows = str(known["embedding"]), architecture["rows"]
    if not rows:  # a sentence encoder
        return [Box("text", "as it is"), Box(name, f"{architecture['size']} numbers, frozen")]
    words = Box("hashed n-grams" if architecture["hashed"] else "words", _cleaning(known))
    trained = "trained" if architecture["trained"] else "frozen"
    return [words, Box(name, f"{rows} rows, {trained}"), _pooling(architecture, known)]


def _pooling(architecture: Mapping[str, Any], known: Mapping[str, Choice]) -> Box:
    if not architecture["conv_widths"]:
        return Box("mean of the embeddings")
    widths = "+".join(map(str, architecture["conv_widths"]))
    detail = f"{known['conv_activation']}, {architecture['conv_filters']} filters"
    return Box(f"mean, and max of conv {widths}", detail + _dropout(known.get("conv_dropout")))


def _cleaning(known: Mapping[str, Choice]) -> str:
    done = [name for name in ("lowercase", "strip") if known.get(name)]
    return ", ".join(done) or "as they are"


def _normalized(value: Choice) -> str:
    return "no norm" if value == "none" else f"{value} norm"


def _dropout(value: Choice | None) -> str:
    return f", drop {value}" if value else ""
