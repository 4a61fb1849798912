"""Runs an experiment on a host that may be taken away at any time.

    python -m launch.host [--copy=URL] MODULE [FLAGS...]

The experiment gets its flags and --distributed. An experiment that SIGTERM ends does so with 0, and
a cluster would take it for done: here the exit code is then 143, as of any terminated process.

A host's disk goes with it. With --copy, a folder in a bucket, as gs://BUCKET/PATH or whatever else
fsspec opens, is first copied to the workdir, as far as that lacks it; what changes in the workdir
from then on is copied back each minute and at the end. The first host alone writes into its own,
and so it alone copies back. Checkpoints aren't copied, the search makes them again from the log.
"""

import argparse
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

_SECONDS = 60  # between two copies


class Mirror:
    """A local folder and its copy at a URL; what the folder lacks at first is fetched.

    Raises:
      ImportError: fsspec isn't there, or what opens this kind of URL.
      ValueError: nothing opens it.
    """

    def __init__(self, folder: pathlib.Path, url: str):
        import fsspec

        self._folder = folder
        self._remote, root = fsspec.url_to_fs(url)
        self._root = root.rstrip("/")
        for path in self._remote.find(self._root):
            local = folder / path[len(self._root) + 1 :]
            if not local.exists():
                local.parent.mkdir(parents=True, exist_ok=True)
                self._remote.get_file(path, str(local))
        self._copied = self._versions()

    def push(self) -> None:
        """Copies the files that are new, or changed since they were copied."""
        for name, version in self._versions().items():
            if self._copied.get(name) != version:
                remote = f"{self._root}/{name}"
                self._remote.makedirs(remote.rpartition("/")[0], exist_ok=True)
                self._remote.put_file(str(self._folder / name), remote)
                self._copied[name] = version

    def _versions(self) -> dict[str, tuple[int, int]]:
        """Returns size and time of each file, by its path in the folder."""
        found = {}
        for path in self._folder.rglob("*"):
            name = path.relative_to(self._folder)
            passing = any(part.startswith(".") for part in name.parts)
            if path.is_file() and not passing and name.parts[0] != "checkpoints":
                status = path.stat()
                found[name.as_posix()] = (status.st_size, status.st_mtime_ns)
        return found


def run(command: Sequence[str], mirror: Mirror | None) -> int:
    """Runs a command to its end, with what SIGTERM and copies need; returns the exit code."""
    process = subprocess.Popen(command)
    terminated = False

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        process.terminate()

    signal.signal(signal.SIGTERM, terminate)
    while True:
        try:
            code = process.wait(_SECONDS)
            break
        except subprocess.TimeoutExpired:
            _push(mirror)
    copied = _push(mirror)
    if terminated and code == 0:
        return 128 + signal.SIGTERM
    return 128 - code if code < 0 else code or int(not copied)


def _push(mirror: Mirror | None) -> bool:
    """Returns whether the copy is as it should be; a search goes on without one."""
    try:
        if mirror is not None:
            mirror.push()
    except Exception as error:  # file systems of fsspec have no common one
        print(f"the workdir can't be copied: {error!r}", file=sys.stderr, flush=True)
        return False
    return True


def main() -> int:
    """Returns the exit code of the experiment on the command line."""
    parser = argparse.ArgumentParser(prog="launch.host", allow_abbrev=False)
    parser.add_argument("--copy", metavar="URL", help="where to keep a copy of the workdir")
    parser.add_argument("module", help="the experiment, as experiments.multitask")
    parser.add_argument("flags", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    workdirs = [flag for flag in arguments.flags if flag.startswith("--workdir=")]
    mirror = None
    if arguments.copy:
        if len(workdirs) != 1:
            parser.error(f"--copy={arguments.copy}: give the experiment --workdir=FOLDER, once")
        try:
            mirror = Mirror(
                pathlib.Path(workdirs[0].partition("=")[2]).expanduser(), arguments.copy
            )
        except (ImportError, ValueError) as error:
            parser.error(f"--copy={arguments.copy}: {error}; pip install 'mnms_jax[bucket]'")
    return run(
        [sys.executable, "-u", "-m", arguments.module, "--distributed", *arguments.flags], mirror
    )


if __name__ == "__main__":
    sys.exit(main())
