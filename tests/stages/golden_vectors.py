"""Golden vectors: what every expert gives in its small configuration, as committed in tests/golden/EXPERT.json.

After an intended change of an expert's numbers (raise its `version` too), or for a new one, write them again:

    python -m tests.stages.golden_vectors ecgfm jepa      # all experts without names

and look at the difference before committing it.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from stages.experts import expert_class
from stages.experts.run import run_expert
from tests.stages.small_experts import NAMES, prepared, small_expert

FOLDER = Path(__file__).parents[1] / "golden"
KEPT = {"input": 32, "layers": 48, "embedding": 32, "output": 16}
"""Numbers that are kept of each, evenly spread over all of them."""


def vectors_of(name: str) -> dict[str, dict[str, list[float | None]]]:
    """Sample what an expert gives for three records: by input path, then input, layers, embedding, output."""
    return {path: _sampled(name, path) for path in expert_class(name)[0].preprocessing_variants}


def _sampled(name: str, path: str) -> dict[str, list[float | None]]:
    x = prepared(name, path)
    vectors = run_expert(small_expert(name, path), x)
    found = {"input": x.numpy(), "layers": vectors.layers, "embedding": vectors.embedding, "output": vectors.output}
    return {key: _spread(values, KEPT[key]) for key, values in found.items() if values is not None}


def _spread(values: np.ndarray, n: int) -> list[float | None]:
    flat = values.ravel()
    chosen = flat[np.linspace(0, flat.size - 1, min(n, flat.size)).astype(int)]
    return [None if np.isnan(value) else float(f"{value:.6g}") for value in chosen]


def main() -> None:
    """Write the golden vectors of the experts named on the command line, or of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    for name in parser.parse_args().names:
        paths = (f'"{path}": {json.dumps(content)}' for path, content in vectors_of(name).items())
        (FOLDER / f"{name}.json").write_text("{\n" + ",\n".join(paths).replace("], ", "],\n ") + "\n}\n")


if __name__ == "__main__":
    main()
