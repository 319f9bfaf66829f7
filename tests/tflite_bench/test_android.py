"""tflite_bench.android against a fake adb: what is sent to the phone, what is read from it, what goes wrong."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from rich.console import Console

from tflite_bench import BenchError
from tflite_bench.android.benchmark import benchmark_on_android
from tflite_bench.android.output import read_result_file, read_text

TESTS = Path(__file__).parents[1]

# ------------------------------------------------------------------------------------------------ recorded output

LITERT_HELP = """ERROR: usage: /data/local/tmp/x/benchmark_model <flags>
Flags:
\t--num_runs=50                      \tint32\toptional\texpected number of runs, see also min_secs, max_secs
\t--num_threads=-1                   \tint32\toptional\tnumber of threads
\t--graph=                           \tstring\toptional\tThe path to the model file.
\t--use_npu=0                        \tbool\toptional\tWhether to use NPU accelerator.
\t--result_file_path=                \tstring\toptional\tPath to save the benchmark result in binary proto format.
ERROR: Benchmarking failed.
"""
LEGACY_HELP = """ERROR: usage: /data/local/tmp/x/benchmark_model <flags>
Flags:
\t--num_runs=50                      \tint32\toptional\texpected number of runs, see also min_secs, max_secs
\t--num_threads=-1                   \tint32\toptional\tnumber of threads
\t--graph=                           \tstring\toptional\tgraph file name
\t--use_xnnpack=0                    \tbool\toptional\tuse XNNPack
ERROR: Benchmarking failed.
"""
BEGINNING = """INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Num threads: [1]
INFO: Graph: [/data/local/tmp/x/0.tflite]
INFO: #threads used for CPU inference: [1]
INFO: Loaded model /data/local/tmp/x/0.tflite
INFO: The input model file size (MB): 0.9008
INFO: Initialized session in 17.187ms.
INFO: Running benchmark for at least 10 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=44 first=12011 curr=10904 min=10871 max=14093 avg=11271.3 std=501 p5=10880 median=11020 p95=12800

"""
END = """INFO: Running benchmark for at least {runs} iterations and at least 0 seconds but terminate if exceeding 150 \
seconds.
INFO: {statistics}

INFO: Inference timings in us: Init: 17187, First inference: 12011, Warmup (avg): 11271.3, Inference (avg): {avg}
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual \
memory footprint of the model at runtime. Take the information at your discretion.
INFO: Memory footprint delta from the start of the tool (MB): init=4.21094 overall=46.0859
"""
STATISTICS = "count={runs} first={us} curr={us} min={min} max=99999 avg={avg} std=98"
PROPERTIES = """[ro.board.platform]: [kalama]
[ro.build.version.release]: [14]
[ro.build.version.sdk]: [34]
[ro.product.cpu.abi]: [arm64-v8a]
[ro.product.manufacturer]: [Maker]
[ro.product.model]: [Phone 8]
[ro.soc.manufacturer]: [Soc]
[ro.soc.model]: [S1000]
"""
CPUINFO = "".join(
    f"processor\t: {number}\nBogoMIPS\t: 38.40\nCPU implementer\t: {implementer}\nCPU part\t: {part}\n\n"
    for number, (implementer, part) in enumerate([("0x41", "0xd46")] * 3 + [("0x41", "0xd4d")] * 4 + [("0x51", "0x1")])
)
THERMAL = "IsStatusOverride: false\nThermalEventListeners:\n\tcallbacks: 1\nThermal Status: {}\nCached temperatures:\n"
LITERT_ERROR = "ERROR: [benchmark_litert_model.cc:117] Failed to compile model.\nERROR: Benchmarking failed.\n"


def message_class():
    """The message BenchmarkResult of LiteRT's benchmark_result.proto, by protobuf itself."""
    parts = {
        "LatencyMetrics": "avg_ms min_ms max_ms stddev_ms median_ms p5_ms p95_ms init_ms first_inference_ms warm_up_ms",
        "MemoryMetrics": "init_footprint_kb:INT64 overall_footprint_kb:INT64 peak_mem_mb",
        "MiscMetrics": "model_size_mb num_runs:INT32 num_warmup_runs:INT32 throughput throughput_fps",
        "BenchmarkResult": "name:STRING latency:LatencyMetrics memory:MemoryMetrics misc:MiscMetrics",
    }
    file = descriptor_pb2.FileDescriptorProto(name="benchmark_result.proto", package="bench", syntax="proto2")
    for name, fields in parts.items():
        message = file.message_type.add(name=name)
        for number, text in enumerate(fields.split(), 1):
            field, _, kind = text.partition(":")
            if kind in parts:
                message.field.add(name=field, number=number, label=1, type=11, type_name=f".bench.{kind}")
            else:
                code = getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{kind or 'FLOAT'}")
                message.field.add(name=field, number=number, label=1, type=code)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bench.BenchmarkResult"))


