import gzip
import itertools

import numpy as np
import pytest
from idx import idx_bytes, write_idx

from mnms_jax.bench import make_bench
from mnms_jax.config import Config
from mnms_jax.tasks.image_inputs import ImageInputs
from mnms_jax.tasks.images import common_size, load_idx_task, read_idx, resize, shrink
from mnms_jax.tasks.registry import load_tasks
from mnms_jax.tasks.traits import task_traits
from mnms_jax.types import Split, Task, UserError


def make_images(number, size=6, seed=0):
    """Returns different images and labels of three classes, which are called 2, 5 and 7."""
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(number, size, size), dtype=np.uint8), np.resize(
        [5, 2, 7], number
    )


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_of_idx_files_becomes_a_task(tmp_path, zipped):
    images, labels = make_images(90)
    test_images, test_labels = make_images(30, seed=1)
    test_images[:3] = images[:3]  # in both: not to be learned from
    repeated = np.concatenate([images, images[10:14]])
    write_idx(tmp_path, "train", repeated, np.append(labels, labels[10:14]), zipped)
    write_idx(tmp_path, "t10k", test_images, test_labels, zipped)
    (task,) = load_tasks([f"mine={tmp_path}"])
    assert (task.name, task.kind, task.class_names) == ("mine", "image", ("2", "5", "7"))
    sizes = {part: split.inputs.shape for part, split in task.splits.items()}
    assert sizes == {"train": (78, 6, 6, 1), "validation": (9, 6, 6, 1), "test": (30, 6, 6, 1)}
    np.testing.assert_array_equal(task.splits["test"].inputs[..., 0], test_images)
    numbers = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for part in ("train", "validation"):
        own = task.splits[part]
        found = [numbers.pop(image.tobytes()) for image in own.inputs]  # each once
        assert found == [int(task.class_names[label]) for label in own.labels]
    assert set(numbers) == {image.tobytes() for image in images[:3]}


