"""Files in the forms in which the real data sets come, and what the notebooks define, for tests and benchmarks."""

import ast
import json
import os
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("DATA_DIR", ROOT / "data"))
ONE_THREAD = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # of the CPU: on a GPU, sums vary from run to run
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def definitions(notebook: str) -> SimpleNamespace:
    """The functions and classes that the cells of a notebook define; of the rest only imports are run."""
    cells, names = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"], {}
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        for node in ast.parse("".join(cell["source"])).body:
            if isinstance(node, DEFINITIONS) or "namedtuple(" in ast.unparse(node):
                with suppress(NameError):  # a default value from a cell that is not run
                    exec(compile(ast.Module([node], []), notebook, "exec"), names)
    return SimpleNamespace(**names)


def write_image(path: Path, array: np.ndarray) -> None:
    """An image file, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def idx(array: np.ndarray) -> bytes:
    """An IDX file (LeCun): magic number, sizes, values."""
    sizes = [0x0800 + array.ndim, *array.shape]
    return np.array(sizes, ">i4").tobytes() + array.astype(np.uint8).tobytes()
