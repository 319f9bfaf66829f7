"""How long FP-OMP takes to select half of the filters of a ResNet-56, next to its definition.

    python examples/benchmarks/omp_speed.py [--model resnet56.keras] [--repetitions 5] [--out DIR]

Two sides of every convolution wider than 1x1 but the first: its filters and its input slices, 108 in all. Without a
model the kernels are random (He normal) in the shapes of ResNet-56 for CIFAR-10. One BLAS thread.

- library: `FPOMP` observes all sides, each a group of its own, and orders all filters of each, not half of them;
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
from types import SimpleNamespace

# Before NumPy is imported: BLAS reads them once.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import scipy
from rich.progress import track

import keras_filterprune as kfp

KEEP = 0.5
Selection = list[np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a trained .keras file; random kernels without it")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    model, kernels = trained(options.model) if options.model else ("random ResNet-56", random_kernels())
    sides = [side for kernel in kernels for side in sides_of(kernel)]
    library(sides)
    quick: list[float] = []
    naive: dict[str, list[float]] = {"together": [], "one by one": []}
    found: dict[str, Selection] = {}
    for repetition in track(range(options.repetitions), "measuring"):
        start = time.process_time()
        found["library"] = library(sides)
        quick.append(time.process_time() - start)
        for name, fit in (("together", together), ("one by one", one_by_one)):
            if name == "together" or repetition == 0:
                start = time.process_time()
                found[name] = [definition(side, fit) for side in sides]
                naive[name].append(time.process_time() - start)
    content = {
        "model": model,
        "environment": environment(),
        "sides": len(sides),
        "keep": KEEP,
        "repetitions": options.repetitions,
        "library_seconds": quick,
        "definition_seconds": naive,
        "identical_selections": {name: identical(found["library"], found[name]) for name in naive},
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


def library(sides: list[np.ndarray]) -> Selection:
    """What is kept of every side, in the order of selection."""
    groups, weights = [], {}
    for number, side in enumerate(sides):
        units = np.arange(side.shape[1])
        member = kfp.criteria.Member(f"side{number}", "kernel", 1, "filter", units[:, None])
        groups.append(kfp.criteria.Group(member.layer, units, (member,)))
        weights[member.layer, member.weight] = side
    # All that a criterion which ranks by weights looks at.
    graph = SimpleNamespace(groups=groups)
    criterion = kfp.criteria.FPOMP().observe(graph, weights, None, False)
    return [np.argsort(-criterion.scores(group, weights))[: count(group.size)] for group in groups]


def together(atoms: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(atoms, targets, rcond=None)[0]


def one_by_one(atoms: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.stack([np.linalg.lstsq(atoms, target, rcond=None)[0] for target in targets.T], axis=1)


def definition(columns: np.ndarray, fit: Callable) -> np.ndarray:
    """The same for one side by refitting every column after every selection."""
    atoms = columns / np.linalg.norm(columns, axis=0)
    chosen: list[int] = []
    residual = atoms
    for _ in range(count(columns.shape[1])):
        score = np.abs(atoms.T @ residual).sum(axis=1)
        score[chosen] = -np.inf
        chosen.append(int(np.argmax(score)))
        residual = atoms - atoms[:, chosen] @ fit(atoms[:, chosen], atoms)
    return np.array(chosen)


def identical(first: Selection, second: Selection) -> int:
    return sum(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


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
    quick = statistics.median(content["library_seconds"])
    rows = [("library", f"{quick:.3f} s", "< 0.5 s", quick < 0.5, f"{content['repetitions']} runs")]
    for name, runs in content["definition_seconds"].items():
        naive = statistics.median(runs)
        ratio, same = naive / quick, content["identical_selections"][name]
        rows += [
            (f"definition, {name}", f"{naive:.2f} s", "", None, f"{len(runs)} run{'s' * (len(runs) > 1)}"),
            (f"definition, {name} / library", f"{ratio:.0f}", ">= 100", ratio >= 100, ""),
            ("identical selections", f"{same} of {content['sides']}", "all", same == content["sides"], ""),
        ]
    lines = [f"FP-OMP on {content['model']}, keep {content['keep']}, {content['sides']} sides, one thread", ""]
    lines += ["| measurement | result | target | met | detail |", "|---|---:|---:|---|---|"]
    met = {True: "yes", False: "**no**", None: ""}
    lines += [f"| {what} | {result} | {target} | {met[ok]} | {detail} |" for what, result, target, ok, detail in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
