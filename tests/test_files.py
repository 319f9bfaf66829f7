"""Files are whole or as they were, whatever stops their writing; nothing else of the user's is touched."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest
from builders import array, chain

import keras_filterprune as kfp
from keras_filterprune.checkpoint import Checkpoint
from keras_filterprune.files import replacing, save_keras, write_json
from tflite_bench import OperatorReport
from tflite_bench.files import read_json, twice, unfinished

ROOT = Path(kfp.__file__).parents[1]


@pytest.fixture(scope="module")
def written():
    """{name of a file: what writes it at a path}."""
    model = chain([4, 4], side=4)
    small, report = kfp.prune_model(model, "l2", return_report=True, progress=False)
    images = keras.random.normal((8, 4, 4, 3), seed=0)
    curves = kfp.measure_sensitivity(model, array(images), "error", keep=(0.5,), progress=False)
    timed = OperatorReport({"cpu": "a"}, {"threads": 1}, 0.5, ())
    return {
        "plan.json": report.plan.save,
        "any.json": lambda path: write_json(path, {"a": list(range(200))}),
        "operators.json": timed.save,
        "checkpoint": lambda path: Checkpoint(path).write("key", {"rounds": list(range(200))}),
        "model.keras": lambda path: save_keras(small, path, overwrite=True),
        "model.tflite": lambda path: kfp.export_tflite(small, path, overwrite=True, verify=False),
        "report.html": report.save,
        "report.md": report.save,
        "curves.csv": curves.to_csv,
        "curves.png": curves.plot,
    }


NAMES = ["plan.json", "any.json", "operators.json", "checkpoint", "model.keras", "model.tflite"]
NAMES += ["report.html", "report.md", "curves.csv", "curves.png"]
every_writer = pytest.mark.parametrize("name", NAMES)


@contextlib.contextmanager
def no_space():
    """No file can be longer than 100 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_every_writer_is_known(written):
    assert [*written] == NAMES


@every_writer
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_full_disk_leaves_what_was_there(written, name, old, tmp_path):
    path = tmp_path / name
    if old is not None:
        path.write_bytes(old)
    with no_space(), pytest.raises((kfp.FilterPruneError, OSError)) as caught:
        written[name](path)
    assert isinstance(caught.value, kfp.FilterPruneError) or name == "operators.json"
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(name, old)] * (old is not None)


