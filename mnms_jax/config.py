"""One frozen dataclass describes a search; its fields are the experiments' flags."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mnms_jax.reward import ACCURACY, METRICS, parse_reward
from mnms_jax.types import EMBEDDINGS, LEARNERS, TRAINED, UserError, WarmStart

# Embeddings that a search makes use of when it is asked to.
BUILT_IN_EMBEDDINGS = ("minilm", "minilm_encoder", "subwords")

# Whom a search tells of its rounds when it is asked to, beside rounds.jsonl.
TRACKERS = ("tensorboard", "wandb", "mlflow")


def _option(default: Any, help_text: str, choices: tuple[str, ...] = ()) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text, "choices": choices})


@dataclasses.dataclass(frozen=True)
class Config:
    """A multitask search. The metadata of each field says what it means."""

    tasks: tuple[str, ...] = _option(
        ("vader_movie", "vader_amazon"),
        "Tasks to search on. NAME=PATH is a file of your own: CSV, TSV, JSON lines or Parquet with "
        "a text, or numbers and categories, and a label in each row; the names of the columns tell "
        "which, or NAME=PATH?text=COLUMN&label=COLUMN; validation=PATH and test=PATH there name "
        "files that aren't to be parts of the first one. NAME=FOLDER has images in IDX files, as "
        "MNIST. tfds:NAME/CONFIG?text=FEATURE&label=FEATURE&test=SPLIT is any data set that "
        "TensorFlow Datasets has prepared.",
    )
    num_trials: int = _option(48, "Trials on each task.")
    round_size: int = _option(
        16, "Children trained between two updates of the controller, all tasks together."
    )
    space: str = _option(
        "cpu", "Search space; cells is one of images alone.", ("cpu", "full", "cells")
    )
    learner: str = _option("ppo", "How the controller learns.", (*LEARNERS, "random"))
    advantage: str = _option(
        "rank",
        "Rewards against the task's baseline: relative, as published; over the moving standard "
        "deviation; or as ranks.",
        ("relative", "std", "rank"),
    )
    reward: str = _option(
        ACCURACY,
        "What a child is rewarded with on every task: one of "
        f"{', '.join(METRICS)}, on validation, or a formula of them, of params (trained "
        "parameters) and samples (training examples seen), as accuracy - 0.01*log10(params).",
    )
    imitate_best: bool = _option(True, "Let PPO imitate each task's best trials too.")
    skip_connection: bool = _option(
        True, "Show a decision its inputs directly too, not only through the recurrent cell."
    )
    seed: int = _option(0, "Seed of everything random but the splits of the data.")
    workdir: str = _option("runs/multitask", "Folder of the results; the same one resumes.")
    data_dir: str = _option("", "Folder of prepared TFDS data; empty: TFDS's own default.")
    max_train_examples: int = _option(
        0,
        "Most examples of a task to learn from, validation included where a file or TFDS has none "
        "of its own; of more, a sample is read, the same for any --seed; 0: all.",
    )
    time_limit: float = _option(
        0.0,
        "Seconds of searching after which no round is begun, shared with random search; 0: no "
        "limit.",
    )
    save_controller: bool = _option(True, "Save the controller for transfer in WORKDIR/controller.")
    compare_random: bool = _option(True, "Run random search too, at the same number of trials.")
    track: tuple[str, ...] = _option(
        ("tensorboard",), f"Whom to tell of every round: {', '.join(TRACKERS)}; several, or none."
    )
    live_report: bool = _option(
        False, "Keep WORKDIR/report/report.html up to date while the search runs."
    )
    embeddings: tuple[str, ...] = _option(
        (),
        "More choices of embeddings: minilm, the words and pieces of words of all-MiniLM-L6-v2; "
        "minilm_encoder, what it makes of whole texts, frozen; subwords, hashed n-grams of "
        "characters; or name=path: GloVe or word2vec text, or .npz.",
    )
    reward_model: bool = _option(
        True,
        "Choose among many designs by a model of the task's own rewards, and of other tasks'; "
        "without it, the policy's samples are the trials, as published.",
    )
    early_stopping: float = _option(
        0.0,
        "Share of a task's children that is stopped at each rung, the worst at that number of "
        "samples so far, as in successive halving; 0: none.",
    )
    lanes: int = _option(
        0,
        "Children that a device trains at once; 0: what the backend is known to do best. Another "
        "number rounds otherwise, and so makes another search.",
    )
    num_workers: int = _option(
        0,
        "Threads that train children at once; 0: one a core (2 with an accelerator). Or Ray's "
        "workers; 0: one for each GPU, or core, of its cluster.",
    )
    executor: str = _option(
        "local", "Who trains children: threads of this process, or Ray's workers.", ("local", "ray")
    )
    ray_address: str = _option(
        "", "Ray cluster to join: HOST:PORT, or auto; empty: one is started on this machine."
    )
    rounds_in_flight: int = _option(
        1,
        "Rounds that are trained at once. With more than one nobody waits for the last child of a "
        "round, and the controller proposes without having been told of the rounds before.",
    )
    tell: str = _option(
        "ordered",
        "Of several rounds in flight, the one that the controller is told of next: the oldest, so "
        "that the trials are the same in every run; or the one that is done first.",
        ("ordered", "first_done"),
    )

    def __post_init__(self) -> None:
        """Checks what the flags' types can't.

        Raises:
          UserError: no or repeated tasks, a number out of range, an unknown choice, a reward or
            tracker that can't be, or an embedding that is not name=path.
        """
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"--tasks={','.join(self.tasks)}: name at least one task, each once")
        rewards_samples = "samples" in parse_reward(self.reward).names
        for name, allowed, rule in (
            ("num_trials", self.num_trials >= 1, "at least 1"),
            ("round_size", self.round_size >= 1, "at least 1"),
            ("num_workers", self.num_workers >= 0, "at least 0"),
            ("lanes", self.lanes >= 0, "at least 0"),
            ("max_train_examples", self.max_train_examples >= 0, "at least 0"),
            ("rounds_in_flight", self.rounds_in_flight >= 1, "at least 1"),
            (
                "rounds_in_flight",
                self.rounds_in_flight > 1 or self.tell == "ordered",
                "at least 2 with --tell=first_done",
            ),
            ("seed", 0 <= self.seed < 2**32, "from 0 to 4294967295"),
            ("time_limit", self.time_limit >= 0, "at least 0"),
            ("early_stopping", 0 <= self.early_stopping < 1, "at least 0 and below 1"),
            # Else a child would gain by being stopped.
            (
                "early_stopping",
                not (self.early_stopping and rewards_samples),
                "0 with such a --reward",
            ),
        ):
            if not allowed:
                raise UserError(f"--{name}={getattr(self, name)}: must be {rule}")
        for field in dataclasses.fields(self):
            choices, value = field.metadata["choices"], getattr(self, field.name)
            if choices and value not in choices:
                raise UserError(f"--{field.name}={value}: must be one of {', '.join(choices)}")
        # The same formulas are the same text, as it is compared and shown.
        object.__setattr__(self, "reward", parse_reward(self.reward).formula)
        if self.rounds_in_flight > 1 and self.learner not in ("ppo", "random"):
            raise UserError(
                f"--rounds_in_flight={self.rounds_in_flight}: {self.learner} learns from its own "
                "policy's trials alone; take --learner=ppo, or one round"
            )
        if self.ray_address and self.executor != "ray":
            raise UserError(f"--ray_address={self.ray_address}: this goes with --executor=ray")
        self._check_lists()

    def _check_lists(self) -> None:
        for entry in self.track:
            if entry not in TRACKERS or self.track.count(entry) > 1:
                raise UserError(f"--track={entry}: must be of {', '.join(TRACKERS)}, each once")
        for entry in self.embeddings:
            name, separator, path = entry.partition("=")
            if entry not in BUILT_IN_EMBEDDINGS and not (name and separator and path):
                names = ", ".join(BUILT_IN_EMBEDDINGS)
                raise UserError(f"--embeddings={entry}: must be name=path, or one of {names}")

    @property
    def trials_per_task(self) -> int:
        """Trials that a round makes on each task."""
        return -(-self.round_size // len(self.tasks))

    @property
    def embedding_files(self) -> Mapping[str, str]:
        """Paths of the user's own embeddings by name."""
        pairs = (entry.partition("=") for entry in self.embeddings)
        return {name: path for name, _, path in pairs if path}


