"""Time and peak memory of complete pairwise similarity against the criteria's own, by number of filters.

python examples/benchmarks/nystrom.py [--filters 64 ... 8192] [--out DIR]

Three ways to rank the same filters: "complete" forms the n x n matrix of similarities with one BLAS product in every
sweep, as papers write it; `Similarity` takes all pairs in blocks; `Nystrom` takes m columns and searches their factor
in blocks of float32. To time these alone, the filters are the prototypes: 1x1 filters with k*k inputs, drawn at random,
so that they are in general position, the hardest case. Then all six layers of VGGish, prototypes included. Times are
medians of interleaved runs on one thread.
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
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1] / "audio"))

import numpy as np
from networks import vggish_net

import keras_filterprune as kfp

KEY = ("conv", "kernel")


def complete(rows: np.ndarray) -> np.ndarray:
    """Filters in the order in which they go, by the whole matrix: of the two nearest the larger stays."""
    norms = np.linalg.norm(rows, axis=1)
    rows = rows / norms[:, None]
    alive, order = np.arange(len(rows)), []
    while len(alive) > 1:
        similar = rows[alive] @ rows[alive].T
        np.fill_diagonal(similar, -np.inf)
        nearest = similar.argmax(axis=1)
        distance = np.maximum(np.round(1 - similar[np.arange(len(alive)), nearest], 12), 0)
        kept, gone = set(), {}
        for row in np.lexsort((-norms[alive], distance)).tolist():
            if row not in gone:
                kept.add(row)
                if nearest[row] not in kept:
                    gone.setdefault(int(nearest[row]))
        order.append(alive[list(gone)])
        alive = np.delete(alive, list(gone))
    return np.concatenate([*order, alive])


def ranked(criterion: kfp.criteria.Criterion, rows: np.ndarray) -> np.ndarray:
    """The same by a criterion, for a layer that has the rows as its filters."""
    return np.argsort(criterion.scores(group_of(rows), {KEY: rows[None, None]}), kind="stable")


def group_of(rows: np.ndarray) -> kfp.criteria.Group:
    units = np.arange(len(rows))
    return kfp.criteria.Group(KEY[0], units, (kfp.criteria.Member(*KEY, 2, "filter", units[:, None]),))


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
    found = []
    for count in options.filters:
        rng, m = np.random.default_rng(count), min(size * size, count)
        rows = rng.normal(size=(count, size * size)) * rng.uniform(0.5, 2, (count, 1))
        criteria = {"similarity": kfp.criteria.Similarity(), "nystrom": kfp.criteria.Nystrom(m=m)}
        ways: dict[str, Callable[[], np.ndarray]] = {"complete": partial(complete, rows)}
        ways |= {name: partial(ranked, criterion, rows) for name, criterion in criteria.items()}
        times: dict[str, list[float]] = {name: [] for name in ways}
        order = {}
        for _ in range(options.rounds):
            for name, way in ways.items():
                start = time.process_time()
                order[name] = way()
                times[name].append(time.process_time() - start)
        row = {"kernel": size, "filters": count, "m": m}
        for name, way in ways.items():
            tracemalloc.start()
            way()
            row[name] = {"s": float(np.median(times[name])), "peak_bytes": tracemalloc.get_traced_memory()[1]}
            tracemalloc.stop()
        row["identical"] = all(np.array_equal(order["complete"], other) for other in order.values())
        row["kept"] = count - criteria["similarity"].redundant(group_of(rows), {KEY: rows[None, None]})
        print(row, flush=True)
        found.append(row)
    return found


def _vggish(rounds: int) -> dict:
    """Seconds to rank the filters of all six layers, prototypes included."""
    graph = kfp.analyze(vggish_net())
    weights = kfp.criteria.Weights(graph.view)
    groups = [group for group in graph.groups if group.name.startswith("conv")]
    found = {}
    for name, criterion in (("similarity", kfp.criteria.Similarity()), ("nystrom", kfp.criteria.Nystrom(m=9))):
        times = []
        for _ in range(rounds):
            start = time.process_time()
            counts = [criterion.redundant(group, weights) for group in groups]
            times.append(time.process_time() - start)
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
        memory = ", ".join(f"{row[name]['peak_bytes'] / 1e6:.1f}" for name in ("complete", "similarity", "nystrom"))
        same = f"{row['kept']}, " + ("identical" if row["identical"] else "different")
        layer = f"{row['kernel']}x{row['kernel']} | {row['filters']} | {row['m']}"
        lines.append(f"| {layer} | {1e3 * base:.2f} | {ratios} | {memory} | {same} |")
    seconds = ", ".join(f"`{name}` {found['s']:.2f} s" for name, found in report["vggish"].items())
    return "\n".join(lines) + f"\n\nVGGish, six layers, prototypes and full ranking: {seconds}.\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filters", type=int, nargs="+", default=[64, 256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--sizes", type=int, nargs="+", default=[3, 7], help="sides of the kernels (3 7)")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs (%(default)s)")
    parser.add_argument("--out", default="examples/benchmarks/results", help="folder for the table (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
