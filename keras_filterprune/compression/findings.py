"""What was made is measured, reported and described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from keras_filterprune.analysis import analyze
from keras_filterprune.compression.card import write_card
from keras_filterprune.compression.result import FILES, Compressed
from keras_filterprune.compression.stages import Candidate, Job, count_of
from keras_filterprune.cost import CostModel
from keras_filterprune.measuring import bench_errors
from keras_filterprune.probe.data import SAMPLES
from keras_filterprune.pruning import apply_plan
from keras_filterprune.report import PruneReport

_RUNS = 100
# What pruning may cost of accuracy without a word on how to win it back.
_UNSAID = 0.02


def conclude(job: Job, candidate: Candidate, target: str) -> Compressed:
    """Measure the files, write report and card, and say what was found."""
    files = [job.path / FILES[name] for name in ("original", "tflite")]
    facts = job.folder.facts
    if "benchmark" not in facts:
        job.folder.note(benchmark=_timed(files, job.progress))
    if "instructions" not in facts:
        job.folder.note(instructions=_counted(files, job.device.core, job.progress))
    if "accuracy_of_original" not in facts:
        job.folder.note(accuracy_of_original=job.exam.accuracy(job.exam.outputs(job.model)))
    made = Compressed(job.path, target, facts["file"]["quantize"], _figures(job, candidate, files), _notes(job))
    if job.folder.find(FILES["report"]) is None:
        job.folder.write(FILES["report"], partial(_save_report, job, candidate))
    if job.folder.find(FILES["card"]) is None:
        job.folder.write(FILES["card"], partial(write_card, job, candidate, made))
    return made


def _timed(files: Sequence[Any], progress: bool) -> dict[str, Any]:
    import tflite_bench

    with bench_errors():
        return tflite_bench.benchmark(files, runs=_RUNS, cold=False, progress=progress).to_dict()


def _counted(files: Sequence[Any], core: str | None, progress: bool) -> dict[str, Any]:
    """Instructions of both files on the core that stands for the device; or why they were not counted."""
    from tflite_bench import BenchError
    from tflite_bench.arm import count_instructions

    if core is None:
        return {"not counted": "there is no emulated core for this device"}
    try:
        report = count_instructions(files, cpu=core, progress=progress)
    except BenchError as error:
        return {"not counted": str(error)}
    return {"core": core, "counts": [model.instructions for model in report.models]}


def _figures(job: Job, candidate: Candidate, files: Sequence[Any]) -> dict[str, tuple[float, float]]:
    facts, cost = job.folder.facts, CostModel(analyze(candidate.model))
    before = candidate.plan.cost
    figures = {
        "macs": (before["macs"][0], cost.macs(cost.sizes)),
        "params": (before["params"][0], cost.params(cost.sizes)),
        "bytes": (files[0].stat().st_size, files[1].stat().st_size),
    }
    if facts["accuracy"]["file"] is not None:
        figures["accuracy"] = facts["accuracy_of_original"], facts["accuracy"]["file"]
    figures["ms"] = tuple(model["p50_ms"] for model in facts["benchmark"]["models"])
    if "counts" in facts["instructions"]:
        figures["instructions"] = tuple(facts["instructions"]["counts"])
    return figures


def _notes(job: Job) -> tuple[str, ...]:
    facts, device = job.folder.facts, job.device
    notes = [
        f"The file is {facts['said'].rstrip('.')}. Measured on {len(job.exam)} samples that nothing else looked at.",
        *_to_win_back(job),
        *facts["cut"]["notes"],
    ]
    notes.append(_on_instructions(facts["instructions"], device.core))
    if not device.here:
        notes.append(f"Milliseconds are those of {facts['benchmark']['machine']['cpu']}, not of the device.")
    warnings = (
        f"{' '.join([*w['operators'], *w['layers'][:3]])}: {w['problem']}. {w['remedy']}"
        for w in facts["file"]["warnings"]
    )
    return (*notes, *warnings, f"On the device: {device.usage}")


def _on_instructions(counted: dict[str, Any], core: str | None) -> str:
    if "core" in counted:
        return f"Instructions are those of an emulated {core}, which are not time."
    why = f"Instructions were not counted: {counted['not counted']}."
    count = f"python -m tflite_bench arm count {FILES['original']} {FILES['tflite']} --cpu {core}"
    return why if core is None else f"{why} Then `{count}` counts them."


def _to_win_back(job: Job) -> list[str]:
    """Where pruning cost accuracy, what brings it back."""
    before, after = job.folder.facts["accuracy_of_original"], job.folder.facts["accuracy"]["network"]
    if before is None or after is None or before - after < _UNSAID:
        return []
    learnt = count_of(job.data)
    more = f"more samples ({learnt:,} were learnt from, of at most {SAMPLES:,}), " if learnt < SAMPLES else ""
    return [
        f"Pruning costs {100 * (before - after):.1f} points of accuracy. What helps: {more}a larger budget, or to "
        f"train {FILES['model']} on with labels and to write its file anew by export_tflite."
    ]


def _save_report(job: Job, candidate: Candidate, path: Any) -> None:
    """The report of the cut, as it was when it was made, with what was measured afterwards."""
    facts = job.folder.facts
    settings: dict[str, Any] = {"compensate": "none", "verify": False, "return_report": True, "progress": job.progress}
    report: PruneReport = apply_plan(job.model, candidate.plan, **settings)[1]
    report = replace(report, channel_multiple=job.device.widths, **candidate.done)
    accuracy = None
    if facts["accuracy"]["file"] is not None:
        measured = {"original": facts["accuracy_of_original"], "pruned": facts["accuracy"]["network"]}
        accuracy = measured | {FILES["tflite"]: facts["accuracy"]["file"]}
    original = {"path": FILES["original"], "bytes": (job.path / FILES["original"]).stat().st_size}
    original |= {"quantize": "float32", "max_abs_difference": None, "top1_agreement": None, "ops": {}, "warnings": []}
    report.save(path, accuracy=accuracy, benchmark=facts["benchmark"], exports=[original, facts["file"]])
