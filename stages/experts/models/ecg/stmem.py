"""ST-MEM: a masked-autoencoder transformer over patches of each lead, base and small; also ECG-Soup's backbone.

Lives here: the published facts, both input paths, `prepare`, `encode`. Not here: the network (`networks.stmem_net`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import scipy.signal
import torch
from torch import Tensor

from cache.errors import InputError, UsageError, WeightsError
from stages.experts.checkpoints import load_strict
from stages.experts.chunks import encode_in_chunks, windows_in_cache
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.stmem_net import StMemOptions, StMemVit, options_from_state
from stages.experts.options import architecture_overrides
from stages.experts.pretraining import PretrainingRecipe
from stages.experts.registry import register
from stages.experts.signals import dsp as _dsp
from stages.experts.token_times import TokenTimes

RATE_HZ = 250
SOUP_RATE_HZ = 100
HIGH_PASS_HZ, LOW_PASS_HZ, FILTER_ORDER = 0.67, 40.0, 5
CROPS = 3
SOUP_GEOMETRY: dict[str, Any] = {"seq_len": 1000, "patch_size": 50}
# Names of the pretraining model (models/st_mem.py) for what the encoder calls otherwise.
ALIASES = {"embed_dim": "width", "num_heads": "heads", "encoder_dim_head": "dim_head"}
PRETRAINED_ON = ("chapman", "ningbo", "code15")
SOUP_PRETRAINED_ON = ("ptbxl", "challenge2020")
DECODER_OPTIONS = (
    *("decoder_embed_dim", "decoder_depth", "decoder_num_heads", "decoder_dim_head", "decoder_norm_eps", "mask_ratio"),
    *("norm_pix_loss", "loss_select", "drop_path_rate", "attn_drop_out_rate", "linear_head_classes"),
    *("probe_head_classes", "norm_layer"),
)
"""Options of the pretraining decoder, of training, and of ECG-Soup's heads."""
OPTION_NAMES = tuple(f.name for f in dataclasses.fields(StMemOptions))
# The pretraining decoder, ECG-Soup's probe head (MLP with batch norm) and its gate over layers.
UNUSED_KEYS = (r"(to_)?decoder_", r"mask_embedding$", r"head\.\d+\.", r"gating\.")

_SIZES = {"base": (768, 12, 3072, 85_150_614), "small": (384, 6, 1536, 21_341_718)}  # width, heads, mlp_dim, parameters
_LINKS = {
    "base": "encoder: https://drive.google.com/file/d/1E7J-A1HqWa2f08T6Sfk5uWk-_CFJhOYQ, encoder and decoder: "
    "https://drive.google.com/file/d/14nScwPk35sFi8wc-cuLJLqudVwynKS0n (either works)",
    "small": "none is published in this size",
}


