"""Experiments as programs: flags, log, compilation cache, and users' mistakes in one line."""

import dataclasses
import errno
import logging as stdlib_logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

import jax
from absl import app, flags, logging

from mnms_jax.config import PUBLISHED, Config, flag_name
from mnms_jax.devices import HEARTBEAT_SECONDS, connect_processes
from mnms_jax.types import UserError

# The flags that are defined here are the experiments' own: so --help shows them.
flags.disclaim_key_flags()

_ENVIRONMENT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


class _TerminatedError(BaseException):
    """SIGTERM came: the machine is wanted back."""


def run_main(main: Callable[[], Any]) -> None:
    """Runs the main function of a program whose flags are defined, then exits.

    A mistake that the user can mend, and a full or read-only disk, are told in one line and exit
    with 1, an interrupt from the keyboard with 130, as shells have it; any other error keeps its
    traceback. SIGTERM, by which machines are taken back, ends the program with 0: what was done is
    on the disk.
    """

    def guarded(argv: Sequence[str]) -> None:
        _prepare_process()
        signal.signal(signal.SIGTERM, _terminate)
        connected = False
        try:
            if given := argv[1:]:
                is_flag = given[0].partition("=")[0] in flags.FLAGS
                hint = f"; did you mean --{given[0]}?" if is_flag else ""
                raise UserError(f"no arguments but flags are taken, got {' '.join(given)}{hint}")
            connected = _connect()
            main()
        except UserError as error:
            _leave(1, f"error: {error}")
        except KeyboardInterrupt:
            _leave(128 + signal.SIGINT, "stopped; the same command goes on from here")
        except _TerminatedError:
            _leave(0, "terminated; what was done is kept, and the same command goes on from here")
        except OSError as error:
            if error.errno not in _ENVIRONMENT_ERRORS:
                raise
            _leave(1, f"error: {error}; mend that, and the same command goes on from here")
        except Exception:
            if not connected:
                raise
            # An ordinary exit would wait minutes for the other processes.
            _leave(1, traceback.format_exc())

    app.run(guarded, flags_parser=_parse_flags)


def define_flags(config_class: type[Config] = Config, **defaults: Any) -> None:
    """Defines an absl flag for every field of a Config; defaults replace the fields' own.

    And --preset, which sets those that aren't given, and the flags of a run of several processes,
    which are no part of what is searched.
    """
    for field in dataclasses.fields(config_class):
        name = flag_name(field.name)
        default = defaults.get(field.name, field.default)
        help_text, choices = field.metadata["help"], field.metadata["choices"]
        if choices:
            flags.DEFINE_enum(name, default, choices, help_text)
        elif isinstance(field.default, tuple):
            flags.DEFINE_list(name, list(default), help_text)
        elif isinstance(field.default, bool):
            flags.DEFINE_boolean(name, default, help_text)
        elif isinstance(field.default, int):
            flags.DEFINE_integer(name, default, help_text)
        elif isinstance(field.default, float):
            flags.DEFINE_float(name, default, help_text)
        else:
            flags.DEFINE_string(name, default, help_text)
    flags.DEFINE_enum(
        "preset",
        defaults.get("preset"),
        list(PUBLISHED),
        "A published controller; other flags change parts of it.",
    )
    flags.DEFINE_boolean(
        "distributed", False, "Join the processes that run the same command on other hosts."
    )
    flags.DEFINE_string(
        "coordinator_address", None, "HOST:PORT of process 0; on clusters found out by itself."
    )
    flags.DEFINE_integer("num_processes", None, "Processes of the run; likewise.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "This one's number, from 0; likewise.", lower_bound=0)


def config_from_flags(config_class: type[Config] = Config) -> Config:
    """Returns the configuration, of this class, that the parsed flags give.

    Raises:
      UserError: see Config and TransferConfig.
    """
    preset = PUBLISHED.get(flags.FLAGS.preset, {})
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        flag = flags.FLAGS[flag_name(field.name)]
        value = flag.value if flag.present else preset.get(field.name, flag.value)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return config_class(**values)


def use_cores_as_devices() -> None:
    """Makes each of the CPU's cores a device, for functions that are mapped over devices.

    It must come before any device is used. XLA_FLAGS that say how many there are have their way.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, ValueError) as error:  # ValueError: a value where none belongs
        _leave(1, f"error: {' '.join(str(error).split())}")


def _connect() -> bool:
    """Joins the other processes where the flags say so, and returns whether they do."""
    names = ("coordinator_address", "num_processes", "process_id")
    if "distributed" not in flags.FLAGS:  # a program without the flags of Config
        return False
    values = [flags.FLAGS[name].value for name in names]
    if flags.FLAGS.distributed:
        connect_processes(*values)
        logging.info(
            "process %d of %d; should another one die, this one ends too, within %d seconds",
            jax.process_index(),
            jax.process_count(),
            HEARTBEAT_SECONDS + 10,
        )
    elif values != [None] * len(names):
        raise UserError(f"--{', --'.join(names)}: these go with --distributed")
    return flags.FLAGS.distributed


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the leaving
    raise _TerminatedError


def _leave(status: int, message: str) -> NoReturn:
    """Exits at once, without waiting for children that are still being trained or compiled."""
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _is_shown(record: stdlib_logging.LogRecord) -> bool:
    """Leaves out others' informational lines, of which Orbax writes some thirty a checkpoint."""
    own = record.pathname.startswith(os.path.dirname(__file__) + os.sep)
    return own or record.levelno >= stdlib_logging.WARNING


def _prepare_process() -> None:
    """Sets up a process that runs experiments: its log, and the compilation cache.

    Compiled programs are kept, up to 2 GB, in the folder `xla` of the cache; they are code, so it
    is the user's own folder. Set JAX_COMPILATION_CACHE_DIR to have it elsewhere. Children's
    programs are found faster in the folder `programs`; what is here serves them too when our
    sources have changed, but not what is made from them.
    """
    from mnms_jax.tasks.packaged import cache_folder  # here, as --help needs nothing of it

    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(stdlib_logging.Formatter("%(levelname).1s %(message)s"))
    handler.addFilter(_is_shown)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_compilation_cache_max_size", 2 * 2**30)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
