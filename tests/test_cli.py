import logging
import pathlib

import pytest

import mnms_jax
from mnms_jax.cli import _is_shown

PACKAGE = pathlib.Path(mnms_jax.__file__).parent


@pytest.mark.parametrize(
    ("path", "level", "shown"),
    [
        (PACKAGE / "run.py", logging.INFO, True),
        (PACKAGE / "tasks" / "tfds.py", logging.INFO, True),
        # A checkout called like the package, with its virtual environment inside.
        (PACKAGE.parent / ".venv" / "mnms_jax" / "orbax.py", logging.INFO, False),
        (pathlib.Path("/usr/lib/orbax.py"), logging.INFO, False),
        (pathlib.Path("/usr/lib/orbax.py"), logging.WARNING, True),
    ],
)
def test_the_log_shows_our_lines_and_others_warnings(path, level, shown):
    record = logging.LogRecord("absl", level, str(path), 1, "text", None, None)
    assert _is_shown(record) is shown
