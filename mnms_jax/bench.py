"""What all searches of an experiment share, by the kind of its tasks."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from absl import logging

from mnms_jax.children import cells, image, mlp, text
from mnms_jax.config import Config
from mnms_jax.export import Child, ImageChild, RecordChild, TextChild
from mnms_jax.space import SearchSpace
from mnms_jax.tasks import registry
from mnms_jax.tasks.embeddings import WordVectors, glove50, load_word_vectors, minilm
from mnms_jax.tasks.image_inputs import ImageInputs
from mnms_jax.tasks.inputs import TextInputs
from mnms_jax.tasks.packaged import cache_folder
from mnms_jax.tasks.record_inputs import RecordInputs
from mnms_jax.tasks.sentences import ENCODERS, check_encoder
from mnms_jax.training.fit import Trainer
from mnms_jax.types import ChildData, ChildFamily, ChildSpec, Choice, Params, Task, UserError


class Inputs(Protocol):
    """What children read of tasks."""

    num_classes: int  # most classes of a task

    @property
    def digests(self) -> dict[str, str]: ...

    def child_data(self, task_id: int, spec: ChildSpec) -> ChildData: ...


class Bench(NamedTuple):
    """What every search of an experiment shares: tasks, children, and who trains them."""

    tasks: tuple[Task, ...]
    family: ChildFamily
    inputs: Inputs
    # Task index, design, variables -> the child, to be used by itself.
    make_child: Callable[[int, Mapping[str, Choice], Params], Child]
    trainer: Trainer


def make_bench(config: Config, tasks: Sequence[Task] | None = None) -> Bench:
    """Returns the tasks and the trainer that a configuration names.

    Without the packaged GloVe vectors, the search space of texts lacks them, and the log says so.

    Args:
      config: the configuration.
      tasks: those that it names, split otherwise; None: they are loaded.

    Raises:
      UserError: an unknown task, data that can't be had, an embedding file that can't be read, or
        tasks of several kinds, which have no search space in common.
    """
    if tasks is None:
        data_dir = config.data_dir and os.path.expanduser(config.data_dir)
        tasks = registry.load_tasks(config.tasks, data_dir, config.max_train_examples or None)
    first = tasks[0]
    for task in tasks:
        if task.kind != first.kind:
            raise UserError(
                f"task {first.name!r} is of {first.kind}s and {task.name!r} of {task.kind}s: they "
                "have no search space in common; search them one by one"
            )
    if config.space == "cells" and first.kind != "image":
        raise UserError(f"--space=cells: {first.kind}s have no cells; take cpu or full")
    if first.kind == "text":
        return _text_bench(config, tasks)
    if config.embeddings:
        raise UserError(f"--embeddings: {first.kind}s have no words; leave it out")
    return (_image_bench if first.kind == "image" else _record_bench)(config, tasks)


def with_absolute_paths(config: Config) -> Config:
    """Returns a configuration as it holds in any folder.

    Raises:
      UserError: a task that can't be.
    """

    def absolute(path: str) -> str:
        return path and os.path.abspath(os.path.expanduser(path))

    embeddings = [entry.partition("=") for entry in config.embeddings]
    return dataclasses.replace(
        config,
        tasks=tuple(map(registry.with_absolute_paths, config.tasks)),
        embeddings=tuple(f"{name}{equals}{absolute(path)}" for name, equals, path in embeddings),
        data_dir=absolute(config.data_dir),
    )


def _text_bench(config: Config, tasks: Sequence[Task]) -> Bench:
    vectors = _load_vectors(config)
    lengths = {name: table.vectors.shape[1] for name, table in vectors.items()}
    encoders = {name: check_encoder(name).size for name in config.embeddings if name in ENCODERS}
    _check_names(tasks, (*vectors, *encoders))
    family = text.make_text_family(
        config.space, lengths, subwords="subwords" in config.embeddings, encoders=encoders
    )
    inputs = TextInputs(tasks, text.PRESETS[config.space], vectors, tuple(encoders))

    def make_child(task_id: int, design: Mapping[str, Choice], variables: Params) -> Child:
        spec, task = family.make_spec(design), tasks[task_id]
        architecture, preprocessing = spec.architecture, spec.preprocessing
        assert isinstance(architecture, text.TextArchitecture)
        assert isinstance(preprocessing, text.TextPreprocessing)
        return TextChild(
            task.name,
            task.class_names,
            dict(design),
            architecture,
            spec.hyperparameters,
            inputs.encoder(task_id, preprocessing),
            inputs.table(task_id, preprocessing, architecture),
            variables,
            registry.text_column(config.tasks[task_id]),
        )

    return _bench(config, tasks, family, inputs, make_child)


def _load_vectors(config: Config) -> dict[str, WordVectors]:
    vectors = {}
    try:
        vectors["glove50"] = glove50()
    except UserError as error:
        logging.warning("searching without glove50: %s", error)
    if "minilm" in config.embeddings:
        vectors["minilm"] = minilm()
    for name, file in config.embedding_files.items():
        vectors[name] = load_word_vectors(os.path.expanduser(file))
    return vectors


def _check_names(tasks: Sequence[Task], embeddings: Sequence[str]) -> None:
    for task in tasks:
        if task.name in embeddings:
            raise UserError(f"a task and an embedding are called {task.name!r}; rename one of them")


def _image_bench(config: Config, tasks: Sequence[Task]) -> Bench:
    in_cells = config.space == "cells"
    family = cells.make_cell_family() if in_cells else image.make_image_family(config.space)
    inputs = ImageInputs(tasks, image.PRESETS["cpu" if in_cells else config.space])

    def make_child(task_id: int, design: Mapping[str, Choice], variables: Params) -> Child:
        spec, task = family.make_spec(design), tasks[task_id]
        assert isinstance(spec.architecture, image.ImageArchitecture | cells.CellArchitecture)
        return ImageChild(
            task.name,
            task.class_names,
            dict(design),
            spec.architecture,
            spec.hyperparameters,
            inputs.side,
            inputs.channels,
            inputs.child_data(task_id, spec).constants,
            variables,
        )

    return _bench(config, tasks, family, inputs, make_child)


def _record_bench(config: Config, tasks: Sequence[Task]) -> Bench:
    family = mlp.make_record_family(config.space)
    inputs = RecordInputs(tasks)

    def make_child(task_id: int, design: Mapping[str, Choice], variables: Params) -> Child:
        spec, task = family.make_spec(design), tasks[task_id]
        assert isinstance(spec.architecture, mlp.RecordArchitecture)
        return RecordChild(
            task.name,
            task.class_names,
            dict(design),
            spec.architecture,
            spec.hyperparameters,
            inputs.encoder(task_id, spec),
            inputs.num_features,
            variables,
        )

    return _bench(config, tasks, family, inputs, make_child)


def _bench(
    config: Config,
    tasks: Sequence[Task],
    family: ChildFamily,
    inputs: Inputs,
    make_child: Callable[[int, Mapping[str, Choice], Params], Child],
) -> Bench:
    trainer = make_trainer(config, family, inputs)
    return Bench(tuple(tasks), family, inputs, make_child, trainer)


def make_trainer(config: Config, family: ChildFamily, inputs: Inputs) -> Trainer:
    """Returns what trains a family's children, with the configuration's seed."""
    trainer = Trainer(
        family,
        inputs.child_data,
        num_classes=inputs.num_classes,
        seed=config.seed,
        num_workers=config.num_workers,
        lanes=config.lanes,
        rung_samples=rung_samples(family.space) if config.early_stopping else (),
        reward=config.reward,
        program_folder=cache_folder() / "programs",
    )
    # Once, as some programs have several trainers, all alike.
    logging.log_first_n(logging.INFO, "children are trained by %s", 1, trainer.layout)
    return trainer


def rung_samples(space: SearchSpace) -> tuple[int, ...]:
    """Returns the numbers of samples at which children may be stopped early.

    Half of the fewest samples that a design has, then all of the choices but the most.
    """
    samples = space.decisions[space.names.index("samples")].choices
    ascending = sorted(int(choice) for choice in samples)
    return (ascending[0] // 2, *ascending[:-1])