def result_file(median_ms, runs, **more):
    result = message_class()(**more)
    figures = {
        "avg_ms": 1.01,
        "min_ms": 0.9,
        "max_ms": 2,
        "stddev_ms": 0.1,
        "median_ms": 1,
        "p5_ms": 0.95,
        "p95_ms": 1.5,
    }
    for name, share in figures.items():
        setattr(result.latency, name, share * median_ms)
    result.latency.init_ms, result.latency.first_inference_ms, result.latency.warm_up_ms = 17.25, 12, 11
    result.memory.init_footprint_kb, result.memory.overall_footprint_kb = 4312, -300
    result.misc.model_size_mb, result.misc.num_runs, result.misc.num_warmup_runs = 0.9, runs, 300
    return result.SerializeToString()


def legacy_text(median_ms, runs, percentiles=True):
    us = round(median_ms * 1000)
    values = {"runs": runs, "us": us, "min": round(0.9 * us), "avg": f"{1.01 * us:.6g}"}
    statistics = STATISTICS.format(**values) + (f" p5={us} median={us} p95={us + 9}" if percentiles else "")
    return BEGINNING + END.format(statistics=statistics, **values)


# ---------------------------------------------------------------------------------------------------------- setting


class World:
    """A folder with a fake adb on PATH, a phone behind it, and files to measure."""

    def __init__(self, folder):
        self.folder, self.phone = folder, folder / "phone"
        (folder / "bin").mkdir()
        adb = folder / "bin" / "adb"
        # Isolated, without site-packages: it starts in a tenth of the time.
        adb.write_text(f"#!{sys.executable} -IS\n" + (TESTS / "fake_adb.py").read_text())
        adb.chmod(0o755)
        self.binary = folder / "benchmark_model"
        self.binary.write_bytes(
            b"\x7fELF\x02\x01\x01" + bytes(9) + (3).to_bytes(2, "little") + (183).to_bytes(2, "little")
        )
        self.files = [folder / "dense.tflite", folder / "pruned net.tflite"]
        for number, file in enumerate(self.files):
            file.write_bytes(b"\x1c\0\0\0TFL3" + bytes(10 * number))
        self.scenario = {
            "devices": [("SERIAL1", "device")],
            "answers": {
                "getprop": PROPERTIES,
                "cat /proc/cpuinfo": CPUINFO,
                "cat /sys/devices/system/cpu/": "1804800\n2496000\n2803200\n",
                "dumpsys thermalservice": [THERMAL.format(0), THERMAL.format(0)],
            },
            "help": ("", LITERT_HELP, 1),
            "runs": [],
        }

    def replay(self, *medians_ms, runs=(2, 2, 2, 2, 3, 3, 2)):
        """Let `benchmark_model` give these medians, one after the other."""
        self.scenario["runs"] = [
            {"stdout": BEGINNING, "result": result_file(median, count).hex()}
            for median, count in zip(medians_ms, runs, strict=False)
        ]

    def save(self):
        (self.folder / "scenario.json").write_text(json.dumps(self.scenario))

    def bench(self, **settings):
        self.save()
        settings = {"binary": self.binary, "runs": 7, "rounds": 3, "warmup": 4, "delay_s": 0} | settings
        return benchmark_on_android(settings.pop("paths", self.files), **settings)

    def calls(self):
        """What adb was asked, without the serial number and with the phone's folder as `F`."""
        calls = [json.loads(line) for line in (self.folder / "log.jsonl").read_text().splitlines()]
        return [re.sub(r"/data/local/tmp/tflite_bench_\w{8}", "F", " ".join(words)) for words in calls]

    def left_on_phone(self):
        return list((self.phone / "data/local/tmp").glob("*"))


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("FAKE_ADB", str(tmp_path))
    made = World(tmp_path)
    made.replay(10, 5, 10, 6, 10, 4, 10.2)
    return made


