"""The papers' experiment as users type it, on data that TFDS's own builders wrote."""

import json

from commands import command, lines, run


def test_targets_are_searched_with_what_was_learned_and_from_scratch(data_dir, tmp_path):
    search = command(
        "reproduce_mnms2017",
        *("--sources=sst2", "--tasks=imdb", "--num_source_trials=2", "--num_trials=2"),
        *("--round_size=2", f"--data_dir={data_dir}", f"--workdir={tmp_path / 'w'}"),
    )
    done = run(*search)
    assert done.returncode == 0, done.stderr
    folders = ("pretrain", "transfer_1", "scratch_1")
    tasks = [{row["task"] for row in lines(tmp_path / "w" / name)} for name in folders]
    assert tasks == [{"sst2"}, {"imdb"}, {"imdb"}]
    described = [
        json.loads((tmp_path / "w" / name / "config.json").read_text()) for name in folders
    ]
    assert all(not config["reward_model"] for config in described)  # as published
    assert [config.get("sources", [None])[0] for config in described] == [None, "sst2", None]
    best = [max(row["reward"] for row in lines(tmp_path / "w" / name)) for name in folders[1:]]
    shown = [line.split("│") for line in done.stdout.splitlines() if line.startswith("│ imdb")]
    found = {
        cells[2].strip(): float(cells[3])
        for cells in shown
        if "trained" in cells[2] or "scratch" in cells[2]
    }
    assert found == {"pre-trained": round(best[0], 3), "from scratch": round(best[1], 3)}
    assert run(*search).stdout.splitlines()[-6:] == done.stdout.splitlines()[-6:]  # it resumes
