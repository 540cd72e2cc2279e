"""Expert `seed`: a small ST-MEM encoder whose weights come with the package, pretrained on generated ECGs alone.

Lives here: its input, its configuration, `prepare`, `encode`. Not here: the network (`networks.stmem_net`), how the
weights were made (docs/seed.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.signal
import torch
from torch import Tensor

from cache.errors import InputError, UsageError
from stages.experts.checkpoints import load_strict
from stages.experts.chunks import encode_in_chunks, windows_in_cache
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.stmem_net import StMemOptions, StMemVit
from stages.experts.options import architecture_overrides
from stages.experts.pretraining import PretrainingRecipe
from stages.experts.registry import register
from stages.experts.signals import dsp as _dsp
from stages.experts.token_times import TokenTimes

RATE_HZ, N_SAMPLES, PATCH = 100, 1000, 50
HIGHPASS_HZ = 0.5
UNIT_MV = 0.1
"""Below it the input is nearly linear in the voltage, above it logarithmic."""
SHORTEST_PATCHES = 5
"""What pretraining showed of a lead."""
OPTIONS = StMemOptions(
    seq_len=N_SAMPLES, patch_size=PATCH, width=96, depth=6, mlp_dim=384, heads=3, dim_head=32, patch_norm=False
)
FREE = ("width", "depth", "mlp_dim", "heads", "dim_head")
"""Options that a version of one's own may change; the input's geometry stays."""
UNUSED_KEYS = (r"(to_)?decoder_", r"mask_embedding$")
PARAMETERS = 679_488
WEIGHTS_FILE = "seed.safetensors"
SHA256 = "382e3fbabaa7248a10130361ecba0a5590339454fa258bd83b1763ee76ed84c4"

_HIGHPASS = scipy.signal.butter(2, HIGHPASS_HZ, "highpass", fs=RATE_HZ, output="sos")


@register("seed")
class Seed(Expert):
    """ST-MEM's encoder (Na et al., ICLR 2024, arXiv 2402.09450), small, on millivolts.

    Other than there: no norms around the patch embedding, so that amplitudes are seen; the embedding is mean and
    standard deviation over the patches of every lead, so that leads are told apart.
    """

    residual_branches = r"(?P<block>block\d+)\.(attn|ff)"
    pretraining = PretrainingRecipe(
        "masked",
        epochs=800,
        learning_rate=1.2e-3,
        rate_per_256=True,
        weight_decay=0.01,
        betas=(0.9, 0.95),
        warmup_share=0.05,
        variants=("stmem", "ipastmem"),
        decoder={
            "decoder_embed_dim": 64,
            "decoder_depth": 1,
            "decoder_num_heads": 2,
            "decoder_dim_head": 32,
            "mask_ratio": 0.5,
            "norm_pix_loss": False,
        },
        encoder_only=True,
        attentive_start=True,
    )
    module: StMemVit

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec of the weights in the package."""
        return _spec(OPTIONS, PARAMETERS)

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the architecture made narrow and shallow, see `Expert.small_config`."""
        return {"width": 32, "depth": 3, "mlp_dim": 48, "heads": 4, "dim_head": 8}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> Seed:
        """Construct from overrides of `FREE` and the encoder's state dict, float16 or float32."""
        expert = cls(preprocessing=preprocessing)
        expert.module = StMemVit(seed_options(config))
        if state is not None:
            state = {key: value.float() for key, value in state.items()}
            load_strict(expert.module, state, expert="seed", unused_keys=UNUSED_KEYS)
        expert.spec = _spec(expert.module.options, sum(p.numel() for p in expert.module.parameters()))
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, windows, 12, time]: 100 Hz, 0.5 Hz high-pass, asinh(mV / 0.1).

        Raises
        ------
        InputError
            Records shorter than 2.5 s.
        """
        signals = _dsp.resample_rate(_dsp.as_signals(signals_mv), rate_hz, RATE_HZ)
        n_patches = math.ceil(signals.shape[-1] / PATCH)
        if n_patches < SHORTEST_PATCHES:
            raise InputError(
                f"expert 'seed': records of {signals.shape[-1] / RATE_HZ:g} s are shorter than "
                f"{SHORTEST_PATCHES * PATCH / RATE_HZ:g} s"
            )
        x = scipy.signal.sosfiltfilt(_HIGHPASS, _dsp.fill_gaps(signals), axis=-1)
        x = np.arcsinh(x / UNIT_MV).astype(np.float32)
        missing = min(n_patches * PATCH, N_SAMPLES) - x.shape[-1]
        x = np.pad(x, ((0, 0), (0, 0), (0, max(0, missing))), mode="edge")
        return torch.from_numpy(np.ascontiguousarray(_dsp.even_windows(x, min(x.shape[-1], N_SAMPLES))))

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record, [batch, 12, time]; `time` is a multiple of 50, at most 1000. No mask."""
        if mask is not None:
            raise UsageError("expert 'seed' takes no mask; leave it out")
        if x.ndim != 3 or x.shape[1] != len(STANDARD_LEADS) or not 0 < x.shape[2] <= N_SAMPLES or x.shape[2] % PATCH:
            raise InputError(
                f"expert 'seed': input {list(x.shape)}; expected [batch, 12, time], time a multiple of {PATCH} up to "
                f"{N_SAMPLES}"
            )
        return encode_in_chunks(self._encode, x, mask, self.windows_at_once(x))

    def windows_at_once(self, x: Tensor) -> int:
        """Return how many windows stay in a CPU's cache, see `Expert.windows_at_once`."""
        return windows_in_cache(len(STANDARD_LEADS) * (x.shape[2] // PATCH + 2))

    def _encode(self, x: Tensor, mask: Tensor | None) -> Encoding:
        net = self.module
        tokens = net.add_separators(net.embed_patches(x))
        outputs = [tokens, *net.block_outputs(tokens)]
        patches = net.drop_separators(net.norm(outputs[-1])).float()
        lead_mean, lead_spread = patches.mean(2), patches.std(2, correction=0)
        embedding = torch.cat([lead_mean, lead_spread], dim=-1).flatten(1)
        tokens = patches.transpose(1, 2).flatten(2)
        return Encoding(torch.stack([net.pool(output) for output in outputs], dim=1), embedding, tokens=tokens)


def seed_options(config: Mapping[str, Any] | None) -> StMemOptions:
    """Lay overrides of the network's size over the published configuration.

    Raises
    ------
    UsageError
        Another option.
    """
    return replace(OPTIONS, **architecture_overrides("seed", config, FREE))


def _spec(options: StMemOptions, n_parameters: int) -> ExpertSpec:
    return ExpertSpec(
        name="seed",
        title="Small ST-MEM encoder, pretrained on generated ECGs",
        version="1",
        source="docs/seed.md; architecture: Na et al., ICLR 2024, arXiv 2402.09450",
        sampling_rate_hz=RATE_HZ,
        seconds=N_SAMPLES / RATE_HZ,
        leads=STANDARD_LEADS,
        normalisation=f"0.5 Hz high-pass, asinh(mV / {UNIT_MV:g})",
        layer_names=("embed", *(f"block_{k + 1}" for k in range(options.depth))),
        layer_dims=(options.width,) * (options.depth + 1),
        embedding_dim=2 * len(STANDARD_LEADS) * options.width,
        licence="Apache-2.0",
        parameters=n_parameters,
        published_parameters=PARAMETERS,
        weights=WeightsSource("", WEIGHTS_FILE, "", SHA256, packaged=True),
        pretrained_on=("generated",),
        unused_keys=UNUSED_KEYS,
        windows="evenly placed windows of 10 s, mean of their vectors; a shorter record as its patches of 0.5 s, the "
        "last one held at its last sample; from 2.5 s",
        missing_leads="gaps bridged linearly, ends held; a missing lead is 0 mV, as a flat one is",
        preprocessing={"rate_hz": RATE_HZ, "patch": PATCH, "highpass_hz": HIGHPASS_HZ, "unit_mv": UNIT_MV},
        tokens=TokenTimes(len(STANDARD_LEADS) * options.width, N_SAMPLES // PATCH, PATCH / RATE_HZ),
    )
