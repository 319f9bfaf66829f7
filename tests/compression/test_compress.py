"""From a model to a file in one call: the same as by hand, whole after every kill, refused before any work."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from builders import images, total_macs, values

import keras_filterprune as kfp
from keras_filterprune import compression, errors
from keras_filterprune.compression import exam, findings, stages
from keras_filterprune.compression.devices import DEVICES
from keras_filterprune.compression.exam import Found
from keras_filterprune.cost import TARGETS
from keras_filterprune.files import save_keras
from tflite_bench.arm import CORES

pytestmark = pytest.mark.usefixtures("short_recovery")
QUIET = {"progress": False}
FILES = {"compress.json", "model.keras", "model.tflite", "model_card.md", "original.tflite", "plan.json", "report.html"}


def coloured() -> tuple[np.ndarray, np.ndarray]:
    """Images, and which of the colours is bright."""
    x, y = 0.3 * images(128), np.arange(128) % 3
    x[np.arange(128), :, :, y] += 1
    return x, y


def network() -> keras.Model:
    """It knows the colours, and half of its filters give nothing, so that half of it can go for free."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3), name="image")
    y = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="first")(x)
    y = keras.layers.Conv2D(16, 3, activation="relu", name="second")(y)
    model = keras.Model(
        x, keras.layers.Dense(3, name="head")(keras.layers.GlobalAveragePooling2D(name="pool")(y)), name="net"
    )
    for name in ("first", "second"):
        kernel, bias = model.get_layer(name).get_weights()
        kernel[..., 8:] = 0
        model.get_layer(name).set_weights([3 * kernel, bias])
    x, y = coloured()
    known = keras.Model(model.input, model.get_layer("pool").output)(x).numpy()
    known = np.concatenate([known, np.ones((len(x), 1))], axis=1)
    fitted = np.linalg.lstsq(known, 10 * np.eye(3)[y], rcond=1e-3)[0]
    model.get_layer("head").set_weights([fitted[:-1], fitted[-1]])
    return model


@pytest.fixture(scope="module")
def samples():
    return coloured()


@pytest.fixture(scope="module")
def made(samples, short_recovery, tmp_path_factory):
    """One whole run: (what it returned, its folder)."""
    out = tmp_path_factory.mktemp("made") / "net"
    about = kfp.export.Metadata(labels=["cat", "dog", "eel"], normalization=(0, 1))
    return kfp.compress(network(), samples, "raspberry-pi-4", out=out, metadata=about, **QUIET)


