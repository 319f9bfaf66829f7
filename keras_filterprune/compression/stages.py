"""The stages between a model and its file; what an earlier run has left whole in the folder is not made again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_filterprune.compression.devices import Device
from keras_filterprune.compression.exam import Exam, Found
from keras_filterprune.compression.result import FILES, percent
from keras_filterprune.errors import ExportError, InfeasibleBudgetError
from keras_filterprune.export import Metadata, export_tflite
from keras_filterprune.export.signature import input_ports
from keras_filterprune.files import load_keras, replacing, save_keras, unfinished
from keras_filterprune.folder import Folder
from keras_filterprune.pruning import plan_pruning, prune_model
from keras_filterprune.rebuild import PruningPlan
from keras_filterprune.studies import prune_family

SHARES = (0.75, 0.5, 0.35, 0.25)
# What integers may cost: accuracy where there are labels, else the same class, else the difference of the outputs.
# A ResNet-20 on CIFAR-10 keeps its accuracy, and the class of 98 % of the images.
_LOSS, _AGREEMENT, _DIFFERENCE = 0.01, 0.95, 0.1
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Job:
    """What is to be made, checked.

    Attributes:
        model: the original, as a functional or Sequential model.
        device: what it is made for.
        budget: what may be left, None where accuracy decides.
        drop: how much accuracy may be lost, None where the budget decides.
        data: samples for calibration.
        exam: measures networks and files.
        metadata: what the file says of itself.
        integer_io, seed, progress: as in `compress`.
        folder: where everything goes.
        path: the same as a path.
    """

    model: keras.Model
    device: Device
    budget: Any
    drop: float | None
    data: Any
    exam: Exam
    metadata: Metadata
    integer_io: bool | str
    seed: int
    progress: bool
    folder: Folder
    path: Path

    @property
    def options(self) -> dict[str, Any]:
        """What every pruning gets."""
        return {"channel_multiple": self.device.widths, "seed": self.seed, "progress": self.progress}


@dataclass(frozen=True)
class Candidate:
    """A smaller network, what it was cut by, and what was done to it in words."""

    model: keras.Model
    plan: PruningPlan
    done: dict[str, Any]


class Made(NamedTuple):
    """A file, what its export has measured, how it does in the exam, and why it is as it is."""

    content: bytes
    result: dict[str, Any]
    found: Found
    said: str = ""
    network: float | None = None


def count_of(data: Any) -> int:
    """How many samples a job learns from."""
    return len(data[0] if isinstance(data, list) else data)


def reachable(model: keras.Model, budget: Any, device: Device) -> None:
    """Raise `InfeasibleBudgetError` where a budget cannot be met; no network is run."""
    plan_pruning(model, "l2", budget, channel_multiple=device.widths, progress=False)


def reachable_shares(model: keras.Model, device: Device) -> list[float]:
    """Those of the sizes that are tried that can be met; if none can, why not."""
    found: list[float] = []
    for share in SHARES:
        try:
            reachable(model, share, device)
        except InfeasibleBudgetError:
            if not found:
                raise
            break
        found.append(share)
    return found


def whole_file(job: Job) -> None:
    """The original as a float32 file, to compare with."""
    name = FILES["original"]
    if job.folder.find(name) is None:
        job.folder.write(name, partial(export_tflite, job.model, data=job.data, metadata=job.metadata, overwrite=True))


def cut_and_file(job: Job) -> Candidate:
    """Write network, plan and file of what meets the budget; or of what is smallest and loses no more than it may."""
    if job.folder.find(FILES["tflite"]):
        return _found(job)
    if job.drop is not None:
        return _smallest(job, job.drop)
    candidate = _found(job) if job.folder.find(FILES["plan"]) else _cut(job)
    _write(job, _file(job, candidate, None))
    return candidate


def _found(job: Job) -> Candidate:
    """What an earlier run has cut."""
    model, plan = (job.folder.find(FILES[name]) for name in ("model", "plan"))
    return Candidate(load_keras(model), PruningPlan.load(str(plan)), job.folder.facts["cut"])


def _cut(job: Job) -> Candidate:
    """Prune under the budget."""
    small, report = prune_model(job.model, "auto", job.budget, data=job.data, return_report=True, **job.options)
    done = {name: getattr(report, name) for name in ("compensation", "verification", "notes")}
    return _kept(job, Candidate(small, report.plan, done))


def _kept(job: Job, candidate: Candidate) -> Candidate:
    """The same, written: the plan last, which says that the network is there."""
    job.folder.write(FILES["model"], partial(save_keras, candidate.model, overwrite=True))
    job.folder.write(FILES["plan"], candidate.plan.save, cut=candidate.done)
    return candidate


def _smallest(job: Job, drop: float) -> Candidate:
    """Of a family, the smallest that loses at most `drop` in integers; if none does, in floating-point numbers."""
    shares = reachable_shares(job.model, job.device)
    score = partial(_score, job.exam)
    family = prune_family(job.model, shares, data=job.data, evaluate=score, folder=job.path / "sizes", **job.options)
    floor = _number(family.rows[0].score) - drop
    best: tuple[Candidate, Made] | None = None
    for row, model, plan in reversed(list(zip(family.rows, family.models, family.plans, strict=True))):
        if _number(row.score) < floor - _ROUNDING:
            continue
        plan = plan or plan_pruning(job.model, "l2", 1.0, progress=False)
        candidate = Candidate(model, plan, _of_family(row.keep))
        made = _file(job, candidate, floor)
        if best is None or made.result["quantize"] == job.device.quantize:
            best = candidate, made
        if made.result["quantize"] == job.device.quantize:
            break
    # The original loses nothing.
    candidate, made = best or (candidate, made)
    _kept(job, candidate)
    _write(job, made)
    return candidate


def _score(exam: Exam, model: keras.Model) -> float:
    return _number(exam.accuracy(exam.outputs(model)))


def _number(value: float | None) -> float:
    return 0.0 if value is None else value


def _of_family(keep: float) -> dict[str, Any]:
    done = "refitted by least squares and taught by the original, size after size"
    note = f"The smallest size tried that holds: at most {percent(keep)} of the MACs, cut from the size before."
    if keep == 1:
        done, note = "none", "No smaller size that was tried loses so little: no filter went."
    return {"compensation": done, "verification": None, "notes": [note]}


def _file(job: Job, candidate: Candidate, floor: float | None) -> Made:
    """The file, in the numbers that the device is fastest with if they hold."""
    device, wanted = job.device, job.exam.outputs(candidate.model)
    whole = job.exam.accuracy(wanted)
    try:
        made = _exported(job, candidate, device.quantize, wanted)
        holds, said = judge(made.found, whole, floor, len(job.exam))
    except ExportError as error:
        holds, said = False, str(error)
    if holds:
        return made._replace(said=f"{device.quantize}: {said}", network=whole)
    made = _exported(job, candidate, device.otherwise, wanted)
    return made._replace(said=f"{made.result['quantize']}, not {device.quantize}: {said}", network=whole)


def judge(found: Found, whole: float | None, floor: float | None, count: int) -> tuple[bool, str]:
    """Whether a file of integers is good enough, and what was found.

    Args:
        found: what was measured of it.
        whole: accuracy of the network that it was made of, None without labels.
        floor: the least accuracy that it may have (None: 1 point less than the network's, or one sample).
        count: of the samples.
    """
    if found.accuracy is not None and whole is not None:
        least = whole - max(_LOSS, 1 / count) if floor is None else floor
        said = f"{percent(found.accuracy)} accuracy, {percent(whole)} unquantized; at least {percent(least)} is wanted"
        return found.accuracy >= least - _ROUNDING, said
    if found.agreement is not None:
        said = f"the same class as unquantized for {percent(found.agreement)}; at least {percent(_AGREEMENT)} is wanted"
        return found.agreement >= _AGREEMENT, said
    said = f"outputs differ from unquantized ones by {found.difference:.2g}; at most {_DIFFERENCE:g} is wanted"
    return found.difference <= _DIFFERENCE, said


def _exported(job: Job, candidate: Candidate, mode: str, wanted: Sequence[np.ndarray]) -> Made:
    integers = job.integer_io if mode == "int8" else False
    metadata = replace(job.metadata, plan=candidate.plan)
    with unfinished() as folder:
        path = folder / FILES["tflite"]
        settings = {"quantize": mode, "integer_io": integers, "data": job.data, "metadata": metadata}
        result, content = export_tflite(candidate.model, path, **settings).to_dict(), path.read_bytes()
    found = job.exam.of_file(content, candidate.model, input_ports(candidate.model), wanted)
    return Made(content, result | {"path": FILES["tflite"]}, found)


def _write(job: Job, made: Made) -> None:
    def save(path: Path) -> None:
        with replacing(path) as draft:
            draft.write_bytes(made.content)

    measured = {"network": made.network, "file": made.found.accuracy}
    job.folder.write(FILES["tflite"], save, file=made.result, accuracy=measured, said=made.said)
