"""Whose kind a class is, as a study says it beside what its cohort says.

Lives here: the section `fit_heads.parents` of params.yaml, read into `TaskSpec.parents`. Not here: what a fit makes of
parents (`gate.hierarchy`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from cache.errors import UsageError
from stages.heads.targets.tasks import TaskSpec

Parents = dict[str, dict[str, dict[str, str]]]
"""Task -> class -> {another task: the class of it that this one is a kind of}."""
SECTION = "fit_heads.parents"


def with_parents(tasks: Sequence[TaskSpec], parents: Parents, targets: Collection[str]) -> list[TaskSpec]:
    """Return the tasks with the parents of `parents`; a class named there loses those that its cohort gave it.

    Parameters
    ----------
    targets
        All targets of the table of records: parts of `parents` on those that are no task of this fit say nothing.

    Raises
    ------
    UsageError
        A target or class that does not exist, or a class that a record cannot have or lack.

    Examples
    --------
    >>> tasks = [TaskSpec("rhythm", "multilabel", ("AF", "SR")), TaskSpec("arrhythmia", "binary", ("no", "yes"))]
    >>> with_parents(tasks, {"rhythm": {"AF": {"arrhythmia": "yes"}}}, ["rhythm", "arrhythmia"])[0].parents
    (('AF', 'arrhythmia', 'yes'),)
    """
    of_name = {task.name: task for task in tasks}
    for name, classes in parents.items():
        _check_target(name, targets)
        for child, above in classes.items():
            _check_class(of_name, name, child)
            for task, parent in above.items():
                _check_target(task, targets)
                _check_class(of_name, task, parent)
    return [_joined(task, parents.get(task.name, {})) for task in tasks]


def _joined(task: TaskSpec, classes: Mapping[str, Mapping[str, str]]) -> TaskSpec:
    kept = [link for link in task.parents if link[0] not in classes]
    more = [(child, above, parent) for child, of_child in classes.items() for above, parent in of_child.items()]
    return replace(task, parents=tuple(sorted([*kept, *more])))


def _check_target(name: str, targets: Collection[str]) -> None:
    if name not in targets:
        raise UsageError(f"{SECTION}: '{name}' is no target of records.parquet; it has: {', '.join(targets)}")


def _check_class(tasks: Mapping[str, TaskSpec], name: str, wanted: str) -> None:
    if name not in tasks:
        return
    classes = tasks[name].yes_or_no_classes
    if wanted not in classes:
        can = ", ".join(classes[:12]) or f"none, because it is {tasks[name].kind}"
        raise UsageError(f"{SECTION}: '{wanted}' is no class of '{name}' that can be or have a parent; such are: {can}")
