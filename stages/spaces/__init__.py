"""Spaces in which records are near or far: one expert's, or the gate's. Lives here: vectors. Not here: distances."""

from stages.spaces.expert_space import ExpertSpace
from stages.spaces.gate_space import GateSpace
from stages.spaces.space import NewEcg, Space, SpacePaths, open_space

__all__ = ["ExpertSpace", "GateSpace", "NewEcg", "Space", "SpacePaths", "open_space"]
