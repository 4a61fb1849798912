"""Compiled programs kept on disk under keys of our own, so that nothing is traced to find one.

JAX's compilation cache finds a program by its lowered form; for a child, tracing and lowering take
several times as long as loading what is found. Here the key is what the program is made from.
"""

import functools
import hashlib
import os
import pathlib
import pickle
import platform
import sys
import tempfile
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
from absl import logging
from jax.experimental import serialize_executable

_PACKAGE = pathlib.Path(__file__).parent.parent
_SOURCES = ("children", "training", "devices.py", "types.py")
_PACKAGES = ("jax", "jaxlib", "flax", "numpy")
_ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_CPU_FIELDS = ("vendor", "model", "family", "stepping", "flags", "Features", "CPU ")
_DIGEST_SIZE = hashlib.sha256().digest_size

# Whether the last compilation of a thread was answered by JAX's own cache.
_thread = threading.local()


def program_key(
    make_model: Callable[..., Any],
    architecture: Hashable,
    num_classes: int,
    inputs: Any,
    devices: Sequence[jax.Device],
    options: Mapping[str, Any] | None,
) -> str | None:
    """Returns what a child's program is found by: a digest of all that it depends on.

    Only for models of this package, whose source files are part of the key: what others' models
    depend on isn't known.

    Args:
      make_model: of the family.
      architecture: of the child; its representation tells it from others.
      num_classes: most classes of a task.
      inputs: pytree of shapes and dtypes, as the program takes them.
      devices: that the program runs on.
      options: of the compiler.

    Returns:
      Hexadecimal digits; None for a program that isn't to be kept.
    """
    module, name = getattr(make_model, "__module__", ""), getattr(make_model, "__qualname__", "")
    own = module.split(".")[0] == __name__.split(".")[0]
    if not own or getattr(sys.modules.get(module), name, None) is not make_model:
        return None
    leaves, structure = jax.tree.flatten(inputs)
    device = devices[0]
    parts = (
        f"{module}.{name}",
        architecture,
        num_classes,
        structure,
        [(leaf.shape, str(leaf.dtype)) for leaf in leaves],
        (device.platform, device.client.platform_version, jax.process_count()),
        [(device.id, device.device_kind) for device in devices],
        sorted((options or {}).items()),
        [os.environ.get(variable) for variable in _ENVIRONMENT],
        # Whatever JAX can be told, precision and kinds of random numbers among it.
        sorted((key, str(v)) for key, v in jax.config.values.items() if "cache" not in key),
    )
    digest = hashlib.sha256(foundation())
    for part in parts:
        digest.update(f"{part!r}\n".encode())
    return digest.hexdigest()


@functools.cache
def foundation() -> bytes:
    """Returns a digest of our source files, the versions of others, and the kind of CPU."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        path = _PACKAGE / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(_PACKAGE)}\n".encode() + file.read_bytes())
    versions = [metadata.version(package) for package in _PACKAGES]
    digest.update(repr([sys.version, versions, platform.machine(), platform.processor()]).encode())
    try:
        # Code for the host may use any instruction that it has.
        first = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        lines = [line for line in first.splitlines() if line.startswith(_CPU_FIELDS)]
        digest.update("\n".join(lines).encode())
    except OSError:
        pass  # no Linux
    return digest.digest()


class ProgramFolder:
    """Compiled programs in files, the last used ones.

    They are machine code within a pickle: whoever can write here can run anything as this user. So
    the folder is the user's own, and another's, or one that others may write to, isn't used.
    Whatever else goes wrong with it is told in one warning, and programs are compiled as without.

    Args:
      folder: made where it is missing.
      max_bytes: of all files together.
    """

    def __init__(self, folder: pathlib.Path, max_bytes: int = 2 * 2**30):
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._warned = False
        self._usable = False
        _listen()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            status = folder.stat()
            foundation()
        except (OSError, metadata.PackageNotFoundError) as error:
            self._warn(error)
            return
        self._usable = status.st_uid == os.getuid() and not status.st_mode & 0o022
        if not self._usable:
            self._warn("it belongs to another user, or others may write to it")

    def load_or_compile(
        self, key: str | None, devices: Sequence[jax.Device], compile_new: Callable[[], Any]
    ) -> Any:
        """Returns a program from its file, else compiles it and keeps it.

        Args:
          key: from `program_key`.
          devices: that the program runs on.
          compile_new: returns the program, a `jax.stages.Compiled`.
        """
        if key is None or not self._usable:
            return compile_new()
        path = self._folder / f"{key}.program"
        program = self._load(path, devices)
        if program is None:
            _thread.found = False
            program = compile_new()
            # A program for CPUs from JAX's cache can be written again, but such a file lacks
            # functions when it is run.
            if not _thread.found:
                self._save(path, program)
        return program

    def _load(self, path: pathlib.Path, devices: Sequence[jax.Device]) -> Any:
        try:
            content = path.read_bytes()
            payload = content[_DIGEST_SIZE:]
            if hashlib.sha256(payload).digest() != content[:_DIGEST_SIZE]:
                raise ValueError(f"{path.name} is damaged")
            serialized, in_tree, out_tree = pickle.loads(payload)
            program = serialize_executable.deserialize_and_load(
                serialized, in_tree, out_tree, devices[0].client, devices
            )
        except FileNotFoundError:
            return None
        except Exception as error:  # by whatever the file holds; it will be written again
            self._warn(error)
            return None
        try:
            os.utime(path)
        except OSError:
            pass  # it only seems older than it is
        return program

    def _save(self, path: pathlib.Path, program: Any) -> None:
        try:
            payload = pickle.dumps(serialize_executable.serialize(program))
            content = hashlib.sha256(payload).digest() + payload
            with self._lock:
                self._make_room(len(content))
                with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                    try:
                        file.write(content)
                        file.flush()
                        os.replace(file.name, path)
                    except BaseException:
                        os.unlink(file.name)
                        raise
        except Exception as error:  # a full disk, or a backend whose programs can't be written
            self._warn(error)

    def _make_room(self, size: int) -> None:
        """Removes the files unused for longest, half-written ones of killed processes too."""
        status = {path: path.stat() for path in self._folder.iterdir()}
        total = size + sum(s.st_size for s in status.values())
        for path, s in sorted(status.items(), key=lambda item: item[1].st_mtime):
            if total <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= s.st_size

    def _warn(self, reason: object) -> None:
        if not self._warned:
            logging.warning("compiled programs in %s can't all be used: %s", self._folder, reason)
        self._warned = True


@functools.cache
def _listen() -> None:
    def note(event: str, **_: str | int) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            _thread.found = True

    jax.monitoring.register_event_listener(note)
