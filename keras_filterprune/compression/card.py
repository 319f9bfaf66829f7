"""A model card: what a user of the file needs to know, as Markdown."""

from __future__ import annotations

import os
from collections.abc import Mapping

from keras_filterprune.compression.result import FILES, Compressed, percent
from keras_filterprune.compression.stages import Candidate, Job, count_of
from keras_filterprune.export.signature import input_ports, output_keys, output_structure
from keras_filterprune.files import replacing
from keras_filterprune.report import markdown
from keras_filterprune.report.document import Section, Table


def write_card(job: Job, candidate: Candidate, made: Compressed, path: os.PathLike[str]) -> None:
    """Write the card of what was made."""
    plan = candidate.plan
    how = (
        "the smallest size tried that loses at most " + f"{percent(job.drop or 0)} of accuracy"
        if job.drop is not None
        else str(job.budget)
    )
    sections = [
        Section(
            "What it is",
            (
                f"Made of model '{plan.model['name']}' by structured pruning: filters were removed, not masked.",
                f"For {made.target} ({job.device.chip}), whose kernels compute widths in steps: {job.device.widths} "
                f"({job.device.source}).",
            ),
        ),
        Section("Figures", (), Table(("", "original", "now", "left"), tuple(made.rows()))),
        Section("Inputs and outputs", (*_ports(job, candidate), _numbers(job, made))),
        Section(
            "How it was made",
            (
                f"Budget: {how}. Method: {plan.method}. Seed: {plan.seed}.",
                f"Calibrated and taught on {count_of(job.data)} samples; measured on {len(job.exam)} others, which are "
                "no test set.",
                f"Recovery: {candidate.done['compensation']}.",
                *(f"{name} {version}" for name, version in plan.versions.items()),
                f"Plan, SHA-256: {plan.sha256}",
            ),
        ),
        Section("Notes", made.notes[:-1]),
    ]
    title = f"{plan.model['name']} for {made.target}"
    text = f"{markdown.render(title, sections)}\n## On the device\n\n{job.device.usage}\n\n{_CODE}"
    with replacing(path) as draft:
        draft.write_bytes(text.encode("utf-8", "backslashreplace"))


_CODE = f"""## Use

```python
import keras
import keras_filterprune as kfp

model = keras.models.load_model("{FILES["model"]}")  # an ordinary Keras model, to train on
outputs = kfp.export.predict_tflite("{FILES["tflite"]}", inputs)  # real numbers in and out, for models of one input
```
"""


def _numbers(job: Job, made: Compressed) -> str:
    if made.quantize != "int8" or not job.integer_io:
        return "The file takes and gives float32."
    kind = "uint8" if job.integer_io == "uint8" else "int8"
    return f"The file takes and gives {kind}: real numbers over a scale, plus a zero point, as its interpreter tells."


def _ports(job: Job, candidate: Candidate) -> tuple[str, ...]:
    about, model = job.metadata, candidate.model
    lines = [f"Input {port.name}: {port.shape}, {port.dtype} in Keras." for port in input_ports(model)]
    if about.normalization is not None:
        lines.append(f"Normalization (mean, std): {about.normalization}.")
    lines += [f"Output {name}." for name in output_keys(output_structure(model))]
    named = about.labels if isinstance(about.labels, Mapping) else {"": about.labels or ()}
    lines += [f"Classes{output and ' of '}{output}: {', '.join(names)}." for output, names in named.items() if names]
    return tuple(lines)
