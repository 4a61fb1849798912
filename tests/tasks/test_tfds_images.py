"""Images of TFDS, made by itself in the feature specs of mnist and oxford_flowers102."""

import io

import numpy as np
import PIL.Image
import pytest
import tfds_data
from tfds_data import failure, load

from mnms_jax.bench import make_bench
from mnms_jax.config import Config
from mnms_jax.tasks.images import resize


def encoded(pixels, kind):
    content = io.BytesIO()
    PIL.Image.fromarray(pixels.squeeze()).save(content, kind)
    return content.getvalue()


def decoded(content):
    return np.asarray(PIL.Image.open(io.BytesIO(content)))


def draw(number, shape, seed=0):
    return np.random.default_rng(seed).integers(256, size=(number, *shape), dtype=np.uint8)


def examples(images, kind, num_classes):
    return [
        {"image": encoded(pixels, kind), "label": i % num_classes}
        for i, pixels in enumerate(images)
    ]


@pytest.fixture
def write(tmp_path):
    def write_to(dataset, image, classes, **splits):
        import tensorflow_datasets as real_tfds

        label = real_tfds.features.ClassLabel(
            **{"num_classes" if isinstance(classes, int) else "names": classes}
        )
        features = {"image": real_tfds.features.Image(**image), "label": label}
        tfds_data.write(tmp_path, dataset, features, splits)
        return tmp_path

    return write_to


def test_grey_images_of_one_size_are_as_they_are(write):
    images = draw(70, (7, 6, 1))
    images[60:63] = images[:3]  # in train and in test
    path = write(
        "mnist",
        {"shape": (7, 6, 1)},
        10,
        train=examples(images[:60], "png", 10),
        test=examples(images[60:], "png", 10),
    )
    task = load("mnist", path)
    assert (task.kind, task.class_names) == ("image", tuple("0123456789"))
    assert {part: split.inputs.shape for part, split in task.splits.items()} == {
        "train": (50, 7, 6, 1),
        "validation": (7, 7, 6, 1),
        "test": (10, 7, 6, 1),
    }
    labels = {pixels.tobytes(): i % 10 for i, pixels in enumerate(images[:60])}
    for part in ("train", "validation"):
        split = task.splits[part]
        assert [labels.pop(pixels.tobytes()) for pixels in split.inputs] == split.labels.tolist()
    assert set(labels) == {pixels.tobytes() for pixels in images[:3]}
    assert {pixels.tobytes() for pixels in task.splits["test"].inputs} == {
        pixels.tobytes() for pixels in images[60:]
    }
    again = load("tfds:mnist", path)
    np.testing.assert_array_equal(again.splits["train"].inputs, task.splits["train"].inputs)


def flowers():
    """Returns colour images of different sizes, with a grey one, and one beyond any space's limit.

    They are smooth, as JPEG changes those little.
    """
    sizes = [(20, 30), (30, 20), (25, 25), (240, 120)]
    images = []
    for i in range(60):
        height, width = sizes[i % 4]
        ramp = np.linspace(0, 255, height)[:, None, None] * np.ones((1, width, 3))
        images.append((ramp * [1, 0.5, i / 60]).astype(np.uint8))
    images[2] = images[2][..., 0]
    return images


def test_colour_images_of_different_sizes_are_brought_to_one(write):
    names = ["rose", "tulip", "daisy"]
    rows = examples(flowers(), "jpeg", 3)
    path = write(
        "oxford_flowers102", {}, names, train=rows[:40], validation=rows[40:50], test=rows[50:]
    )
    task = load("oxford_flowers102", path)
    assert (task.kind, task.class_names) == ("image", tuple(names))
    assert {part: split.inputs.shape for part, split in task.splits.items()} == {
        "train": (40, 96, 96, 3),
        "validation": (10, 96, 96, 3),
        "test": (10, 96, 96, 3),
    }
    expected = set()
    for row in rows[50:]:
        pixels = decoded(row["image"])
        expected.add((resize(pixels[None], 96, 3).tobytes(), row["label"]))
    test = task.splits["test"]
    assert expected == {
        (pixels.tobytes(), label)
        for pixels, label in zip(test.inputs, test.labels.tolist(), strict=True)
    }
    # 240 x 120 pixels become 96 x 48, in the middle, as bright as they were.
    wide = [pixels for pixels in task.splits["train"].inputs if pixels[0, 30:60].any()]
    assert not any(pixels[:, :24].any() or pixels[:, 72:].any() for pixels in wide)


def test_a_search_can_be_made_on_them(write):
    rows = examples(draw(60, (9, 9, 3)), "png", 2)
    path = write("tf_flowers", {}, 2, train=rows)
    config = Config(tasks=("tfds:tf_flowers?test=train",), data_dir=str(path), space="cpu")
    bench = make_bench(config)
    assert bench.tasks[0].name == "tf_flowers"
    data = bench.inputs.child_data(0, None)
    assert data.inputs.shape[1:] == (9, 9, 3)


def test_damaged_images_are_told(write):
    rows = examples(draw(40, (6, 6, 1)), "png", 2)
    rows[7]["image"] = b"no image"
    path = write("mnist", {"shape": (6, 6, 1)}, 2, train=rows[:30], test=rows[30:])
    assert "is not usable: UnidentifiedImageError: " in failure("mnist", path)


def test_images_of_other_numbers_are_refused(write):
    rows = examples(draw(20, (6, 6, 1)), "png", 2)
    image = {"shape": (6, 6, 1), "dtype": np.uint16, "encoding_format": "png"}
    path = write("deep", image, 2, train=rows[:10], test=rows[10:])
    assert "neither a text nor an image of bytes" in failure("tfds:deep", path)
    assert "has no feature 'picture'" in failure("tfds:deep?image=picture", path)
