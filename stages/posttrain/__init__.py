"""Stage `posttrain`: adapt a backbone to one task, giving a new named expert version that is embedded like any other.

Preview linear probing first, then full fine-tuning from that head with stochastic depth (arXiv 2509.12991).
"""

from stages.posttrain.stage import PosttrainPaths, PosttrainSettings, PosttrainSummary, run

__all__ = ["PosttrainPaths", "PosttrainSettings", "PosttrainSummary", "run"]