@dataclasses.dataclass(frozen=True)
class TransferConfig(Config):
    """A search on new tasks that starts from a controller trained on others."""

    from_: str = _option(
        "",
        "Folder of the search, or of the controller, to start from; or optuna:URL, trials of the "
        "studies in a database, as optuna:sqlite:///trials.db, optuna:URL#NAME of those called "
        "NAME or NAME/....",
    )
    embedding: str = _option(
        "mean",
        "Embedding of a new task: the mean of the sources'; random, as published; a mixture of the "
        "sources' by similarity of the data; or one inferred from the rewards.",
        EMBEDDINGS,
    )
    trained: str = _option(
        "all", "What rewards change: all weights, or the new tasks' embeddings alone.", TRAINED
    )
    imitation: bool = _option(True, "Pre-train on the sources' best trials.")
    suggested: int = _option(
        10,
        "Of a task's first so many trials, every other one is one of the sources' best designs, "
        "whatever the reward model says; without that model there are none.",
    )
    replay: bool = _option(
        False, "Learn from the sources' trials all along, so that the policy doesn't forget them."
    )
    guard: bool = _option(True, "Weigh by evidence whether the model may believe the sources.")
    renamed: tuple[str, ...] = _option(
        (), "What the search space called otherwise, as old=new or decision:old=new."
    )

    def __post_init__(self) -> None:
        """Checks what the flags' types can't.

        Raises:
          UserError: see Config, a negative number, or a renamed that isn't old=new.
        """
        super().__post_init__()
        if self.suggested < 0:
            raise UserError(f"--suggested={self.suggested}: must be at least 0")
        for entry in self.renamed:
            if not all(entry.partition("=")):
                raise UserError(f"--renamed={entry}: must be old=new")

    @property
    def from_scratch(self) -> Config:
        """The same search without anything to start from."""
        return Config(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Config)}
        )

    @property
    def warm_start(self) -> WarmStart:
        """How the search starts."""
        return WarmStart(
            self.embedding,
            self.trained,
            imitation_steps=200 if self.imitation else 0,
            ranked=self.reward_model,
            suggested=self.suggested,
            belief=0.5 if self.guard else 1.0,
            replay=self.replay,
        )

    @property
    def new_names(self) -> Mapping[str, str]:
        """New names by old ones."""
        pairs = (entry.partition("=") for entry in self.renamed)
        return {old: new for old, _, new in pairs}


