"""Images as IDX files."""

import gzip

import numpy as np


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder, stem, images, labels, zipped=False):
    for what, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = idx_bytes(np.asarray(array))
        name = f"{stem}-{what}-ubyte"
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
