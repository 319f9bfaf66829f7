"""Files of results that grow by a row at a time, so that an interrupted run continues where it stopped."""

import json
import platform
from pathlib import Path

import keras
import numpy as np


def read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {"environment": environment(), "rows": []}


def append(row: dict, path: Path, *keys: str) -> None:
    """Add a row, in place of an earlier one that has the same values of `keys`; the file is replaced in one step."""
    content = read(path)
    rows = [r for r in content["rows"] if any(r[key] != row[key] for key in keys)]
    rows = sorted([*rows, row], key=lambda r: [-r[key] if isinstance(r[key], float) else r[key] for key in keys])
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content | {"rows": rows}, indent=1) + "\n")
    temporary.replace(path)


def environment() -> dict[str, str]:
    versions = {"keras": keras.__version__, "numpy": np.__version__, "python": platform.python_version()}
    return {"backend": keras.backend.backend(), **versions, "machine": platform.machine()}
