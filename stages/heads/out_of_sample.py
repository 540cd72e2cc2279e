"""What the experts' heads say of records that they were not trained on: kept with a fit, for methods that combine them.

Lives here: these logits and their file. Not here: how they come about (`crossfit`, `in_memory.expert`), who reads them
(`baselines.Stacking`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cache.errors import MissingFileError, StoreError
from stages.heads.crossfit import Masks

FILE = "out_of_sample.safetensors"


@dataclass(frozen=True)
class OutOfSample:
    """Experts' out-of-sample logits, and who may judge what is fitted on them.

    Attributes
    ----------
    outputs
        [F, rows, E, C] calibrated logits; 0 where `judge` is -1 or the expert is absent.
    judge
        int64 [F, rows]: from 1, the inner fold of the record; -1 where there is no out-of-sample value.
    rows
        [rows]: which of the fit's `n_records` records these are, ascending.
    """

    outputs: Tensor
    judge: Tensor
    rows: Tensor
    n_records: int

    @property
    def masks(self) -> Masks:
        """Model 0 is trained on every record with a value, the others each leave one inner fold out."""
        models = torch.arange(int(self.judge.max()) + 1)[None, :, None]
        known = (self.judge >= 0)[:, None]
        return Masks((known & (self.judge[:, None] != models)).float(), self.judge)

    def save(self, folder: Path) -> None:
        """Write `FILE`: the rows with a value alone, fold after fold, and who judges each of all records."""
        judge = torch.full((len(self.judge), self.n_records), -1, dtype=torch.int8)
        judge[:, self.rows] = self.judge.to(torch.int8)
        save_file({"outputs": self.outputs[self.judge >= 0].contiguous(), "judge": judge}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `FILE`.

        Raises
        ------
        MissingFileError, StoreError
            Not there (a fit of an older version), or damaged.
        """
        path = folder / FILE
        if not path.is_file():
            raise MissingFileError(f"{path}: is not there; run `ensemble fit-heads` again")
        try:
            arrays = load_file(path)
        except SafetensorError as error:
            raise StoreError(f"{path}: damaged ({str(error).splitlines()[0]}); fit the heads again") from error
        rows = torch.nonzero((arrays["judge"] >= 0).any(0)).ravel()
        judge = arrays["judge"][:, rows].long()
        outputs = torch.zeros(*judge.shape, *arrays["outputs"].shape[1:])
        outputs[judge >= 0] = arrays["outputs"]
        return cls(outputs, judge, rows, arrays["judge"].shape[1])
