"""Tasks by name."""

from collections.abc import Sequence

from mnms_jax.space import nearest
from mnms_jax.tasks.packaged import PACKAGED_TASKS, load_packaged_task
from mnms_jax.tasks.tfds import TFDS_TASKS, load_tfds_task
from mnms_jax.types import Task, UserError


def check_tasks(names: Sequence[str]) -> None:
    """Checks that tasks of these names exist.

    Raises:
      UserError: an unknown name.
    """
    known = (*PACKAGED_TASKS, *TFDS_TASKS)
    for name in names:
        if name not in known:
            raise UserError(f"task {name!r} is unknown{nearest(name, known)}")


def load_tasks(names: Sequence[str], data_dir: str | None = None) -> tuple[Task, ...]:
    """Returns tasks, fetched and split; the same on every call.

    Args:
      names: names of packaged tasks or of TFDS ones.
      data_dir: folder of prepared TFDS data; None for TFDS's own default.

    Raises:
      UserError: an unknown name, or data that is neither there nor to be had.
    """
    check_tasks(names)
    # What may be missing comes first, so that it is said before anything is fetched.
    tasks = {
        name: load_tfds_task(name, data_dir, PACKAGED_TASKS) for name in names if name in TFDS_TASKS
    }
    tasks |= {name: load_packaged_task(name) for name in names if name not in TFDS_TASKS}
    return tuple(tasks[name] for name in names)
