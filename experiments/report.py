"""A page to look at: what a search found, how, and at what cost.

Command, after `python -m experiments.multitask`:
  python -m experiments.report --workdir=runs/multitask
Variants:
  --workdir=runs/leave_one_out       curves and tables of a leave-one-out comparison
  --workdir=runs/first,runs/second   several searches on shared axes
It writes WORKDIR/report/report.html, which needs no network, and a PNG and a CSV of each chart
beside it; several searches are compared in comparison/ of the first one. What is still going on
may be looked at too; a search with --live_report keeps its page up to date by itself.
"""

import pathlib

from absl import flags

import mnms_jax as mnms

_WORKDIR = flags.DEFINE_multi_string(
    "workdir", ["runs/multitask"], "Folders of searches, separated by commas or given repeatedly."
)
_OUTPUT = flags.DEFINE_string("output", "", "Folder of the report; empty: in the first --workdir.")


def main() -> None:
    """Writes the report that the flags describe."""
    from mnms_jax.html_report import write_report  # late, for --help

    names = [name for value in _WORKDIR.value for name in value.split(",") if name]
    output = pathlib.Path(_OUTPUT.value).expanduser() if _OUTPUT.value else None
    path = write_report([pathlib.Path(name).expanduser() for name in names], output)
    print(f"written to {path.resolve()}")


if __name__ == "__main__":
    mnms.run_main(main)
