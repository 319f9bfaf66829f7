"""How long FP-OMP takes to select half of the filters of a ResNet-56, next to its definition.

    python examples/benchmarks/omp_speed.py [--model resnet56.keras] [--repetitions 5] [--out DIR]

Two sides of every convolution wider than 1x1 but the first: its filters and its input slices, 108 in all. Without a
model the kernels are random (He normal) in the shapes of ResNet-56 for CIFAR-10. One BLAS thread.

- library: Gram matrices, `forward_order` on stacks of equal size (all filters are ordered, not half of them), and
  `coefficients` of all filters on the selected half;
- definition: orthogonal matching pursuit as FP-OMP defines it. After every selection all filters of the side are fitted
  to the selected ones by `numpy.linalg.lstsq`, and the residuals give the next selection. Once with one call for all
  filters of the side ("together"), and once with one call per filter ("one by one"), the way published code goes
  through them. Neither is the authors' program.

Medians of interleaved repetitions; "one by one" runs once, since it takes long. Prints one table and writes
omp_speed.json and omp_speed.md.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

# Before NumPy is imported: BLAS reads them once.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import scipy
from rich.progress import track

from keras_filterprune.criteria.greedy import forward_order
from keras_filterprune.probe.regression import coefficients

KEEP = 0.5
Selection = list[tuple[np.ndarray, np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a trained .keras file; random kernels without it")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    model, kernels = trained(options.model) if options.model else ("random ResNet-56", random_kernels())
    sides = [side for kernel in kernels for side in sides_of(kernel)]
    library(sides)
    stages: list[dict[str, float]] = []
    naive: dict[str, list[float]] = {"together": [], "one by one": []}
    found: dict[str, Selection] = {}
    for repetition in track(range(options.repetitions), "measuring"):
        found["library"], seconds = library(sides)
        stages.append(seconds)
        for name, fit in (("together", together), ("one by one", one_by_one)):
            if name == "together" or repetition == 0:
                start = time.perf_counter()
                found[name] = [definition(side, fit) for side in sides]
                naive[name].append(time.perf_counter() - start)
    content = {
        "model": model,
        "environment": environment(),
        "sides": len(sides),
        "keep": KEEP,
        "repetitions": options.repetitions,
        "library_seconds": {stage: [s[stage] for s in stages] for stage in stages[0]},
        "definition_seconds": naive,
        "agreement": {name: agreement(found["library"], found[name]) for name in naive},
    }
    table = markdown(content)
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "omp_speed.json").write_text(json.dumps(content, indent=1) + "\n")
    (options.out / "omp_speed.md").write_text(table)


def random_kernels() -> list[np.ndarray]:
    """The 3x3 kernels of ResNet-56 but the first: 3 stages of 9 blocks of 2."""
    rng = np.random.default_rng(0)
    kernels, width = [], 16
    for filters in (16, 32, 64):
        for _ in range(18):
            kernels.append(rng.normal(scale=np.sqrt(2 / (9 * width)), size=(3, 3, width, filters)))
            width = filters
    return kernels


def trained(path: str) -> tuple[str, list[np.ndarray]]:
    import keras

    model = keras.models.load_model(path, compile=False)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    kernels = [keras.ops.convert_to_numpy(layer.kernel) for layer in convolutions if max(layer.kernel_size) > 1]
    return model.name, kernels[1:]


def sides_of(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Filters and input slices of a convolution as columns, float64."""
    kernel = kernel.astype(np.float64)
    return kernel.reshape(-1, kernel.shape[3]), np.moveaxis(kernel, 2, 3).reshape(-1, kernel.shape[2])


def count(size: int) -> int:
    return int(size * KEEP + 0.5)


def library(sides: list[np.ndarray]) -> tuple[Selection, dict[str, float]]:
    """What is kept of every side, in the order of selection, with its coefficients; seconds of every stage."""
    clock = [time.perf_counter()]
    grams = [side.T @ side for side in sides]
    clock.append(time.perf_counter())
    orders: dict[int, np.ndarray] = {}
    for size in {len(gram) for gram in grams}:
        numbers = [number for number, gram in enumerate(grams) if len(gram) == size]
        orders |= zip(numbers, forward_order(np.stack([grams[n] for n in numbers]), "omp"), strict=True)
    kept = [orders[number][: count(len(gram))] for number, gram in enumerate(grams)]
    clock.append(time.perf_counter())
    found = [(k, coefficients(gram, k)) for gram, k in zip(grams, kept, strict=True)]
    clock.append(time.perf_counter())
    seconds = dict(zip(("gram", "selection", "coefficients"), np.diff(clock).tolist(), strict=True))
    return found, seconds | {"total": clock[-1] - clock[0]}


def together(atoms: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(atoms, targets, rcond=None)[0]


def one_by_one(atoms: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.stack([np.linalg.lstsq(atoms, target, rcond=None)[0] for target in targets.T], axis=1)


def definition(columns: np.ndarray, fit: Callable) -> tuple[np.ndarray, np.ndarray]:
    """The same for one side by refitting every column after every selection."""
    norms = np.linalg.norm(columns, axis=0)
    atoms = columns / norms
    chosen: list[int] = []
    residual = atoms
    for _ in range(count(len(norms))):
        score = np.abs(atoms.T @ residual).sum(axis=1)
        score[chosen] = -np.inf
        chosen.append(int(np.argmax(score)))
        found = fit(atoms[:, chosen], atoms)
        residual = atoms - atoms[:, chosen] @ found
    return np.array(chosen), found.T * norms[:, None] / norms[chosen]


def agreement(first: Selection, second: Selection) -> dict[str, float]:
    pairs = list(zip(first, second, strict=True))
    return {
        "identical_selections": sum(a.tolist() == b.tolist() for (a, _), (b, _) in pairs),
        "largest_coefficient_difference": max(float(np.abs(a - b).max()) for (_, a), (_, b) in pairs),
    }


def environment() -> dict[str, str | int]:
    return {
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "blas_threads": 1,
    }


def markdown(content: dict) -> str:
    seconds = {stage: statistics.median(runs) for stage, runs in content["library_seconds"].items()}
    parts = ", ".join(f"{stage} {seconds[stage] * 1e3:.1f} ms" for stage in ("gram", "selection", "coefficients"))
    rows = [("library", f"{seconds['total']:.3f} s", "< 0.5 s", seconds["total"] < 0.5, parts)]
    for name, runs in content["definition_seconds"].items():
        naive = statistics.median(runs)
        ratio = naive / seconds["total"]
        same, gap = content["agreement"][name].values()
        rows += [
            (f"definition, {name}", f"{naive:.2f} s", "", None, f"{len(runs)} run{'s' * (len(runs) > 1)}"),
            (f"definition, {name} / library", f"{ratio:.0f}", ">= 100", ratio >= 100, ""),
            (
                "identical selections",
                f"{same} of {content['sides']}",
                "all",
                same == content["sides"],
                f"largest difference of a coefficient {gap:.0e}",
            ),
        ]
    lines = [f"FP-OMP on {content['model']}, keep {content['keep']}, {content['sides']} sides, one thread", ""]
    lines += ["| measurement | result | target | met | detail |", "|---|---:|---:|---|---|"]
    met = {True: "yes", False: "**no**", None: ""}
    lines += [f"| {what} | {result} | {target} | {met[ok]} | {detail} |" for what, result, target, ok, detail in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
