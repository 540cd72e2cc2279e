"""The frozen foundation models, one file each; see `docs/experts.md` and CONTRIBUTING.md for adding one."""

from stages.experts.contract import Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.registry import expert_class, list_experts, load_expert, register
from stages.experts.token_times import TokenTimes

__all__ = [
    "Encoding",
    "Expert",
    "ExpertSpec",
    "TokenTimes",
    "WeightsSource",
    "expert_class",
    "list_experts",
    "load_expert",
    "register",
]
