"""Fresh processes: nothing of the current folder or the script's runs there unasked, and failures are sentences."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import keras_filterprune
from keras_filterprune import errors
from keras_filterprune.elsewhere import run_elsewhere

ROOT = Path(keras_filterprune.__file__).parents[1]
# What a fresh process imports sooner or later, from the standard library and from what is installed.
SHADOWS = """
    ast base64 collections copy csv ctypes dataclasses email functools json logging pathlib pickle random shutil socket
    statistics string struct subprocess tempfile threading tokenize types typing zipfile
    absl ai_edge_litert flatbuffers h5py keras keras_filterprune numpy optree rich scipy six tensorflow tf_keras wrapt
    jax pandas recipes_too sitecustomize tflite_bench torch usercustomize
""".split()
# The start of every job: files that tell when they are imported, in the folders that Python searches first. They are
# laid after the start, and this process itself goes round them, so that they can hit the other process alone.
BEGIN = f"""
import os, sys
from importlib.machinery import PathFinder
from pathlib import Path

def lay_traps():
    script = Path(sys.argv[0]).resolve().parent
    folders = {{Path.cwd(), script}}
    for folder in folders:
        for name in {SHADOWS!r}:
            text = f"open({{os.fspath(script / 'caught')!r}}, 'a').write('{{name}} ')\\nraise ImportError('trap')\\n"
            (folder / f"{{name}}.py").write_text(text)
    class Careful:
        def find_spec(name, path=None, target=None):
            safe = [entry for entry in sys.path if Path(entry).resolve() not in folders]
            return None if path else PathFinder.find_spec(name, safe)
    sys.meta_path.insert(0, Careful)
"""


def run(code, folder, start="script", settings=None, timeout=300):
    """Run code in a process that starts in `folder / "current"`; what it printed, and the traps that were met."""
    current, scripts = folder / "current", folder / "scripts"
    for place in (current, scripts):
        place.mkdir(exist_ok=True)
    job = (current if start == "module" else scripts) / "job.py"
    job.write_text(BEGIN + textwrap.dedent(code))
    words = {"script": [job], "module": ["-m", "job"], "code": ["-c", f"exec(open({os.fspath(job)!r}).read())"]}[start]
    done = subprocess.run(
        [sys.executable, *map(os.fspath, words)],
        cwd=current,
        # The current folder on the path by the user's wish: searched here, not there.
        env=os.environ | {"PYTHONPATH": os.pathsep.join([os.fspath(ROOT), os.curdir])} | (settings or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    caught = [place / "caught" for place in (current, scripts)]
    return done.stdout.strip(), " ".join(path.read_text() for path in caught if path.exists())


# ------------------------------------------------------------------------------------------- what is imported, and not

USE = """
    import helper_of_mine
    from package_of_mine.inner import value
    import keras_filterprune.elsewhere
    lay_traps()
    print(keras_filterprune.elsewhere.run_elsewhere("helper_of_mine:work", 3, task="works"))
    print(keras_filterprune.elsewhere.run_elsewhere("asked_for:work", 4, task="works", modules=["asked_for"]))
    try:
        keras_filterprune.elsewhere.run_elsewhere("asked_for:work", 4, task="works")
    except keras_filterprune.errors.ExportError as error:
        print(error)
"""
WORK = """
import random
from package_of_mine.inner import value

def work(x):
    return [value * x, random.__file__]
"""


@pytest.mark.parametrize("start", ["script", "module", "code"])
def test_only_what_is_named_is_imported(start, tmp_path):
    folder = tmp_path / ("scripts" if start == "script" else "current")
    folder.mkdir()
    for name in ("helper_of_mine", "asked_for"):
        (folder / f"{name}.py").write_text(WORK)
    # A folder of modules without __init__.py.
    (folder / "package_of_mine").mkdir()
    (folder / "package_of_mine" / "inner.py").write_text("value = 5\n")
    printed, caught = run(USE, tmp_path, start)
    random = importlib.import_module("random").__file__
    assert printed.splitlines() == [
        repr([15, random]),
        repr([20, random]),
        "the process that works ended with exit code 1: ModuleNotFoundError: No module named 'asked_for'",
    ]
    assert caught == ""


JOBS = {
    # Files are measured, which are made elsewhere.
    "latency on JAX": """
    import keras, keras_filterprune as kfp
    model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(24, 3), keras.layers.Conv2D(16, 3)])
    lay_traps()
    budget = kfp.LatencyBudget(keep=0.5, table=kfp.measure_latency(model, progress=False))
    print(kfp.prune_model(model, "l2", budget, return_report=True, progress=False)[1].notes[-1][:16])
    """,
    "training in tf_keras": """
    import keras, keras_filterprune as kfp
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Conv2D(2, 1)])
    Path(sys.argv[0]).with_name("recipes.py").write_text("def same(twin):\\n    return twin\\n")
    lay_traps()
    print(len(kfp.tfmot.train_in_tf_keras(model, "recipes:same").layers))
    """,
    "bench": """
    import tflite_bench
    lay_traps()
    Path("m.tflite").write_bytes(tflite_bench.operator_model(tflite_bench.Operator("RELU", 1)))
    print(tflite_bench.benchmark(["m.tflite"], runs=2, rounds=1).models[0].load_ms > 0)
    print(len(tflite_bench.profile("m.tflite", runs=2).operators))
    """,
}
PRINTED = {
    "latency on JAX": "Measured latency",
    "training in tf_keras": "2",
    "bench": "True\n1",
}


STARTS = {"bench": ["script", "code"]}


@pytest.mark.parametrize(("job", "start"), [(job, start) for job in JOBS for start in STARTS.get(job, ["script"])])
def test_no_trap_in_the_folders_of_the_user_is_hit(job, start, tmp_path):
    needed = "jax" if "JAX" in job else "tf_keras" if "tf_keras" in job else "ai_edge_litert"
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    printed, caught = run(JOBS[job], tmp_path, start, {"KERAS_BACKEND": "jax"} if needed == "jax" else {})
    assert (printed, caught) == (PRINTED[job], "")


def test_the_traps_work(tmp_path):
    code = """
    lay_traps()
    import subprocess
    subprocess.run([sys.executable, "-c", "import random"], stderr=subprocess.DEVNULL)
    """
    assert run(code, tmp_path)[1] != ""


# ------------------------------------------------------------------------------------------------- what comes back


def echo(*arguments):
    return arguments


def fails(error):
    raise error


def writes(*texts):
    for number, text in enumerate(texts):
        os.write(2 - number % 2, text.encode())


ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]


@pytest.fixture
def here(monkeypatch):
    """This module, which another process finds by its name."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return Path(__file__).stem


