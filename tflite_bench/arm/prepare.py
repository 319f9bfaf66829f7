"""What an emulated Arm core needs, made once: LiteRT for Arm, a driver that calls it, a counter of instructions."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tflite_bench.errors import BenchError
from tflite_bench.progress import progress_bar

_SOURCES = Path(__file__).with_name("native")
# Program: the packages of Debian and Ubuntu that have it and the headers and libraries it needs.
_PROGRAMS = {"qemu-aarch64": "qemu-user", "gcc": "gcc libc6-dev", "aarch64-linux-gnu-gcc": "g++-aarch64-linux-gnu"}
# Arm libraries that LiteRT is linked with; a C compiler alone comes without the last one.
_LIBRARIES = ("ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6")
_PLATFORMS = ("manylinux_2_27_aarch64", "manylinux_2_28_aarch64", "manylinux2014_aarch64")
_STEPS = 4


def cache_folder() -> Path:
    """Where prepared files stay.

    Returns:
        The environment variable TFLITE_BENCH_CACHE, else `~/.cache/tflite_bench`.
    """
    return Path(os.environ.get("TFLITE_BENCH_CACHE") or Path.home() / ".cache" / "tflite_bench")


def qemu_version() -> str:
    """Version of the installed emulator, as in "7.2.22".

    Raises:
        BenchError: QEMU is not installed.
    """
    if shutil.which("qemu-aarch64") is None:
        # The compilers at once: whoever installs one thing would be told of the next.
        _require_programs()
    return re.findall(r"version (\S+)", _output(["qemu-aarch64", "--version"]))[0]


def prepared_folder() -> Path:
    """The folder that `setup` has made for this version of LiteRT, QEMU and this package.

    Raises:
        BenchError: QEMU or ai-edge-litert is not installed, or nothing was prepared.
    """
    folder = _target()
    if not folder.is_dir():
        raise BenchError("the emulated Arm core is not set up; python -m tflite_bench arm setup does that")
    return folder


def setup(*, progress: bool = False) -> Path:
    """Prepare the emulated Arm core: download LiteRT for Arm, compile the driver and the counter.

    About 14 MB are downloaded from PyPI, 11 MB stay, in `cache_folder()`. Nothing is done if it is there already;
    an interrupted run leaves nothing half-made.

    Args:
        progress: show a progress bar on stderr (False).

    Returns:
        The folder.

    Raises:
        BenchError: a program is missing (the message names its Debian package), the download fails, or this version
            of LiteRT does not fit the driver.

    Example:
        >>> setup().name
        'arm64-litert-...-qemu-...'
    """
    target = _target()
    if target.is_dir():
        return target
    _require_programs()
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that the move at the end is one step.
    with (
        tempfile.TemporaryDirectory(prefix=".arm64-", dir=target.parent) as draft,
        progress_bar(_STEPS, progress) as done,
    ):
        _fill(Path(draft, "files"), done)
        try:
            os.rename(Path(draft, "files"), target)
        except OSError:
            # Another process was faster.
            if not target.is_dir():
                raise
    return target


def _target() -> Path:
    try:
        litert = version("ai-edge-litert")
    except PackageNotFoundError as error:
        raise BenchError("ai-edge-litert is not installed: pip install ai-edge-litert") from error
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(_SOURCES.glob("*.c")))).hexdigest()[:8]
    return cache_folder() / f"arm64-litert-{litert}-qemu-{qemu_version()}-{digest}"


def _require_programs() -> None:
    missing = {program: package for program, package in _PROGRAMS.items() if shutil.which(program) is None}
    if missing:
        raise BenchError(
            f"the emulated Arm core needs {', '.join(missing)}, not found on PATH: on Debian or Ubuntu, "
            f"apt-get install {' '.join(missing.values())}; then python -m tflite_bench arm setup"
        )


def _fill(folder: Path, done: Callable[[str], None]) -> None:
    library_folder = folder / "lib"
    library_folder.mkdir(parents=True)
    _copy_libraries(library_folder)
    done("Arm libraries")
    _download_litert(library_folder / "libLiteRt.so")
    done("LiteRT for Arm")
    # LiteRT's own libraries are found when the driver starts, in the emulator's root.
    link = [f"-L{library_folder}", "-lLiteRt", "-Wl,-rpath,/lib", "-Wl,--allow-shlib-undefined"]
    try:
        _output(["aarch64-linux-gnu-gcc", "-O2", "-o", folder / "driver", _SOURCES / "driver.c", *link])
    except BenchError as error:
        raise BenchError(f"the driver does not fit LiteRT {version('ai-edge-litert')}: {error}") from error
    done("driver")
    # QEMU 9 raised the oldest version it accepts; what the counter uses is the same in both.
    plugin_version = 1 if int(qemu_version().split(".")[0]) < 9 else 2
    define = f"-DPLUGIN_VERSION={plugin_version}"
    _output(["gcc", "-O2", "-shared", "-fPIC", define, "-o", folder / "counter.so", _SOURCES / "counter.c"])
    done("counter")


def _copy_libraries(folder: Path) -> None:
    for name in _LIBRARIES:
        # The compiler prints the bare name of what it does not have.
        found = Path(_output(["aarch64-linux-gnu-gcc", f"-print-file-name={name}"]).strip())
        if not found.is_absolute():
            raise BenchError(
                f"the emulated Arm core needs {name} for Arm, which aarch64-linux-gnu-gcc does not find: on Debian or "
                f"Ubuntu, apt-get install {_PROGRAMS['aarch64-linux-gnu-gcc']}"
            )
        shutil.copyfile(found, folder / name)


def _download_litert(path: Path) -> None:
    wanted = f"ai-edge-litert=={version('ai-edge-litert')}"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", folder]
        platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
        try:
            _output([*command, *platforms, wanted])
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as files:
                path.write_bytes(files.read("ai_edge_litert/libLiteRt.so"))
        except (BenchError, ValueError, KeyError) as error:
            raise BenchError(f"cannot get {wanted} for Arm from PyPI: {error}") from error


def _output(command: Sequence[str | os.PathLike[str]]) -> str:
    words = [os.fspath(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "; ".join(done.stderr.strip().splitlines()[-2:])
        raise BenchError(f"{' '.join(words[:4])} ... failed: {said or f'exit code {done.returncode}'}")
    return done.stdout
