"""Trials spread over local devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "trials"


def trial_devices() -> list[jax.Device]:
    """Returns the devices that train children: all local accelerators, or one CPU device.

    A CPU's cores are used by training threads, each with a child of its own, and not as devices:
    children differ in length, and none has to wait for others.
    """
    devices = jax.local_devices()
    return devices[:1] if devices[0].platform == "cpu" else devices


def trial_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """Returns the devices as one mesh axis, `trials`."""
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def map_trials(function: Callable[..., Any], devices: Sequence[jax.Device]) -> Callable[..., Any]:
    """Maps a function of equal shares of its arguments' leading axes over devices.

    The same as `jax.pmap` but for the leading axis, which isn't split in two; each device runs the
    same program as a single one would, so that results don't depend on their number.

    Args:
      function: of pytrees of arrays [K, ...], which returns such.
      devices: that each get K rows of arguments [len(devices) * K, ...].
    """
    spec = P(AXIS)
    # Loops that start from constants are refused by the check of what varies over devices.
    return jax.shard_map(
        function, mesh=trial_mesh(devices), in_specs=spec, out_specs=spec, check_vma=False
    )


def put_trials(arrays: Any, devices: Sequence[jax.Device]) -> Any:
    """Returns arrays [len(devices) * K, ...] with each device's rows on it."""
    return jax.device_put(arrays, NamedSharding(trial_mesh(devices), P(AXIS)))


def spread_trials(shapes: Any, devices: Sequence[jax.Device]) -> Any:
    """Returns `jax.ShapeDtypeStruct`s as those of arrays from `put_trials`."""
    sharding = NamedSharding(trial_mesh(devices), P(AXIS))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
