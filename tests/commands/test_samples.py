"""What the command line takes for --data, --import and budgets, and what it says of all else."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_filterprune as kfp
from keras_filterprune import __main__ as command_line
from keras_filterprune.__main__ import main
from keras_filterprune.commands.data import read_data

Image = pytest.importorskip("PIL.Image")
ROOT = Path(kfp.__file__).parents[1]
LAYERS = """
import keras

@keras.saving.register_keras_serializable("mine")
class {name}(keras.layers.Dense):
    pass
"""


def network(channels=3, sides=(8, 8), inputs=1, width=8):
    images = [keras.Input((*sides, channels), name=f"image{n}") for n in range(inputs)]
    x = keras.layers.Concatenate()(images) if inputs > 1 else images[0]
    for name in ("first", "second"):
        x = keras.layers.Conv2D(width, 3, padding="same", activation="relu", name=name)(x)
    y = keras.layers.Dense(3, activation="softmax", name="head")(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(images, y, name="net")
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def draw(path, mode="RGB", value=200):
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = {"RGB": (value, 0, 0), "RGBA": (value, 0, 0, 255), "L": value, "P": 1}[mode]
    Image.new(mode, (12, 10), colour).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with models and samples of every kind."""
    folder, random = tmp_path_factory.mktemp("samples"), np.random.default_rng(0)
    x, y = random.normal(size=(12, 8, 8, 3)).astype("float32"), np.arange(12) % 3
    models = {"model": network(), "two": network(inputs=2), "open": network(sides=(None, None)), "grey": network(1)}
    for name, model in models.items():
        model.save(folder / f"{name}.keras")
    np.save(folder / "x.npy", x)
    np.savez(folder / "xy.npz", x=x, y=y)
    np.savez(folder / "alone.npz", x)
    np.savez(folder / "y.npz", y=y)
    np.savez(folder / "words.npz", x=x, y=np.array(["a", "b", "c"] * 4))
    np.savez(folder / "short.npz", x=x, y=y[:5])
    np.savez(folder / "two.npz", image0=x, image1=x + 1, y=y)
    np.savez(folder / "named.npz", a=x, b=x)
    np.savez(folder / "objects.npz", x=np.array([{}], object))
    (folder / "cut.npz").write_bytes((folder / "xy.npz").read_bytes()[:300])
    (folder / "text.npy").write_text("nothing")
    for number, name in enumerate(["cat", "dog", "eel"] * 3):
        draw(folder / "classes" / name / f"{number}.png", ["RGB", "RGBA", "L", "P"][number % 4], 20 * number)
    draw(folder / "flat" / "b.JPG")
    draw(folder / "flat" / "a.png", "L")
    (folder / "flat" / "notes.txt").write_text("no image")
    (folder / "empty").mkdir()
    draw(folder / "mixed" / "a.png")
    draw(folder / "mixed" / "cat" / "b.png")
    draw(folder / "damaged" / "a.png")
    (folder / "damaged" / "b.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (folder / "own_layers.py").write_text(LAYERS.format(name="Own"))
    (folder / "broken_layers.py").write_text("1 / 0\n")
    return folder


def read(folder, data, model="model", pixels=None):
    options = argparse.Namespace(data=str(folder / data), pixels=pixels)
    return read_data(options, keras.models.load_model(folder / f"{model}.keras"))


@pytest.mark.parametrize(
    ("data", "model", "shape", "labels"),
    [
        ("x.npy", "model", (12, 8, 8, 3), None),
        ("xy.npz", "model", (12, 8, 8, 3), [0, 1, 2] * 4),
        ("alone.npz", "model", (12, 8, 8, 3), None),
        ("flat", "model", (2, 8, 8, 3), None),
        ("flat", "grey", (2, 8, 8, 1), None),
        ("classes", "model", (9, 8, 8, 3), [0, 0, 0, 1, 1, 1, 2, 2, 2]),
        ("classes", "grey", (9, 8, 8, 1), [0, 0, 0, 1, 1, 1, 2, 2, 2]),
    ],
)
def test_samples_of_every_kind(place, data, model, shape, labels):
    found = read(place, data, model)
    assert found.inputs.shape == shape
    assert found.inputs.dtype == np.float32
    assert (found.labels is None) == (labels is None)
    if labels is not None:
        assert sorted(found.labels) == sorted(labels)


def test_folders_that_are_no_classes_of_the_model_give_no_labels(place):
    draw(place / "others" / "ant" / "0.png")
    draw(place / "others" / "bee" / "1.png")
    with pytest.warns(UserWarning, match=r"others: 2, classes of the model: 3; so no labels"):
        found = read(place, "others")
    assert found.inputs.shape == (2, 8, 8, 3) and found.labels is None and found.classes == ()


def test_a_folder_without_images_is_no_class_beside_images(place):
    draw(place / "beside" / "a.png")
    (place / "beside" / "thumbs").mkdir()
    found = read(place, "beside")
    assert found.inputs.shape == (1, 8, 8, 3) and found.labels is None


def test_several_inputs_come_by_name(place):
    found = read(place, "two.npz", "two")
    assert sorted(found.inputs) == ["image0", "image1"]
    assert len(found.labels) == 12


def test_images_and_their_labels_stay_together_in_an_order_that_mixes_classes(place):
    found = read(place, "classes", "grey")
    sorted_by_class = np.argsort(found.labels, kind="stable")
    assert list(sorted_by_class) != list(range(9))
    again = read(place, "classes", "grey")
    np.testing.assert_array_equal(found.inputs, again.inputs)
    # "eel" holds the images numbered 2, 5 and 8: an "L" of 40 among them.
    assert 40 in found.inputs[found.labels == 2]
    assert 40 not in found.inputs[found.labels != 2]


@pytest.mark.parametrize("pixels", [(0, 255), (0, 1), (-1, 1), (1, 0)])
def test_pixels_are_what_the_network_expects(place, pixels):
    plain, scaled = read(place, "flat"), read(place, "flat", pixels=pixels)
    expected = pixels[0] + plain.inputs / 255 * (pixels[1] - pixels[0])
    np.testing.assert_allclose(scaled.inputs, expected, atol=1e-4)
    assert plain.inputs.max() > 150


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Data sets of TensorFlow Datasets: drawings by class, pairs of numbers, and two that cannot be samples."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder, info = tmp_path_factory.mktemp("named"), tfds.core.DatasetInfo
    label = tfds.features.ClassLabel(names=["cat", "dog", "eel"])
    images = {"image": tfds.features.Image(shape=(10, 12, 3)), "label": label}
    drawings = [{"image": np.full((10, 12, 3), 20 * n, np.uint8), "label": n % 3} for n in range(9)]
    numbers = {"x": tfds.features.Tensor(shape=(4,), dtype=np.float32), "y": tfds.features.Scalar(dtype=np.int64)}
    pairs = [{"x": np.full(4, n, np.float32), "y": n} for n in range(5)]
    sets = {
        "drawings": (images, ("image", "label"), "train", drawings),
        "pairs": (numbers, ("x", "y"), "train", pairs),
        "unsaid": (numbers, None, "train", pairs),
        "unlearnt": (numbers, ("x", "y"), "test", pairs),
    }
    for name, (features, keys, split, rows) in sets.items():
        features = tfds.features.FeaturesDict(features)
        content = {
            "name": name,
            "VERSION": tfds.core.Version("1.0.0"),
            "_info": lambda self, f=features, keys=keys: info(builder=self, features=f, supervised_keys=keys),
            "_split_generators": lambda self, _, split=split, rows=rows: {split: enumerate(rows)},
            "_generate_examples": None,
        }
        type("Builder", (tfds.core.GeneratorBasedBuilder,), content)(data_dir=folder).download_and_prepare()
    tfds.core.add_data_dir(folder)
    return folder


def dataset(place, name, model="model"):
    options = argparse.Namespace(data=f"tfds:{name}", pixels=(0, 1))
    return read_data(options, keras.models.load_model(place / f"{model}.keras"))


def test_a_data_set_by_name_is_read_like_a_folder(place, named):
    found = dataset(place, "drawings")
    assert found.inputs.shape == (9, 8, 8, 3)
    assert found.classes == ("cat", "dog", "eel")
    assert found.normalization == (0, 255)
    numbers = np.rint(found.inputs[:, 0, 0, 0] * 255 / 20).astype(int)
    assert sorted(numbers) == list(range(9))
    np.testing.assert_array_equal(found.labels, numbers % 3)
    assert dataset(place, "drawings", "grey").inputs.shape == (9, 8, 8, 1)


def test_numbers_of_a_data_set_are_taken_as_they_are(place, named):
    found = dataset(place, "pairs")
    assert found.inputs.shape == (5, 4)
    np.testing.assert_array_equal(found.inputs[:, 0], found.labels)
    assert found.normalization is None


@pytest.mark.parametrize(
    ("name", "model", "sentence"),
    [
        ("drawings", "two", "images are for a model with one input .* tfds:drawings"),
        ("unsaid", "model", "does not say which of .'x', 'y'. is the input"),
        ("unlearnt", "model", "cannot read the data set 'unlearnt': .*train"),
        ("drawing_nobody_has_made", "model", "cannot read the data set 'drawing_nobody_has_made'"),
    ],
)
def test_data_sets_that_are_no_samples(place, named, name, model, sentence):
    with pytest.raises(kfp.errors.CalibrationDataError, match=sentence):
        dataset(place, name, model)


# ----------------------------------------------------------------------------------------------------- what is done


@pytest.mark.parametrize(
    ("words", "written"),
    [
        ("prune model.keras -o small.keras --method taylor --data xy.npz", ["small.keras"]),
        ("prune model.keras -o small.keras --method taylor --data classes", ["small.keras"]),
        ("prune model.keras -o small.keras --data flat --compensate bn", ["small.keras"]),
        ("prune two.keras -o small.keras --data two.npz", ["small.keras"]),
        ("prune model.keras -o small.keras --keep-latency 0.8 --latency-table arm64", ["small.keras"]),
        ("layers model.keras -o small.keras --n-layers 1 --report r.md", ["r.md", "small.keras"]),
        ("layers model.keras -o small.keras --keep-macs 0.6 --method imprinting --data xy.npz", ["small.keras"]),
        ("family model.keras -o sizes --method l2 --keep 0.7 0.5", ["sizes"]),
        ("sensitivity model.keras --data xy.npz --keep 0.5 --csv c.csv --checkpoint s.json", ["c.csv", "s.json"]),
        ("sensitivity model.keras --data flat --metric error --keep 0.5 --plot p.png", ["p.png"]),
    ],
)
def test_commands_with_data(place, tmp_path, monkeypatch, capsys, words, written):
    monkeypatch.chdir(tmp_path)
    assert main([*with_places(place, words), "--json"]) == 0
    json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in tmp_path.iterdir()) == written
    if "small.keras" in written:
        source = keras.models.load_model(place / words.split()[1])
        assert keras.models.load_model("small.keras").count_params() < source.count_params()