# --------------------------------------------------------------------------------------------------------- full run


def test_a_full_run_measures_interleaved_and_leaves_nothing_behind(world):
    report = world.bench(taskset="f0", threads=2)
    dense, pruned = world.files
    graph = "shell taskset f0 F/benchmark_model --num_threads=2 --warmup_runs=4 --min_secs=0"
    process = []
    for number, (runs, index) in enumerate([(2, 0), (2, 1), (2, 0), (2, 1), (3, 0), (3, 1), (2, 0)], 1):
        process += [
            f"{graph} --num_runs={runs} --graph=F/{index}.tflite --result_file_path=F/{number}.pb",
            f"pull F/{number}.pb",
        ]
    said = [re.sub(r"^-s SERIAL1 ", "", call) for call in world.calls()]
    said = [re.sub(r"(pull \S+) .*", r"\1", call) for call in said]
    assert said == [
        "devices",
        "shell getprop",
        "shell cat /proc/cpuinfo",
        "shell cat /sys/devices/system/cpu/cpu[0-9]/cpufreq/cpuinfo_max_freq",
        "shell dumpsys thermalservice",
        "shell mkdir F",
        f"push {world.binary} F/benchmark_model",
        "shell chmod 755 F/benchmark_model",
        f"push {dense} F/0.tflite",
        f"push {pruned} F/1.tflite",
        "shell F/benchmark_model --help",
        # Showing the help is an error to the program; is the phone still there?
        "get-state",
        *process,
        "shell dumpsys thermalservice",
        "shell rm -rf F",
    ]
    assert world.left_on_phone() == []
    assert report.machine == {
        "phone": "Maker Phone 8",
        "soc": "Soc S1000",
        "cpu": "Soc S1000: 3x Cortex-A510 + 4x Cortex-A715 + 1x core 0x51/0x1",
        "cores": 8,
        "core_max_mhz": [1804, 2496, 2803],
        "system": "Android 14 (API 34)",
        "abi": "arm64-v8a",
        "tool": "LiteRT benchmark_model",
        "thermal_status": ["none", "none"],
        "baseline_drift": pytest.approx(0.02),
    }
    assert report.settings == {"threads": 2, "runs": 7, "warmup": 4, "rounds": 3, "taskset": "f0", "delay_s": 0}
    assert report.notes == ()
    first, second = report.models
    assert (first.path, second.path) == (str(dense), str(pruned))
    assert (second.bytes, second.threads, second.runs) == (pruned.stat().st_size, 2, 7)
    assert second.p50_ms == pytest.approx(5)
    assert second.min_ms == pytest.approx(3.6)
    assert second.mean_ms == pytest.approx(1.01 * (2 * 5 + 2 * 6 + 3 * 4) / 7)
    assert second.load_ms == pytest.approx(17.25)
    assert (second.p90_ms, second.cpu_wall) == (None, None)
    ratios = (second.ratio_to_first, second.ratio_low, second.ratio_high)
    assert ratios == pytest.approx((0.5, 0.4, 0.6))
    # The last, slower block of the first model only shows drift.
    assert (first.runs, first.p50_ms, first.ratio_high) == (7, pytest.approx(10), 1)


def test_the_older_program_is_recognised_and_its_text_is_read(world):
    world.scenario["help"] = ("", LEGACY_HELP, 1)
    world.scenario["runs"] = [{"stdout": legacy_text(median, 4)} for median in (2, 1, 2)]
    report = world.bench(runs=4, rounds=1, taskset="1")
    assert report.machine["tool"] == "TensorFlow Lite benchmark_model"
    (call,) = (call for call in world.calls() if "--graph=F/1.tflite" in call)
    assert "--use_xnnpack=true" in call
    assert "result_file_path" not in call
    pruned = report.models[1]
    assert (pruned.p50_ms, pruned.min_ms, pruned.mean_ms) == pytest.approx((1, 0.9, 1.01))
    assert (pruned.load_ms, pruned.runs, pruned.ratio_to_first) == (pytest.approx(17.187), 4, pytest.approx(0.5))
    assert report.notes == ()


