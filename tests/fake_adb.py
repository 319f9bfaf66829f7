"""A stand-in for `adb` and a phone: keeps files in a folder, replays recorded output, writes down every call.

The environment variable FAKE_ADB names a folder with `scenario.json` (what the phone is and answers, see
`test_android.py`); calls go to `log.jsonl` there, and `phone/` holds the phone's files.
"""

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

HOME = Path(os.environ["FAKE_ADB"])
SCENARIO = json.loads((HOME / "scenario.json").read_text())
LOG = HOME / "log.jsonl"


def main(words):
    with LOG.open("a") as log:
        log.write(json.dumps(words) + "\n")
    if words == ["devices"]:
        return answer("List of devices attached\n" + "".join(f"{s}\t{state}\n" for s, state in SCENARIO["devices"]))
    _, serial, verb, *rest = words
    if (HOME / "unplugged").exists() or serial not in dict(SCENARIO["devices"]):
        return answer("", f"error: device '{serial}' not found\n", 1)
    return {"get-state": state, "shell": shell, "push": push, "pull": pull}[verb](*rest)


def answer(stdout="", stderr="", code=0):
    sys.stdout.write(stdout)
    sys.stderr.write(stderr)
    return code


def state():
    return answer("device\n")


def on_phone(path):
    return HOME / "phone" / path.lstrip("/")


def push(source, target):
    if Path(target).name == SCENARIO.get("full_at"):
        return answer(
            f"{source}: 0 files pushed. 5.2 MB/s (65536 bytes in 0.012s)\n",
            f"adb: error: failed to copy '{source}' to '{target}': remote No space left on device\n",
            1,
        )
    shutil.copyfile(source, on_phone(target))
    return answer(f"{source}: 1 file pushed. 21.1 MB/s (4096 bytes in 0.000s)\n")


def pull(source, target):
    if not on_phone(source).exists():
        return answer("", f"adb: error: failed to stat remote object '{source}': No such file or directory\n", 1)
    shutil.copyfile(on_phone(source), target)
    return answer(f"{source}: 1 file pulled. 0.1 MB/s (99 bytes in 0.001s)\n")


def shell(command):
    for start, reply in SCENARIO["answers"].items():
        if command.startswith(start):
            # The thermal status changes from one question to the next; everything else is one text.
            return answer(reply if isinstance(reply, str) else reply[count(start) - 1])
    program, *arguments = command.split()
    if program == "mkdir":
        on_phone(arguments[0]).mkdir(parents=True)
    elif program == "rm":
        shutil.rmtree(on_phone(arguments[-1]))
    elif program == "chmod":
        on_phone(arguments[-1]).chmod(0o755)
    else:
        if program == "taskset":
            program, *arguments = arguments[1:]
        return benchmark_model(program, arguments)
    return 0


def count(start):
    return sum(words[-1].startswith(start) for words in map(json.loads, LOG.read_text().splitlines()))


def benchmark_model(program, arguments):
    if not os.access(on_phone(program), os.X_OK):
        return answer("", f"/system/bin/sh: {program}: can't execute: Permission denied\n", 126)
    if arguments == ["--help"]:
        return answer(*SCENARIO["help"])
    flags = dict(re.fullmatch(r"--(\w+)=(.*)", word).groups() for word in arguments)
    record = SCENARIO["runs"].pop(0)
    (HOME / "scenario.json").write_text(json.dumps(SCENARIO))
    if record.get("hang"):
        (HOME / "hanging").touch()
        time.sleep(30)
    if record.get("unplug"):
        (HOME / "unplugged").touch()
    if not on_phone(flags["graph"]).exists():
        return answer("", f"ERROR: Failed to load model {flags['graph']}\n", 1)
    if "result" in record and "result_file_path" in flags:
        on_phone(flags["result_file_path"]).write_bytes(bytes.fromhex(record["result"]))
    return answer(record.get("stdout", ""), record.get("stderr", ""), record.get("code", 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
