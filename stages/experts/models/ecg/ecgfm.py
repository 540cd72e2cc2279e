"""ECG-FM: wav2vec 2.0 over 12-lead ECGs, 5 s at 500 Hz, pretrained or as the finetuned classifier.

Lives here: the published facts, `prepare`, `encode`, and which checkpoint is which. Not here: the network
(`networks.ecgfm_net`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import UsageError, WeightsError
from stages.experts.checkpoints import load_strict
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.ecgfm_net import (
    OPTION_NAMES,
    TRAINING_ONLY,
    EcgFmBackbone,
    EcgFmClassifier,
    EcgFmOptions,
    current_spelling,
    options_from_state,
    parse_conv_layers,
    pool_nonzero,
)
from stages.experts.networks.parts.pooling import mean_tokens
from stages.experts.options import architecture_overrides
from stages.experts.registry import register
from stages.experts.signals import dsp as _dsp
from stages.experts.token_times import convolved_token_times

RATE_HZ = 500.0
WINDOW = 2500
ENECG_WINDOW = 5000
# The codebook of a checkpoint that was finetuned without removing it, and the optional target projection.
UNUSED_KEYS = (r"(encoder\.)?target_glu\.", r"encoder\.(quantizer|project_q|final_proj)\.")
MIMIC_LABELS = (
    *("Poor data quality", "Sinus rhythm", "Premature ventricular contraction", "Tachycardia"),
    *("Ventricular tachycardia", "Supraventricular tachycardia with aberrancy", "Atrial fibrillation"),
    *("Atrial flutter", "Bradycardia", "Accessory pathway conduction", "Atrioventricular block"),
    *("1st degree atrioventricular block", "Bifascicular block", "Right bundle branch block"),
    *("Left bundle branch block", "Infarction", "Electronic pacemaker"),
)
"""Of `output` of `ecgfm-finetuned`, in order (bowang-lab/ECG-FM, data/mimic_iv_ecg/labels/label_def.csv)."""
LARGEST_WINDOW = (
    *("Poor data quality", "Premature ventricular contraction", "Ventricular tachycardia"),
    *("Supraventricular tachycardia with aberrancy", "Electronic pacemaker"),
)
"""Labels that one window is enough for: `max` in the authors' infer_quickstart.ipynb, where all others are `mean`."""
PRETRAINED_ON = ("mimic-iv-ecg", "challenge2021", "ptbxl", "cpsc2018", "georgia", "chapman", "ningbo")

_HUB, _COMMIT = "wanglab/ecg-fm", "584219ea492cdeef2e19ffbdf9c6ecc874ba427e"
_PUBLISHED = {
    "pretrained": (
        WeightsSource(
            _HUB,
            "mimic_iv_ecg_physionet_pretrained.pt",
            _COMMIT,
            "4d0142bcb485eb9f0c7845e0c19ff3463f6ae9d0e458eab69136efe90ceb9b7e",
        ),
        90_883_072,
        0,
    ),
    "finetuned": (
        WeightsSource(_HUB, "mimic_iv_ecg_finetuned.pt", _COMMIT, note="17 MIMIC-IV-ECG labels"),
        90_386_321,
        17,
    ),
    "physionet": (
        WeightsSource("wanglab/ecg-fm-preprint", "physionet_finetuned.pt", "main", note="26 PhysioNet 2021 labels"),
        90_393_242,
        26,
    ),
}


def published_options(variant: str | None) -> EcgFmOptions:
    """Architecture of the published checkpoint that `variant` names."""
    labels = _PUBLISHED[variant or "pretrained"][2]
    return EcgFmOptions(kind="classifier", num_labels=labels, apply_mask=False) if labels else EcgFmOptions()


