"""Notebooks are what their sources say, without outputs, and run to their end in a short form."""

import os
import pathlib
import subprocess
import sys

import jupytext
import nbformat
import pytest

import mnms_jax

FOLDER = pathlib.Path(mnms_jax.__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# In place of what the cell with the parameters says.
SHORT = {
    "1_multitask_search": """
TASKS, NUM_TRIALS, ROUND_SIZE = ["iris", "wine"], 2, 4
""",
    "2_transfer": """
SOURCES, TARGET, SOURCE_TRIALS, NUM_TRIALS = ["iris", "wine"], "breast_cancer", 2, 4
""",
    "3_own_task_and_space": """
NUM_ROUNDS, TRIALS_PER_ROUND, NUM_SAMPLES = 2, 2, (500, 1000)
""",
    "4_papers_on_tables": """
METHODS, NUM_SEEDS = ["random", "mnms2017_cold", "mnms2017"], 2
NUM_TRIALS, NUM_SOURCE_TRIALS = 4, 8
""",
    "5_many_devices": """
NUM_SEEDS, NUM_TRIALS, NUM_CHILDREN = 4, 10, 2
""",
}


def test_each_notebook_has_a_source_and_a_short_form():
    assert [path.stem for path in NOTEBOOKS] == sorted(SHORT)
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted(SHORT)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_its_source_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    source = jupytext.read(path.with_suffix(".py"))
    cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert cells == [(cell.cell_type, cell.source) for cell in source.cells], "make notebooks"
    assert 10 <= len(cells) <= 24
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    """Its code cells one after another, in a process of their own."""
    cells = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            cells.append(cell.source)
        if "parameters" in cell.metadata.get("tags", []):
            cells.append(SHORT[path.stem])
    assert SHORT[path.stem] in cells
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join(cells))
    # Much is compiled here and little runs.
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, str(script)],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **quick},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