def test_a_program_without_median_is_compared_by_means(world):
    world.scenario["help"] = ("", LEGACY_HELP, 1)
    world.scenario["runs"] = [{"stdout": legacy_text(median, 4, percentiles=False)} for median in (2, 1, 2)]
    report = world.bench(runs=4, rounds=1, taskset="1")
    assert report.models[1].p50_ms is None
    assert report.models[1].ratio_to_first == pytest.approx(0.5)
    (note,) = report.notes
    assert "gives no median" in note


@pytest.mark.parametrize(("last_ms", "word"), [(10.6, "6% slower"), (9.3, "7% faster"), (10.4, None)])
def test_drift_beyond_five_percent_is_noted(world, last_ms, word):
    world.replay(10, 5, last_ms, runs=(4, 4, 4))
    report = world.bench(runs=4, rounds=1, taskset="f0")
    assert report.machine["baseline_drift"] == pytest.approx(last_ms / 10 - 1)
    assert [word in note for note in report.notes] == ([True] if word else [])


def test_heat_unknown_flags_missing_runs_and_free_cores_are_noted(world):
    world.replay(10, 5, 10, runs=(4, 3, 4))
    world.scenario["runs"][1]["stdout"] = "WARN: Unconsumed cmdline flags: --num_threads=1\n" + BEGINNING
    world.scenario["answers"]["dumpsys thermalservice"] = [THERMAL.format(0), THERMAL.format(3)]
    report = world.bench(runs=4, rounds=1)
    heat, cores, few, flags = report.notes
    assert "thermal status none before and severe after" in heat
    assert "the phone chose the cores" in cores
    assert "fewer than 4 runs" in few
    assert flags.endswith("ignored: --num_threads=1")
    assert report.models[1].runs == 3
    assert report.to_dict()["notes"] == list(report.notes)
    console = Console(width=80, file=io.StringIO())
    console.print(report.table())
    text = " ".join(console.file.getvalue().split())
    assert "thermal status none before and severe after" in text
    assert "dense.tflite" in text


def test_a_phone_that_hides_heat_and_clocks_is_measured(world):
    world.replay(10, 5, 10, runs=(4, 4, 4))
    world.scenario["answers"] |= {
        "dumpsys thermalservice": "Can't find service: thermalservice\n",
        "cat /sys/devices/system/cpu/": "",
        "getprop": re.sub(r"\[ro.soc.*\n", "", PROPERTIES),
    }
    report = world.bench(runs=4, rounds=1, taskset="f0")
    assert report.machine["core_max_mhz"] == []
    assert report.machine["soc"] == "kalama"
    (note,) = report.notes
    assert "does not tell its thermal status" in note


# -------------------------------------------------------------------------------------------------------- bad input


def test_no_adb(world, monkeypatch):
    monkeypatch.setenv("PATH", str(world.phone))
    with pytest.raises(BenchError, match=r"adb is not installed or not on PATH: install .*apt install adb"):
        world.bench()


@pytest.mark.parametrize(
    ("devices", "serial", "sentence"),
    [
        ([], None, "no phone is connected: plug it in, switch on USB debugging"),
        ([("A", "device"), ("B", "device")], None, "several phones are connected: A, B; choose one with serial="),
        ([("A", "device")], "C", r"no phone has the serial number 'C'; adb lists: A \(device\)"),
        ([("A", "unauthorized")], None, "phone A is not ready, its state is 'unauthorized': unlock .* 'Allow USB deb"),
        ([("A", "device"), ("B", "offline")], "B", r"phone B .* 'offline': unplug .*: A \(device\), B \(offline\)"),
        ([("A", "no permissions (udev?); see [http://x]")], None, "'no permissions .*may not open the USB device"),
        ([("A", "recovery")], None, "'recovery': start Android on it"),
    ],
)
def test_no_phone_several_phones_or_one_that_is_not_ready(world, devices, serial, sentence):
    world.scenario["devices"] = devices
    with pytest.raises(BenchError, match=sentence):
        world.bench(serial=serial)
    assert world.calls() == ["devices"]


