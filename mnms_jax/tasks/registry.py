"""Tasks by name."""

from collections.abc import Sequence

from mnms_jax.space import nearest
from mnms_jax.tasks.columns import SUFFIXES
from mnms_jax.tasks.files import FileTask, load_file_task, parse_file_task
from mnms_jax.tasks.packaged import PACKAGED_TASKS, load_packaged_task
from mnms_jax.tasks.tfds import TFDS_TASKS, load_tfds_task
from mnms_jax.types import Task, UserError


def check_tasks(names: Sequence[str]) -> None:
    """Checks that tasks of these names exist, and that files are well named.

    Raises:
      UserError: an unknown name, or one that two tasks have.
    """
    known = (*PACKAGED_TASKS, *TFDS_TASKS)
    files = _file_tasks(names)
    for name in names:
        if name not in files and name not in known:
            hint = "; call a file NAME=PATH" if name.endswith(SUFFIXES) else nearest(name, known)
            raise UserError(f"task {name!r} is unknown{hint}")
    own = [files[name].name if name in files else name for name in names]
    for entry, name in zip(names, own, strict=True):
        if own.count(name) > 1 or (entry in files and name in known):
            raise UserError(f"task {entry!r}: another task is called {name!r} too")


def load_tasks(names: Sequence[str], data_dir: str | None = None) -> tuple[Task, ...]:
    """Returns tasks, fetched and split; the same on every call.

    Args:
      names: names of packaged tasks or of TFDS ones, or NAME=PATH for a file of one's own, see
        `parse_file_task`.
      data_dir: folder of prepared TFDS data; None for TFDS's own default.

    Raises:
      UserError: an unknown name, a file that can't be used, or data that is neither there nor to be
        had.
    """
    check_tasks(names)
    files = _file_tasks(names)
    # What may be missing comes first, so that it is said before anything is fetched.
    tasks = {entry: load_file_task(spec) for entry, spec in files.items()}
    tasks |= {
        name: load_tfds_task(name, data_dir, PACKAGED_TASKS) for name in names if name in TFDS_TASKS
    }
    tasks |= {name: load_packaged_task(name) for name in names if name in PACKAGED_TASKS}
    return tuple(tasks[name] for name in names)


def _file_tasks(names: Sequence[str]) -> dict[str, FileTask]:
    return {name: parse_file_task(name) for name in names if "=" in name}
