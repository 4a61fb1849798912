"""The public surface: one import a name. `__init__.py` follows these when a name is first used."""

from .advantage import rank_advantage, relative_advantage, standardized_advantage
from .children.cells import make_cell_family
from .children.image import make_image_family
from .children.layers import make_child_model
from .children.mlp import make_record_family
from .children.text import PRESETS, make_text_family
from .cli import config_from_flags, define_flags, run_main, use_cores_as_devices
from .config import PUBLISHED, Config, TransferConfig
from .controller import choice_frequencies, make_policy, make_random_policy
from .evolution import make_evolution
from .experiment import run_experiment
from .export import load_child
from .learner import (
    Learner,
    make_learner,
    make_null_learner,
    make_ppo_learner,
    make_reinforce_learner,
    make_trpo_learner,
    make_urex_learner,
)
from .leave_one_out import run_leave_one_out, run_text_leave_one_out, table_objective
from .lockstep import LeaveOneOutSetup
from .losses import entropy_loss, imitation_loss, ppo_loss, reinforce_loss, urex_loss
from .methods import Method, make_methods
from .optuna_bridge import add_to_optuna
from .predictions import find_child, predict_file
from .ranker import make_ranker
from .retrain import retrain_best
from .reward_model import RewardModel, fit_reward_model
from .run import make_requests
from .saved_controller import SavedController, load_controller
from .schedule import Phase, parse_phase, run_schedule
from .search import Proposal, Search, SearchState, make_search
from .simulate import Played, play, play_seeds, regret
from .space import Decision, SearchSpace
from .stablehlo import export_stablehlo
from .strategies import TableSetup, make_strategy
from .tabular import RewardTable, TableBenchmark, draw_reward, find_row
from .tabular_experiment import run_tabular
from .tasks.embeddings import glove50, load_word_vectors, minilm
from .tasks.image_inputs import ImageInputs
from .tasks.inputs import TextInputs, make_child_data
from .tasks.record_inputs import RecordInputs
from .tasks.registry import load_tasks
from .tasks.table_files import read_table
from .tasks.tables import load_table
from .training.fit import Request, Trainer, TrainerStats
from .training.judge import TrialResult
from .transfer import make_bank, make_transfer_search
from .types import (
    LEARNERS,
    ChildData,
    ChildFamily,
    ChildModel,
    ChildSpec,
    OptimizerSettings,
    Policy,
    PolicyOutput,
    Split,
    Task,
    UserError,
    WarmStart,
)

__version__: str

__all__ = [
    "LEARNERS",
    "PRESETS",
    "PUBLISHED",
    "ChildData",
    "ChildFamily",
    "ChildModel",
    "ChildSpec",
    "Config",
    "Decision",
    "ImageInputs",
    "Learner",
    "LeaveOneOutSetup",
    "Method",
    "OptimizerSettings",
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
    "make_cell_family",
    "make_child_data",
    "make_child_model",
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