@register("ecgfm")
class EcgFm(Expert):
    """ECG-FM (McKeen et al., arXiv 2408.05178; fairseq-signals). `Encoding.output` holds the classifier's logits."""

    variants = ("pretrained", "finetuned", "physionet")
    preprocessing_variants = ("authors", "enecg")
    residual_branches = r"(?P<block>(encoder\.)?encoder\.layers\.\d+)\.(self_attn|fc2)"
    module: EcgFmBackbone | EcgFmClassifier

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec of a published checkpoint."""
        return _spec(published_options(variant), variant, "authors")

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        sizes = {"encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48, "final_dim": 16, "latent_vars": 8}
        depths = {"encoder_layers": 3, "encoder_attention_heads": 4, "conv_feature_layers": "[(16, 2, 2)] * 4"}
        return {**sizes, **depths, "conv_pos": 16, "conv_pos_groups": 4}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> EcgFm:
        """Construct from overrides and an official state dict of either kind, see `Expert.build`."""
        if state is not None:
            state = current_spelling(state)
        options = _options(config, state, variant)
        expert = cls(preprocessing=preprocessing)
        expert.module = EcgFmClassifier(options) if options.kind == "classifier" else EcgFmBackbone(options)
        if state is not None:
            load_strict(expert.module, state, expert="ecgfm", unused_keys=UNUSED_KEYS)
        expert.spec = _spec(options, variant, expert.preprocessing, expert.module)
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """Resample, z-score, cut: [batch, 12, time] mV -> [batch, windows, 12, 2500] (`enecg`: one window of 5000)."""
        signals = _dsp.as_signals(signals_mv)
        x = _enecg_window(signals) if self.preprocessing == "enecg" else _authors_windows(signals, rate_hz)
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record.

        Parameters
        ----------
        x
            [batch, lead, time].
        mask
            [batch, time] or [batch, token], True (1) where real; padding stands at the end.
        """
        classifier = self.module if isinstance(self.module, EcgFmClassifier) else None
        backbone = classifier.encoder if classifier else self.module
        hidden, final, valid = backbone(x, None if mask is None else mask.bool())
        if valid is not None:
            final = final * valid.unsqueeze(-1)
        embedding = pool_nonzero(final)
        output = classifier.proj(embedding.to(classifier.proj.weight.dtype)) if classifier else None
        return Encoding(torch.stack([mean_tokens(h, valid) for h in hidden], 1), embedding, output, final)


def _authors_windows(signals: np.ndarray, rate_hz: float) -> np.ndarray:
    """Per-lead z-score over the whole record, then 5 s cuts (fairseq-signals preprocess.py, segment)."""
    n_samples = int(signals.shape[-1] * RATE_HZ / rate_hz + 1e-6)  # 4999.999 is a rounding error, not a lost sample
    n_samples = max(WINDOW, n_samples)
    n_windows = n_samples // WINDOW
    signals = _dsp.fill_gaps(signals)
    x = _dsp.zscore(_dsp.resample_linear(signals, n_samples))
    return x[..., : n_windows * WINDOW].reshape(len(x), x.shape[1], n_windows, WINDOW).swapaxes(1, 2)


def _enecg_window(signals: np.ndarray) -> np.ndarray:
    """Missing samples to 0, one z-score over leads and time, FFT to 5000 samples (EnECG data_loader.py)."""
    finite = np.isfinite(signals)
    x = _dsp.zscore(signals if finite.all() else np.where(finite, signals, 0.0), axis=(-2, -1))
    return _dsp.resample_fft(x, ENECG_WINDOW)[:, None]