def read(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ---------------------------------------------------------------------------------------------------------- results


def test_one_folder_holds_it_all(made, samples):
    assert {path.name for path in made.folder.iterdir()} == FILES
    small, plan = keras.models.load_model(made.model), kfp.PruningPlan.load(made.plan)
    assert made.figures["macs"] == (total_macs(network()), total_macs(small))
    assert 0.3 < made.figures["macs"][1] / made.figures["macs"][0] <= 0.5
    assert [len(plan.kept[name]) % 8 for name in ("first", "second")] == [0, 0]
    assert kfp.export.read_metadata(made.tflite)["plan"]["sha256"] == plan.sha256
    assert kfp.export.read_metadata(made.tflite)["labels"] == ["cat", "dog", "eel"]
    held_out = samples[0][::4]
    found = kfp.export.predict_tflite(made.tflite, held_out).argmax(-1)
    assert made.figures["accuracy"] == (1.0, float(np.mean(found == samples[1][::4])))
    assert made.figures["bytes"][1] == made.tflite.stat().st_size
    assert made.quantize == "int8" and made.figures["accuracy"][1] >= 0.9
    assert json.loads(json.dumps(made.to_dict()))["target"] == "raspberry-pi-4"


def test_a_sequential_network_is_measured_like_another(samples, tmp_path):
    model = keras.Sequential(network().layers)
    found = kfp.compress(model, samples, "raspberry-pi-4", budget=0.6, out=tmp_path, **QUIET)
    assert found.figures["accuracy"][0] == 1.0 and found.figures["accuracy"][1] >= 0.9


def test_card_and_report_say_what_was_found(made):
    card, report = made.card.read_text(), made.report.read_text()
    for row in made.rows():
        assert f"| {' | '.join(row)} |".replace("|  |", "| |") in card.replace("|  |", "| |")
    assert "Budget: at most 50 % of the MACs. Method: " in card
    assert "96 samples; measured on 32 others" in card and "Classes: cat, " in card and "Cortex-A72" in card
    assert "In short" in report and "model.tflite" in report and "Measured latency" in report
    assert made.notes[0] in card and "pip install ai-edge-litert" in card
    assert made.summary().splitlines()[0] == f"{made.tflite} for raspberry-pi-4: int8"


def test_it_is_the_same_as_step_by_step(made, samples, tmp_path):
    x = samples[0][np.setdiff1d(np.arange(128), np.arange(0, 128, 4))]
    small, report = kfp.prune_model(
        network(), "auto", 0.5, data=x, channel_multiple=DEVICES["raspberry-pi-4"].widths, return_report=True, **QUIET
    )
    for one, other in zip(values(small), values(keras.models.load_model(made.model)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert report.plan.to_dict() == kfp.PruningPlan.load(made.plan).to_dict()
    about = kfp.export.Metadata(labels=["cat", "dog", "eel"], normalization=(0, 1), plan=report.plan)
    by_hand = kfp.export_tflite(small, tmp_path / "a.tflite", quantize="int8", data=x, metadata=about)
    inputs = samples[0][:8]
    np.testing.assert_array_equal(*(kfp.export.predict_tflite(p, inputs) for p in (by_hand.path, made.tflite)))


def test_the_smallest_size_that_holds(samples, tmp_path):
    settings = {"accuracy_drop": 0.1, "out": tmp_path / "net", **QUIET}
    found = kfp.compress(network(), samples[0], "cortex-m", labels=samples[1], **settings)
    sizes = sorted(path.name for path in (tmp_path / "net" / "sizes").iterdir())
    assert sizes[:2] == ["family.json", "keep-0.25.keras"]
    assert found.figures["accuracy"][1] >= 0.9
    small, plan = keras.models.load_model(found.model), kfp.PruningPlan.load(found.plan)
    assert [len(plan.kept[name]) for name in ("first", "second")] == [
        small.get_layer(n).filters for n in ("first", "second")
    ]
    # The plan is one of the original, though it was cut size by size.
    again = kfp.apply_plan(network(), plan, compensate="none", **QUIET)
    assert total_macs(again) == total_macs(small) == plan.cost["macs"][1] < total_macs(network())


def test_where_nothing_smaller_holds_nothing_goes(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(exam.Exam, "accuracy", lambda self, outputs: next(scores))
    # The original, three sizes that can be; then int8 fails on the original, and float16 does not.
    scores = iter([1.0, 0.2, 0.2, 0.2, 1.0, 0.5, 1.0, 1.0])
    found = kfp.compress(network(), samples, "raspberry-pi-4", accuracy_drop=0.01, out=tmp_path / "net", **QUIET)
    assert found.figures["macs"][0] == found.figures["macs"][1]
    assert found.quantize == "float16"
    assert any("no filter went" in note for note in found.notes)


@pytest.mark.parametrize(
    ("target", "io"), [("cortex-m", None), ("android", None), ("cortex-m", "uint8"), ("android", False)]
)
def test_integers_in_and_out_as_the_target_takes_them(samples, tmp_path, target, io):
    from ai_edge_litert.interpreter import Interpreter

    found = kfp.compress(network(), samples, target, budget=0.6, integer_io=io, out=tmp_path / "net", **QUIET)
    assert found.quantize == "int8"
    expected = {"uint8": np.uint8, False: np.float32, None: np.int8 if target == "cortex-m" else np.float32}[io]
    assert f"The file takes and gives {np.dtype(expected).name}" in found.card.read_text()
    assert Interpreter(os.fspath(found.tflite)).get_input_details()[0]["dtype"] == expected


def test_labels_that_give_no_accuracy_are_said_to(samples, tmp_path):
    with pytest.warns(UserWarning, match=r"accuracy is not measured: .* class numbers from 0 to 2"):
        found = kfp.compress(network(), (samples[0], samples[1] + 9), "arm64", out=tmp_path, **QUIET)
    assert "accuracy" not in found.figures


@pytest.mark.parametrize(
    "given", [lambda x, y: {"data": x, "labels": {"head": y}}, lambda x, y: {"data": (x, [y])}], ids=["name", "list"]
)
def test_labels_of_one_output_may_come_in_a_structure(samples, tmp_path, given):
    found = kfp.compress(network(), target="arm64", out=tmp_path, **given(*samples), **QUIET)
    assert found.figures["accuracy"][0] > 0.9


@pytest.mark.parametrize("kind", [list, dict])
def test_labels_of_several_outputs_are_taken_and_said_to_give_no_accuracy(samples, tmp_path, kind):
    one, x = network(), samples[0]
    two = keras.Model(one.inputs, {"a": one.output, "b": keras.layers.Dense(2, name="b")(one.layers[-2].output)})
    labels = {"a": samples[1], "b": np.zeros((len(x), 2))}
    given = labels if kind is dict else list(labels.values())
    with pytest.warns(UserWarning, match=r"accuracy is not measured: .* Received: 2 outputs, 2 arrays of labels"):
        found = kfp.compress(two, x, "arm64", labels=given, out=tmp_path, **QUIET)
    assert "accuracy" not in found.figures


@pytest.mark.parametrize(
    ("found", "whole", "floor", "holds"),
    [
        (Found(0.90, 0.99, 0.0), 0.905, None, True),
        (Found(0.89, 0.99, 0.0), 0.905, None, False),
        (Found(0.90, 0.50, 9.0), 0.99, 0.895, True),
        (Found(0.89, 1.00, 0.0), 0.89, 0.895, False),
        (Found(None, 0.96, 9.0), None, None, True),
        (Found(None, 0.94, 0.0), None, None, False),
        (Found(None, None, 0.09), None, None, True),
        (Found(None, None, 0.11), None, None, False),
    ],
)
def test_integers_hold_by_accuracy_else_by_class_else_by_outputs(found, whole, floor, holds):
    assert stages.judge(found, whole, floor, 1000)[0] is holds
    # One sample may differ where there are few.
    assert stages.judge(Found(0.9, 1.0, 0.0), 0.95, None, 20)[0]


def test_files_that_lose_in_integers_are_float(tmp_path):
    """One huge activation leaves no resolution to any other."""
    x = coloured()[0]
    x[:, 0, 0, 0] = 1e6
    model = network()
    kernel, bias = model.get_layer("first").get_weights()
    kernel[:, :, 0] = 0
    model.get_layer("first").set_weights([kernel, bias])
    assert len(set(model(x).numpy().argmax(-1))) > 1
    found = kfp.compress(model, x, "cortex-m", budget=1.0, out=tmp_path / "net", **QUIET)
    assert found.quantize == "float32"
    assert found.notes[0].startswith("The file is float32, not int8: ")


@pytest.mark.parametrize(
    ("before", "after", "learnt", "said"),
    [
        (0.9, 0.8, 96, "costs 10.0 points of accuracy. What helps: more samples (96 were learnt from, "),
        (0.9, 0.8, 2048, "What helps: a larger budget, or to train model.keras on with labels"),
        (0.9, 0.885, 96, ""),
        (0.8, 0.9, 96, ""),
        (None, None, 96, ""),
    ],
)
def test_what_pruning_costs_is_said_with_what_helps(before, after, learnt, said):
    facts = {"accuracy_of_original": before, "accuracy": {"network": after}}
    job = SimpleNamespace(folder=SimpleNamespace(facts=facts), data=np.zeros((learnt, 1)))
    notes = findings._to_win_back(job)
    assert len(notes) == bool(said) and said in "".join(notes)


def test_what_is_missing_to_count_instructions_is_said(made, monkeypatch, tmp_path):
    monkeypatch.setenv("TFLITE_BENCH_CACHE", str(tmp_path))
    missing = findings._counted([made.tflite], "cortex-a72", False)["not counted"]
    assert missing.startswith("the emulated Arm core")
    count = "python -m tflite_bench arm count original.tflite model.tflite --cpu cortex-a72"
    said = f"Instructions were not counted: {missing}. Then `{count}` counts them."
    assert findings._on_instructions({"not counted": missing}, "cortex-a72") == said
    assert findings._on_instructions(findings._counted([], None, False), None).endswith("core for this device.")


def test_every_device_has_widths_a_core_and_words():
    for name, device in DEVICES.items():
        assert replace(device.widths, narrow=0) in [*TARGETS.values(), kfp.budgets.Tiles(4)], name
        assert device.core is None or device.core in CORES, name
        assert {device.quantize, device.otherwise} <= {"int8", "float16", "float32"}
        assert device.usage.endswith(".") and device.chip and device.source
        assert name == name.lower() and " " not in name


# ---------------------------------------------------------------------------------------------------------- resuming


STAGES = {
    "the original's file": (stages, "whole_file"),
    "the cut": (stages, "save_keras"),
    "the file": (stages, "_write"),
    "the timing": (findings, "_timed"),
    "the count": (findings, "_counted"),
    "the report": (findings, "_save_report"),
    "the card": (findings, "write_card"),
}


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("stage", "error"),
    list(zip(STAGES, [KeyboardInterrupt, FULL] * 4, strict=False)),
)
def test_a_run_that_ends_anywhere_goes_on_there(made, samples, tmp_path, monkeypatch, stage, error):
    settings = {"out": tmp_path, "metadata": kfp.export.Metadata(["cat", "dog", "eel"], (0, 1)), **QUIET}
    (tmp_path / "notes.txt").write_text("mine")
    module, name = STAGES[stage]
    own = getattr(module, name)

    def stopped(*arguments, **options):
        if name != "save_keras":
            own(*arguments, **options)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(compression.api if name == "whole_file" else module, name, stopped)
        with pytest.raises((KeyboardInterrupt, OSError)):
            kfp.compress(network(), samples, "raspberry-pi-4", **settings)
    before = read(tmp_path)
    pruned = []
    prune = stages.prune_model
    monkeypatch.setattr(stages, "prune_model", lambda *a, **k: pruned.append(1) or prune(*a, **k))
    found = kfp.compress(network(), samples, "raspberry-pi-4", **settings)
    after = read(tmp_path)
    # What was whole is not made again, least of all what takes long.
    assert len(pruned) == (list(STAGES).index(stage) < 2)
    assert {n for n in before if n.endswith(("keras", "tflite", "plan.json")) and before[n] != after[n]} == set()
    assert set(after) == FILES | {"notes.txt"} and after["notes.txt"] == b"mine"
    for name in ("model.tflite", "original.tflite", "plan.json"):
        assert after[name] == made.folder.joinpath(name).read_bytes()
    assert found.notes[0] == made.notes[0]
    assert {k: v for k, v in found.figures.items() if k != "ms"} == {k: v for k, v in made.figures.items() if k != "ms"}


def test_a_whole_folder_is_read_and_other_work_is_kept_out(made, samples):
    about = kfp.export.Metadata(labels=["cat", "dog", "eel"], normalization=(0, 1))
    before = read(made.folder)
    same = {"model": network(), "data": samples, "target": "raspberry-pi-4", "metadata": about}
    again = kfp.compress(**same, out=made.folder, **QUIET)
    assert again.to_dict() == made.to_dict()
    model = network()
    model.get_layer("head").bias.assign([1, 0, 0])
    others = {"model": model, "data": samples[0], "target": "cortex-m", "budget": 0.6, "accuracy_drop": 0.1, "seed": 1}
    others |= {"metadata": None, "integer_io": True}
    for name, value in others.items():
        with pytest.raises(errors.FileError, match="holds another compression: model, data"):
            kfp.compress(**same | {name: value}, out=made.folder, **QUIET)
    assert read(made.folder) == before


def test_files_of_others_stay_and_cut_files_are_found_out(samples, tmp_path):
    (tmp_path / "plan.json").write_text("mine")
    with pytest.raises(
        errors.FileError, match=r"plan\.json already exists and is kept: no earlier compression wrote it"
    ):
        kfp.compress(network(), samples, "raspberry-pi-4", out=tmp_path, **QUIET)
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json"}
    out = tmp_path / "other"
    kfp.compress(network(), samples, "raspberry-pi-4", out=out, **QUIET)
    (out / "model.tflite").write_bytes(b"cut")
    with pytest.raises(errors.FileError, match="cut or changed"):
        kfp.compress(network(), samples, "raspberry-pi-4", out=out, **QUIET)


# ---------------------------------------------------------------------------------------------------------- refusals

X = images(64)
Y = np.arange(64) % 3
WRONG = {
    "target": ({"target": "pixel8"}, errors.UnknownNameError, "Did you mean 'pixel-8'?"),
    "no target": ({"target": None}, errors.UnknownNameError, "target is one of android, pixel-6"),
    "two limits": ({"budget": 0.5, "accuracy_drop": 0.1}, errors.InvalidValueError, "either budget= or accuracy_drop="),
    "budget": (
        {"budget": 50},
        errors.InfeasibleBudgetError,
        "in (0, 1]. Received: budget=50. For 50 %, give 0.5.",
    ),
    "small budget": ({"budget": 1e-4}, errors.InfeasibleBudgetError, "the smallest reachable is"),
    "drop": ({"accuracy_drop": 1.5, "data": (X, Y)}, errors.InvalidValueError, "share of accuracy that may be lost"),
    "points": ({"accuracy_drop": 1, "data": (X, Y)}, errors.InvalidValueError, "accuracy_drop=1. For 1 %, give 0.01."),
    "no labels": ({"accuracy_drop": 0.1}, errors.CalibrationDataError, "accuracy_drop needs labels"),
    "wrong labels": ({"accuracy_drop": 0.1, "labels": Y + 9}, errors.CalibrationDataError, "class numbers from 0 to 2"),
    "names": ({"accuracy_drop": 0.1, "labels": ["cat"] * 64}, errors.CalibrationDataError, "'head'. Received: 'cat'."),
    "no such labels": ({"labels": 0.5}, errors.InvalidValueError, "an array with a row for each sample"),
    "few labels": ({"labels": Y[:5]}, errors.CalibrationDataError, "labels"),
    "labels twice": ({"data": (X, Y), "labels": Y}, errors.InvalidValueError, "labels are for data of inputs alone"),
    "few samples": ({"data": X[:31]}, errors.CalibrationDataError, "at least 32 samples"),
    "no samples": ({"data": X[:0]}, errors.CalibrationDataError, "holds no samples"),
    "other samples": ({"data": X[:, :5]}, errors.CalibrationDataError, "expected (samples, 8, 8, 3)"),
    "a name": ({"data": "photos"}, errors.CalibrationDataError, "image_dataset_from_directory folders of images"),
    "a network": ({"data": keras.Sequential()}, errors.CalibrationDataError, "Received: Sequential."),
    "no data": ({"data": None}, errors.CalibrationDataError, "calibration data"),
    "NaN": ({"data": X * np.nan}, errors.CalibrationDataError, "NaN"),
    "model": ({"model": "net.keras"}, errors.UnsupportedModelError, "expected a keras.Model"),
    "metadata": ({"metadata": ["cat"]}, errors.InvalidValueError, "a Metadata without a plan"),
    "classes": ({"metadata": kfp.export.Metadata(["cat"])}, errors.InvalidValueError, "are 3 names"),
    "integer_io": ({"integer_io": "uint16"}, errors.InvalidValueError, "True, False or 'uint8'"),
    "seed": ({"seed": -1}, errors.InvalidValueError, "seed is an integer"),
    "progress": ({"progress": "no"}, errors.InvalidValueError, "progress is True or False"),
    "out": ({"out": 3}, errors.InvalidValueError, "out is the name of a"),
    "out is a file": ({"out": "file"}, errors.FileError, "file is a file"),
    "out in a file": ({"out": "file/net"}, errors.FileError, "cannot make the folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_a_sentence_before_any_work(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    for name in ("prune_model", "prune_family", "export_tflite"):
        monkeypatch.setattr(stages, name, None)
    given, error, sentence = WRONG[case]
    good = {"model": network(), "data": X, "target": "cortex-m", "out": "out", **QUIET}
    with pytest.raises(error) as caught:
        kfp.compress(**good | given)
    assert sentence in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_command(samples, tmp_path, capsys, monkeypatch):
    from keras_filterprune.__main__ import main

    monkeypatch.chdir(tmp_path)
    save_keras(network(), "net.keras")
    np.savez("xy.npz", x=samples[0], y=samples[1])
    words = "compress net.keras --data xy.npz --target raspberry-pi-5 --keep-macs 0.6 -o small --json".split()
    assert main(words) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["figures"]["macs"][1] <= 0.6 * content["figures"]["macs"][0]
    assert content["quantize"] == "int8" and (tmp_path / "small" / "model_card.md").is_file()
    assert main(words[:-1]) == 0
    assert "Beside it: report.html, model_card.md, model.keras to train on." in capsys.readouterr().out
    assert main([*words[:-1], "--target", "raspberry-pi"]) == 2
    assert "Did you mean 'raspberry-pi-" in capsys.readouterr().err
    os.mkdir("empty")
    assert main("compress net.keras --data empty --target pixel-8".split()) == 2
    assert "no images in empty" in capsys.readouterr().err
