"""Silence for native code: heard by nobody, also from several threads, and everything is put back."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from keras_filterprune import quiet as library_quiet
from keras_filterprune.quiet import quiet
from tflite_bench import quiet as bench_quiet
from tflite_bench.quiet import quiet_litert

ROOT = Path(library_quiet.__file__).parents[1]
both = pytest.mark.parametrize("silence", [quiet, quiet_litert])


def state():
    """All that is changed for the whole process."""
    streams = [(os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino) for descriptor in (1, 2)]
    return streams, logging.getLogger("tensorflow").level, list(warnings.filters), len(os.listdir("/proc/self/fd"))


linux = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open descriptors are listed on Linux only")


@linux
@both
def test_the_first_out_does_not_end_the_silence_and_the_last_puts_everything_back(silence, capfd):
    before = state()
    first, second = silence(), silence()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    os.write(2, b"INFO: within\n")
    second.__exit__(None, None, None)
    assert state() == before
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def in_eight_threads(context, work):
    start = threading.Barrier(8)

    def enter_and_leave(seed):
        chosen = random.Random(seed)
        start.wait()
        for _ in range(20):
            with context():
                work()
                time.sleep(chosen.random() / 1000)

    threads = [threading.Thread(target=enter_and_leave, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@linux
@both
def test_threads_in_any_order(silence, capfd):
    before = state()
    in_eight_threads(silence, lambda: os.write(2, b"INFO: within\n"))
    assert state() == before
    sys.stderr.write("after\n")
    sys.stderr.flush()
    assert capfd.readouterr().err == "after\n"


@linux
@both
def test_what_is_put_back_after_an_error(silence):
    before = state()
    with pytest.raises(ZeroDivisionError), silence():
        _ = 1 / 0
    assert state() == before


@pytest.mark.parametrize("module", [library_quiet, bench_quiet])
def test_what_is_shared_is_entered_once_and_is_there_for_all(module):
    entered, wrong = [], []

    @contextlib.contextmanager
    def slow():
        time.sleep(0.001)
        entered.append(0)
        yield
        time.sleep(0.001)
        entered.pop()

    shared = module.Shared(slow)
    in_eight_threads(lambda: shared, lambda: wrong.append(1) if entered != [0] else None)
    assert (entered, wrong) == ([], [])


SERVICE = """
import os, sys
out, how = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), sys.argv[2]
class Writes:
    def write(self, text):
        return len(text)
if how == "none":
    sys.stdout = sys.stderr = None
if how == "closed":
    sys.stdout.close()
    sys.stderr.close()
if how == "without flush":
    sys.stdout = sys.stderr = Writes()
from keras_filterprune.quiet import quiet
from tflite_bench.quiet import quiet_litert, say
for silence in (quiet, quiet_litert, quiet):
    with silence():
        os.write(2, b"INFO: within")
say("a line")
os.write(out, b"whole")
# Python flushes them when it ends.
sys.stdout = sys.stderr = None
"""


@pytest.mark.parametrize("how", ["none", "closed", "without flush", "without descriptors"])
def test_services_without_streams(how, tmp_path):
    words = [sys.executable, "-c", SERVICE, str(tmp_path / "out"), how]
    if how == "without descriptors":
        words = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words]
    done = subprocess.run(words, cwd=ROOT, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0
    # Nothing that was written to stderr is in a file of the user's that has its number.
    assert (tmp_path / "out").read_text() == "whole"
