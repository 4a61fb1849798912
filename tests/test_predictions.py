"""What users do with the best child of a search: predict, export, read its card, train it anew."""

import contextlib
import json
import re
import signal
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from commands import ROOT, command, run
from idx import idx_bytes

import mnms_jax
from mnms_jax import predictions
from mnms_jax.card import escape
from mnms_jax.optuna_bridge import add_to_optuna
from mnms_jax.predictions import find_child, predict_file
from mnms_jax.stablehlo import export_stablehlo
from mnms_jax.store import TrialLog, read_config
from mnms_jax.types import UserError

CLASSES = ("1 *star*", "2 | <b>")


def write_reviews(path, number=60):
    rows = [f"the film was {('awful', 'great')[i % 2]} {i},{CLASSES[i % 2]}" for i in range(number)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A finished search on texts, whose file was named from its own folder."""
    folder = tmp_path_factory.mktemp("searched")
    write_reviews(folder / "reviews.csv")
    with contextlib.chdir(folder):
        mnms_jax.run_experiment(
            mnms_jax.Config(
                tasks=("mine=reviews.csv",),
                num_trials=2,
                round_size=2,
                learner="random",
                workdir="search",
            )
        )
    return folder / "search"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A finished search on records."""
    path = tmp_path_factory.mktemp("records")
    config = mnms_jax.Config(
        tasks=("iris",), num_trials=2, round_size=2, learner="random", workdir=str(path)
    )
    mnms_jax.run_experiment(config)
    return path


def test_the_child_is_found_by_its_task_or_by_itself(searched, tmp_path):
    best = searched / "best" / "mine"
    assert find_child(searched) == find_child(searched, "mine") == find_child(best) == best
    with pytest.raises(UserError, match=r"--task=mnie: .*did you mean 'mine'"):
        find_child(searched, "mnie")
    with pytest.raises(UserError, match="no search has ended there"):
        find_child(tmp_path)
    for name in ("one", "two"):
        (tmp_path / "best" / name).mkdir(parents=True)
        (tmp_path / "best" / name / "child.json").touch()
    with pytest.raises(UserError, match="name one of one, two"):
        find_child(tmp_path)


def test_a_search_that_goes_on_has_no_best_child_yet(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="its search hasn't ended; run its command once more"):
        find_child(tmp_path)


def test_a_file_is_predicted_in_parts_as_a_whole(searched, tmp_path, monkeypatch):
    child = mnms_jax.load_child(find_child(searched))
    texts = [f"a great, film {i}" if i % 3 else "" for i in range(11)]
    (tmp_path / "in").write_text("\r\n".join(texts))
    predict_file(child, str(tmp_path / "in"), str(tmp_path / "whole.csv"))
    monkeypatch.setattr(predictions, "_ROWS", 4)
    predict_file(child, str(tmp_path / "in"), str(tmp_path / "out.csv"))
    written = (tmp_path / "out.csv").read_text()
    assert written == (tmp_path / "whole.csv").read_text()
    assert written.startswith("text,label,p_1 *star*,p_2 | <b>\n,")
    assert f'\n"a great, film 1",{child.predict([texts[1]])[0]},0.' in written
    lines = "".join(json.dumps({"other": i, "body": x}) + "\n" for i, x in enumerate(texts))
    (tmp_path / "in.jsonl").write_text(lines)
    predict_file(child, f"{tmp_path / 'in.jsonl'}?text=body", str(tmp_path / "out.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == texts
    assert [row["label"] for row in rows] == child.predict(texts)
    found = np.array([[*row["probabilities"].values()] for row in rows])
    np.testing.assert_allclose(found, child.predict_proba(texts), atol=1e-6)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_columns_come_in_parts(tmp_path, ending):
    import pyarrow as pa
    import pyarrow.parquet

    from mnms_jax.tasks.columns import read_batches, read_columns

    path, values = tmp_path / f"a{ending}", [f"row {i}" for i in range(7)]
    if ending == ".parquet":
        pa.parquet.write_table(pa.table({"n": values}), path)
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps({"n": x}) + "\n\n" for x in values))
    else:
        path.write_text("n\n" + "\n".join(values))
    parts = [part.values["n"] for part in read_batches(path, 3)]
    assert parts == [values[:3], values[3:6], values[6:]]
    rows = [row for part in read_batches(path, 3) for row in part.rows]
    assert rows == list(read_columns(path).rows)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
def test_without_rows_the_columns_are_checked_too(records, tmp_path, ending):
    import pyarrow as pa
    import pyarrow.parquet

    def write(names):
        if ending == ".parquet":
            pa.parquet.write_table(
                pa.table({name: pa.array([], pa.float64()) for name in names}), path
            )
        else:
            path.write_text(("\t" if ending == ".tsv" else ",").join(names) + "\n")

    child, path = mnms_jax.load_child(find_child(records)), tmp_path / f"in{ending}"
    write(child.encoder.numbers)
    predict_file(child, str(path), str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_text() == "row,label,p_setosa,p_versicolor,p_virginica\n"
    write(child.encoder.numbers[1:])
    with pytest.raises(UserError, match=r"column 'sepal length \(cm\)' is missing"):
        predict_file(child, str(path), str(tmp_path / "out.csv"))


def test_texts_without_rows(searched, tmp_path):
    child = mnms_jax.load_child(find_child(searched))
    (tmp_path / "in.csv").write_text("text,other\n")
    predict_file(child, str(tmp_path / "in.csv"), str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_text().startswith("text,label,")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1
    with pytest.raises(UserError, match="body"):
        predict_file(child, f"{tmp_path / 'in.csv'}?text=body", str(tmp_path / "out.csv"))


def test_a_column_that_late_json_lines_have_is_one_of_all(tmp_path):
    from mnms_jax.tasks.columns import read_batches

    rows = [{"a": 1}, {"a": 2}, {"a": 3, "late": 4}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = read_batches(tmp_path / "in.jsonl", 2)
    assert first.values == {"a": [1, 2], "late": [None, None]}
    assert second.values == {"a": [3], "late": [4]}


def test_records_are_predicted_by_their_columns(records, tmp_path):
    child = mnms_jax.load_child(find_child(records))
    names = child.encoder.numbers
    rows = np.random.default_rng(0).normal(3, 2, (5, len(names)))
    table = [",".join(("id", *names)), *(f"x,{','.join(map(str, row))}" for row in rows.tolist())]
    (tmp_path / "in.csv").write_text("\n".join(table))
    predict_file(child, str(tmp_path / "in.csv"), str(tmp_path / "out.csv"))
    lines = [line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines()]
    assert lines[0] == ["row", "label", "p_setosa", "p_versicolor", "p_virginica"]
    columns = dict(zip(names, rows.T, strict=True))
    assert [line[:2] for line in lines[1:]] == [
        [str(i), label] for i, label in enumerate(child.predict(columns), 1)
    ]
    (tmp_path / "in.csv").write_text("\n".join(["id,petal length", "x,1"]))
    with pytest.raises(UserError, match=r"cannot use .*in.csv: column 'sepal length"):
        predict_file(child, str(tmp_path / "in.csv"), str(tmp_path / "out2.csv"))
    assert not (tmp_path / "out2.csv").exists()
    (tmp_path / "in.csv").write_text(f"{','.join([*names, names[0]])}\n")
    with pytest.raises(
        UserError, match=f"several of its columns are called '{re.escape(names[0])}'"
    ):
        predict_file(child, str(tmp_path / "in.csv"), str(tmp_path / "out2.csv"))
    with pytest.raises(UserError, match="records have columns"):
        predict_file(child, "-")


def test_images_are_read_from_idx_and_npy(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(3, 4, 5), dtype=np.uint8)
    (tmp_path / "images").write_bytes(idx_bytes(images))
    np.save(tmp_path / "images.npy", images)
    for name in ("images", "images.npy"):
        np.testing.assert_array_equal(predictions._read_images(tmp_path / name), images[..., None])
    np.save(tmp_path / "images.npy", images.astype(float))
    with pytest.raises(UserError, match=r"float64 of shape \[3, 4, 5\]; images are uint8"):
        predictions._read_images(tmp_path / "images.npy")
    np.save(tmp_path / "images.npy", images[:, :0])
    with pytest.raises(UserError, match=r"its images are empty: it has shape \[3, 0, 5\]"):
        predictions._read_images(tmp_path / "images.npy")
    np.savez(tmp_path / "images.npz", images)
    for content in (b"", b"PK\x03\x04 and no more", (tmp_path / "images.npz").read_bytes()):
        (tmp_path / "images.npy").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            predictions._read_images(tmp_path / "images.npy")


def test_bad_texts_and_outputs_are_told(searched, tmp_path):
    child = mnms_jax.load_child(find_child(searched))
    path = tmp_path / "in"
    for content, message in (
        (b"good\nb\xffd\n", "row 2 is not UTF-8 text"),
        (None, "cannot be read"),
    ):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            predict_file(child, str(path), str(tmp_path / "out"))
    path.write_text("good\n")
    with pytest.raises(UserError, match="it is the input too"):
        predict_file(child, str(path), str(path))
    assert path.read_text() == "good\n"
    with pytest.raises(UserError, match=r"--output=.* can't be written: No such file"):
        predict_file(child, str(path), str(tmp_path / "no" / "out"))


def test_the_command_reads_and_writes_streams_and_is_quiet_when_nobody_reads(searched):
    predict = command("predict", f"--workdir={searched}")
    done = run(*predict, input="great\nawful\n")
    assert done.returncode == 0, done.stderr
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == ["text", "great", "awful"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(predict, cwd=ROOT, **pipes) as process:
        process.stdout.close()
        process.stdin.write(b"great film\n" * 10_000)
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGPIPE
    done = run(*command("predict", f"--workdir={searched.parent}"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: --workdir")


def test_a_child_is_a_function_in_plain_jax(searched):
    child, texts = mnms_jax.load_child(find_child(searched)), ["a great film", "awful", ""]
    batch = child.encode(texts)
    logits = jax.jit(child.apply_fn)(child.variables, batch)
    np.testing.assert_allclose(
        jax.nn.softmax(logits), child.predict_proba(texts), rtol=1e-4, atol=1e-6
    )

    def loss(variables):
        return -jnp.mean(jax.nn.log_softmax(child.apply_fn(variables, batch))[:, 0])

    grads = jax.grad(loss)(child.variables)
    assert np.abs(grads["params"]["wide"]["bias"]).max() > 0


def test_stablehlo_gives_the_same_probabilities(searched, records, tmp_path):
    from jax import export

    for workdir in (searched, records):
        child = mnms_jax.load_child(find_child(workdir))
        export_stablehlo(tmp_path / "out", child)
        program = export.deserialize(bytearray((tmp_path / "out/child.stablehlo").read_bytes()))
        assert set(program.platforms) == {"cpu", "cuda", "tpu"}
        about = json.loads((tmp_path / "out" / "child.json").read_text())
        assert about["classes"] == list(child.class_names)
        if workdir == searched:
            texts = ["a great film", "awful"] * 3
            batch, expected = child.encode(texts), child.predict_proba(texts)
            arrays = {
                name: jax.tree.leaves(x)[0] for name, x in batch._asdict().items() if x is not None
            }
            assert about["encoder"]["vocabulary"][:2] == ["<padding>", "<unknown>"]
            embedded = about["encoder"].get("sequence")
            assert child.architecture.pooled == (embedded is None)
            assert embedded in (None, child.architecture.sequence)
            assert about["encoder"].get("rows") == (child.architecture.rows if embedded else None)
        else:
            rows = {name: [1.0, 2.0, 5.0] for name in child.encoder.numbers}
            arrays, expected = {"inputs": child.encode(rows)}, child.predict_proba(rows)
        assert about["inputs"].keys() == arrays.keys()
        np.testing.assert_allclose(program.call(arrays), expected, atol=1e-5)


def test_where_a_program_can_not_be_written_is_said(searched, tmp_path):
    child, file = mnms_jax.load_child(find_child(searched)), tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="is a file; name a folder for the program"):
        export_stablehlo(file, child)
    with pytest.raises(UserError, match=rf"^--output {file}/out can't be written: Not a directory"):
        export_stablehlo(file / "out", child)
    # Nothing of the user's is replaced.
    with pytest.raises(UserError, match=f"{tmp_path} has other files"):
        export_stablehlo(tmp_path / "new" / "..", child)
    export_stablehlo(tmp_path / "out", child)
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(UserError, match="has other files"):
        export_stablehlo(tmp_path / "out", child)
    assert file.exists() and (tmp_path / "out" / "mine.txt").exists()


def test_a_program_that_gives_something_else_is_not_kept(records, tmp_path, monkeypatch):
    child = mnms_jax.load_child(find_child(records))
    wrong = lambda child, batch: np.zeros((len(batch), 3))  # noqa: E731
    monkeypatch.setattr("mnms_jax.stablehlo.probabilities", wrong)
    with pytest.raises(UserError, match="its probabilities differ by up to"):
        export_stablehlo(tmp_path / "out", child)
    assert not (tmp_path / "out").exists()


def test_the_card_says_what_the_child_is(searched):
    card = (searched / "best" / "mine" / "README.md").read_text()
    summary = json.loads((searched / "summary.json").read_text())["tasks"]["mine"]
    best = summary["finalists"][0]
    assert f"| this child | {best['validation']:.4f} | {best['test']:.4f} |" in card
    assert "best of 2 trials" in card and "optimistic" in card
    assert "1 \\*star\\* | 50.0%" in card and "2 \\| \\<b\\> | 50.0%" in card
    assert "48 for train, 6 for validation, 6 for test" in card
    assert "Source: mine=reviews.csv" in card
    assert escape("a\n# b_c") == "a \\# b\\_c"


def test_the_best_design_is_trained_anew_on_more(records):
    before = (records / "trials.jsonl").read_bytes()
    found = mnms_jax.retrain_best(records, num_seeds=2, num_candidates=2)
    child = mnms_jax.load_child(records / "retrained" / "iris")
    test = mnms_jax.load_tasks(["iris"])[0].splits["test"]
    correct = np.mean(child.predict_proba(test.inputs).argmax(1) == test.labels)
    assert correct == pytest.approx(found.rewards[0]) and len(found.rewards) == 2
    trials = {record.trial: record for record in TrialLog(records / "trials.jsonl").records}
    first, second = found.candidates
    assert {first.trial, second.trial} == {0, 1} and first.mean >= second.mean
    for candidate in found.candidates:
        assert candidate.design == trials[candidate.trial].decisions
        assert candidate.rewards[0] == trials[candidate.trial].reward
        assert len(candidate.rewards) == 3
    assert child.decisions == first.design
    card = (records / "retrained" / "iris" / "README.md").read_text()
    assert "of 2 seeds" in card and "that of seed 0" in card and "of 3 seeds" in card
    assert f"that of trial {first.trial}, chosen among the 2 best of a search" in card
    assert (records / "trials.jsonl").read_bytes() == before
    with pytest.raises(UserError, match="must be at least 1"):
        mnms_jax.retrain_best(records, num_seeds=0)
    with pytest.raises(UserError, match="--candidates=0: must be at least 1"):
        mnms_jax.retrain_best(records, num_candidates=0)
    with pytest.raises(
        UserError, match=r"--tasks=iris,wine: name all tasks .*, in their order: iris"
    ):
        mnms_jax.retrain_best(records, entries=["iris", "wine"])


def test_files_are_found_from_any_folder(searched):
    found = mnms_jax.retrain_best(searched, num_seeds=1)
    assert len(found.rewards) == len(found.candidates) == 1
    assert read_config(searched)["entries"] == [f"mine={searched.parent}/reviews.csv"]


def test_other_data_is_not_retrained_on(searched, tmp_path):
    write_reviews(tmp_path / "other.csv", 40)
    with pytest.raises(UserError, match="its search was on other data"):
        mnms_jax.retrain_best(searched, entries=[f"mine={tmp_path / 'other.csv'}"])


def test_trials_are_added_to_a_study_once(searched, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.json").write_bytes((searched / "config.json").read_bytes())
    first, second = (searched / "trials.jsonl").read_text().splitlines()
    (copy / "trials.jsonl").write_text(first + "\n" + second[:20])  # it is still running
    storage = f"sqlite:///{tmp_path / 'trials.db'}"
    assert add_to_optuna(copy, storage) == {"copy/mine": 1}
    stopped = {**json.loads(second), "rungs": [0.5, 0.6], "stopped": True}
    failed = {**json.loads(second), "trial": 2, "reward": None, "failed": "diverged"}
    lines = [first, json.dumps(stopped), json.dumps(failed)]
    (copy / "trials.jsonl").write_text("\n".join(lines) + "\n")
    assert add_to_optuna(copy, storage) == {"copy/mine": 2}
    assert add_to_optuna(copy, storage) == {"copy/mine": 0}
    trials = optuna.load_study(study_name="copy/mine", storage=storage).trials
    records = TrialLog(copy / "trials.jsonl").records
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert trials[0].value == records[0].reward and trials[0].params == records[0].decisions
    assert trials[0].duration.total_seconds() == pytest.approx(records[0].seconds, abs=1e-3)
    assert trials[1].intermediate_values == {0: 0.5, 1: 0.6}
    assert trials[2].user_attrs["failed"] == "diverged"
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "seed": 1}))
    with pytest.raises(UserError, match="has another search; take another --study"):
        add_to_optuna(copy, storage)
    assert add_to_optuna(copy, storage, "new") == {"new/mine": 3}
    with pytest.raises(UserError, match="Optuna can't use it"):
        add_to_optuna(copy, "nonsense://")
    with pytest.raises(UserError, match="holds no search"):
        add_to_optuna(tmp_path, storage)
