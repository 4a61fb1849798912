"""Trials spread over local devices, and processes that work together."""

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mnms_jax.types import UserError

AXIS = "trials"
HEARTBEAT_SECONDS = 30  # a process not heard of for so long counts as dead
_CONNECT_SECONDS = 300


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


def lacks_memory(error: BaseException) -> bool:
    """Returns whether an error says that a device's memory, or the host's, isn't enough."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" in str(error)
    return isinstance(error, MemoryError)


def connect_processes(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins this process to the others of a run; before any device is used.

    When one of them dies, the others' next exchange fails as soon as the connection breaks. One
    that vanishes without a word is missed after HEARTBEAT_SECONDS, and JAX then aborts the rest.

    Args:
      coordinator_address: host and port of the process 0; by default, like the other two, found
        out from SLURM, Open MPI, Kubernetes or the TPU's metadata.
      num_processes: of the run.
      process_id: of this process, from 0.

    Raises:
      UserError: the others aren't known or can't be reached.
    """
    # JAX would catch SIGTERM, and do nothing more.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=_CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed: the processes can't be connected ({error}); where there is no cluster "
            "to ask, give --coordinator_address=HOST:PORT, --num_processes and --process_id"
        ) from error
    exchange(b"")  # at once, since the first time on CPUs they must meet within 30 seconds


def exchange(message: bytes) -> list[bytes]:
    """Returns the messages of all processes, by process, once each has sent its own.

    Raises:
      UserError: another process has died.
    """
    if jax.process_count() == 1:
        return [message]
    # In a thread of its own, so that signals are answered meanwhile.
    thread = concurrent.futures.ThreadPoolExecutor(1)
    messages = thread.submit(_exchange, message)
    thread.shutdown(wait=False)
    return messages.result()


def from_first(function: Callable[[], bytes]) -> bytes:
    """Returns what a function returns in process 0, the only one that calls it.

    Raises:
      UserError: the function's own, or process 0 has died.
    """
    message = b""
    if jax.process_index() == 0:
        try:
            message = b"+" + function()
        except UserError as error:
            message = b"-" + str(error).encode()
    message = exchange(message)[0]
    if message[:1] == b"-":
        raise UserError(message[1:].decode())
    return message[1:]


def _exchange(message: bytes) -> list[bytes]:
    try:
        sizes = multihost_utils.process_allgather(np.int32(len(message)))  # [P]
        # Of few lengths, since each is a program of its own.
        rows = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
        rows[: len(message)] = np.frombuffer(message, np.uint8)
        rows = multihost_utils.process_allgather(rows)  # [P, length]
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"process {jax.process_index()}: another process of this run has died; start the same "
            "command on all hosts, it goes on from the log"
        ) from error
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]
