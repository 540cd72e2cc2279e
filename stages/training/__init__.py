"""What `pretrain` and `posttrain` share: model inputs on disk, the training loop, checkpoints, named versions.

Not here: objectives (`stages.pretrain`, `stages.posttrain`), networks (`stages.experts`).
"""
