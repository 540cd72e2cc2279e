"""What every expert keeps to, as checks that give "" or say what is wrong.

`ensemble experts check NAME` runs them on any expert, an installed package's too; the tests run the same functions on
every expert of this repository. Here: the checks and the records they use. Not here: printing (`pipeline.views`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import EnsembleError, InputError, UsageError
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert
from stages.experts.faults import check_encoding, first_line, line_of_code
from stages.experts.registry import expert_class, load_expert
from stages.experts.run import Vectors, run_expert, set_precision
from stages.experts.signals.reference_ecgs import reference_signals, uniform
from stages.experts.token_times import window_starts_s

RATE_HZ = 500.0
SAME_LAYER = 1e-5
"""How far vectors of one record may lie apart where its neighbours have awkward signals."""
AWKWARD = ("missing leads", "missing samples", "flat leads", "flat record", "no sample", "pace spikes")


def records(n: int, seconds: float = 10.0, rate_hz: float = RATE_HZ) -> np.ndarray:
    """Draw ECG-like records [n, 12, time] in mV, in whole microvolts as every cohort stores them."""
    return reference_signals(n, round(seconds * rate_hz), rate_hz, seed=7).round(3)


def draw_parameters(module: nn.Module) -> None:
    """Fill a network out of PCG64's raw stream, in the order of names: matrices of variance 1/fan-in, gains near 1."""
    for seed, (key, parameter) in enumerate(sorted(module.named_parameters())):
        values = 2 * uniform(seed, *parameter.shape) - 1
        if parameter.ndim > 1:
            values *= np.sqrt(3 * len(values) / values.size)
        else:
            values = values / 10 + (1.0 if key.endswith("weight") else 0.0)
        parameter.data.copy_(torch.from_numpy(values))


@dataclass(frozen=True)
class Case:
    """One expert on one input path: in its small configuration with drawn parameters, or with weights.

    Attributes
    ----------
    weights
        Checkpoint for an expert whose network is not to be drawn; its published configuration is then checked.
    """

    name: str
    preprocessing: str | None = None
    weights: str | Path | None = None

    def fresh(self) -> Expert:
        """Build the expert once more."""
        if self.weights is not None:
            return load_expert(self.name, self.weights, preprocessing=self.preprocessing)
        cls, variant = expert_class(self.name)
        config = cls.small_config(variant)
        expert = load_expert(self.name, config=config, preprocessing=self.preprocessing, random_weights=True)
        if expert.module is not None:
            draw_parameters(expert.module)
        return expert

    @cached_property
    def expert(self) -> Expert:
        """The expert that most checks share."""
        return self.fresh()

    @cached_property
    def x(self) -> Tensor:
        """Three records prepared, [3, windows, ...]."""
        return self.expert.prepare(records(3), RATE_HZ)

    @cached_property
    def vectors(self) -> Vectors:
        """Vectors of these three."""
        return run_expert(self.expert, self.x)

    @cached_property
    def encoding(self) -> Encoding:
        """What `encode` gives for the first window of each."""
        with torch.inference_mode():
            return self.expert.encode(self.x[:, 0])


Check = Callable[[Case], str]


def outputs_fit_the_spec(case: Case) -> str:
    """Compare shapes and types of what comes out with the spec."""
    expert, spec, encoding = case.expert, case.expert.spec, case.encoding
    check_encoding(spec, encoding)
    n_parameters = sum(p.numel() for p in expert.module.parameters()) if expert.module is not None else 0
    layers = encoding.layers.unbind(1) if isinstance(encoding.layers, Tensor) else encoding.layers
    rows = {
        len(part) for part in (*layers, encoding.embedding, *([] if encoding.output is None else [encoding.output]))
    }
    return _first(
        (case.x.dtype == torch.float32, f"prepare gives {case.x.dtype}, expected float32"),
        (case.x.device.type == "cpu", f"prepare gives a tensor on {case.x.device}, expected the CPU"),
        (rows == {3}, f"encode gives {sorted(rows)} rows for 3 records"),
        (encoding.embedding.dtype == torch.float32, f"the embedding is {encoding.embedding.dtype}, expected float32"),
        (len(set(spec.layer_names)) == len(spec.layer_names), "two layers have one name"),
        (_name_matches(case, spec.name), f"the spec's name is '{spec.name}', the expert's '{case.name}'"),
        (spec.parameters == n_parameters, f"the spec says {spec.parameters} parameters, there are {n_parameters}"),
        (set(spec.leads) <= set(STANDARD_LEADS), f"leads {list(spec.leads)} are not among {list(STANDARD_LEADS)}"),
        (not spec.needs_weights or expert.module is not None, "it needs weights, but has no `module`"),
        (bool(spec.missing_leads and spec.windows), "the spec does not declare missing_leads and windows"),
    )


