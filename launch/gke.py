r"""Fills in launch/gke.yaml, and prints it: an experiment on a TPU slice of a GKE cluster.

    python -m launch.gke --name=search --accelerator=tpu-v6e-slice --topology=4x4 --hosts=4 \
        --package='mnms_jax[bucket] @ git+https://HOST/OWNER/mnms_jax' --copy=gs://BUCKET/search \
        experiments.multitask --num_trials=500 --workdir=runs/search | kubectl apply -f -

No image is built: a public one with Python installs the package when a pod starts. The cluster
needs JobSet (https://jobset.sigs.k8s.io). Only the standard library is used.

Not tried on a cluster: none could be reached where this was written. Tests check what is printed,
and run what the pods are told, on a stand-in.
"""

import argparse
import json
import math
import pathlib
import re
import string
from collections.abc import Sequence

TEMPLATE = pathlib.Path(__file__).with_name("gke.yaml")
# Dimensions of a slice's topology, by accelerator as GKE labels its nodes.
DIMENSIONS = {
    "tpu-v4-podslice": 3,
    "tpu-v5-lite-podslice": 2,
    "tpu-v5p-slice": 3,
    "tpu-v6e-slice": 2,
    "tpu7x": 3,
}
_CHIPS = (1, 4, 8)  # that a host may have


def render(arguments: Sequence[str] | None = None) -> str:
    """Returns the JobSet that the arguments, by default the command line's, describe.

    Raises:
      SystemExit: the arguments don't fit; what is wrong is on the error stream.
    """
    parser = _parser()
    values = parser.parse_args(arguments)
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", values.name):
        parser.error(
            f"--name={values.name}: must be lower-case letters, digits and -, at most 40, from a "
            "letter on"
        )
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", values.module):
        parser.error(f"{values.module}: must be a Python module, as experiments.multitask")
    for name, least in (("hosts", 1), ("restarts", 0)):
        if getattr(values, name) < least:
            parser.error(f"--{name}={getattr(values, name)}: must be at least {least}")
    copied = []
    if values.copy:
        if not any(flag.startswith("--workdir=") for flag in values.flags):
            parser.error(f"--copy={values.copy}: give the experiment --workdir=FOLDER too")
        copied = [f"--copy={values.copy}"]
    selector = {
        "cloud.google.com/gke-tpu-accelerator": values.accelerator,
        "cloud.google.com/gke-tpu-topology": values.topology,
        **({"cloud.google.com/gke-spot": "true"} if values.spot else {}),
    }
    # YAML reads JSON, so nothing in a value can become part of the document.
    filled = {
        "name": values.name,
        "image": values.image,
        "package": values.package,
        "service_account": values.service_account,
        "hosts": values.hosts,
        "restarts": values.restarts,
        "chips": _chips(parser, values),
        "node_selector": selector,
        "arguments": [*copied, values.module, *values.flags],
    }
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        {name: json.dumps(value) for name, value in filled.items()}
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch.gke", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--name", required=True, help="of the JobSet")
    parser.add_argument("--accelerator", required=True, choices=DIMENSIONS, help="kind of TPU")
    parser.add_argument("--topology", required=True, help="of the slice, in chips, as 4x4")
    parser.add_argument("--hosts", required=True, type=int, help="that the slice has")
    parser.add_argument("--package", required=True, help="what pip installs, as a URL")
    parser.add_argument("--image", default="python:3.12", help="with Python; default: %(default)s")
    parser.add_argument("--copy", metavar="URL", help="gs://BUCKET/PATH that keeps the results")
    parser.add_argument("--service_account", default="default", help="that may write there")
    parser.add_argument("--spot", action="store_true", help="cheaper; may be taken away any time")
    parser.add_argument("--restarts", type=int, default=10, help="at most; default: %(default)s")
    parser.add_argument("module", help="the experiment, as experiments.multitask")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="of the experiment")
    return parser


def _chips(parser: argparse.ArgumentParser, values: argparse.Namespace) -> int:
    """Returns how many chips a host has."""
    dimensions = DIMENSIONS[values.accelerator]
    shape = "x".join("N" * dimensions)
    if not re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), values.topology):
        parser.error(f"--topology={values.topology}: must be {shape} for {values.accelerator}")
    total = math.prod(int(size) for size in values.topology.split("x"))
    if total not in [values.hosts * chips for chips in _CHIPS]:
        fitting = " or ".join(str(total // chips) for chips in _CHIPS if total % chips == 0)
        parser.error(
            f"--hosts={values.hosts}: {values.topology} is {total} chips, and a host has 1, 4 or "
            f"8, so {fitting} fit"
        )
    return total // values.hosts


if __name__ == "__main__":
    print(render(), end="")
