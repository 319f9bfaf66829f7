"""What the scripts of this folder share: the files, the images, real numbers for integers, and the table of results."""

import argparse
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np

FILES = {"float32": "float32.tflite", "int8": "int8.tflite", "int8, uint8 I/O": "int8_uint8_IO.tflite"}
RESULTS = Path(__file__).parent / "results"


def try_files(consumer: str, package: str, predict: Callable[[Path, np.ndarray, list[str]], np.ndarray]) -> None:
    """Run all files, and put what was found into the table of results.

    Args:
        consumer: what it is called there.
        package: whose version counts.
        predict: of a file, uint8 images (n, height, width, 3) and the names of the classes: outputs (n, classes).
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="of make_files.py")
    folder = parser.parse_args().folder
    with np.load(folder / "samples.npz") as samples:
        images, wanted, classes = samples["images"], samples["outputs"], samples["classes"].tolist()
    rows = []
    for kind, name in FILES.items():
        row = {"consumer": f"{consumer} {metadata.version(package)}", "file": kind}
        try:
            found = predict(folder / name, images, classes)
        # What a consumer does not take, it says in any way.
        except Exception as error:  # noqa: BLE001
            said = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
            rows.append(row | {"runs": f"no: {said[-1].strip()[:120] if said else type(error).__name__}"})
            continue
        difference = float(np.sqrt(np.mean((found - wanted) ** 2)) / np.sqrt(np.mean(wanted**2)))
        same = float(np.mean(found.argmax(-1) == wanted.argmax(-1)))
        rows.append(row | {"runs": "yes", "difference": difference, "same_class": same, "images": len(images)})
    add(rows)


def add(rows: list[dict]) -> None:
    """Into results/interop.json, in place of what the same consumer found before, and the table of all."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "interop.json"
    name = rows[0]["consumer"].rpartition(" ")[0]
    old = json.loads(path.read_text()) if path.exists() else []
    rows = sorted([r for r in old if r["consumer"].rpartition(" ")[0] != name] + rows, key=lambda r: r["consumer"])
    path.write_text(json.dumps(rows, indent=1) + "\n")
    lines = ["| consumer | file | runs | difference from Keras | same class |", "|---|---|---|--:|--:|"]
    for row in rows:
        found = (f"{row['difference']:.1e}", f"{100 * row['same_class']:.0f} %") if "difference" in row else ("", "")
        lines.append(" | ".join([f"| {row['consumer']}", row["file"], row["runs"], *found]) + " |")
    (RESULTS / "interop.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def to_stored(x: np.ndarray, scale: float, zero_point: int, dtype: type) -> np.ndarray:
    """Real numbers as a tensor stores them; a scale of 0 means that it stores them as they are."""
    if not scale:
        return x.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.round(x / scale) + zero_point, limits.min, limits.max).astype(dtype)


def to_real(x: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """The real numbers that a tensor stores."""
    return (x.astype(np.float32) - zero_point) * scale if scale else x