def _name_matches(case: Case, name: str) -> bool:
    cls, _ = expert_class(case.name)
    return name in (case.name, f"{case.name}-{cls.variants[0] if cls.variants else ''}")


def tokens_fit_the_spec(case: Case) -> str:
    """Compare the tokens and where they lie in time with `spec.tokens`."""
    spec, tokens, times = case.expert.spec, case.encoding.tokens, case.expert.spec.tokens
    if times is None:
        return "" if tokens is None else "encode gives tokens, the spec declares none"
    if tokens is None or tokens.shape != (3, times.per_window, times.dim):
        found = "none" if tokens is None else list(tokens.shape)
        return f"tokens are {found}, the spec says [3, {times.per_window}, {times.dim}]"
    starts, ends = times.spans_s(times.per_window)
    covered = np.unique(np.floor((starts + ends) / 2 - 1e-9))
    last_start_s = window_starts_s(spec.placement, case.x.shape[1], spec.seconds, 10.0)[-1]
    return _first(
        (bool(tokens.isfinite().all()), "tokens are not finite"),
        (starts.min() >= 0 and ends.max() <= spec.seconds + times.step_s, "tokens lie outside of the window"),
        (set(range(int(spec.seconds))) <= set(covered), "seconds of the window have no token"),
        (covered.max() < spec.seconds, "a token lies behind the window's end"),
        (last_start_s + spec.seconds <= 10.0 + 1e-6, "the last window ends behind the record"),
    )


def published_spec_is_true(case: Case) -> str:
    """Build the published configuration without memory, and compare it with `published_spec`."""
    cls, variant = expert_class(case.name)
    published = cls.published_spec(variant)
    if not published.licence or not published.source:
        return "the spec names no licence or no source"
    if not published.needs_weights:
        counted = published.parameters or published.published_parameters
        return f"it needs no weights, but the spec counts {counted} parameters" if counted else ""
    with torch.device("meta"):
        spec = cls.build(None, None, variant=variant).spec
    return _first(
        (spec.parameters == published.published_parameters, f"published_parameters: built are {spec.parameters}"),
        (spec == published, "published_spec differs from the spec of the published configuration as built"),
    )


def two_passes_are_equal(case: Case) -> str:
    """Prepare and encode twice: bit for bit the same, and no input is written to."""
    signals, before = records(3), case.x.clone()
    again = case.expert.prepare(signals, RATE_HZ)
    twice = run_expert(case.expert, case.x)
    return _first(
        (bool(np.array_equal(signals, records(3))), "prepare changes the signals it is given"),
        (_equal(again, case.x), "prepare gives other numbers the second time"),
        (_equal(before, case.x), "encode changes its input"),
        (_equal(twice.layers, case.vectors.layers), "layers differ between two passes"),
        (_equal(twice.embedding, case.vectors.embedding), "embeddings differ between two passes"),
    )


def records_are_independent(case: Case) -> str:
    """Embed records alone and together: bit for bit the same."""
    for position, record in enumerate(records(3)[:, None]):
        alone = run_expert(case.expert, case.expert.prepare(record, RATE_HZ))
        for what in ("layers", "embedding", "output"):
            one, whole = getattr(alone, what), getattr(case.vectors, what)
            if one is not None and not _equal(one[0], whole[position]):
                apart = np.nanmax(np.abs(np.float64(one[0]) - whole[position]))
                return f"{what} of a record alone and in a batch differ by {apart:.2g}: it depends on its neighbours"
    return ""


def records_differ(case: Case) -> str:
    """Two different records must not get one vector."""
    for what, values in (("embeddings", case.vectors.embedding), ("last layers", case.vectors.layers[:, -1])):
        if np.allclose(values[0], values[1], atol=1e-4, equal_nan=True):
            return f"{what} of two different records are the same"
    return ""


def leads_go_by_name(case: Case) -> str:
    """Change one lead after the other: its own channel changes, and no other as much."""
    expert, base = case.expert, case.x[:1]
    leads, other = expert.spec.leads, records(3)[2]
    changed = np.repeat(records(1), len(leads), axis=0)
    for row, lead in zip(changed, leads, strict=True):
        row[STANDARD_LEADS.index(lead)] = other[(STANDARD_LEADS.index(lead) + 1) % 12][::-1]
    for position, x in enumerate(expert.prepare(changed, RATE_HZ).split(1)):
        if torch.equal(x.nan_to_num(), base.nan_to_num()):
            return f"lead {leads[position]} changes nothing"
        if x.ndim == 4 and x.shape[2] == len(leads) and _distance(x, base).amax((0, 1)).argmax() != position:
            return f"lead {leads[position]} is not channel {position} of the model input"
    return ""


