import builtins
import collections
import os
import pathlib
import pickle
import struct

import numpy as np
import pytest

from mnms_jax.tasks.pickles import read_pickle
from mnms_jax.types import UserError

PLAIN = {"a": [1, 2.5, -3], 7: ("text", b"bytes", None, True), "set": {1, 2}, "empty": [[], {}, ()]}
_DTYPE = b"cnumpy\ndtype\n"
_SCALAR = b"cnumpy.core.multiarray\nscalar\n"
_F8 = _DTYPE + b"(X\x02\x00\x00\x00f8\x89\x88tR"  # dtype("f8", False, True)


class Call:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def refused(content: bytes) -> str:
    with pytest.raises(UserError, match=r"^x\.pkl cannot be read as plain data: ") as error:
        read_pickle(content, "x.pkl")
    return str(error.value)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_is_read(protocol: int) -> None:
    data = {key: value for key, value in PLAIN.items() if protocol >= 4 or key != "set"}
    data[7] = data[7] if protocol >= 3 else ("text", None, True)
    assert read_pickle(pickle.dumps(data, protocol), "x.pkl") == data


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_scalars_of_numpy_become_floats(module: str) -> None:
    content = pickle.dumps([np.float64(0.1), np.float64(-2), np.float64("inf")], 3)
    content = content.replace(b"numpy._core.multiarray", module.encode())
    read = read_pickle(content, "x.pkl")
    assert read == [0.1, -2.0, np.inf]
    assert {type(value) for value in read} == {float}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_call_is_refused_and_not_made(protocol: int, tmp_path: pathlib.Path) -> None:
    made = tmp_path / "made"
    for call in (
        Call(os.system, f"touch {made}"),
        Call(os.mkdir, str(made)),
        Call(builtins.eval, f"open({str(made)!r}, 'w')"),
        Call(builtins.exec, f"open({str(made)!r}, 'w')"),
        Call(builtins.getattr, "", "join"),
        Call(np.load, str(made)),
        Call(np.save, str(made), [1]),
        Call(collections.OrderedDict),
    ):
        content = pickle.dumps({"a": [call]}, protocol)
        assert "which is not plain data" in refused(content)
    assert not made.exists()


@pytest.mark.parametrize(
    "value",
    [
        np.arange(3),
        np.array([{}], object),
        np.float32(1),
        np.int64(1),
        np.dtype("O"),
        np.dtype(">f8"),
        np.datetime64(1, "s"),
        pathlib.Path("x"),
        1j,
        range(3),
        bytearray,
    ],
)
def test_all_other_objects_are_refused(value: object) -> None:
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        refused(pickle.dumps([value], protocol))


@pytest.mark.parametrize(
    "content",
    [
        # Attributes cannot be set on what is admitted: state, or slots' state.
        b"\x80\x02" + _DTYPE + b"}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02" + _SCALAR + b"N}X\x08\x00\x00\x00__call__K\x01s\x86b.",
        b"\x80\x02" + _F8 + b"N}X\x0c\x00\x00\x00__setstate__K\x01s\x86b.",
        # Nor a class made of it, nor another state of a data type than little-endian.
        b"\x80\x02" + _DTYPE + b")\x81.",
        b"\x80\x02"
        + _F8
        + b"(K\x03X\x01\x00\x00\x00>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.",
        # Scalars of no data type, or of a wrong length.
        b"\x80\x03" + _SCALAR + b"NC\x08" + struct.pack("<d", 1) + b"\x86R.",
        b"\x80\x03" + _SCALAR + _F8 + b"C\x041234\x86R.",
        # Persistent identities, extension codes, out-of-band buffers.
        b"\x80\x02Pid\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x05\x97.",
        b"",
        b".",
        b"no pickle",
    ],
)
def test_crafted_pickles_are_refused(content: bytes) -> None:
    refused(content)


def test_a_truncated_pickle_is_refused() -> None:
    content = pickle.dumps(PLAIN, 4)
    for size in range(len(content)):
        refused(content[:size])
