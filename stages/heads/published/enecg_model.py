"""EnECG as published (arXiv 2511.22935, code @67b8e65): heads, projections, gate over lead II, LoRA by peft.

Lives here: the model under the published key names. Not here: how the `enecg` preset trains it
(`published.enecg_training`), the frozen experts, whose outputs it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from cache.errors import InputError, UsageError

EXPERTS = ("moment", "tempo", "ecgfm", "dlinear", "timesnet")
"""In the order of the gate's outputs."""
PUBLISHED_WIDTHS = {"moment": 1, "tempo": 96, "ecgfm": 26, "dlinear": 1, "timesnet": 1}
LEAD_II_SAMPLES = 5000
LORA_RANK, LORA_ALPHA, LORA_DROPOUT = 8, 32, 0.05

EnecgTask = Literal["regression", "classification"]


class EnecgCore(nn.Module):
    """The module below peft: `projection_*`, `ffn_*`, `gating_net`.

    An expert wider than 1 in `widths` is projected to the output's width first (published: tempo's 96-step forecast,
    ecgfm's 26 logits); the others enter their FFN as they are.
    """

    def __init__(self, n_out: int, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.experts = tuple(widths)
        for name, width in widths.items():
            if width > 1:
                self.add_module(f"projection_{name}", nn.Linear(width, n_out))
            self.add_module(f"ffn_{name}", _ffn(n_out if width > 1 else 1, n_out))
        self.gating_net = nn.Sequential(nn.Linear(LEAD_II_SAMPLES, 256), nn.ReLU(), nn.Linear(256, len(widths)))

    def ffn_inputs(self, experts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Project the wide experts; [batch, 1 or n_out] each."""
        children = dict(self.named_children())
        return {
            name: children[f"projection_{name}"](experts[name]) if f"projection_{name}" in children else experts[name]
            for name in self.experts
        }

    def expert_outputs(self, experts: Mapping[str, Tensor]) -> Tensor:
        """Output of every expert's head, [batch, expert, n_out]."""
        children = dict(self.named_children())
        return torch.stack([children[f"ffn_{name}"](x) for name, x in self.ffn_inputs(experts).items()], dim=1)

    def gate(self, lead_ii: Tensor) -> Tensor:
        """Weights over the experts, [batch, expert]."""
        return cast(Tensor, self.gating_net(lead_ii)).softmax(-1)

    def forward(self, experts: Mapping[str, Tensor], lead_ii: Tensor) -> Tensor:
        """Weighted sum of the heads' outputs, [batch, n_out]."""
        return torch.einsum("be,beo->bo", self.gate(lead_ii), self.expert_outputs(experts))


def _ffn(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, n_out))


class EnECG(nn.Module):
    """The published ensemble under peft, by its own key names.

    LoRA (r 8, alpha 32, dropout 0.05) is on the first two Linears of every FFN and on both Linears of the gate; all
    else is frozen.

    Parameters
    ----------
    task
        "regression" (one output) or "classification" (logits; softmax belongs to the loss).
    num_classes
        Number of logits; regression ignores it.
    widths
        Expert -> width of its frozen output; the published five by default (74,896, 74,912 and 75,120 trainable
        parameters for regression, 2 and 15 classes).
    seed
        Seeds the base weights, which the published code leaves random AND frozen; drawn without touching torch's
        global random state.

    Notes
    -----
    `peft_model.state_dict()` has the published live keys, `base_model.model.<module>...`; `load_state_dict` of this
    class takes and gives them without a further prefix. Save all of it: the adapter file alone does not hold the base
    heads, so on another random base it is another model.
    """

    def __init__(
        self,
        task: EnecgTask = "regression",
        num_classes: int = 2,
        *,
        widths: Mapping[str, int] | None = None,
        seed: int = 42,
    ) -> None:
        import peft

        super().__init__()
        if task not in get_args(EnecgTask):
            raise UsageError(f"EnECG task '{task}' is neither regression nor classification")
        if task == "classification" and num_classes < 2:
            raise UsageError(f"EnECG needs num_classes of at least 2, got {num_classes}")
        self.task: EnecgTask = task
        self.n_out = 1 if task == "regression" else num_classes
        self.widths = dict(widths or PUBLISHED_WIDTHS)
        targets = [f"ffn_{name}.{k}" for name in self.widths for k in (0, 2)] + ["gating_net.0", "gating_net.2"]
        config = peft.LoraConfig(
            r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=LORA_DROPOUT, bias="none", target_modules=targets
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.peft_model = peft.get_peft_model(cast(Any, EnecgCore(self.n_out, self.widths)), config)

    @property
    def core(self) -> EnecgCore:
        """The wrapped module, LoRA layers in place."""
        return cast(EnecgCore, self.peft_model.base_model.model)

    @property
    def n_trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, Tensor]:  # type: ignore[override]  # noqa: ARG002
        """Tensors under the published live keys, base weights included."""
        return dict(self.peft_model.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> object:
        """Load tensors under the published live keys."""
        return self.peft_model.load_state_dict(dict(state), strict=strict, assign=assign)

    def forward(self, experts: Mapping[str, Tensor], lead_ii: Tensor) -> Tensor:
        """Combine the frozen experts' outputs.

        Parameters
        ----------
        experts
            Name -> [batch, width].
        lead_ii
            [batch, 5000], the model input of the gate: standardised lead II at 500 Hz.

        Returns
        -------
        [batch, 1] or logits [batch, num_classes].

        Raises
        ------
        InputError
            An expert is missing, or a shape differs; the message names it.
        """
        for name, width in self.widths.items():
            if name not in experts:
                raise InputError(f"EnECG: no output of expert '{name}'; it needs {', '.join(self.widths)}")
            if experts[name].ndim != 2 or experts[name].shape[1] != width:
                found = list(experts[name].shape)
                raise InputError(f"EnECG: expert '{name}' gives {found}, expected [batch, {width}]")
        if lead_ii.ndim != 2 or lead_ii.shape[1] != LEAD_II_SAMPLES:
            raise InputError(f"EnECG: lead II has shape {list(lead_ii.shape)}, expected [batch, {LEAD_II_SAMPLES}]")
        return self.core(experts, lead_ii)