def swapped_electrodes_show(case: Case) -> str:
    """Swap two leads that the expert uses: the input changes."""
    swapped = records(3)
    used = [STANDARD_LEADS.index(lead) for lead in case.expert.spec.leads]
    swapped[:, [used[0], used[-1]]] = swapped[:, [used[-1], (used[0] + 1) % 12 if len(used) == 1 else used[0]]]
    same = torch.equal(case.expert.prepare(swapped, RATE_HZ).nan_to_num(), case.x.nan_to_num())
    return "swapped leads give the same model input" if same else ""


def arrays_and_tensors_are_alike(case: Case) -> str:
    """Prepare float32 arrays and float64 tensors as well."""
    for kind, atol in (("a float64 tensor", 0.0), ("a float32 array", 1e-2)):
        signals = torch.from_numpy(records(3)) if atol == 0 else records(3).astype(np.float32)
        x = case.expert.prepare(signals, RATE_HZ)
        if x.dtype != torch.float32 or not torch.allclose(x, case.x, atol=atol, rtol=1e-3, equal_nan=True):
            return f"prepare gives something else for {kind}"
    return ""


def rates_give_one_shape(case: Case) -> str:
    """Prepare 10 s at 250 and at 1000 Hz."""
    for rate_hz in (250.0, 1000.0):
        x = case.expert.prepare(records(1, rate_hz=rate_hz), rate_hz)
        if x.shape != case.x[:1].shape:
            return f"10 s at {rate_hz:g} Hz become {list(x.shape)}, at {RATE_HZ:g} Hz {list(case.x[:1].shape)}"
        if not (x.isfinite().all() or case.expert.spec.nan_features):
            return f"10 s at {rate_hz:g} Hz become an input that is not finite"
    return ""


def awkward_records() -> np.ndarray:
    """Return one record of each kind of `AWKWARD`, and an ordinary one at the end."""
    signals = np.roll(records(1 + len(AWKWARD)), -1, axis=0)
    signals[0, [0, 1, 6]] = np.nan
    signals[1, :, :200] = np.nan
    signals[1, 3:8, 900:1400] = np.nan
    signals[1, 1, -1] = np.nan
    signals[2, [1, 4, 9]] = np.array([0.1, 0.0, -0.235])[:, None]
    signals[3] = 0.1
    signals[4] = np.nan
    signals[5, :, ::400] = 20.0
    return signals


def awkward_records_have_vectors(case: Case) -> str:
    """Embed missing and flat leads, gaps and spikes: finite vectors, and none for a neighbour that is another's."""
    expert, signals = case.expert, awkward_records()
    vectors = run_expert(expert, expert.prepare(signals, RATE_HZ))
    failed = vectors.failed(expert.spec.nan_features)
    without = [kind for kind, missing in zip((*AWKWARD, "ordinary"), failed, strict=True) if missing]
    if without:
        return f"no finite vector for: {', '.join(without)}"
    alone = run_expert(expert, expert.prepare(signals[-1:], RATE_HZ))
    same = _equal(vectors.embedding[-1], alone.embedding[0], SAME_LAYER)
    return "" if same else "an ordinary record's vector depends on awkward neighbours"


def lengths_are_used_or_refused(case: Case) -> str:
    """Embed records from the shortest that the spec says up to 20 s, refuse shorter ones, see no more than it says."""
    expert, spec = case.expert, case.expert.spec
    shortest_s, longest_s = spec.shortest_s or 1.0, spec.longest_s
    for seconds in (shortest_s, *(each for each in (2.5, 5.0, 9.99, 20.0) if each > shortest_s)):
        x = expert.prepare(records(1, seconds), RATE_HZ)
        vectors = run_expert(expert, x)
        if vectors.embedding.shape != (1, spec.embedding_dim) or vectors.failed(spec.nan_features).any():
            return f"no finite vector for a record of {seconds:g} s"
    first = expert.prepare(records(1, 20.0)[..., : round((longest_s or 15.0) * RATE_HZ)], RATE_HZ)
    same = first.shape == x.shape and (longest_s is not None or _equal(first, x))
    if same != (longest_s is not None):
        return f"longest_s is {longest_s}, but 20 s become {list(x.shape)}, their beginning {list(first.shape)}"
    return _refuses_shorter(expert, shortest_s - 0.1) if spec.shortest_s else ""