@register("stmem")
class StMem(Expert):
    """ST-MEM (Na et al., ICLR 2024, arXiv 2402.09450; bakqui/ST-MEM).

    Preprocessing `authors`: their evaluation path, 250 Hz, three crops of 2250 samples, 0.67-40 Hz, one z-score a crop.
    `soup`: ECG-Soup's, 100 Hz, 1000 samples in patches of 50, one z-score a lead; weights (or a config) of that
    geometry choose it unless another is named.
    """

    variants = ("base", "small")
    preprocessing_variants = ("authors", "soup")
    residual_branches = r"(?P<block>block\d+)\.(attn|ff)"
    early_blocks = r"block[0-2]"
    pretraining = PretrainingRecipe(
        "masked",
        epochs=800,
        learning_rate=1.2e-3,
        rate_per_256=True,
        weight_decay=0.01,
        betas=(0.9, 0.95),
        warmup_share=0.05,
        variants=("stmem", "ipastmem"),
        sizes={
            "tiny": {"width": 192, "heads": 3, "mlp_dim": 768},
            "small": {"width": 384, "heads": 6, "mlp_dim": 1536},
            "base": {"width": 768, "heads": 12, "mlp_dim": 3072},
        },
        geometry={"soup": SOUP_GEOMETRY, "authors": {}},
    )
    module: StMemVit

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec of a published size."""
        return _spec(_published(variant, "authors"), variant, "authors", _SIZES[variant or "base"][-1])

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        return {"width": 32, "depth": 3, "mlp_dim": 48, "heads": 4, "dim_head": 8}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> StMem:
        """Construct from overrides and the state dict of an encoder or of a whole pretraining model."""
        state = None if state is None else encoder_state(state)
        options = _options(config, state, variant, preprocessing)
        is_soup = {name: getattr(options, name) for name in SOUP_GEOMETRY} == SOUP_GEOMETRY
        expert = cls(preprocessing=preprocessing or ("soup" if is_soup else "authors"))
        expert.module = StMemVit(options)
        if state is not None:
            load_strict(expert.module, state, expert="stmem", unused_keys=UNUSED_KEYS)
        n_parameters = sum(p.numel() for p in expert.module.parameters())
        expert.spec = _spec(options, variant, expert.preprocessing, n_parameters)
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, windows, lead, seq_len], by the chosen preprocessing (see the class).

        Raises
        ------
        InputError
            Weights of other leads than the standard twelve.
        """
        options = self.module.options
        if options.num_leads != len(STANDARD_LEADS):
            raise InputError(f"expert 'stmem': the weights are for {options.num_leads} leads, not for 12-lead records")
        signals = _dsp.as_signals(signals_mv)
        present = np.isfinite(signals).any(-1)
        path = prepare_soup if self.preprocessing == "soup" else prepare_authors
        x = path(_dsp.fill_gaps(signals), rate_hz, options.seq_len, present)
        x.swapaxes(1, 2)[~present] = 0.0
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record, [batch, lead, time]; `output` is a classifier's, where the weights have one.

        Every lead must be there (the official encoder would silently repeat a single one); `time` is a multiple of the
        patch size, at most `seq_len`. There is no mask.
        """
        options = self.module.options
        if mask is not None:
            raise UsageError("expert 'stmem' takes no mask; leave it out")
        if x.ndim != 3 or x.shape[1] != options.num_leads:
            raise InputError(
                f"expert 'stmem': input {list(x.shape)}; expected [batch, {options.num_leads}, time], every lead in "
                "the standard order (one lead alone is refused)"
            )
        if not 0 < x.shape[2] <= options.seq_len or x.shape[2] % options.patch_size:
            raise InputError(
                f"expert 'stmem': windows of {x.shape[2]} samples; expected {options.seq_len}, or less in multiples of "
                f"{options.patch_size}"
            )
        return encode_in_chunks(self._encode, x, mask, self.windows_at_once(x))

    def windows_at_once(self, x: Tensor) -> int:
        """Return how many windows stay in a CPU's cache, see `Expert.windows_at_once`."""
        return windows_in_cache(self.module.options.num_leads * (x.shape[2] // self.module.options.patch_size + 2))

    def _encode(self, x: Tensor, mask: Tensor | None) -> Encoding:
        layers, tokens = self.module.pooled_layers(x)
        embedding = self.module.final_norm(layers[:, -1])
        logits = None if self.module.options.num_classes is None else self.module.head(embedding)
        return Encoding(layers, embedding, logits, tokens)


def prepare_authors(signals: np.ndarray, rate_hz: float, seq_len: int, present: np.ndarray) -> np.ndarray:
    """Resample to 250 Hz, crop, filter each crop, z-score it over leads and time (official util/transforms.py).

    `present` [batch, lead] is False for wholly missing leads, which do not count in the z-score (the authors' own
    RandomLeadMask standardises the remaining leads likewise).
    """
    n_samples = max(seq_len, int(signals.shape[-1] * RATE_HZ / rate_hz + 1e-6))
    x = _dsp.resample_fft(signals, n_samples)
    x = np.stack([x[..., start : start + seq_len] for start in crop_starts(n_samples, seq_len)], axis=1)
    for sections in _filters():
        x = scipy.signal.sosfiltfilt(sections, x)
    normed = _dsp.zscore(x, axis=(-2, -1))
    for record in np.nonzero(~present.all(-1) & present.any(-1))[0]:
        normed[record][:, present[record]] = _dsp.zscore(x[record][:, present[record]], axis=(-2, -1))
    return normed


def prepare_soup(signals: np.ndarray, rate_hz: float, seq_len: int, present: np.ndarray) -> np.ndarray:
    """Resample to 100 Hz, cut into windows, z-score each lead of each (ECG-Soup, section 2 of its methods).

    Their resampling is that of each data set's own preparation; ours is an anti-aliasing polyphase filter.
    """
    x = _dsp.resample_rate(signals, rate_hz, SOUP_RATE_HZ)
    return _dsp.zscore(_dsp.even_windows(_dsp.hold_ends(x, seq_len), seq_len))


def crop_starts(n_samples: int, seq_len: int) -> range:
    """First samples of the crops: three evenly placed ones (official NCrop), one where the record is just as long."""
    spare = n_samples - seq_len
    return range(0, spare + 1, spare // (CROPS - 1)) if spare >= CROPS - 1 else range(1)


@cache
def _filters() -> tuple[np.ndarray, np.ndarray]:
    bands = ((HIGH_PASS_HZ, "highpass"), (LOW_PASS_HZ, "lowpass"))
    high, low = (scipy.signal.butter(FILTER_ORDER, hz, kind, fs=RATE_HZ, output="sos") for hz, kind in bands)
    return high, low


def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the wrappers' prefixes off the keys; of a pretraining model, the encoder's own and the decoder's remain."""
    bare = {re.sub(r"^(module\.|model\.)+", "", key): value for key, value in state.items()}
    if not any(key.startswith("encoder.") for key in bare):
        return bare
    # The pretraining model holds its encoder's patch embedding under a second name too.
    outer = {key: value for key, value in bare.items() if not key.startswith(("encoder.", "to_patch_embedding."))}
    return outer | {key.removeprefix("encoder."): value for key, value in bare.items() if key.startswith("encoder.")}


def _published(variant: str | None, preprocessing: str | None) -> StMemOptions:
    width, heads, mlp_dim, _ = _SIZES[variant or "base"]
    options = StMemOptions(width=width, heads=heads, mlp_dim=mlp_dim)
    return dataclasses.replace(options, **SOUP_GEOMETRY) if preprocessing == "soup" else options


def _options(
    config: Mapping[str, Any] | None, state: Mapping[str, Tensor] | None, variant: str | None, preprocessing: str | None
) -> StMemOptions:
    """Merge the published options, then what the weights' shapes say, then the overrides."""
    overrides = architecture_overrides("stmem", config, (*OPTION_NAMES, *ALIASES, "mlp_ratio"), DECODER_OPTIONS)
    ratio = overrides.pop("mlp_ratio", None)
    overrides = {ALIASES.get(name, name): value for name, value in overrides.items()}
    if ratio is not None and "width" in overrides:
        overrides.setdefault("mlp_dim", int(ratio * overrides["width"]))
    options = dataclasses.asdict(_published(variant, preprocessing))
    if state is not None:
        found = options_from_state(state)
        if "dim_head" not in found and not {"heads", "dim_head"} <= overrides.keys():
            raise WeightsError(
                "expert 'stmem': the weights do not say their heads and dim_head (no multiple of 64 together); give "
                "both in the config"
            )
        options |= found
    merged = StMemOptions(**options | overrides)
    if merged.seq_len % merged.patch_size:
        raise UsageError(
            f"expert 'stmem': seq_len {merged.seq_len} is no multiple of patch_size {merged.patch_size}; "
            "correct the config"
        )
    return merged


def _spec(options: StMemOptions, variant: str | None, preprocessing: str, n_parameters: int) -> ExpertSpec:
    size = variant or "base"
    soup = preprocessing == "soup"
    rate_hz = SOUP_RATE_HZ if soup else RATE_HZ
    return ExpertSpec(
        name="stmem" if size == "base" else f"stmem-{size}",
        title=f"ST-MEM {size}" + (" (ECG-Soup)" if soup else ""),
        version="2" if options.num_classes else "1",
        source="Na et al., ICLR 2024, arXiv 2402.09450; bakqui/ST-MEM 69ec702"
        + ("; ECG-Soup, arXiv 2509.00102; Xuanphu108/ecg_ssl 6b33198" if soup else ""),
        sampling_rate_hz=rate_hz,
        seconds=options.seq_len / rate_hz,
        leads=STANDARD_LEADS,
        normalisation="each lead z-scored"
        if soup
        else "Butterworth (order 5, zero phase) 0.67 and 40 Hz, then one z-score over leads and time",
        layer_names=("embed", *(f"block_{k + 1}" for k in range(options.depth))),
        layer_dims=(options.width,) * (options.depth + 1),
        embedding_dim=options.width,
        output_dim=options.num_classes,
        output_pooling="softmax",  # of the three crops, as engine_downstream.py with its published configs
        licence="CC-BY-NC-4.0",
        non_commercial=True,
        parameters=n_parameters,
        published_parameters=_SIZES[size][-1],
        weights=WeightsSource(
            "", f"st_mem_vit_{size}_encoder.pth", "", note=f"the authors' drive: {_LINKS[size]}; or `ensemble pretrain`"
        ),
        pretrained_on=(*PRETRAINED_ON, *(SOUP_PRETRAINED_ON if soup else ())),
        unused_keys=UNUSED_KEYS,
        windows=f"evenly placed windows of {options.seq_len / rate_hz:g} s, mean of their vectors"
        if soup
        else f"three evenly placed crops of {options.seq_len / rate_hz:g} s, each filtered alone, mean of vectors",
        shortest_s=options.seq_len / rate_hz,
        scale_free=("soup",),
        missing_leads="gaps bridged linearly, ends held; a missing lead is zeros in the model input and does not count "
        "in the z-score; a flat lead counts in it (`soup`: becomes zeros)",
        preprocessing={"path": preprocessing, "rate_hz": rate_hz, "seq_len": options.seq_len, "crops": CROPS},
        tokens=TokenTimes(options.width, options.n_patches, options.patch_size / rate_hz),
    )