# The papers' controllers as values of these fields: Wong & Gesmundo (2017), and Wong et al. (2018),
# who compare REINFORCE, TRPO and UREX. What neither paper gives is as elsewhere.
_AS_PUBLISHED = {
    "advantage": "relative",
    "imitate_best": False,
    "reward_model": False,
    "embedding": "random",
    "imitation": False,
}
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "mnms2017": {**_AS_PUBLISHED, "learner": "ppo", "skip_connection": False},
    "tnaml2018": {**_AS_PUBLISHED, "learner": "reinforce", "skip_connection": True},
}


def flag_name(field: str) -> str:
    """Returns the flag of a field; `from` can't be a field's name in Python."""
    return field.rstrip("_")


# A resumed search may have other values of these. Where data lies doesn't matter; what it holds
# does, and is compared by itself.
RESUMABLE = (
    "embeddings",
    "num_trials",
    "time_limit",
    "save_controller",
    "compare_random",
    "track",
    "live_report",
    "num_workers",
    "executor",
    "ray_address",
    "data_dir",
    "from_",
)

# What config.json holds beside the flags, for whoever reads it.
DESCRIPTIVE = ("entries", "decisions", "versions")

# The processes of one run may have other values of these.
LOCAL = ("embeddings", "num_workers", "data_dir", "from_")
