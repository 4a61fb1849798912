"""Figures of benchmarks.throughput from what its processes reported."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.console
import rich.table

from benchmarks.workers import Reply


class Load(NamedTuple):
    """What there is to do, for each child."""

    kinds: list[str]
    steps: list[int]
    flops: list[float]  # useful operations of a step


def compare(
    replies: Mapping[str, Sequence[Reply]],
    noise: Sequence[Reply] | None,
    work: Load,
    peaks: Sequence[float],
) -> dict[str, Any]:
    """Returns all figures of ways that trained the same children.

    Args:
      replies: of each way, chunk by chunk.
      noise: ours with another seed.
      work: what there was to do.
      peaks: the machine's matmul rates, GFLOP/s.
    """
    peak = float(np.median(peaks))
    ways = {way: _way(own, work, peak) for way, own in replies.items()}
    seconds = {way: figures["seconds"] for way, figures in ways.items()}

    def speedup(rival: str, ours: str) -> float | None:
        return seconds[rival] / seconds[ours] if {rival, ours} <= set(seconds) else None

    figures: dict[str, Any] = {
        "children": len(work.kinds),
        "speedup_cold_vs_naive": speedup("naive", "cold"),
        "speedup_warm_vs_naive": speedup("naive", "warm"),
        "speedup_warm_vs_torch": speedup("torch", "warm"),
        "compile_share": ways["cold"]["stats"]["idle_share"] if "cold" in ways else None,
        "matmul_fraction": None,
        "matmul_peak_gflops": peak,
        "ways": ways,
    }
    if "cold" in replies:
        rewards = {way: _rewards(own) for way, own in replies.items()}
        spread = None if noise is None else _rewards(noise) - rewards["cold"]
        figures["agreement"] = {
            way: _agreement(rewards[way] - rewards["cold"], spread)
            for way in rewards
            if way != "cold"
        }
    return figures


def long_run(replies: Mapping[str, Sequence[Reply]], limits: Mapping[str, int]) -> dict[str, Any]:
    """Returns the figures of a long cold search; naive's time is extrapolated from its part."""
    cold = sum(reply.seconds for reply in replies["cold"])
    stats = replies["cold"][-1].stats
    figures = {
        "trials": limits["cold"],
        "cold_seconds": cold,
        "cold_stats": stats,
        "compile_share": stats["idle_share"],
        "naive_trials": limits["naive"],
    }
    if limits["naive"]:
        measured = sum(reply.seconds for reply in replies["naive"])
        extrapolated = measured * limits["cold"] / limits["naive"]
        figures |= {
            "naive_seconds": measured,
            "naive_seconds_extrapolated": extrapolated,
            "speedup_cold_vs_naive": extrapolated / cold,
        }
    return figures


def show(figures: Mapping[str, Any], console: rich.console.Console) -> None:
    """Prints the figures."""
    table = rich.table.Table(title=f"{figures['children']} children")
    columns = (
        "children/min",
        "seconds",
        "CPU seconds",
        "compiling",
        "programs",
        "useful GFLOP/s",
        "peak MB",
    )
    for column in ("way", *columns):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, row in figures["ways"].items():
        stats = row["stats"]
        table.add_row(
            way,
            f"{row['children_a_minute']:.1f}",
            f"{row['seconds']:.1f}",
            f"{row['cpu_seconds']:.1f}",
            f"{stats['compile_seconds']:.1f}" if stats else "",
            f"{stats['programs']}" if stats else "",
            f"{row['gflops']:.1f}",
            f"{row['peak_mb']:.0f}",
        )
    console.print(table)
    table = rich.table.Table(title="milliseconds a step, without compilation")
    ways = list(figures["ways"])
    extra = ["ours, alone"] if "ours_ms_a_step" in figures else []
    for column in ("kind", "children", *ways, *extra):
        table.add_column(column, justify="left" if column == "kind" else "right")
    kinds = next(iter(figures["ways"].values()))["kinds"]
    for kind in kinds:
        rows = [figures["ways"][way]["kinds"][kind] for way in ways]
        alone = [f"{figures['ours_ms_a_step'][kind]:.2f}"] if extra else []
        cells = [f"{row['ms_a_step']:.2f}" for row in rows]
        table.add_row(kind, str(rows[0]["children"]), *cells, *alone)
    console.print(table)
    for way, row in figures.get("agreement", {}).items():
        parts = [f"{key} {value:.3g}" for key, value in row.items() if value is not None]
        console.print(f"rewards, {way} against cold: {', '.join(parts)}")
    for key, value in figures.items():
        if value is None or isinstance(value, int | float):
            console.print(f"{key}: {value if value is None else round(value, 3)}")
    if "long" in figures:
        parts = [f"{key} {value}" for key, value in figures["long"].items()]
        console.print(f"long cold search: {', '.join(parts)}")


def _way(replies: Sequence[Reply], work: Load, peak: float) -> dict[str, Any]:
    seconds = sum(reply.seconds for reply in replies)
    results = [result for reply in replies for result in reply.results]
    running = [result.seconds - result.compile_seconds for result in results]
    gflops = sum(s * f for s, f in zip(work.steps, work.flops, strict=True)) / seconds / 1e9
    kinds = {}
    for kind in sorted(set(work.kinds)):
        # Children that diverged stop early: their steps aren't known.
        own = [i for i, k in enumerate(work.kinds) if k == kind and results[i].reward is not None]
        ran = sum(running[i] for i in own)
        kinds[kind] = {
            "children": len(own),
            "run_seconds": ran,
            "compile_seconds": sum(results[i].compile_seconds for i in own),
            "ms_a_step": 1000 * ran / max(sum(work.steps[i] for i in own), 1),
        }
    return {
        "seconds": seconds,
        "cpu_seconds": sum(reply.cpu_seconds for reply in replies),
        "seconds_by_chunk": [reply.seconds for reply in replies],
        "children_a_minute": 60 * len(results) / seconds,
        "gflops": gflops,
        "share_of_matmul_peak": gflops / peak,
        "stats": replies[-1].stats,
        "peak_mb": replies[-1].peak_mb,
        "prepared_mb": replies[-1].prepared_mb,
        "kinds": kinds,
        "rewards": [result.reward for result in results],
        "child_seconds": [result.seconds for result in results],
    }


def _rewards(replies: Sequence[Reply]) -> np.ndarray:
    """Returns the rewards, float64 [children], NaN for children that diverged."""
    rewards = [result.reward for reply in replies for result in reply.results]
    return np.array([np.nan if reward is None else reward for reward in rewards])


def _agreement(differences: np.ndarray, noise: np.ndarray | None) -> dict[str, float | None]:
    """Compares differences of rewards [children] to those of another seed of ours."""
    figures: dict[str, float | None] = {
        "compared": float(np.isfinite(differences).sum()),
        "mean_difference": float(np.nanmean(differences)),
        "mean_abs_difference": float(np.nanmean(np.abs(differences))),
        "seed_mean_abs_difference": None,
        "seed_std": None,
        "within_two_seed_stds": None,
    }
    if noise is not None:
        std = float(np.nanstd(noise))
        both = differences[np.isfinite(differences)]
        figures["seed_mean_abs_difference"] = float(np.nanmean(np.abs(noise)))
        figures["seed_std"] = std
        figures["within_two_seed_stds"] = float(np.mean(np.abs(both) <= 2 * std))
    return figures