def test_the_named_phone_and_the_only_ready_one_are_taken(world):
    world.scenario["devices"] = [("A", "device"), ("B", "device"), ("C", "offline")]
    world.bench(serial="B")
    assert {call.split()[1] for call in world.calls()[1:]} == {"B"}
    (world.folder / "log.jsonl").unlink()
    world.scenario["devices"] = [("C", "offline"), ("A", "device")]
    world.bench()
    assert {call.split()[1] for call in world.calls()[1:]} == {"A"}


def test_a_phone_with_another_processor_is_refused_before_anything_is_copied(world):
    world.scenario["answers"]["getprop"] = PROPERTIES.replace("arm64-v8a", "x86_64")
    with pytest.raises(
        BenchError, match=r"expected an arm64-v8a phone\. Received: abi='x86_64' \(Maker Phone 8, SERIAL1\)"
    ):
        world.bench()
    assert not any("mkdir" in call for call in world.calls())


def test_wrong_files_are_refused_before_adb_is_asked(world):
    script, desktop, broken = (world.folder / name for name in ("script", "desktop", "broken.tflite"))
    script.write_text("#!/bin/sh\n" + "x" * 40)
    desktop.write_bytes(world.binary.read_bytes()[:18] + (62).to_bytes(2, "little"))
    broken.write_bytes(b"not a model")
    for settings, sentence in (
        ({"binary": world.folder / "gone"}, "gone: no such file, expected benchmark_model for Android arm64"),
        ({"binary": script}, "script: not a program for Android"),
        ({"binary": desktop}, "desktop is built for x86-64, expected benchmark_model for Android arm64"),
        ({"paths": [broken]}, r"broken.tflite: this is no \.tflite file"),
        ({"paths": [world.folder / "gone.tflite"]}, r"gone.tflite: no such file, expected a \.tflite file"),
        ({"paths": []}, r"paths is a list of at least one \.tflite file\. Received: paths=\[\]"),
        ({"runs": 0}, r"runs is an integer, at least 1\. Received: runs=0\."),
        ({"rounds": 8}, r"rounds is an integer between 1 and runs=7\. Received: rounds=8\."),
        ({"delay_s": -1}, r"delay_s is a number of seconds, at least 0\. Received: delay_s=-1\."),
        ({"taskset": "4-7"}, r"taskset is a hexadecimal mask of cores, such as 'f0'\. Received: taskset='4-7'"),
        ({"taskset": "00"}, "taskset is a hexadecimal mask"),
    ):
        with pytest.raises(BenchError, match=sentence):
            world.bench(**settings)
    assert not (world.folder / "log.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"help": ("", "/system/bin/sh: F/benchmark_model: not executable: 64-bit ELF file\n", 126)}, "not executable"),
        ({"help": ("", "sh: F/benchmark_model: Exec format error\n", 126)}, r"exit code 126: .*Exec format error"),
        ({"full_at": "1.tflite"}, r"no space on the phone for .*pruned net.tflite \(0.0 MB\): free some in /data"),
        ({"runs": [{"stderr": LITERT_ERROR, "code": 1}]}, r"dense.tflite: .*\(exit code 1\): ERROR: .*Failed to comp"),
        (
            {"runs": [{"stdout": BEGINNING}]},
            r"dense.tflite: benchmark_model wrote no result file: \.\.\..*p95=12800$",
        ),
        (
            {"runs": [{"result": "0a0b"}]},
            r"dense.tflite: expected the result file of benchmark_model\. Received: 2 bytes",
        ),
        (
            {"help": ("", LEGACY_HELP, 1), "runs": [{"stdout": BEGINNING}]},
            r"dense.tflite: expected the line 'Inference timings in us: .*median=11020 p95=12800$",
        ),
        ({"runs": [{"stdout": BEGINNING, "unplug": True, "code": 255}]}, r"phone SERIAL1 is gone \(error: device 'SER"),
        (
            {"help": ("", LEGACY_HELP, 1), "runs": [{"stdout": BEGINNING, "unplug": True}]},
            r"phone SERIAL1 is gone \(error: device 'SERIAL1' not found\)",
        ),
        ({"runs": [{"stdout": BEGINNING, "unplug": True}]}, "SERIAL1 is gone .*: plug it in and repeat; /data/local"),
    ],
)
def test_what_goes_wrong_on_the_phone_is_one_clear_line(world, change, sentence):
    world.scenario |= change
    with pytest.raises(BenchError, match=sentence) as caught:
        world.bench()
    assert "\n" not in str(caught.value)
    assert world.calls()[-1] == "-s SERIAL1 shell rm -rf F"
    assert (world.left_on_phone() == []) is ("gone" not in sentence)


