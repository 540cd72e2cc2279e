"""Bringing a study that an older version has made up to date: what its files lack is added, and said."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML

from cache.errors import MissingFileError, UsageError
from cache.files import write_text
from cache.storage.locations import location_of
from cache.storage.objects import ObjectPath
from pipeline.study.params import MOVED, PARAMS_FILE, matches
from pipeline.study.scaffold import TEMPLATES, StoreUrls, filled
from pipeline.study.yaml_text import YamlText

DVC_FILE = "dvc.yaml"
CHOSEN = {("cohort", "options"), ("fit_heads", "options"), ("experts",)}
"""Sections whose keys are the user's choice: nothing is added to them."""


@dataclass
class Upgrade:
    """What an older study lacks.

    Attributes
    ----------
    texts
        File, relative to the study -> its new content.
    changes
        What was changed, a line each; empty: the study is up to date.
    """

    texts: dict[str, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)


def plan_upgrade(folder: Path) -> Upgrade:
    """Return what brings a study's files up to date; nothing is written.

    Keys of params.yaml that have moved are moved, missing ones are added with their defaults, so that no result
    changes. The stages of dvc.yaml that `ensemble init` writes are written again, with further dependencies and
    parameters that the study has added where these still exist; other stages stay.

    Raises
    ------
    MissingFileError
        No params.yaml or no dvc.yaml there.
    UsageError
        One of them is not YAML.
    """
    params, dvc = (_read(folder, name) for name in (PARAMS_FILE, DVC_FILE))
    found = Upgrade()
    found.changes += [f"{PARAMS_FILE}: {words}" for words in (*_move(params), *_fill(params))]
    text, words = _stages(folder, dvc, params)
    found.changes += [f"{DVC_FILE}: {each}" for each in words]
    found.texts = {PARAMS_FILE: params.text} | ({DVC_FILE: text} if words else {})
    for name in sorted(TEMPLATES.keys() - {PARAMS_FILE, DVC_FILE}):
        path, template = folder / name, _template(name)
        if name == ".gitignore" and path.is_file():
            present = path.read_text(encoding="utf-8").splitlines()
            missing = [line for line in template.splitlines() if line not in present]
            template = "".join(f"{line}\n" for line in (*present, *missing))
            found.changes += [f"{name}: {line} added" for line in missing]
        elif not path.exists():
            found.changes.append(f"{name} made")
        else:
            continue
        found.texts[name] = template
    return found


def upgrade_study(folder: Path) -> Upgrade:
    """Bring a study's files up to date; a params.yaml or dvc.yaml that changes stays beside it as NAME.old."""
    found = plan_upgrade(folder)
    for name, text in found.texts.items():
        path = folder / name
        before = path.read_text(encoding="utf-8") if path.is_file() else None
        if before == text:
            continue
        if name in (PARAMS_FILE, DVC_FILE) and before is not None:
            write_text(folder / f"{name}.old", before)
        write_text(path, text)
    return found


def what_dvc_misses(folder: Path) -> list[str]:
    """Return the keys that dvc.yaml names and params.yaml lacks: `dvc repro` stops at them."""
    if not (folder / DVC_FILE).is_file():
        return []
    params, dvc = _read(folder, PARAMS_FILE), _read(folder, DVC_FILE)
    defaults = [YamlText(yaml.safe_dump(each)) for each in dvc.value(()).get("vars", []) if isinstance(each, dict)]
    missing: dict[str, None] = {}
    for stage in dvc.value(("stages",)).values():
        over = stage.get("foreach")
        if isinstance(over, str) and not any(each.has(_keys(over[2:-1])) for each in (params, *defaults)):
            missing[over[2:-1]] = None
        for name in stage.get("do", stage).get("params", []):
            if isinstance(name, str) and "$" not in name and not params.has(_keys(name)):
                missing[name] = None
    return list(missing)


def _read(folder: Path, name: str) -> YamlText:
    path = folder / name
    if not path.is_file():
        raise MissingFileError(f"no {name} in {folder.resolve()}; make a study with `ensemble init FOLDER`")
    try:
        found = YamlText(path.read_text(encoding="utf-8"))
        content = found.value(())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or (name == DVC_FILE and not isinstance(content.get("stages"), dict)):
        raise UsageError(f"{path}: expected {'stages' if name == DVC_FILE else 'keys such as cohort and experts'}")
    return found


def _keys(name: str) -> tuple[str, ...]:
    return tuple(name.split("."))


def _template(name: str) -> str:
    return files("pipeline.study").joinpath("templates", TEMPLATES[name]).read_text(encoding="utf-8")


def _move(params: YamlText) -> Iterator[str]:
    """Move keys that lie elsewhere now; a place that is taken keeps its value."""
    for old, new in MOVED.items():
        for name in list(matches(params.value(()), old.split("."))):
            value = params.value(_keys(name))
            params.remove(_keys(name))
            if params.has(_keys(new)):
                kept = _inline(params.value(_keys(new)))
                yield f"{name}: {_inline(value)} dropped, as {new} is {kept}"
            else:
                params.add(_keys(new), _inline(value))
                yield f"{name} moved to {new}"


