"""TEMPO's network under the official keys: one GPT-2 with LoRA over trend, season and residual.

Lives here: what TEMPO adds around transformers' GPT-2. Not here: the expert's contract (`models.time_series.tempo`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from stages.experts.signals.decompose import moving_average

if TYPE_CHECKING:
    from transformers import GPT2Config, GPT2Model

LORA_RANK = 16
PARTS = ("trend", "season", "noise")
# GPT-2's tokens of "Predict the future time step given the trend", "... season", "... residual".
_PROMPT = (47, 17407, 262, 2003, 640, 2239, 1813, 262)
PROMPT_TOKEN_IDS = {"trend": (*_PROMPT, 5182), "season": (*_PROMPT, 1622), "noise": (*_PROMPT, 29598)}
POOL_SIZE, POOL_TOP_K, POOL_PROMPT_LENGTH = 30, 3, 3


@dataclass(frozen=True)
class TempoOptions:
    """Architecture under the official names; the defaults are those of TEMPO-80M."""

    seq_len: int = 336
    pred_len: int = 96
    patch_size: int = 16
    stride: int = 8
    d_model: int = 768
    gpt_layers: int = 6
    prompt: int = 1
    pool: bool = False
    use_token: int = 0
    num_nodes: int = 1
    kernel_size: int = 25
    gpt2: Mapping[str, Any] = field(default_factory=dict)
    """GPT-2's own options where they are not the defaults (n_head, n_layer, vocab_size, n_positions ...)."""
    prompt_token_ids: Mapping[str, Any] | None = None
    variant: str = "enecg"
    """`enecg`: the network is given trend, season and residual; anything else: it derives them from x, as the original
    does, by a moving average and learned maps."""
    period: int = 50
    """Of the STL that gives trend, season and residual, in samples."""
    leads: tuple[str, ...] | None = None

    @property
    def patch_num(self) -> int:
        """Patches of one part, one of them reaching into the replicated end."""
        return (self.seq_len - self.patch_size) // self.stride + 2

    @property
    def prompt_length(self) -> int:
        """Prompt tokens before each part's patches."""
        if self.prompt != 1:
            return 0
        return POOL_TOP_K * POOL_PROMPT_LENGTH if self.pool else len(_PROMPT) + 1

    @property
    def n_layers(self) -> int:
        """Blocks of GPT-2 that are used."""
        return min(self.gpt_layers, int(self.gpt2.get("n_layer", 12)))

    def gpt2_config(self) -> GPT2Config:
        """Build GPT-2's configuration, of the layers that are used."""
        from transformers import GPT2Config

        given = {"n_embd": self.d_model, **self.gpt2, "n_layer": self.n_layers}
        return GPT2Config(**{"bos_token_id": None, "eos_token_id": None, **given, "attn_implementation": "sdpa"})


