"""Tasks by name."""

import pathlib
from collections.abc import Sequence

from absl import logging

from mnms_jax.space import nearest
from mnms_jax.tasks.columns import SUFFIXES
from mnms_jax.tasks.files import FileTask, load_file_task, parse_file_task
from mnms_jax.tasks.images import load_digits_task, load_idx_task
from mnms_jax.tasks.packaged import PACKAGED_TASKS, load_packaged_task
from mnms_jax.tasks.records import BUNDLED_TASKS, load_bundled_task
from mnms_jax.tasks.splits import sample, take
from mnms_jax.tasks.tfds import load_tfds_task
from mnms_jax.tasks.tfds_specs import TFDS_TASKS, is_tfds_task, parse_tfds_task
from mnms_jax.types import Task, UserError

_DIGITS = "digits"
_KNOWN = (*PACKAGED_TASKS, *TFDS_TASKS, _DIGITS, *BUNDLED_TASKS)


def check_tasks(entries: Sequence[str]) -> None:
    """Checks that tasks are well named, and none as another one.

    Raises:
      UserError: an unknown name, or one that two tasks have.
    """
    names = [_name(entry) for entry in entries]
    for entry, name in zip(entries, names, strict=True):
        taken = entry != name and name in _KNOWN
        if taken or names.count(name) > 1:
            raise UserError(f"task {entry!r}: another task is called {name!r} too")


def _name(entry: str) -> str:
    if is_tfds_task(entry):
        return parse_tfds_task(entry)[0]
    if "=" in entry:
        return parse_file_task(entry).name
    if entry not in _KNOWN:
        hint = "; call a file NAME=PATH" if entry.endswith(SUFFIXES) else nearest(entry, _KNOWN)
        raise UserError(f"task {entry!r} is unknown{hint}")
    return entry


def with_absolute_paths(entry: str) -> str:
    """Returns a task's entry as it holds in any folder.

    Raises:
      UserError: see `parse_file_task`.
    """
    if is_tfds_task(entry) or "=" not in entry:
        return entry
    name, *options = parse_file_task(entry)
    own = [str(_absolute(x)) if isinstance(x, pathlib.Path) else x for x in options]
    if any({*"?&"} & {*option} for option in own if option):
        return entry  # a folder's name can't be told from options
    pairs = [f"{key}={x}" for key, x in zip(FileTask._fields[2:], own[1:], strict=True) if x]
    return f"{name}={own[0]}{'?' * bool(pairs)}{'&'.join(pairs)}"


def text_column(entry: str) -> str | None:
    """Returns the column that has a task's texts, as far as its entry says so."""
    if is_tfds_task(entry):
        return parse_tfds_task(entry)[1].text
    return parse_file_task(entry).text if "=" in entry else None


def _absolute(path: pathlib.Path) -> pathlib.Path:
    """Returns an absolute path without "..".

    Links are followed only for that, as on other machines they may lead elsewhere; and the file
    keeps its own name, which says how it is read.
    """
    path = path.absolute()
    if ".." not in path.parts:
        return path
    return path.resolve() if path.name == ".." else path.parent.resolve() / path.name


def load_tasks(
    entries: Sequence[str],
    data_dir: str | None = None,
    max_train_examples: int | None = None,
) -> tuple[Task, ...]:
    """Returns tasks, fetched and split; the same on every call.

    Args:
      entries: names of packaged tasks, of TFDS ones, or of those that scikit-learn brings along;
        tfds:NAME/CONFIG for any of TFDS, with ?text=FEATURE&label=FEATURE&test=SPLIT behind it or
        not; NAME=PATH for a file of one's own, with ?text=COLUMN&label=COLUMN&test=PATH behind it
        or not, or a folder of IDX images. docs/tasks.md has the rules.
      data_dir: folder of prepared TFDS data; None for TFDS's own default.
      max_train_examples: of a task; None: all. Of more in a file or a split of TFDS no more are
        held: a sample of its rows is cleaned, and what has no rows of its own held out of that. Of
        other tasks, what is held out stays as it is. The sample is the same on every call.

    Raises:
      UserError: an unknown name, a file that can't be used, or data that is neither there nor to be
        had.
    """
    check_tasks(entries)
    most = max_train_examples
    # What may be missing comes first, so that it is said before anything is fetched.
    tasks = {
        entry: _load_files(entry, most)
        for entry in entries
        if "=" in entry and not is_tfds_task(entry)
    }
    tasks |= {
        entry: load_tfds_task(entry, data_dir, PACKAGED_TASKS, most)
        for entry in entries
        if is_tfds_task(entry)
    }
    tasks |= {entry: load_packaged_task(entry) for entry in entries if entry in PACKAGED_TASKS}
    tasks |= {entry: load_digits_task() for entry in entries if entry == _DIGITS}
    tasks |= {entry: load_bundled_task(entry) for entry in entries if entry in BUNDLED_TASKS}
    return tuple(_limit(tasks[entry], most) for entry in entries)


def _load_files(entry: str, most: int | None) -> Task:
    spec = parse_file_task(entry)
    if not spec.train.is_dir():
        return load_file_task(spec, most)
    if any(spec[2:]):
        raise UserError(f"task {entry!r}: a folder of images takes no options")
    return load_idx_task(spec.name, spec.train)


def _limit(task: Task, most: int | None) -> Task:
    """Returns a task with no more examples to learn from."""
    train = task.splits["train"]
    rows, total = sample(range(len(train.labels)), most)
    if len(rows) == total:
        return task
    logging.info("%s: a sample of %d of %d examples is learned from", task.name, len(rows), total)
    return task._replace(splits={**task.splits, "train": take(train, rows)})
