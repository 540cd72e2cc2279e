"""Merging architecture overrides (official names) with what an expert's published configuration or its weights say.

Lives here: what several experts' `build` share. Not here: the options of any one expert.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cache.errors import ExpertCodeError, UsageError


def architecture_overrides(
    expert: str, config: Mapping[str, Any] | None, names: Iterable[str], other_names: Iterable[str] = ()
) -> dict[str, Any]:
    """Keep the overrides that shape the network; official options of training alone are passed over.

    Parameters
    ----------
    names
        The architecture options.
    other_names
        Official options that change nothing in a frozen network (rates of dropout, losses, devices). Names that begin
        with an underscore, which frameworks write into their files, are passed over as well.

    Raises
    ------
    UsageError
        Any other name: a misspelling would change nothing, and load another network than was asked for.

    Examples
    --------
    >>> architecture_overrides("mine", {"heads": 4, "dropout": 0.1, "_name": "mine"}, ["width", "heads"], ["dropout"])
    {'heads': 4}
    >>> architecture_overrides("mine", {"head": 4}, ["width", "heads"])
    Traceback (most recent call last):
    cache.errors.UsageError: expert 'mine': unknown config option 'head'; did you mean 'heads'? It takes: width, heads
    """
    known, ignored = list(names), set(other_names)
    for name in config or {}:
        if name in known or name in ignored or name.startswith("_"):
            continue
        near = difflib.get_close_matches(name, known, 1, cutoff=0.6)
        suggestion = f"did you mean '{near[0]}'? It" if near else "it"
        raise UsageError(f"expert '{expert}': unknown config option '{name}'; {suggestion} takes: {', '.join(known)}")
    return {name: value for name, value in (config or {}).items() if name in known}


HUGGING_FACE = (
    *("architectures", "attn_implementation", "bos_token_id", "chunk_size_feed_forward", "decoder_start_token_id"),
    *("dtype", "eos_token_id", "id2label", "is_decoder", "is_encoder_decoder", "label2id", "model_type", "n_positions"),
    *("output_attentions", "output_hidden_states", "output_past", "pad_token_id", "problem_type", "return_dict"),
    *("task_specific_params", "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache"),
)
"""What any config.json of the model hub holds beside the architecture."""
TIME_SERIES_LIBRARY = (
    *("activation", "batch_size", "d_layers", "data", "data_path", "dec_in", "des", "devices", "dropout", "embed"),
    *("factor", "features", "freq", "gpu", "is_training", "itr", "label_len", "learning_rate", "loss", "lradj"),
    *("mask_rate", "model", "model_id", "moving_avg", "n_heads", "num_class", "num_workers", "output_attention"),
    *("patience", "root_path", "target", "task_name", "train_epochs", "use_amp", "use_gpu", "use_multi_gpu", "weights"),
)
"""Arguments of the Time-Series-Library, which EnECG's forecasters are run with, beside the architecture."""


def plain_options(expert: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON holds them: tuples and arrays as lists, numpy's numbers as Python's.

    Raises
    ------
    ExpertCodeError
        A value that JSON cannot hold, such as a function: it could not be told apart from another one.

    Examples
    --------
    >>> plain_options("mine", {"bands_hz": ((0.5, 5.0), (5.0, 15.0))})
    {'bands_hz': [[0.5, 5.0], [5.0, 15.0]]}
    """

    def as_plain(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        raise TypeError(f"a {type(value).__name__}")

    try:
        return dict(json.loads(json.dumps(dict(options), default=as_plain)))
    except (TypeError, ValueError) as error:
        raise ExpertCodeError(
            f"expert '{expert}': spec.preprocessing holds what JSON cannot ({error}); give numbers, text and lists"
        ) from error
