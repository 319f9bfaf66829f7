"""Whatever happens to a file, its reader refuses it in a sentence or finds in it what was written.

KFP_FUZZ=1000 damages every file so often; the suite does it a few times.
"""

from __future__ import annotations

import copy
import json
import os
import random
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from builders import chain

import keras_filterprune as kfp
from keras_filterprune import allocators
from keras_filterprune.checkpoint import Checkpoint
from keras_filterprune.commands.data import _read_arrays
from keras_filterprune.files import load_keras
from keras_filterprune.studies.sensitivity_table import Cut
from tflite_bench import BenchError, Operator, OperatorReport, OperatorTiming
from tflite_bench.runner import Runner

TIMES = int(os.environ.get("KFP_FUZZ", "40"))
IMAGES = np.random.default_rng(0).normal(size=(16, 4, 4, 3)).astype("float32")
ANYTHING = [None, True, 0, -1, 7, 2**70, 1e300, float("nan"), "", "x", "=", [], [[]], {}, {"a": 1}, [0, 1]]


class StopError(Exception):
    """Ends a search after a round."""


class Reader(NamedTuple):
    """A file, how it is read, and whether what it says can be trusted: its format holds checksums of everything."""

    path: Path
    read: object
    sealed: bool = True


def operators():
    timed = OperatorTiming(Operator("CONV_2D", channels=8, size=(4, 4), kernel=(3, 3)), 9.0, 9.5)
    return OperatorReport({"cpu": "Cortex-A76"}, {"threads": 1, "rounds": 2, "seconds": 0.1}, 0.5, (timed,))


def searched(folder, model):
    """A search with training, killed after its second round: its checkpoint, and the model beside it."""
    path, rounds = folder / "search.json", []

    def train(small):
        rounds.append(small)
        if len(rounds) > 2:
            raise StopError

    method = kfp.Method(kfp.criteria.L2(), allocators.Search(beta=1, measure="error", checkpoint=path))
    with pytest.raises(StopError):
        kfp.prune_model(model, method, 0.3, data=IMAGES, finetune=train, progress=False)
    return path


def weights_and_graph(path):
    model = load_keras(path)
    return model.to_json(), [w.tobytes() for w in model.get_weights()]


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    model = chain([4, 4], side=4)
    report = kfp.plan_pruning(model, "l2", kfp.FiltersBudget(0.5))
    report.save(folder / "plan.json")
    operators().save(folder / "operators.json")
    kfp.LatencyTable(operators().to_dict()).save(folder / "table.json")
    search = searched(folder, model)
    content = json.loads(search.read_text())
    cuts = folder / "cuts.json"
    kfp.measure_sensitivity(model, IMAGES, "error", keep=(0.5,), checkpoint=cuts, progress=False)
    model.save(folder / "model.keras")
    metadata = kfp.export.Metadata(labels=[*map(str, range(model.output_shape[-1]))], normalization=(0, 255))
    kfp.export_tflite(model, folder / "model.tflite", metadata=metadata)
    np.save(folder / "x.npy", IMAGES)

    def beside(path):
        more = content["more"] | {"model": path.name}
        return [w.tobytes() for w in Checkpoint(path.with_name("search.json")).model(more).get_weights()]

    return {
        "plan": Reader(folder / "plan.json", lambda p: kfp.PruningPlan.load(p).to_dict()),
        "table": Reader(folder / "table.json", lambda p: kfp.LatencyTable.load(p).digest),
        "operators": Reader(folder / "operators.json", lambda p: OperatorReport.load(p).to_dict()),
        "checkpoint": Reader(
            search, lambda p: [vars(allocators.Search(checkpoint=p).resume(content["key"])[0]), content["more"]]
        ),
        "cache": Reader(
            cuts,
            lambda p: Checkpoint(p).read(
                json.loads(cuts.read_text())["key"], lambda c: {name: Cut(*cut) for name, cut in c["cuts"].items()}
            ),
        ),
        "checkpoint's model": Reader(search.with_name(content["more"]["model"]), beside),
        "keras": Reader(folder / "model.keras", weights_and_graph),
        "metadata": Reader(folder / "model.tflite", kfp.export.read_metadata),
        # What has no checksum is either read or refused.
        "tflite": Reader(folder / "model.tflite", lambda p: kfp.export.predict_tflite(p, IMAGES[:1]), sealed=False),
        "benchmark": Reader(folder / "model.tflite", lambda p: Runner(p).bytes, sealed=False),
        "npy": Reader(folder / "x.npy", _read_arrays, sealed=False),
    }


