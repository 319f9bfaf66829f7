"""Time and peak memory of complete pairwise similarity against the Nystrom form, by number of filters.

python examples/benchmarks/nystrom.py [--filters 64 ... 8192] [--out DIR]

Three ways to the same kept filters, each from prototypes that are made once: "complete" forms the n x n matrix with
one BLAS product, as papers write it; `similarity` takes all pairs in blocks; `nystrom` takes m columns and searches
their factor in blocks of float32, as the criteria do. Filters are drawn at random with `--channels` inputs, so that
prototypes are in general position, the hardest case. Then all six layers of VGGish. Times are medians of interleaved
runs on one thread.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import json
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1] / "audio"))

import numpy as np
from networks import vggish_net

import keras_filterprune as kfp
from keras_filterprune.criteria.pairwise import landmarks, neighbours, prototypes, sweep
from keras_filterprune.probe import Weights


def complete(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest neighbours and distances by the whole matrix."""
    similar = rows @ rows.T
    np.fill_diagonal(similar, -np.inf)
    nearest = similar.argmax(axis=1)
    return nearest, np.maximum(np.round(1 - similar[np.arange(len(rows)), nearest], 12), 0)


WAYS: dict[str, Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]] = {
    "complete": lambda rows, m: complete(rows),
    "similarity": lambda rows, m: neighbours(rows),
    "nystrom": lambda rows, m: neighbours(landmarks(rows, m, 0.0), kfp.criteria.Nystrom.search),
}


def main() -> None:
    options = _options()
    sizes = [row for size in options.sizes for row in _layers(size, options)]
    report = {"layers": sizes, "vggish": _vggish(options.rounds)}
    path = Path(options.out, "nystrom.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(_table(report))
    print(_table(report))


def _layers(size: int, options: argparse.Namespace) -> list[dict]:
    rows = []
    for count in options.filters:
        rng = np.random.default_rng(count)
        start = time.perf_counter()
        unit = prototypes(rng.normal(size=(count, size * size, options.channels)).astype(np.float32), "dominant")
        making = time.perf_counter() - start
        m, norms = min(size * size, count), rng.random(count)
        kept = {}
        row = {"kernel": size, "filters": count, "m": m, "prototypes_s": making}
        times: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(options.rounds):
            for name, way in WAYS.items():
                start = time.perf_counter()
                gone, _ = sweep(*way(unit, m), norms)
                times[name].append(time.perf_counter() - start)
                kept[name] = np.setdiff1d(np.arange(count), gone)
        for name, way in WAYS.items():
            tracemalloc.start()
            way(unit, m)
            row[name] = {"s": float(np.median(times[name])), "peak_bytes": tracemalloc.get_traced_memory()[1]}
            tracemalloc.stop()
        row["identical"] = all(np.array_equal(kept["complete"], other) for other in kept.values())
        row["kept"] = len(kept["complete"])
        print(row, flush=True)
        rows.append(row)
    return rows


def _vggish(rounds: int) -> dict:
    """Seconds to rank the filters of all six layers, prototypes included."""
    graph = kfp.analyze(vggish_net())
    weights = Weights(graph.view)
    groups = [group for group in graph.groups if group.name.startswith("conv")]
    found = {}
    for name, criterion in (("similarity", kfp.criteria.Similarity()), ("nystrom", kfp.criteria.Nystrom(m=9))):
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            counts = [criterion.redundant(group, weights) for group in groups]
            times.append(time.perf_counter() - start)
        found[name] = {"s": float(np.median(times)), "removed": counts}
    return found


def _table(report: dict) -> str:
    lines = [
        "| kernel | filters | m | complete ms | similarity | nystrom | peak MB: complete, similarity, nystrom | kept |"
    ]
    lines += ["|--:|--:|--:|--:|--:|--:|---|---|"]
    for row in report["layers"]:
        base = row["complete"]["s"]
        ratios = " | ".join(f"{base / row[name]['s']:.1f}x faster" for name in ("similarity", "nystrom"))
        memory = ", ".join(f"{row[name]['peak_bytes'] / 1e6:.1f}" for name in WAYS)
        same = f"{row['kept']}, " + ("identical" if row["identical"] else "different")
        layer = f"{row['kernel']}x{row['kernel']} | {row['filters']} | {row['m']}"
        lines.append(f"| {layer} | {1e3 * base:.2f} | {ratios} | {memory} | {same} |")
    seconds = ", ".join(f"`{name}` {found['s']:.2f} s" for name, found in report["vggish"].items())
    return "\n".join(lines) + f"\n\nVGGish, six layers, prototypes and full ranking: {seconds}.\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filters", type=int, nargs="+", default=[64, 256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--sizes", type=int, nargs="+", default=[3, 7], help="sides of the kernels (3 7)")
    parser.add_argument("--channels", type=int, default=16, help="input channels (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs (%(default)s)")
    parser.add_argument("--out", default="examples/benchmarks/results", help="folder for the table (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
