"""Trials spread over local devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "trials"


def trial_devices() -> list[jax.Device]:
    """Returns the devices that train children: all local accelerators, or one CPU device.

    A CPU's cores are used by training threads, each with a child of its own, and not as devices:
    children differ in length, and none has to wait for others.
    """
    devices = jax.local_devices()
    return devices[:1] if devices[0].platform == "cpu" else devices


def trial_sharding(devices: Sequence[jax.Device]) -> NamedSharding:
    """Returns how arrays [len(devices) * K, ...] are spread: K rows on each device."""
    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, P(AXIS))


def map_trials(function: Callable[..., Any], sharding: NamedSharding) -> Callable[..., Any]:
    """Maps a function of equal shares of its arguments' leading axes over devices.

    The same as `jax.pmap` but for the leading axis, which isn't split in two. Results are those of
    a single device but for rounding: for several, XLA compiles another program.

    Args:
      function: of pytrees of arrays [K, ...], which returns such.
      sharding: from `trial_sharding`; each device gets K rows of the arguments.
    """
    mesh, spec = sharding.mesh, sharding.spec
    # Loops that start from constants are refused by the check of what varies over devices.
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
