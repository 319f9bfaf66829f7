"""One Android phone, reached through adb."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from pathlib import Path

from tflite_bench.android.output import one_line
from tflite_bench.errors import BenchError

_INSTALL = (
    "install Android's platform tools (Debian and Ubuntu: apt install adb; macOS: brew install android-platform-tools; "
    "else https://developer.android.com/tools/releases/platform-tools)"
)
_REMEDIES = {
    "unauthorized": "unlock the phone and accept the question 'Allow USB debugging?'",
    "offline": "unplug the phone and plug it in again, or run: adb kill-server",
    "no permissions": "this user may not open the USB device; see the udev rules in Android's documentation of adb",
}
# A plain command answers at once; pushing a large file over a bad cable does not.
_ANSWER_S, _TRANSFER_S = 60, 600


class Phone:
    """A phone that adb reaches.

    Args:
        serial: serial number as `adb devices` shows it (None: the only phone that is ready).

    Attributes:
        serial: its serial number.
        folder: a folder on the phone that nothing else uses. `make_folder` makes it, `remove_folder` removes it.

    Raises:
        BenchError: adb is not installed, or there is no phone, or several, or the phone is not ready.
    """

    def __init__(self, serial: str | None = None):
        adb = shutil.which("adb")
        if adb is None:
            raise BenchError(f"adb is not installed or not on PATH: {_INSTALL}")
        self._adb = adb
        self.serial = _choose(self._devices(), serial)
        self.folder = f"/data/local/tmp/tflite_bench_{uuid.uuid4().hex[:8]}"

    def shell(self, command: str, timeout_s: float = _ANSWER_S) -> subprocess.CompletedProcess[str]:
        """Run a command on the phone.

        Args:
            command: one line for the phone's shell.
            timeout_s: how long to wait in seconds.

        Returns:
            Exit code and output of the command; the code is not checked.

        Raises:
            BenchError: the phone is gone or does not answer in time.
        """
        done = self._call("-s", self.serial, "shell", command, timeout_s=timeout_s)
        if done.returncode != 0:
            self.check_connection(done.stderr or done.stdout)
        return done

    def make_folder(self) -> None:
        """Make `folder`.

        Raises:
            BenchError: the phone refuses or is gone.
        """
        done = self.shell(f"mkdir {self.folder}")
        if done.returncode != 0:
            raise BenchError(f"cannot make {self.folder} on the phone: {one_line(done.stderr or done.stdout)}")

    def remove_folder(self) -> bool:
        """Remove `folder` and what is in it.

        Returns:
            Whether the phone did so.
        """
        try:
            return self._call("-s", self.serial, "shell", f"rm -rf {self.folder}").returncode == 0
        except BenchError:
            return False

    def push(self, source: str | os.PathLike[str], name: str) -> str:
        """Copy a file into `folder`.

        Args:
            source: the file on this computer.
            name: its name on the phone.

        Returns:
            Its path on the phone.

        Raises:
            BenchError: the phone is full, refuses or is gone.
        """
        target = f"{self.folder}/{name}"
        done = self._call("-s", self.serial, "push", os.fspath(source), target, timeout_s=_TRANSFER_S)
        if done.returncode != 0:
            text = f"{done.stdout} {done.stderr}"
            self.check_connection(text)
            if "No space left" in text:
                size = Path(source).stat().st_size / 1e6
                raise BenchError(f"no space on the phone for {source} ({size:.1f} MB): free some in /data and repeat")
            raise BenchError(f"cannot copy {source} to the phone: {one_line(text)}")
        return target

    def pull(self, path: str, target: Path) -> bool:
        """Copy a file from the phone.

        Args:
            path: the file on the phone.
            target: where it goes.

        Returns:
            Whether the phone has such a file.

        Raises:
            BenchError: the phone is gone.
        """
        done = self._call("-s", self.serial, "pull", path, os.fspath(target), timeout_s=_TRANSFER_S)
        if done.returncode != 0:
            self.check_connection(done.stderr or done.stdout)
        return done.returncode == 0

    def check_connection(self, text: str) -> None:
        """Make sure that a failure is not simply a phone that is gone.

        Args:
            text: what the failing command printed.

        Raises:
            BenchError: the phone is gone.
        """
        state = self._call("-s", self.serial, "get-state")
        if state.stdout.strip() != "device":
            reason = one_line(state.stderr or state.stdout or text)
            raise BenchError(
                f"phone {self.serial} is gone ({reason}): plug it in and repeat; {self.folder} may be left on it"
            )

    def _devices(self) -> dict[str, str]:
        done = self._call("devices")
        if done.returncode != 0:
            raise BenchError(f"adb does not work: {one_line(done.stderr or done.stdout)}")
        rows = (line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)
        return {serial.strip(): state.strip() for serial, state in rows}

    def _call(self, *words: str, timeout_s: float = _ANSWER_S) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self._adb, *words],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"the phone gave no answer in {timeout_s:.0f} s to: adb {' '.join(words)}") from error
        except OSError as error:
            raise BenchError(f"adb cannot be started: {error}") from error


def _choose(devices: dict[str, str], serial: str | None) -> str:
    listed = ", ".join(f"{name} ({state})" for name, state in devices.items())
    ready = [name for name, state in devices.items() if state == "device"]
    if not devices:
        raise BenchError(
            "no phone is connected: plug it in, switch on USB debugging (Settings, Developer options), "
            "and check that `adb devices` lists it"
        )
    if serial is None and len(ready) > 1:
        raise BenchError(f"several phones are connected: {', '.join(ready)}; choose one with serial= (--serial)")
    if serial is not None and serial not in devices:
        raise BenchError(f"no phone has the serial number {serial!r}; adb lists: {listed}")
    chosen = serial or (ready or list(devices))[0]
    state = devices[chosen]
    if state != "device":
        remedy = next((text for start, text in _REMEDIES.items() if state.startswith(start)), "start Android on it")
        raise BenchError(f"phone {chosen} is not ready, its state is {state!r}: {remedy}; adb lists: {listed}")
    return chosen