def test_without_test_files_a_tenth_of_each_class_is_for_testing(tmp_path):
    write_idx(tmp_path, "train", *make_images(90))
    task = load_idx_task("mine", tmp_path)
    assert [len(split.labels) for split in task.splits.values()] == [72, 9, 9]
    for split in task.splits.values():
        assert set(np.bincount(split.labels)) == {len(split.labels) // 3}
    again = load_idx_task("mine", tmp_path)
    for part, split in task.splits.items():
        np.testing.assert_array_equal(split.inputs, again.splits[part].inputs)


IMAGES = make_images(3)[0]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "no IDX file"),
        (idx_bytes(IMAGES)[:10], "no IDX file"),
        (b"\0\0\x0d\3" + idx_bytes(IMAGES)[4:], "no IDX file of unsigned bytes with 3 axes"),
        (idx_bytes(np.zeros(5)), "no IDX file"),
        (idx_bytes(IMAGES)[:-1], "its header says 108 bytes"),
        (idx_bytes(IMAGES) + b"\0", "its header says 108 bytes"),
        (idx_bytes(np.zeros((0, 4, 4))), r"\[0, 4, 4\] elements"),
        (b"\0\0\x08\3" + b"\xff" * 12, "elements; up to"),
    ],
)
def test_malformed_idx_files_are_refused(tmp_path, content, fault):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=fault):
        read_idx(tmp_path / "a", 3)
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=fault):
        read_idx(tmp_path / "a.gz", 3)


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(idx_bytes(IMAGES), mtime=0)[:40], b"\x1f\x8b\x08\0" + b"x" * 30],
    ids=["none", "cut", "damaged"],
)
def test_damaged_gzip_is_refused(tmp_path, content):
    (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_idx(tmp_path / "a.gz", 3)


def test_what_is_missing_in_a_folder_is_told(tmp_path):
    with pytest.raises(UserError, match="no train-images-idx3-ubyte"):
        load_idx_task("mine", tmp_path)
    images, labels = make_images(90)
    write_idx(tmp_path, "train", images, labels)
    with pytest.raises(UserError, match="a folder of images takes no options"):
        load_tasks([f"mine={tmp_path}?label=a"])
    write_idx(tmp_path, "t10k", *make_images(9, size=5))
    with pytest.raises(UserError, match="differ in size: 6 x 6 pixels and 5 x 5 pixels"):
        load_idx_task("mine", tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="no t10k-labels-idx1-ubyte"):
        load_idx_task("mine", tmp_path)
    write_idx(tmp_path, "train", images, labels[:80])
    with pytest.raises(UserError, match="90 images and 80 labels"):
        load_idx_task("mine", tmp_path)


@pytest.mark.parametrize(
    ("number", "labels", "fault"),
    [(9, [0, 1, 2], "leave nothing for validation"), (90, [4], "all its training images are of")],
)
def test_too_little_to_learn_from(tmp_path, number, labels, fault):
    write_idx(tmp_path, "train", make_images(number)[0], np.resize(labels, number))
    with pytest.raises(UserError, match=fault):
        load_idx_task("mine", tmp_path)


def test_digits_are_whole_and_split_once():
    (task,) = load_tasks(["digits"])
    assert (task.kind, task.num_classes) == ("image", 10)
    images = [image.tobytes() for split in task.splits.values() for image in split.inputs]
    assert len(images) == len(set(images)) == 1797
    for first, second in itertools.combinations(task.splits.values(), 2):
        shares = [np.bincount(s.labels, minlength=10) / len(s.labels) for s in (first, second)]
        assert np.abs(shares[0] - shares[1]).max() < 0.02
    whole = task.splits["train"].inputs
    assert whole.shape[1:] == (8, 8, 1) and (whole.min(), whole.max()) == (0, 255)
    traits = task_traits(task)
    assert (traits.mean_words, traits.num_classes, traits.words) == (64.0, 10, ())


def test_resize_enlarges_by_a_whole_factor_and_pads():
    image = np.arange(1, 7, dtype=np.uint8).reshape(1, 2, 3, 1)
    found = resize(image, 7, 1)[0, ..., 0]
    twice = np.kron([[1, 2, 3], [4, 5, 6]], np.ones((2, 2)))
    np.testing.assert_array_equal(found, np.pad(twice, ((1, 2), (0, 1))))


def test_resize_takes_the_mean_of_fields_of_larger_images():
    image = np.arange(30, dtype=np.uint8).reshape(1, 5, 6, 1)
    found = resize(image, 3, 3)
    assert found.shape == (1, 3, 3, 3) and found.dtype == np.uint8
    rows = np.concatenate([image[0, :, :, 0], image[0, -1:, :, 0]]).astype(float)
    means = rows.reshape(3, 2, 3, 2).mean((1, 3))
    for channel in range(3):
        np.testing.assert_array_equal(found[0, ..., channel], np.round(means))


def test_images_a_little_too_large_lose_little():
    # Of 40 pixels, 32: a whole factor would leave 20 of them.
    image = np.zeros((1, 40, 30, 1), np.uint8)
    image[:, ::5], image[:, :, 29] = 200, 100
    found = shrink(image, 32)[0, ..., 0]
    assert found.shape == (32, 24)
    # Each pixel is of 1.25 old ones: of every four rows one has all of a bright one.
    np.testing.assert_array_equal(found[:4, 0], [160, 0, 0, 0])
    assert found[1, 23] == 80 and abs(found.mean() - image.mean()) < 0.5
    np.testing.assert_array_equal(resize(image, 32, 1)[0, :, 4:28, 0], found)
    np.testing.assert_array_equal(shrink(image, 40), image)


def test_a_field_at_the_edge_is_the_mean_of_what_is_there():
    image = np.arange(7, dtype=np.uint8).reshape(1, 7, 1, 1) * 10
    np.testing.assert_array_equal(shrink(image, 3).ravel(), [7, 30, 53])  # 50 / 7, 30, 370 / 7
    # Fields of 1.25 x 1.25 pixels: the second row of them has what is left of the second row.
    wide = np.arange(10, dtype=np.uint8).reshape(1, 2, 5, 1) * 10
    expected = [[12, 24, 36, 48], [52, 64, 76, 88]]
    np.testing.assert_array_equal(shrink(wide, 4)[0, ..., 0], expected)


def make_task(name, shape, number=40, num_classes=3):
    rng = np.random.default_rng(number)

    def split(rows):
        images = rng.integers(256, size=(rows, *shape), dtype=np.uint8)
        return Split(images, rng.integers(num_classes, size=rows).astype(np.int32))

    splits = {"train": split(number), "validation": split(10), "test": split(10)}
    return Task(name, splits, tuple("abcdef"[:num_classes]), "image")


def test_images_of_several_tasks_have_one_size():
    grey, colour = make_task("grey", (5, 4, 1)), make_task("colour", (12, 9, 3), 200, 5)
    assert common_size([grey, colour], 32) == (12, 3)
    assert common_size([grey, colour], 8) == (8, 3)
    inputs = ImageInputs([grey, colour], 32)
    first, second = (inputs.child_data(task_id, None) for task_id in range(2))
    assert first.inputs.shape == second.inputs.shape == (210, 12, 12, 3)
    assert inputs.num_classes == 5 and (int(first.num_classes), int(first.num_train)) == (3, 40)
    np.testing.assert_array_equal(first.inputs[:40], resize(grey.splits["train"].inputs, 12, 3))
    at = int(first.first_evaluation)
    np.testing.assert_array_equal(first.labels[at : at + 10], grey.splits["validation"].labels)
    pixels = np.asarray(second.inputs[:200], float)
    np.testing.assert_allclose(second.constants.mean, pixels.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(second.constants.deviation, pixels.std((0, 1, 2)), rtol=1e-5)
    assert set(inputs.digests) == {"grey", "colour"}
    other = make_task("grey", (5, 4, 1), 41)
    assert ImageInputs([other], 32).digests["grey"] != inputs.digests["grey"]


def test_texts_and_images_have_no_search_space_in_common(tmp_path):
    write_idx(tmp_path, "train", *make_images(90))
    rows = "".join(f"text number {i},{i % 2}\n" for i in range(60))
    (tmp_path / "texts.csv").write_text(f"text,label\n{rows}")
    tasks = (f"seen={tmp_path}", f"read={tmp_path / 'texts.csv'}")
    with pytest.raises(UserError, match="'seen' is of images and 'read' of texts"):
        make_bench(Config(tasks=tasks))
    with pytest.raises(UserError, match="images have no words"):
        make_bench(Config(tasks=tasks[:1], embeddings=("mine=vectors.npz",)))