def test_values_go_there_and_back(here):
    given = ({"a": b"\0" * 100_000}, Path("x"), None)
    assert run_elsewhere(f"{here}:echo", *given, task="echoes") == given


@pytest.mark.parametrize("kind", ERRORS)
def test_our_errors_come_back_as_they_are(kind, here):
    with pytest.raises(kind, match=r"^what, Received: 3\.$") as caught:
        run_elsewhere(f"{here}:fails", kind("what, Received: 3."), task="fails")
    assert type(caught.value) is kind


def test_errors_of_the_system_come_back_with_their_number(here):
    with pytest.raises(OSError, match="No space left on device: 'a'") as caught:
        run_elsewhere(f"{here}:fails", OSError(errno.ENOSPC, "No space left on device", "a"), task="fails")
    assert caught.value.errno == errno.ENOSPC


DEATHS = {
    "exception": ("fails", ValueError("one\ntwo"), r"that dies ended with exit code 1: two$"),
    "exit": ("os._exit", 3, r"that dies ended with exit code 3: it wrote no message$"),
    "abort": ("os.abort", None, r"that dies was ended \(Aborted\): it wrote no message$"),
}


@pytest.mark.parametrize("how", DEATHS)
def test_a_process_that_dies_is_one_sentence(how, here):
    name, argument, sentence = DEATHS[how]
    function = name.replace(".", ":") if "." in name else f"{here}:{name}"
    with pytest.raises(errors.ExportError, match=sentence):
        run_elsewhere(function, *([] if argument is None else [argument]), task="dies")


@pytest.mark.parametrize("shown", [True, False])
def test_what_it_writes_appears_only_where_it_is_to(shown, here, capfd):
    run_elsewhere(f"{here}:writes", "error ä\r50 %\r", "output\n", "end", task="writes", shown=shown)
    assert capfd.readouterr() == (("output\n", "error ä\r50 %\rend") if shown else ("", ""))


def test_settings_are_for_the_other_process(here):
    before = dict(os.environ)
    assert run_elsewhere("os:getenv", "KFP_TEST", task="reads", settings={"KFP_TEST": "3"}) == "3"
    assert dict(os.environ) == before


WAITING = """
    import time, keras_filterprune.elsewhere, helper_of_mine
    try:
        keras_filterprune.elsewhere.run_elsewhere("helper_of_mine:wait", os.path.abspath("pid"), task="waits")
    except KeyboardInterrupt:
        sys.exit(55)
"""


@pytest.mark.parametrize("whole_group", [True, False])
def test_ctrl_c_stays_ctrl_c_and_ends_the_other_process(whole_group, tmp_path):
    (tmp_path / "helper_of_mine.py").write_text(
        "import os, time\ndef wait(path):\n    open(path, 'w').write(str(os.getpid()))\n    time.sleep(300)\n"
    )
    (tmp_path / "job.py").write_text(BEGIN + textwrap.dedent(WAITING))
    process = subprocess.Popen(
        [sys.executable, "job.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.fspath(ROOT)},
        start_new_session=True,
    )
    while not (tmp_path / "pid").exists() or not (pid := (tmp_path / "pid").read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    # A terminal signals all processes in front.
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    assert process.wait(60) == 55
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_an_interrupt_of_the_other_process_alone(here):
    with pytest.raises(KeyboardInterrupt):
        run_elsewhere(f"{here}:fails", KeyboardInterrupt(), task="is interrupted")
