"""Pickles read as data: numbers, texts and containers, and no call of anything else."""

import gc
import io
import pickle
import struct
from typing import Any

from mnms_jax.types import UserError


def read_pickle(content: bytes, source: str) -> Any:
    """Returns what a pickle holds, if that is plain data.

    Plain are numbers, texts, bytes, None, lists, tuples, sets and dicts, which pickles build
    without naming anything, and NumPy's scalars of 64-bit floats, which become Python's. Any other
    name in the pickle is refused before it is looked up; NumPy itself isn't called either. (Memory
    is not bounded: archives are to be checked by their SHA-256 first.)

    Args:
      content: the pickle.
      source: where it comes from, for messages.

    Raises:
      UserError: it names anything else, or is damaged.
    """
    # The collector would look again and again at a hundred thousand new containers, none of them
    # garbage; without it a table is read in less than half the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        return _PlainUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # damaged bytes may raise anything
        raise UserError(f"{source} cannot be read as plain data: {error}") from error
    finally:
        if collects:
            gc.enable()


class _DataType:
    """A float64 data type in the making."""

    __slots__ = ()

    def __setstate__(self, state: tuple) -> None:
        if state[:2] != (3, "<"):
            raise pickle.UnpicklingError(f"a data type of state {state!r}")


# What stands for NumPy's functions are objects without attributes, not functions or classes: a
# pickle can set attributes of all that it gets hold of.
class _MakeDataType:
    __slots__ = ()

    def __call__(self, name: str, align: bool, copy: bool) -> _DataType:
        if name != "f8":
            raise pickle.UnpicklingError(f"a data type {name!r}, which is not plain data here")
        return _DataType()


class _MakeScalar:
    __slots__ = ()

    def __call__(self, data_type: _DataType, content: bytes) -> float:
        if not isinstance(data_type, _DataType):
            raise pickle.UnpicklingError(f"a scalar of data type {data_type!r}")
        return struct.unpack("<d", content)[0]


_ADMITTED = {
    ("numpy", "dtype"): _MakeDataType(),
    ("numpy.core.multiarray", "scalar"): _MakeScalar(),
    ("numpy._core.multiarray", "scalar"): _MakeScalar(),  # as NumPy 2 writes it
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not plain data")
        return _ADMITTED[module, name]