def _refuses_shorter(expert: Expert, seconds: float) -> str:
    try:
        expert.prepare(records(1, seconds), RATE_HZ)
    except InputError as error:
        named = all(part in str(error) for part in (expert.spec.name, f"{expert.spec.shortest_s:g} s"))
        return "" if named and "\n" not in str(error) else f"refuses {seconds:g} s without name or length: {error}"
    return f"takes a record of {seconds:g} s, shorter than spec.shortest_s"


def other_leads_are_refused(case: Case) -> str:
    """Give eight leads where twelve are expected."""
    try:
        case.expert.prepare(records(1)[:, :8], RATE_HZ)
    except InputError as error:
        return "" if "12" in str(error) else f"refuses 8 leads without saying that 12 are expected: {error}"
    return "takes signals of 8 leads for 12"


def half_precision_stays_close(case: Case) -> str:
    """Embed in bf16 and fp16: a cosine of at least 0.98 to float32."""
    for precision in ("bf16", "fp16"):
        expert = case.fresh()
        set_precision(expert, precision)
        embedding = run_expert(expert, case.x).embedding
        one, other = (torch.from_numpy(v).nan_to_num() for v in (embedding, case.vectors.embedding))
        cosine = float(torch.cosine_similarity(one, other).min())
        if embedding.dtype != np.float32 or cosine <= 0.98:
            return f"{precision} is {cosine:.3f} (cosine) from float32; say so, or keep sensitive parts in float32"
    return ""


def weights_load_under_their_keys(case: Case) -> str:
    """Write the network's weights as DataParallel does, and load them: the same keys, numbers and spec."""
    cls, variant = expert_class(case.name)
    expert, loads_itself = case.expert, cls.build_from_path.__func__ is not Expert.build_from_path.__func__  # type: ignore[attr-defined]
    if expert.module is None or not expert.spec.needs_weights or loads_itself or case.weights is not None:
        return ""
    state = expert.module.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
        loaded = load_expert(case.name, path, cls.small_config(variant), preprocessing=case.preprocessing)
    found = loaded.module.state_dict() if loaded.module is not None else {}
    return _first(
        (found.keys() == state.keys(), "a checkpoint loads under other keys"),
        (all(torch.equal(state[key], found[key]) for key in state), "a checkpoint's numbers change in loading"),
        (loaded.spec == expert.spec, "the spec is another one with the same weights from a file"),
    )


def unknown_options_are_refused(case: Case) -> str:
    """Give an option that no expert has: loading another network than was asked for without a word is worse."""
    try:
        load_expert(case.name, config={"no_such_option": 1}, random_weights=True)
    except UsageError as error:
        return (
            "" if case.name.partition("-")[0] in str(error) else f"refuses an unknown option without its name: {error}"
        )
    return "takes the config option 'no_such_option' without a word"


CHECKS: tuple[Check, ...] = (
    outputs_fit_the_spec,
    tokens_fit_the_spec,
    published_spec_is_true,
    two_passes_are_equal,
    records_are_independent,
    records_differ,
    leads_go_by_name,
    swapped_electrodes_show,
    arrays_and_tensors_are_alike,
    rates_give_one_shape,
    awkward_records_have_vectors,
    lengths_are_used_or_refused,
    other_leads_are_refused,
    half_precision_stays_close,
    weights_load_under_their_keys,
    unknown_options_are_refused,
)


def check_expert(name: str, weights: str | Path | None = None) -> Iterator[tuple[str, str]]:
    """Run every check on every input path of an expert; give its words, and "" or what is wrong."""
    cls, _ = expert_class(name)
    for path in cls.preprocessing_variants:
        case = Case(name, path, weights)
        for check in CHECKS:
            words = check.__name__.replace("_", " ")
            yield f"{words} ({path})" if len(cls.preprocessing_variants) > 1 else words, _outcome(check, case)


def _outcome(check: Check, case: Case) -> str:
    try:
        return check(case)
    except EnsembleError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - an expert's code may raise anything
        return f"{type(error).__name__} at {line_of_code(error)}: {first_line(error)}"


def _first(*kept: tuple[bool, str]) -> str:
    """Return the words of the first condition that does not hold."""
    return next((words for holds, words in kept if not holds), "")


def _equal(one: Tensor | np.ndarray, other: Tensor | np.ndarray, atol: float = 0.0) -> bool:
    return torch.allclose(torch.as_tensor(one), torch.as_tensor(other), atol=atol, rtol=0, equal_nan=True)


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """1 - |correlation| along the last axis."""
    one, other = (v - v.mean(-1, keepdim=True) for v in (one.double(), other.double()))
    scale = (one.square().sum(-1) * other.square().sum(-1)).sqrt().clamp(min=1e-12)
    return 1 - ((one * other).sum(-1) / scale).abs()