@every_writer
def test_links_and_modes_are_kept(written, name, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target", tmp_path / name
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(Path("elsewhere", "target"))
    written[name](link)
    assert link.is_symlink() and os.readlink(link) == "elsewhere/target"
    assert target.read_bytes() != b"old"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == sorted(["elsewhere", name])
    assert os.listdir(target.parent) == ["target"]


@every_writer
def test_new_files_are_as_readable_as_others(written, name, tmp_path):
    written[name](tmp_path / name)
    (tmp_path / "other").touch()
    assert (tmp_path / name).stat().st_mode == (tmp_path / "other").stat().st_mode


@every_writer
def test_devices_pipes_and_folders_are_no_files(written, name, tmp_path):
    os.mkfifo(tmp_path / name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).mkdir()
    for path in (tmp_path / name, tmp_path / "folder" / name):
        before = path.lstat()
        with pytest.raises((kfp.FilterPruneError, OSError)):
            written[name](path)
        assert path.lstat() == before


# Whatever stands in the middle of a name in one; and what does harm at its beginning, or alone.
ODD = ["a[1] what? a*b back\\slash new\nline quote'\" ünï-模型 {b} $HOME", "-dash", " ", "~", "n" * 235]


# Every writer meets the first, which has it all in its middle, and half of those that do harm as a whole.
CALLED = [(name, odd) for n, name in enumerate(NAMES) for m, odd in enumerate(ODD) if m == 0 or (n + m) % 2]


@pytest.mark.parametrize(("name", "odd"), CALLED, ids=ascii)
def test_any_name_of_a_file_and_its_folder(written, name, odd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(odd, f"{odd}{Path(name).suffix or '.x'}")
    path.parent.mkdir()
    written[name](path)
    assert path.stat().st_size > 0
    assert os.listdir() == [odd] and os.listdir(odd) == [path.name]


# ----------------------------------------------------------------------------------------------- killed, and after

WRITE = """
import sys
from tflite_bench.files import write_json
number = 0
while True:
    number += 1
    write_json(sys.argv[1], {"number": number, "filling": ["x" * 1000] * 500})
"""
HOLD = """
import sys, time
from tflite_bench.files import replacing
with replacing(sys.argv[1]) as draft:
    draft.write_bytes(b"half"); sys.stdout.write("written"); sys.stdout.flush(); time.sleep(60)
"""


def started(code, *words):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stdout=subprocess.PIPE, cwd=ROOT)


def test_a_killed_writer_leaves_a_whole_file_and_the_next_one_tidies_up(tmp_path):
    path = tmp_path / "a.json"
    for number in range(8):
        with started(WRITE, path) as child:
            while not path.exists():
                time.sleep(0.001)
            time.sleep(0.3 + 0.0137 * number)
            child.send_signal(signal.SIGKILL)
        assert len(read_json(path, sealed=True)["filling"]) == 500
    write_json(path, {})
    assert os.listdir(tmp_path) == ["a.json"]


def test_only_drafts_of_processes_that_have_ended_are_removed(tmp_path):
    mine = [".unfinished", ".unfinished.notes", ".unfinished.0123abcd.99999999.abcdefgh", ".unfinished.me.1.abcdefgh"]
    for name in mine:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis").write_text("mine")
    with started(HOLD, tmp_path / "dead") as dead:
        assert dead.stdout.read(7) == b"written"
        dead.kill()
    with started(HOLD, tmp_path / "living") as living:
        assert living.stdout.read(7) == b"written"
        write_json(tmp_path / "a.json", {})
        left = set(os.listdir(tmp_path)) - {*mine, "a.json"}
        assert len(left) == 1 and f".{living.pid}." in left.pop()
        living.kill()
    # What looks like a draft of this computer, and is none: a file.
    with unfinished(tmp_path) as folder:
        file = tmp_path / f"{folder.name[:20]}99999999.abcdefgh"
    file.write_text("mine")
    write_json(tmp_path / "a.json", {})
    assert set(os.listdir(tmp_path)) == {*mine, "a.json", file.name}
    assert all((tmp_path / name / "thesis").read_text() == "mine" for name in mine)


def test_what_another_program_wrote_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(kfp.errors.FileError, match="in the meantime"), replacing(path, overwrite=False) as draft:
        draft.write_text("mine")
        path.write_text("theirs")
    assert path.read_text() == "theirs" and os.listdir(tmp_path) == ["a"]


def test_names_of_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a").touch()
    Path("link").symlink_to("a")
    os.link("a", "hard")
    for other in ("./a", "link", "hard", tmp_path / "a"):
        assert twice(["b", "a", other]) == Path(other)
    assert twice(["c", "sub/../c"]) == Path("sub/../c")
    assert twice(["a", "b", "c"]) is None


def test_a_terminal_without_letters_shows_codes(tmp_path):
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="模型[red]"), keras.layers.Dense(2)]
    )
    model.save(tmp_path / "模.keras")
    settings = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    # Set by an import of TensorFlow, it is heeded as a user's wish.
    settings.pop("TF_CPP_MIN_LOG_LEVEL", None)
    both = "from keras_filterprune.__main__ import main; [main(['scan', *o, sys.argv[1]]) for o in ([], ['--json'])]"
    words = [sys.executable, "-c", f"import sys; {both}", tmp_path / "模.keras"]
    done = subprocess.run(words, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    # TensorFlow's start-up lines are not heard.
    assert done.stderr == ""
    shown, brace, content = done.stdout.partition("\n{\n")
    assert "\\u6a21\\u578b[red]" in shown
    assert json.loads(brace + content)["groups"][0]["name"] == "模型[red]"
