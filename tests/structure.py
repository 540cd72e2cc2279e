"""What the house looks like in numbers: rooms, arrows, faces, names. `make structure` prints them, tests hold them.

A room is a folder of product code. An arrow leads from the room of a file to the room that it imports from.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("cache", "stages", "pipeline", "ensemble")


def product_files(root: Path) -> list[Path]:
    """Return every file of product code, relative to `root`."""
    return sorted(path.relative_to(root) for name in PACKAGES for path in (root / name).rglob("*.py"))


def parsed(root: Path, path: Path) -> ast.Module:
    """Return a file's syntax tree."""
    return ast.parse((root / path).read_text(encoding="utf-8"))


PRONOUNS = {"told", "few", "own", "here", "there", "such", "mine", "which"}
"""Words that say nothing of what a thing is."""


def pronoun_names(root: Path) -> set[str]:
    """Return file:name of every function, parameter and variable that is named by a pronoun."""
    found = set()
    for path in product_files(root):
        for node in ast.walk(parsed(root, path)):
            names: list[str] = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.append(node.name)
            elif isinstance(node, ast.arg):
                names.append(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.append(node.id)
            found |= {f"{path}: {name}" for name in names if PRONOUNS & set(name.lower().split("_"))}
    return found


def files_per_folder(root: Path) -> Counter[Path]:
    """Count the Python files of every folder, faces included."""
    return Counter(path.parent for path in product_files(root))


def imports(root: Path, path: Path) -> Iterator[tuple[str, str]]:
    """Give (module, name) of every import from the project, also inside functions; name is "" for a whole module."""
    for node in ast.walk(parsed(root, path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] in PACKAGES)


def folder_of(root: Path, module: str, name: str) -> Path:
    """Return the folder of the file that an import reads."""
    path = Path(*module.split("."))
    if name and (root / path / f"{name}.py").is_file():
        return path
    if name and (root / path / name / "__init__.py").is_file():
        return path / name
    return path if (root / path).is_dir() else path.parent


def arrows(root: Path) -> set[tuple[Path, Path]]:
    """Return the pairs (folder, other folder that one of its files imports from)."""
    found = set()
    for path in product_files(root):
        for module, name in imports(root, path):
            target = folder_of(root, module, name)
            if target != path.parent:
                found.add((path.parent, target))
    return found


def room(path: Path) -> Path:
    """Return the room of a file: `cache`, `pipeline`, or what lies directly in `stages`, with all that it holds."""
    return Path(*path.parts[: 2 if path.parts[0] == "stages" else 1]).with_suffix("")


def rooms(root: Path) -> set[Path]:
    """Return every room; a package's own face is none."""
    return {room(path) for path in product_files(root) if path != Path("stages/__init__.py")}


def arrows_between_rooms(root: Path) -> set[tuple[Path, Path]]:
    """Return the pairs (room, other room that one of its files imports from)."""
    pairs = {
        (room(path), room(Path(*module.split("."), name)))
        for path in product_files(root)
        for module, name in imports(root, path)
    }
    known = rooms(root)
    return {(one, other) for one, other in pairs if one != other and other in known}


def arrows_within(root: Path, top: Path) -> set[tuple[Path, Path]]:
    """Return the arrows between a room's own parts: its folders, and the files that lie in no folder of it."""

    def part(path: Path) -> Path:
        return Path(*path.parts[: len(top.parts) + 1])

    found = set()
    for path in product_files(root):
        if top not in path.parents:
            continue
        for module, name in imports(root, path):
            target = Path(*module.split("."))
            target = target / name if name and (root / target / f"{name}.py").is_file() else target
            if top in target.parents and part(target) != part(path).with_suffix(""):
                found.add((part(path).with_suffix(""), part(target)))
    return found


def closure(root: Path, start: Path) -> set[Path]:
    """Return a file, the project's files that it imports, and those that they import."""
    found, todo = set[Path](), [start]
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found.add(file)
        for module, name in imports(root, file):
            base = Path(*module.split("."))
            inside = (base / f"{name}.py", base / name / "__init__.py") if name else ()
            todo += [p for p in (base.with_suffix(".py"), base / "__init__.py", *inside) if (root / p).is_file()]
    return found


def public_classes(root: Path) -> dict[str, list[Path]]:
    """Map the name of every public class at a module's top level to the files that define one."""
    found = defaultdict(list)
    for path in product_files(root):
        for node in parsed(root, path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(path)
    return found


def classes_of_one_name(root: Path) -> dict[str, list[Path]]:
    """Return the public classes that several files define."""
    return {name: paths for name, paths in public_classes(root).items() if len(paths) > 1}


def private_imports(root: Path) -> list[str]:
    """Return "file: name" for every `_name` that a file imports from outside of its folder."""
    found = []
    for path in product_files(root):
        for module, name in imports(root, path):
            if folder_of(root, module, name) == path.parent:
                continue
            hidden = [part for part in (*module.split("."), name) if part.startswith("_") and not part.startswith("__")]
            found += [f"{path}: {module}.{name}".rstrip(".")] if hidden else []
    return found


def bodies_in_faces(root: Path, lines: int = 40) -> list[Path]:
    """Return the `__init__.py` that are longer than a face, or define more than a lazy `__getattr__`."""
    found = []
    for path in product_files(root):
        if path.name == "__init__.py":
            text = (root / path).read_text(encoding="utf-8")
            defined = [n.name for n in ast.parse(text).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
            if len(text.splitlines()) > lines or set(defined) - {"__getattr__", "__dir__"}:
                found.append(path)
    return found


def long_files(root: Path, lines: int = 400) -> list[tuple[Path, int]]:
    """Return the files of more than so many lines."""
    sizes = [(path, len((root / path).read_text(encoding="utf-8").splitlines())) for path in product_files(root)]
    return [(path, n) for path, n in sizes if n > lines]


def summary(root: Path) -> str:
    """Return the counts, one a line."""
    folders = files_per_folder(root)
    fullest = ", ".join(f"{folder} {n}" for folder, n in folders.most_common(3))
    rows = {
        "files": str(len(product_files(root))),
        "folders": str(len(folders)),
        "folders of more than 16 files": str(sum(n > 16 for n in folders.values())),
        "fullest folders": fullest,
        "rooms": str(len(rooms(root))),
        "arrows between rooms": str(len(arrows_between_rooms(root))),
        "arrows within stages/heads": str(len(arrows_within(root, Path("stages/heads")))),
        "arrows within stages/experts": str(len(arrows_within(root, Path("stages/experts")))),
        "public classes of one name": str(len(classes_of_one_name(root))),
        "imports of _names from other folders": str(len(private_imports(root))),
        "__init__.py with a body": str(len(bodies_in_faces(root))),
        "files of more than 400 lines": str(len(long_files(root))),
    }
    return "\n".join(f"{name:<38}{value}" for name, value in rows.items())


if __name__ == "__main__":
    print(summary(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()))