def with_places(place, words):
    """The words of a command line, with what exists named by its whole path."""
    return [str(place / word) if (place / word).exists() else word for word in words.split()]


def test_latency_tables_are_made_and_spent(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wide = network(width=32)
    wide.save("wide.keras")
    assert main("latency wide.keras -o table.json --json".split()) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["unit"] == "ms"
    assert content["whole_model"] == pytest.approx(kfp.LatencyTable.load("table.json").predict(wide))
    words = "prune wide.keras -o small.keras --method l2 --keep-latency 0.7 --latency-table table.json"
    # Other programs may make the result no faster, which is said.
    if main(words.split()) == 0:
        assert keras.models.load_model("small.keras").count_params() < wide.count_params()
    else:
        assert "ms" in capsys.readouterr().err


def test_layers_of_a_folder_of_ones_own(tmp_path, monkeypatch, capsys):
    source = LAYERS.format(name="Mine")
    (tmp_path / "layers_of_mine.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    # Saved by a script that is gone.
    gone = {"__name__": "gone"}
    exec(source, gone)
    x = keras.Input((4,))
    keras.Model(x, gone["Mine"](2)(keras.layers.Dense(4)(x))).save("own.keras")
    keras.saving.get_custom_objects().pop("mine>Mine")
    assert main(["scan", "own.keras"]) == 2
    assert "cannot load own.keras" in capsys.readouterr().err
    assert main(["scan", "own.keras", "--import", "layers_of_mine"]) == 0
    keras.saving.get_custom_objects().pop("mine>Mine")
    del sys.modules["layers_of_mine"]


# ------------------------------------------------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("prune model.keras --data nowhere.npy", "cannot read samples from .*nowhere.npy"),
        ("prune model.keras --data text.npy", "cannot read samples from .*text.npy"),
        ("prune model.keras --data cut.npz", "cannot read samples from .*cut.npz"),
        ("prune model.keras --data objects.npz", "cannot read samples from .*objects.npz"),
        ("prune model.keras --data y.npz", "it holds labels alone"),
        ("prune model.keras --data named.npz", "input"),
        ("prune model.keras --data empty", "no images in .*empty; expected"),
        ("prune model.keras --data mixed", "Received: .*mixed, with both a.png and cat.b.png"),
        ("prune model.keras --data damaged", "cannot read the image .*b.jpg: it is damaged, or no image"),
        ("prune model.keras --data own_layers.py", "own_layers.py: it is neither an .npy nor an .npz file"),
        ("prune two.keras --data flat", "images are for a model with one input"),
        ("prune open.keras --data flat", "images are for a model with one input"),
        ("prune model.keras --data x.npy --pixels 0 1", "--pixels is for images; .* Received: --pixels with .*x.npy"),
        ("prune model.keras --data flat --pixels 1 1", "--pixels are two different numbers"),
        ("prune model.keras --data flat --pixels 0 nan", "--pixels are two different numbers"),
        ("prune model.keras --method taylor --data x.npy", "needs labelled samples"),
        ("prune model.keras --method taylor --data flat", "needs labelled samples"),
        ("prune model.keras --method taylor --data words.npz", "numbers"),
        ("prune model.keras --method taylor --data short.npz", "12 samples"),
        ("prune model.keras --compensate glue", "compensate is .* Received: compensate='glue'"),
        ("prune model.keras --import nowhere_at_all", "--import is the name of a module .* ModuleNotFoundError"),
        ("prune model.keras --import broken_layers", "--import is the name of a module .* ZeroDivisionError"),
        ("prune model.keras --latency-table arm64", "--latency-table goes with --keep-latency or --ms"),
        ("prune model.keras --keep-macs 0.5 --latency-table arm64", "--latency-table goes with"),
        ("prune model.keras --keep-latency 0.5 --latency-table arm65", "arm65.*Did you mean 'arm64'"),
        ("prune model.keras --keep-latency 0.5 --latency-table none.json", "none.json"),
        ("prune model.keras --keep-latency 2 --latency-table arm64", r"in \(0, 1\]"),
        ("prune model.keras --ms 1 --latency-table arm64", "milliseconds"),
        ("layers model.keras", "n_layers|budget"),
        ("layers model.keras --n-layers 9", "layers|units"),
        ("layers model.keras --n-layers 1 --method imprinting --data x.npy", "needs labelled samples"),
        ("export model.keras --quantize int8 --data empty", "no images in"),
        ("export model.keras --quantize int8 --data y.npz", "it holds labels alone"),
        ("latency model.keras --device cortex-z1", "cortex-z1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(place, tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(place))
    kind = {"export": "tflite", "latency": "json"}.get(words.split()[0], "keras")
    assert main([*with_places(place, words), "-o", f"out.{kind}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    assert re.search(sentence, captured.err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--data x.npy", "needs labelled samples"),
        ("--data xy.npz --keep 0.5 0.75", "keep"),
        ("--data xy.npz --metric nonsense", "nonsense"),
        ("--data xy.npz --plot p.xyz", "xyz"),
        ("--data xy.npz --plot kept.png", "already exists and is kept"),
        ("--data xy.npz --csv c.csv --plot c.csv", "every file has a name of its own"),
        ("--data xy.npz --checkpoint kept.png", "kept.png"),
    ],
)
def test_bad_input_of_sensitivity(place, tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept.png").write_text("mine")
    assert main(["sensitivity", str(place / "model.keras"), *with_places(place, words)]) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.png"]


@pytest.mark.parametrize("words", ["--keep-macs 0.5 --ms 3", "--keep-latency 0.5 --keep-filters 0.5"])
def test_budgets_are_one(capsys, words):
    with pytest.raises(SystemExit, match="2"):
        main(["prune", "model.keras", "-o", "small.keras", *words.split()])
    assert "not allowed with" in capsys.readouterr().err


def commands_on_pages():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(path.read_text() for path in pages).replace("\\\n", " ")
    return sorted(set(re.findall(r"^keras-filterprune (.*)$", text, re.MULTILINE)))


@pytest.mark.parametrize("line", commands_on_pages())
def test_commands_on_pages_are_understood(line):
    options = command_line._parser().parse_args(shlex.split(line, comments=True))
    assert callable(options.run)
