"""Which column of a file a text child reads, and what it says of texts that tell it nothing."""

import pytest

import mnms_jax as mnms
from mnms_jax import predictions
from mnms_jax.bench import make_bench
from mnms_jax.export import save_child
from mnms_jax.predictions import predict_file
from mnms_jax.training.fit import Request


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    """A child of a task whose text has a name of its own, as its folder has it."""
    folder = tmp_path_factory.mktemp("trained")
    rows = "".join(f"the film was {('awful', 'great')[i % 2]} {i},{i % 2}\n" for i in range(60))
    (folder / "a.csv").write_text(f"said,label\n{rows}")
    bench = make_bench(mnms.Config(tasks=(f"mine={folder / 'a.csv'}?text=said",)))
    design = bench.family.space.decode(bench.family.space.action_mask.argmax(1))
    _, variables = bench.trainer.fit(Request(0, "mine", 0, design))
    save_child(folder / "child", bench.make_child(0, design, variables))
    return mnms.load_child(folder / "child")


@pytest.mark.parametrize(
    ("header", "option", "read"),
    [
        ("text,said", "", "second"),
        ("text,said", "?text=text", "first"),
        ("text,other", "", "first"),  # guessed
    ],
)
def test_the_column_that_it_was_trained_on_is_read(child, tmp_path, header, option, read):
    (tmp_path / "in.csv").write_text(f"{header}\nfirst,second\n")
    predict_file(child, f"{tmp_path / 'in.csv'}{option}", str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith(f"{read},")


def test_an_older_child_does_not_say_its_column(child, tmp_path):
    save_child(tmp_path / "child", child._replace(text_column=None))
    (tmp_path / "in.csv").write_text("text,said\nfirst,second\n")
    old = mnms.load_child(tmp_path / "child")
    predict_file(old, str(tmp_path / "in.csv"), str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith("first,")


def test_texts_of_which_it_knows_nothing_are_counted(child, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(predictions, "_ROWS", 2)
    (tmp_path / "in").write_text("the film\n\nxylophon zzz\n  \nawful xylophon\n")
    with caplog.at_level("INFO", "absl"):
        predict_file(child, str(tmp_path / "in"), str(tmp_path / "out"))
        (record,) = caplog.records
        said = record.getMessage()
        assert said.startswith("of 5 texts 2 are without a word, and 1 more without one that")
        (tmp_path / "in").write_text("the film\n")
        predict_file(child, str(tmp_path / "in"), str(tmp_path / "out"))
    assert caplog.records == [record]


def test_pieces_of_words_and_encoders_say_something_of_any_word(child):
    assert predictions._count_unseen(child, ["xylophon", ""]) == (1, 1)
    for change in ({"subwords": True}, {"rows": 0}):
        other = child._replace(architecture=child.architecture._replace(**change))
        assert predictions._count_unseen(other, ["xylophon", ""]) == (1, 0)