class Tempo(nn.Module):
    """TEMPO (Cao et al. 2024, arXiv 2310.04948; DC-research/TEMPO, and EnECG models/TEMPO.py)."""

    def __init__(self, options: TempoOptions) -> None:
        from transformers import GPT2Model

        super().__init__()
        o = self.options = options
        self.gpt2_trend = _PeftWrapper(GPT2Model(o.gpt2_config()))
        # Held in every checkpoint, used in none.
        self.mul_season = nn.ParameterDict({name: nn.Parameter(torch.zeros(2, 1)) for name in "ab"})
        self.rev_in_trend, self.rev_in_season, self.rev_in_noise = (_RevIn(o.num_nodes) for _ in PARTS)
        self.map_trend = nn.Linear(o.seq_len, o.seq_len)
        self.map_season = nn.Sequential(
            nn.Linear(o.seq_len, 4 * o.seq_len), nn.ReLU(), nn.Linear(4 * o.seq_len, o.seq_len)
        )
        self.map_resid = nn.Linear(o.seq_len, o.seq_len)
        read_out = o.patch_num + (o.prompt_length if o.use_token == 1 else 0)
        for part in PARTS:
            self.add_module(f"in_layer_{part}", nn.Linear(o.patch_size, o.d_model))
            self.add_module(f"out_layer_{part}", nn.Linear(o.d_model * read_out, o.pred_len))
            if o.prompt == 1:
                self.add_module(f"prompt_layer_{part}", nn.Linear(o.d_model, o.d_model))
        if o.pool:
            self._add_pool()

    def _add_pool(self) -> None:
        o = self.options
        self.summary_map = nn.Linear(o.patch_num, 1)
        self.prompt_key_dict = nn.ParameterDict(
            {f"prompt_key_{i}": nn.Parameter(torch.randn(o.d_model)) for i in range(POOL_SIZE)}
        )
        self.prompt_value_dict = nn.ParameterDict(
            {f"prompt_value_{i}": nn.Parameter(torch.randn(POOL_PROMPT_LENGTH, o.d_model)) for i in range(POOL_SIZE)}
        )

    @property
    def gpt2(self) -> GPT2Model:
        """The GPT-2 that all three parts share."""
        return cast("GPT2Model", self.gpt2_trend.base_model["model"])

    def forward(self, stack: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Forecast and tokens.

        Parameters
        ----------
        stack
            [batch, 4, seq_len]: x, trend, season, residual; the original variant reads x alone.

        Returns
        -------
        y [batch, pred_len] in x's units; the tokens before the first block and after each, [batch, token, d_model], in
        the order trend, season, residual, each behind its prompt; the final norm's output.
        """
        x = stack[:, 0].float()
        dtype = self.map_trend.weight.dtype
        normed, mean, scale = self.rev_in_trend.normalise(x)
        parts = self._parts(normed.to(dtype), stack)
        tokens = [self._part_tokens(part, series) for part, series in zip(PARTS, parts, strict=True)]
        hidden, final = self._run(torch.cat(tokens, dim=1))
        y = sum(
            self.get_submodule(f"out_layer_{part}")(self._read_out(chunk)).float()
            for part, chunk in zip(PARTS, final.chunk(3, dim=1), strict=True)
        )
        return self.rev_in_trend.denormalise(y, mean, scale), hidden, final

    def _parts(self, normed: Tensor, stack: Tensor) -> tuple[Tensor, ...]:
        if self.options.variant == "enecg":
            return tuple(stack[:, 1:4].to(normed.dtype).unbind(dim=1))
        trend = self.map_trend(moving_average(normed, self.options.kernel_size).to(normed.dtype))
        season = self.map_season(normed - trend)
        return trend, season, normed - trend - season

    def _part_tokens(self, part: str, series: Tensor) -> Tensor:
        o = self.options
        ended = torch.cat([series, series[:, -1:].expand(-1, o.stride)], dim=1)
        tokens = self.get_submodule(f"in_layer_{part}")(ended.unfold(-1, o.patch_size, o.stride))
        if o.prompt != 1:  # the original then runs each part through GPT-2 before all of them
            return self._run(tokens)[1]
        prompt = self._pool_prompt(tokens) if o.pool else self._text_prompt(part, len(tokens))
        return torch.cat([prompt, tokens], dim=1)

    def _text_prompt(self, part: str, batch: int) -> Tensor:
        given = self.options.prompt_token_ids or PROMPT_TOKEN_IDS
        vocabulary = self.gpt2.wte.weight
        ids = torch.tensor(given[part], device=vocabulary.device) % len(vocabulary)
        return self.get_submodule(f"prompt_layer_{part}")(self.gpt2.wte(ids)).expand(batch, -1, -1)

    def _pool_prompt(self, tokens: Tensor) -> Tensor:
        """Prompts of the keys nearest to a summary of the tokens (`select_prompt`; its flat reading is official)."""
        keys = torch.stack([self.prompt_key_dict[f"prompt_key_{i}"] for i in range(POOL_SIZE)])
        values = torch.stack([self.prompt_value_dict[f"prompt_value_{i}"] for i in range(POOL_SIZE)])
        flat = tokens.reshape(-1, self.options.patch_num)
        summary = self.summary_map(flat).view(-1, self.options.d_model)
        similarity = _unit(summary.float()) @ _unit(keys.float()).T
        return values[similarity.topk(POOL_TOP_K, dim=1).indices].flatten(1, 2)

    def _run(self, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
        gpt2 = self.gpt2
        hidden = [tokens + gpt2.wpe.weight[: tokens.shape[1]]]
        for block in gpt2.h:
            hidden.append(block(hidden[-1]))
        return hidden, gpt2.ln_f(hidden[-1])

    def _read_out(self, chunk: Tensor) -> Tensor:
        skipped = 0 if self.options.use_token == 1 else self.options.prompt_length
        return chunk[:, skipped:].flatten(1)


class _RevIn(nn.Module):
    """Instance normalisation with a learned scale and shift that the way back undoes."""

    eps = 1e-5

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.affine_weight = nn.Parameter(torch.ones(num_features))
        self.affine_bias = nn.Parameter(torch.zeros(num_features))

    def normalise(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = x.mean(dim=1, keepdim=True)
        scale = torch.sqrt(x.var(dim=1, keepdim=True, unbiased=False) + self.eps)
        return (x - mean) / scale * self.affine_weight + self.affine_bias, mean, scale

    def denormalise(self, y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        return (y - self.affine_bias) / (self.affine_weight + self.eps**2) * scale + mean


class _LoraConv1D(nn.Module):
    """GPT-2's Conv1D with peft's low-rank update beside it, under peft's keys; alpha is the rank, the factor 1."""

    def __init__(self, base: nn.Module, rank: int) -> None:
        super().__init__()
        n_in, n_out = base.get_parameter("weight").shape
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(n_in, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, n_out, bias=False)})
        nn.init.zeros_(self.lora_B["default"].get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class _PeftWrapper(nn.Module):
    """GPT-2 with LoRA in every block, under the path that `peft.get_peft_model` gives it."""

    def __init__(self, gpt2: GPT2Model) -> None:
        super().__init__()
        for block in gpt2.h:
            attention = block.get_submodule("attn")
            attention.c_attn = _LoraConv1D(attention.get_submodule("c_attn"), LORA_RANK)
        self.base_model = nn.ModuleDict({"model": gpt2})


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(dim=1, keepdim=True).clamp(min=1e-12))


def official_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename older spellings to current peft's: without `.base_layer`, without `.default`, behind `module.`."""
    renamed = {}
    for key, value in state.items():
        head, dot, tail = key.removeprefix("module.").rpartition(".attn.c_attn.")
        if dot and tail in ("weight", "bias"):
            tail = f"base_layer.{tail}"
        elif dot and tail in ("lora_A.weight", "lora_B.weight"):
            tail = tail.replace(".weight", ".default.weight")
        renamed[head + dot + tail] = value
    return renamed
