"""A child as StableHLO, to run where this package isn't: encoded inputs -> probabilities."""

import pathlib
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np

from mnms_jax.artifact import replaced_folder
from mnms_jax.children.text import TextBatch
from mnms_jax.export import Child, ImageChild, TextChild, probabilities
from mnms_jax.store import writable, write_json
from mnms_jax.training.program import EVALUATION_BATCH_SIZE, predict
from mnms_jax.types import Array, UserError

_PLATFORMS = ("cpu", "cuda", "tpu")
_PROGRAM, _CHILD, _ENCODER = "child.stablehlo", "child.json", "encoder.npz"
_FILES = {_PROGRAM, _CHILD, _ENCODER}
_ERROR = 1e-5  # of a probability that is read back: compilers round otherwise

_Program: TypeAlias = Callable[[dict[str, Array]], Array]


def export_stablehlo(path: pathlib.Path, child: Child) -> None:
    """Writes a child's program into a folder, in place of the one that was there, and tries it.

    child.stablehlo is what `jax.export.deserialize` reads: a function of a dictionary of arrays,
    with any number N of rows, that gives probabilities, float32 [N, number of classes]. The
    weights are in it. child.json says what the arrays are called, what inputs are encoded by, and
    what the classes are; the encoder's arrays are in encoder.npz. A sentence encoder isn't part of
    the program: what it gives for the texts is one of the arrays, pooled.

    Raises:
      UserError: flatbuffers, by which programs are written, isn't installed, or what is read back
        gives other probabilities than the child; or the path is a file's, or a folder's with other
        files than an exported child's, or can't be written.
    """
    from jax import export  # late, as few need it

    path = path.resolve()  # ".." could not be replaced
    if path.is_file():
        raise UserError(f"{path} is a file; name a folder for the program")
    if path.is_dir() and {file.name for file in path.iterdir()} not in (
        set(),
        {_PROGRAM, _CHILD, _ENCODER},
    ):
        raise UserError(f"{path} has other files, which a program would replace; name a new folder")
    batch = _example(child)
    (number,) = export.symbolic_shape("n")
    shapes = {
        name: jax.ShapeDtypeStruct((number, *array.shape[1:]), array.dtype)
        for name, array in _arrays(batch).items()
    }
    program = export.export(jax.jit(_make_program(child, batch)), platforms=_PLATFORMS)(shapes)
    try:
        content = program.serialize()
    except ImportError as error:
        raise UserError(
            "programs are written by flatbuffers: pip install 'mnms_jax[stablehlo]'"
        ) from error
    description, encoder = _describe(child, shapes)
    with writable("--output", path), replaced_folder(path) as new:
        (new / _PROGRAM).write_bytes(content)
        write_json(new / _CHILD, description)
        np.savez(new / _ENCODER, **encoder)
        written = bytearray((new / _PROGRAM).read_bytes())
        _check(child, batch, export.deserialize(written).call)


def _make_program(child: Child, batch: Any) -> _Program:
    """Returns the function of the arrays of batches like this one."""
    model, names, structure = child.model, list(_arrays(batch)), jax.tree.structure(batch)
    known = (child.constants, child.hyperparameters)

    def program(arrays: dict[str, Array]) -> Array:
        inputs = jax.tree.unflatten(structure, [arrays[name] for name in names])
        logits = predict(model, child.variables, inputs, *known)
        return jax.nn.softmax(logits[:, : len(child.class_names)])

    return program


def _arrays(batch: Any) -> dict[str, Any]:
    """Returns a batch's arrays by name, in its order."""
    fields = batch._asdict() if isinstance(batch, TextBatch) else {"inputs": batch}
    return {name: jax.tree.leaves(x)[0] for name, x in fields.items() if x is not None}


def _example(child: Child) -> Any:
    """Returns a batch to try a program with, of more rows than it looks at at once."""
    rng, number = np.random.default_rng(0), EVALUATION_BATCH_SIZE + 1
    if isinstance(child, TextChild):
        words = rng.choice(child.encoder.vocabulary, (number, child.encoder.length))
        return child.encode([" ".join(row[: i % len(row)]) for i, row in enumerate(words)])
    if isinstance(child, ImageChild):
        shape = (number, child.side, child.side, child.channels)
        return rng.integers(256, size=shape, dtype=np.uint8)
    return rng.normal(size=(number, child.num_features)).astype(np.float32)


def _check(child: Child, batch: Any, program: _Program) -> None:
    expected = probabilities(child, batch)
    for number in (1, len(expected)):
        found = program({name: array[:number] for name, array in _arrays(batch).items()})
        error = float(np.max(np.abs(np.asarray(found) - expected[:number])))
        if not error < _ERROR:
            raise UserError(
                f"the program isn't kept, as its probabilities differ by up to {error:.2g} from "
                f"those of the child on {child.task!r}"
            )


def _describe(child: Child, shapes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what is to be known of a program, as plain JSON data, and arrays of the encoder."""
    encoder: dict[str, Any]
    if isinstance(child, ImageChild):
        encoder = {"side": child.side, "channels": child.channels}
    else:
        encoder = child.encoder._asdict()
        encoder["preprocessing"] = encoder["preprocessing"]._asdict()
    if isinstance(child, TextChild) and child.architecture.encoded:
        encoder["sentence_encoder"] = child.architecture.embedding
    elif isinstance(child, TextChild) and child.architecture.pooled:
        encoder["table"] = child.table
    elif isinstance(child, TextChild):
        encoder["sequence"] = child.architecture.sequence
        encoder["rows"] = child.architecture.rows
    arrays = {name: x for name, x in encoder.items() if isinstance(x, np.ndarray)}
    description = {
        "task": child.task,
        "classes": child.class_names,
        "inputs": {
            name: {"shape": ["n", *shape.shape[1:]], "dtype": str(shape.dtype)}
            for name, shape in shapes.items()
        },
        "platforms": _PLATFORMS,
        "encoder": {name: x for name, x in encoder.items() if name not in arrays},
    }
    return description, arrays