def _kind(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """Say which kind of checkpoint a state dict is, and under which prefix its backbone lies."""
    if any(k.startswith("encoder.feature_extractor.") for k in state):
        return "classifier" if "proj.weight" in state or "proj.bias" in state else "encoder", "encoder."
    pretraining = ("quantizer.", "project_q.", "final_proj.", "mask_emb")
    return "pretrain" if any(k.startswith(pretraining) for k in state) else "encoder", ""


def _options(config: Mapping[str, Any] | None, state: Mapping[str, Tensor] | None, variant: str | None) -> EcgFmOptions:
    """Merge the published options, then what the weights' shapes say, then the overrides."""
    options = dataclasses.asdict(published_options(variant))
    overrides = architecture_overrides("ecgfm", config, OPTION_NAMES, TRAINING_ONLY)
    overrides.pop("kind", None)
    if "conv_feature_layers" in overrides:
        overrides["conv_feature_layers"] = parse_conv_layers(overrides["conv_feature_layers"])
    if state is not None:
        options |= _state_options(state, overrides, variant)
    elif overrides.get("num_labels"):
        options |= {"kind": "classifier", "apply_mask": False}
    merged = EcgFmOptions(**(options | overrides))
    if merged.encoder_embed_dim % merged.encoder_attention_heads:
        raise UsageError(
            f"expert 'ecgfm': encoder_embed_dim {merged.encoder_embed_dim} is no multiple of encoder_attention_heads "
            f"{merged.encoder_attention_heads}; correct the config"
        )
    return merged


def _state_options(state: Mapping[str, Tensor], overrides: dict[str, Any], variant: str | None) -> dict[str, Any]:
    """Return the options that the weights determine; those they leave open must be published or overridden."""
    kind, prefix = _kind(state)
    if _PUBLISHED[variant or "pretrained"][2] and kind != "classifier":
        raise WeightsError(f"expert 'ecgfm-{variant}': the weights hold no classifier; load them as expert 'ecgfm'")
    found = options_from_state(state, prefix) | {"kind": kind}
    if kind == "classifier":
        overrides.pop("apply_mask", None)  # whether a finetuned checkpoint kept the mask token is its own affair
        found["num_labels"] = next(len(state[k]) for k in ("proj.weight", "proj.bias") if k in state)
    published = EcgFmOptions()
    kernels = {kernel for _, kernel, _ in found.get("conv_feature_layers", published.conv_feature_layers)}
    unknown = []
    if found.get("encoder_embed_dim", published.encoder_embed_dim) != published.encoder_embed_dim:
        unknown.append("encoder_attention_heads")
    if kernels != {2}:
        unknown.append("conv_feature_layers")
    missing = [name for name in unknown if name not in overrides]
    if missing:
        raise WeightsError(
            f"expert 'ecgfm': the weights are not of the published size and do not say {' and '.join(missing)}; "
            "give the config"
        )
    return found


def _maxima(variant: str | None, options: EcgFmOptions) -> tuple[int, ...]:
    """Say where the published classifier's largest window counts; other classifiers' labels are not known."""
    if variant != "finetuned" or options.num_labels != len(MIMIC_LABELS):
        return ()
    return tuple(MIMIC_LABELS.index(label) for label in LARGEST_WINDOW)


def _version(variant: str | None, options: EcgFmOptions) -> str:
    if not options.num_labels:
        return "1"
    return "3" if _maxima(variant, options) else "2"


def _spec(
    options: EcgFmOptions, variant: str | None, preprocessing: str, module: nn.Module | None = None
) -> ExpertSpec:
    weights, published, _ = _PUBLISHED[variant or "pretrained"]
    enecg = preprocessing == "enecg"
    blocks = tuple(f"block_{k + 1}" for k in range(options.encoder_layers))
    dim = options.encoder_embed_dim
    window = ENECG_WINDOW if enecg else WINDOW
    convolutions = [(kernel, stride) for _, kernel, stride in options.conv_feature_layers]
    return ExpertSpec(
        name="ecgfm" if variant in (None, "pretrained") else f"ecgfm-{variant}",
        title="ECG-FM",
        version=_version(variant, options),
        source="McKeen et al., arXiv 2408.05178; fairseq-signals 6b9e137; EnECG 67b8e65 for its input path",
        sampling_rate_hz=RATE_HZ,
        seconds=window / RATE_HZ,
        leads=STANDARD_LEADS,
        normalisation="one z-score over leads and time" if enecg else "z-score per lead over the whole record",
        layer_names=("embed", *blocks),
        layer_dims=(dim,) * (1 + len(blocks)),
        embedding_dim=dim,
        output_dim=options.num_labels or None,
        output_pooling="sigmoid",
        output_maxima=_maxima(variant, options),
        licence="MIT",
        parameters=sum(p.numel() for p in module.parameters()) if module else published,
        published_parameters=published,
        weights=weights,
        pretrained_on=PRETRAINED_ON,
        unused_keys=UNUSED_KEYS,
        windows="one window of 10 s" if enecg else "5 s cuts of the record, a shorter rest left out; mean over windows",
        shortest_s=1.0 if enecg else WINDOW / RATE_HZ,
        scale_free=("authors",),
        missing_leads="gaps 0, missing lead 0 before the z-score (as EnECG)"
        if enecg
        else "gaps bridged linearly, ends held; a missing or flat lead is zeros in the model input",
        preprocessing={"path": preprocessing, "rate_hz": RATE_HZ, "window": window},
        tokens=convolved_token_times(dim, window, RATE_HZ, convolutions),
        placement="whole" if enecg else "consecutive",
    )