def cut(content, draw):
    return content[: draw.randrange(len(content))]


def flipped(content, draw):
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def replaced(value, draw):
    """Plain data with one value, at any depth, removed or replaced by something else."""
    value = copy.deepcopy(value)
    node = value
    while True:
        key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], dict | list) or not node[key] or draw.random() < 0.2:
            break
        node = node[key]
    if draw.random() < 0.2:
        del node[key]
    else:
        node[key] = copy.deepcopy(draw.choice(ANYTHING))
    return value


def edited(content, draw):
    """A JSON text with another value in it, or an archive with such a text; other files as `flipped`."""
    try:
        return json.dumps(replaced(json.loads(content), draw)).encode()
    except (ValueError, UnicodeDecodeError):
        return flipped(content, draw)


DAMAGES = [cut, flipped, edited]
NAMES = ["plan", "table", "operators", "checkpoint", "cache", "checkpoint's model", "keras", "metadata", "tflite"]
NAMES += ["benchmark", "npy"]


def same(a, b):
    try:
        np.testing.assert_equal(a, b)
    except AssertionError:
        return False
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_refused_or_say_what_was_written(readers, name, tmp_path):
    reader, path = readers[name], tmp_path / readers[name].path.name
    whole, content = reader.read(reader.path), reader.path.read_bytes()
    refused = 0
    for number in range(TIMES):
        draw = random.Random(f"{name} {number}")
        damage = DAMAGES[number % len(DAMAGES)]
        path.write_bytes(damage(content, draw))
        try:
            found = reader.read(path)
        except (kfp.FilterPruneError, BenchError) as error:
            refused += 1
            assert len(str(error)) > 30
            continue
        except Exception as error:
            raise AssertionError(f"{damage.__name__} {number}: raw {error!r}") from error
        assert not reader.sealed or same(found, whole), f"{damage.__name__} {number} was believed"
    print(f"{name}: {refused} of {TIMES} refused")
    assert refused > TIMES / 4


DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE = {
    "deep": DEEP,
    "deep inside": f'{{"format": 1, "key": {DEEP}}}',
    "a number of many digits": f'{{"format": {"9" * 10_000}}}',
    "no JSON": "\ufeff{}",
    "half a character": '{"format": 1, "model": "\\ud800"}',
    "empty": "",
}


@pytest.mark.parametrize("name", ["plan", "table", "operators", "checkpoint", "cache"])
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_json_is_one_sentence(readers, name, text, tmp_path):
    path = tmp_path / "hostile.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises((kfp.errors.FileError, BenchError)) as caught:
        readers[name].read(path)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [DEEP, "{}", "[1", '{"class_name": "Sequential", "config": 3}'], ids=len)
def test_hostile_keras_configurations_are_one_sentence(readers, config, tmp_path):
    path = tmp_path / "hostile.keras"
    with zipfile.ZipFile(readers["keras"].path) as whole, zipfile.ZipFile(path, "w") as archive:
        for part in whole.namelist():
            archive.writestr(part, config if part == "config.json" else whole.read(part))
    with pytest.raises(kfp.errors.FileError, match=r"cannot load .*hostile\.keras as a Keras model: ") as caught:
        load_keras(path)
    assert "\n" not in str(caught.value)


def test_a_plan_of_before_digests_is_read_as_it_is(readers, tmp_path):
    content = json.loads(readers["plan"].path.read_text())
    del content["sha256"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert kfp.PruningPlan.load(tmp_path / "old.json").to_dict() == content


@pytest.mark.parametrize("name", ["plan", "table", "operators", "checkpoint", "cache"])
def test_white_space_does_not_count(readers, name, tmp_path):
    reader, path = readers[name], tmp_path / readers[name].path.name
    path.write_text(json.dumps(json.loads(reader.path.read_text()), indent=3, sort_keys=True))
    assert same(reader.read(path), reader.read(reader.path))


@pytest.mark.parametrize("name", ["checkpoint", "cache"])
def test_checkpoints_without_a_digest_are_refused(readers, name, tmp_path):
    content = json.loads(readers[name].path.read_text())
    del content["sha256"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(content))
    with pytest.raises(kfp.errors.FileError, match=r"is no checkpoint of a search: .*sha256.* Delete it"):
        readers[name].read(path)
