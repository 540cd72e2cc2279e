"""Expert `seed-ssl`: a network of `seed` whose packaged weights come from signals alone: no label taught it.

It learnt to tell, of a disturbed part of a record, what version 2 of `rocket` and of `morphology` see of the whole. For
those who judge on PTB-XL, whose labels `seed` has learnt. Lives here: its release. Not here: input and network
(`seed`), how the weights were made (docs/seed.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from stages.experts.models.ecg.seed import OPTIONS, Release, Seed
from stages.experts.registry import register


@register("seed-ssl")
class SeedSsl(Seed):
    """A residual network of convolutions that learnt from signals alone."""

    pretraining = None
    release: ClassVar[Release] = Release(
        name="seed-ssl",
        title="Small convolutional network, self-supervised on signals of PTB-XL's folds 1 to 8",
        version="2",
        options=replace(OPTIONS, members=1),
        parameters=626_688,
        sha256="7ae5c468575e783a80508ffbe5195ec80781868c0c8e981e786b0d3cc8e0085f",
        labelled=False,
    )
