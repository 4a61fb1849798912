"""The list of files is the order of dependency, and importing the library does nothing."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import mnms_jax

ROOT = pathlib.Path(mnms_jax.__file__).parent
# Arrows point up this list only.
ORDER = """types space randomness reward tabular controller replay advantage losses learner
gaussian_process reward_model ranker candidates search evolution transfer migrate children.ragged
children.layers children.dense children.text children.image children.operations children.cells
children.mlp training.optimizer devices simulate training.plan training.program training.judge
training.pool training.executables training.fit training.ray_trainer tasks.splits tasks.text
tasks.traits tasks.packaged tasks.pickles tasks.columns tasks.records tasks.files tasks.images
tasks.table_files tasks.tables tasks.embeddings tasks.sentences tasks.tfds_specs tasks.tfds_folders
tasks.tfds tasks.inputs tasks.image_inputs tasks.record_inputs tasks.reference tasks.registry config
store artifact export predictions stablehlo saved_controller bench executor sources sinks tracking
report card methods optuna_bridge optuna_sampler strategies comparison tabular_experiment charts
page figures journal run lockstep leave_one_out history analysis search_charts drawing html_report
live_report conclusion experiment retrain schedule cli""".split()
PURE = ORDER[: ORDER.index("training.program") + 1]
IMPURE_LIBRARIES = {"absl", "tensorflow_datasets", "orbax", "tensorboardX", "rich", "pathlib", "os"}


def imports_of(module):
    """Returns the library's own modules that a file imports, and other top-level packages."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    own = {
        m
        for m in ORDER
        if any(n == f"mnms_jax.{m}" or n.startswith(f"mnms_jax.{m}.") for n in names)
    }
    return own, {name.split(".")[0] for name in names}


def test_the_list_is_complete():
    files = {
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        for path in ROOT.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert files == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_nothing_imports_upward(module):
    own, _ = imports_of(module)
    assert own <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("module", PURE)
def test_the_pure_part_does_no_io(module):
    own, others = imports_of(module)
    assert not others & IMPURE_LIBRARIES
    assert own <= set(PURE)
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and hasattr(n.func, "id")}
    assert not calls & {"open", "print"}


def test_importing_touches_no_device_flag_or_heavy_library():
    code = """
import sys
import mnms_jax
assert not {"jax", "absl"} & sys.modules.keys()
for name in mnms_jax.__all__:
    getattr(mnms_jax, name)
from absl import flags
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
assert "tasks" not in flags.FLAGS and not flags.FLAGS.is_parsed()
for name in ("tensorflow", "tensorflow_datasets", "torch", "sklearn", "matplotlib"):
    assert name not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


@pytest.mark.parametrize(
    "experiment",
    sorted((ROOT.parent / "experiments").glob("[a-z]*.py")),
    ids=lambda path: path.stem,
)
def test_help_waits_for_jax_alone(experiment):
    """What a search needs beside it takes as long again to import."""
    code = """
import runpy, sys
try:
    runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
except SystemExit:
    heavy = {"flax", "optax", "orbax", "chex", "pyarrow", "scipy", "sklearn"} & sys.modules.keys()
    sys.exit(", ".join(heavy))
"""
    module = f"experiments.{experiment.stem}"
    arguments = [sys.executable, "-c", code, module, "--help"]
    done = subprocess.run(arguments, check=False, cwd=ROOT.parent, capture_output=True, text=True)
    assert re.search(r"^  --", done.stdout, re.M)  # absl's own help lists a module's flags so
    assert not done.stderr.strip()


def test_the_public_surface_is_what_it_says():
    assert sorted(mnms_jax.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(mnms_jax, name).__doc__ or name.isupper(), name


PUBLIC = """LEARNERS PRESETS PUBLISHED ChildData ChildFamily ChildModel ChildSpec Config Decision
ImageInputs Learner LeaveOneOutSetup Method OptimizerSettings Phase Played Policy PolicyOutput
Proposal RecordInputs Request RewardModel RewardTable SavedController Search SearchSpace SearchState
Split TableBenchmark TableSetup Task TextInputs Trainer TrainerStats TransferConfig TrialResult
UserError WarmStart add_to_optuna choice_frequencies config_from_flags define_flags draw_reward
entropy_loss export_stablehlo find_child find_row fit_reward_model glove50 imitation_loss load_child
load_controller load_table load_tasks load_word_vectors make_bank make_child_data make_child_model
make_cell_family make_evolution make_image_family make_learner make_methods make_null_learner
make_policy make_ppo_learner make_random_policy make_ranker make_record_family
make_reinforce_learner make_requests make_search make_strategy make_text_family make_transfer_search
make_trpo_learner make_urex_learner minilm parse_phase play play_seeds ppo_loss predict_file
rank_advantage read_table regret reinforce_loss relative_advantage retrain_best run_experiment
run_leave_one_out run_main run_schedule run_tabular run_text_leave_one_out standardized_advantage
table_objective urex_loss use_cores_as_devices""".split()