# ------------------------------------------------------------------------------------------------------ command line


def start_cli(world, *arguments):
    world.save()
    return subprocess.Popen(
        [sys.executable, "-m", "tflite_bench", "android", *map(os.fspath, arguments)],
        cwd=TESTS.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_command_line(world):
    target = world.folder / "out.json"
    process = start_cli(
        world,
        *world.files,
        *"--runs 7 --rounds 3 --delay 0 --taskset f0".split(),
        "--binary",
        world.binary,
        "--json",
        target,
    )
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "dense.tflite" in stdout
    saved = json.loads(target.read_text())
    assert saved["machine"]["phone"] == "Maker Phone 8"
    assert saved["models"][1]["ratio_to_first"] == pytest.approx(0.5)


def test_command_line_refuses_bad_input_in_one_line(world):
    world.scenario["devices"] = []
    process = start_cli(world, world.files[0], "--binary", world.binary)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert stdout == ""
    assert stderr.startswith("tflite_bench android: no phone is connected")
    assert stderr.count("\n") == 1


def test_an_interrupted_run_leaves_nothing_on_the_phone(world):
    world.scenario["runs"][1]["hang"] = True
    process = start_cli(world, *world.files, "--runs", "7", "--rounds", "3", "--delay", "0", "--binary", world.binary)
    for _ in range(600):
        if (world.folder / "hanging").exists():
            break
        time.sleep(0.1)
    assert world.left_on_phone() != []
    # Ctrl-C reaches the program and the adb that it started.
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert world.left_on_phone() == []


# ---------------------------------------------------------------------------------------------------------- parsers


def test_result_file_of_real_protobuf_is_read():
    block = read_result_file(result_file(2.5, 300, name="a configuration"))
    assert (block.init_ms, block.min_ms, block.mean_ms, block.median_ms) == pytest.approx((17.25, 2.25, 2.525, 2.5))
    assert block.runs == 300


def test_a_damaged_result_file_is_refused():
    content = result_file(2.5, 50)
    for cut in range(len(content) - 1):
        with pytest.raises(BenchError, match=r"expected the result file|reports no times"):
            read_result_file(content[:cut])
    for other in (b"INFO: STARTING!", result_file(2.5, 0), result_file(0, 50), result_file(float("nan"), 50)):
        with pytest.raises(BenchError):
            read_result_file(other)


def test_text_of_runs_that_all_took_the_same_time_is_read():
    for statistics in ("count=3 curr=7(all same)", "count=3 curr=7(all same) p5=7 median=7 p95=7"):
        block = read_text(BEGINNING + END.format(runs=3, statistics=statistics, avg=7))
        assert (block.min_ms, block.mean_ms, block.median_ms, block.runs) == (0.007, 0.007, 0.007, 3)


def test_large_times_in_scientific_notation_are_read():
    text = (
        "count=1 curr=3512391\n\ncount=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=1098\n"
    )
    text += "Inference timings in us: Init: 17187, First inference: 3512391, Warmup (avg): 3.51239e+06, "
    block = read_text(text + "Inference (avg): 2.95034e+06\n")
    assert (block.min_ms, block.mean_ms, block.median_ms, block.runs) == (2727.568, pytest.approx(2950.34), None, 50)


def test_text_that_ends_early_or_is_something_else_is_refused():
    for text in ("", "Segmentation fault", BEGINNING, legacy_text(2, 5).partition("INFO: Inference timings")[0]):
        with pytest.raises(BenchError, match="expected the line 'Inference timings in us"):
            read_text(text)