def _inline(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _fill(params: YamlText) -> Iterator[str]:
    """Add what `ensemble init` writes and the file lacks, with the template's comments."""
    cohort = params.value(()).get("cohort") or {}
    sources: list[tuple[str, Path, dict[str, Any]]] = [
        (str(cohort.get("source", "")), Path(str(cohort.get("path", ""))), {})
    ]
    template = YamlText(filled(_template(PARAMS_FILE), sources, []))
    for key, section in template.value(()).items():
        if key == "cohort" and "cohorts" in params.value(()):
            continue
        if not params.has((key,)):
            params.append(template.block((key,)))
            yield f"{key} added"
        elif params.value((key,)) is None and section == {}:
            params.remove((key,))
            params.append(template.block((key,)))
            yield f"{key} is {{}} now; it had no value"
        elif isinstance(section, dict) and (key,) not in CHOSEN:
            yield from _fill_section(params, template, key, section)


def _fill_section(params: YamlText, template: YamlText, key: str, section: Mapping[str, Any]) -> Iterator[str]:
    for name, value in section.items():
        if not params.has((key, name)):
            line = template.block((key, name)).strip().splitlines()[-1]
            written = {} if (key, name) in CHOSEN else value
            _, hash_sign, comment = line.partition("  # ")
            params.add((key, name), _inline(written), f"# {comment}" if hash_sign else "")
            yield f"{key}.{name} added ({_inline(written)})"


def _stages(folder: Path, old: YamlText, params: YamlText) -> tuple[str, list[str]]:
    """Return the new dvc.yaml and what is new in it."""
    content = params.value(())
    named = {key: str(content.get(key, "")) for key in ("embeddings", "signals", "records")}
    urls = StoreUrls(**{key: place for key, place in named.items() if isinstance(location_of(place), ObjectPath)})
    several: list[tuple[str, Path, dict[str, Any]]] = [("", Path(), {})] * (2 if "cohorts" in content else 1)
    editor = _dvc_editor()
    before = editor.load(old.text)
    after = editor.load(filled(_template(DVC_FILE), several, [], urls))
    words = [f"stage {name} added" for name in after["stages"] if name not in before["stages"]]
    for name, stage in before["stages"].items():
        if name not in after["stages"]:
            after["stages"][name] = stage
            continue
        _keep_entries(folder, params, stage, after["stages"][name])
        words += _differences(name, stage, after["stages"][name])
    for key, value in before.items():
        if key not in after:
            after[key] = value
    words += [f"{key} added" for key in after if key not in before]
    words += _keep_plots(before, after)
    written = io.StringIO()
    editor.dump(after, written)
    return written.getvalue(), words


def _dvc_editor() -> YAML:
    """Return a reader and writer of YAML that keeps comments, laid out as dvc.yaml is."""
    editor = YAML()
    editor.indent(mapping=2, sequence=4, offset=2)
    editor.width = 10_000
    editor.preserve_quotes = True
    return editor


def _keep_entries(folder: Path, params: YamlText, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Add to a stage what the study depends on besides, as far as it still exists."""
    old, new = old.get("do", old), new.get("do", new)
    for part in ("deps", "params"):
        present = new.get(part) or []
        kept = [entry for entry in old.get(part) or [] if entry not in present]
        kept = [entry for entry in kept if _exists(folder, params, part, entry)]
        if kept:
            new[part] = [*present, *kept]


def _exists(folder: Path, params: YamlText, part: str, entry: object) -> bool:
    if not isinstance(entry, str):  # parameters of another file
        return True
    return (folder / entry).exists() if part == "deps" else params.has(entry.split("."))


def _differences(name: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Say what is otherwise in a stage: entries that come and go, and a command that changes."""
    old, new = old.get("do", old), new.get("do", new)
    if old.get("cmd") != new["cmd"]:
        yield f"stage {name}: cmd is `{new['cmd']}`, was `{old.get('cmd')}`"
    for part in ("deps", "params", "outs", "metrics"):
        before, after = ([_entry(each) for each in stage.get(part) or []] for stage in (old, new))
        for sign, one, other in (("+", after, before), ("-", before, after)):
            if listed := [each for each in one if each not in other]:
                yield f"stage {name}: {part} {sign} {', '.join(listed)}"


def _entry(entry: Any) -> str:
    return entry if isinstance(entry, str) else str(next(iter(entry)))


def _keep_plots(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Keep plots of the study's own, and say which are new."""
    if not isinstance(before.get("plots"), list):
        return
    names = [_entry(plot) for plot in before["plots"]]
    yield from (f"plot {_entry(plot)} added" for plot in after["plots"] if _entry(plot) not in names)
    present = [_entry(plot) for plot in after["plots"]]
    after["plots"] += [plot for plot in before["plots"] if _entry(plot) not in present]
