"""Multitask Neural Model Search in JAX."""

from mnms_jax.advantage import rank_advantage, relative_advantage, standardized_advantage
from mnms_jax.children.image import make_image_family
from mnms_jax.children.mlp import make_record_family
from mnms_jax.children.text import PRESETS, make_text_family
from mnms_jax.cli import config_from_flags, define_flags, run_main, use_cores_as_devices
from mnms_jax.config import PUBLISHED, Config, TransferConfig
from mnms_jax.controller import choice_frequencies, make_policy, make_random_policy
from mnms_jax.evolution import make_evolution
from mnms_jax.experiment import run_experiment
from mnms_jax.export import load_child
from mnms_jax.learner import (
    LEARNERS,
    Learner,
    make_learner,
    make_null_learner,
    make_ppo_learner,
    make_reinforce_learner,
    make_trpo_learner,
    make_urex_learner,
)
from mnms_jax.leave_one_out import run_leave_one_out, run_text_leave_one_out, table_objective
from mnms_jax.lockstep import LeaveOneOutSetup
from mnms_jax.losses import entropy_loss, imitation_loss, ppo_loss, reinforce_loss, urex_loss
from mnms_jax.methods import Method, make_methods
from mnms_jax.optuna_bridge import add_to_optuna
from mnms_jax.predictions import find_child, predict_file
from mnms_jax.retrain import retrain_best
from mnms_jax.reward_model import RewardModel, fit_reward_model, make_ranker
from mnms_jax.run import make_requests
from mnms_jax.saved_controller import SavedController, load_controller
from mnms_jax.schedule import Phase, parse_phase, run_schedule
from mnms_jax.search import Proposal, Search, SearchState, make_search
from mnms_jax.simulate import Played, play, play_seeds, regret
from mnms_jax.space import Decision, SearchSpace
from mnms_jax.stablehlo import export_stablehlo
from mnms_jax.strategies import TableSetup, make_strategy
from mnms_jax.tabular import RewardTable, TableBenchmark, draw_reward, find_row
from mnms_jax.tabular_experiment import run_tabular
from mnms_jax.tasks.embeddings import glove50, load_word_vectors, minilm
from mnms_jax.tasks.image_inputs import ImageInputs
from mnms_jax.tasks.inputs import TextInputs
from mnms_jax.tasks.record_inputs import RecordInputs
from mnms_jax.tasks.registry import load_tasks
from mnms_jax.tasks.table_files import read_table
from mnms_jax.tasks.tables import load_table
from mnms_jax.training.fit import Request, Trainer, TrainerStats
from mnms_jax.training.judge import TrialResult
from mnms_jax.transfer import WarmStart, make_bank, make_transfer_search
from mnms_jax.types import (
    ChildFamily,
    ChildModel,
    ChildSpec,
    Policy,
    PolicyOutput,
    Split,
    Task,
    UserError,
)

__version__ = "0.1.0"

__all__ = [
    "LEARNERS",
    "PRESETS",
    "PUBLISHED",
    "ChildFamily",
    "ChildModel",
    "ChildSpec",
    "Config",
    "Decision",
    "ImageInputs",
    "Learner",
    "LeaveOneOutSetup",
    "Method",
    "Phase",
    "Played",
    "Policy",
    "PolicyOutput",
    "Proposal",
    "RecordInputs",
    "Request",
    "RewardModel",
    "RewardTable",
    "SavedController",
    "Search",
    "SearchSpace",
    "SearchState",
    "Split",
    "TableBenchmark",
    "TableSetup",
    "Task",
    "TextInputs",
    "Trainer",
    "TrainerStats",
    "TransferConfig",
    "TrialResult",
    "UserError",
    "WarmStart",
    "add_to_optuna",
    "choice_frequencies",
    "config_from_flags",
    "define_flags",
    "draw_reward",
    "entropy_loss",
    "export_stablehlo",
    "find_child",
    "find_row",
    "fit_reward_model",
    "glove50",
    "imitation_loss",
    "load_child",
    "load_controller",
    "load_table",
    "load_tasks",
    "load_word_vectors",
    "make_bank",
    "make_evolution",
    "make_image_family",
    "make_learner",
    "make_methods",
    "make_null_learner",
    "make_policy",
    "make_ppo_learner",
    "make_random_policy",
    "make_ranker",
    "make_record_family",
    "make_reinforce_learner",
    "make_requests",
    "make_search",
    "make_strategy",
    "make_text_family",
    "make_transfer_search",
    "make_trpo_learner",
    "make_urex_learner",
    "minilm",
    "parse_phase",
    "play",
    "play_seeds",
    "ppo_loss",
    "predict_file",
    "rank_advantage",
    "read_table",
    "regret",
    "reinforce_loss",
    "relative_advantage",
    "retrain_best",
    "run_experiment",
    "run_leave_one_out",
    "run_main",
    "run_schedule",
    "run_tabular",
    "run_text_leave_one_out",
    "standardized_advantage",
    "table_objective",
    "urex_loss",
    "use_cores_as_devices",
]
