"""The public API, listed from the doors and held against an earlier commit's.

    python tools/public_api.py                  # writes docs/public-api.txt
    python tools/public_api.py --since HEAD~1   # exits 1 where it changed and CHANGELOG.md did not

What an earlier commit's users can no longer do is named by griffe.
"""

import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
import griffe

ROOT: Final = Path(__file__).resolve().parents[1]
LISTING: Final = ROOT / "docs" / "public-api.txt"
CHANGELOG: Final = "CHANGELOG.md"
PACKAGES: Final = ("planner", "simulator", "engine")
#: What frameworks take that stand behind no door: each is imported only where its framework is.
CALLBACKS: Final = ("engine.integrations.lightning.EngineCallback", "engine.integrations.transformers.EngineCallback")


@click.command()
@click.option("--since", metavar="REV", help="Compare with this commit instead of writing the listing.")
def main(since: str | None) -> None:
    """List the public API, or compare it."""
    with loaded(ROOT) as trady:
        lines = listing(trady)
        if since is None:
            LISTING.write_text("\n".join([*lines, ""]))
            return
        if subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "-q", "--verify", since], capture_output=True
        ).returncode:
            click.echo(f"There is no commit {since} here: nothing to compare with.")
            return
        with earlier(since) as before:
            changed = sorted(set(lines) ^ set(listing(before)))
            broken = [breakage.explain() for breakage in breakages(before, trady)]
    click.echo("\n".join([f"Public API: {len(changed)} lines differ from {since}.", *changed, *broken]))
    if changed and not git("diff", "--name-only", since, "--", CHANGELOG):
        sys.exit(f"Tell users in {CHANGELOG} what changed.")


@contextmanager
def loaded(root: Path) -> Iterator[griffe.Module]:
    """The packages below a folder as ``trady``, read and not run."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "trady"
        package.mkdir()
        for name in PACKAGES:
            (package / name).symlink_to(root / name)
        found = griffe.load("trady", search_paths=[folder], allow_inspection=False, resolve_aliases=True)
        assert isinstance(found, griffe.Module)
        yield found


@contextmanager
def earlier(revision: str) -> Iterator[griffe.Module]:
    """The packages as they were at a commit."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(git("archive", revision, *PACKAGES))) as archive:
            archive.extractall(folder, filter="data")
        with loaded(Path(folder)) as trady:
            yield trady


def git(*arguments: str) -> bytes:
    """What a git command prints."""
    return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True).stdout


def is_known(revision: str) -> bool:
    """Whether this is a git checkout that has the commit: an archive or a shallow clone has not."""
    asked = ["git", "-C", str(ROOT), "rev-parse", "--quiet", "--verify", f"{revision}^{{commit}}"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


def exported(trady: griffe.Module) -> Iterator[tuple[str, griffe.Object]]:
    """What users import, by the name they import it by."""
    for door in PACKAGES:
        for name, member in trady[door].members.items():
            if isinstance(member, griffe.Alias) and member.target_path.startswith("trady."):
                yield f"trady.{door}.{name}", member.final_target
    yield from ((f"trady.{callback}", trady[callback]) for callback in CALLBACKS)


def listing(trady: griffe.Module) -> list[str]:
    """A line for each function, keyword, class, public method and attribute, with its types."""
    lines: list[str] = []
    for name, thing in exported(trady):
        if isinstance(thing, griffe.Function):
            lines += [f"{name}{signature(thing)}", *(f"{name}({keyword})" for keyword in keywords(trady, thing))]
        elif isinstance(thing, griffe.Class):
            made = thing.all_members.get("__init__")
            lines.append(f"class {name}{signature(made) if isinstance(made, griffe.Function) else ''}")
            lines += [f"{name}.{line}" for line in members(thing)]
    return lines


def keywords(trady: griffe.Module, function: griffe.Function) -> Iterator[str]:
    """What a function takes by PEP 692."""
    for parameter in function.parameters:
        if isinstance(parameter.annotation, griffe.ExprSubscript) and str(parameter.annotation).startswith("Unpack["):
            yield from fields(trady, parameter.annotation.slice)


def fields(trady: griffe.Module, name: griffe.Expr | str) -> Iterator[str]:
    """The fields of a ``TypedDict``, those of its bases first."""
    found = trady[name.canonical_path.removeprefix("trady.")] if isinstance(name, griffe.Expr) else None
    thing = found.final_target if isinstance(found, griffe.Alias) else found
    if isinstance(thing, griffe.Class):
        for base in thing.bases:
            if str(base) != "TypedDict":
                yield from fields(trady, base)
        yield from members(thing)


def members(thing: griffe.Class) -> Iterator[str]:
    """Public methods and attributes of a class."""
    for name, member in thing.members.items():
        if not name.startswith("_") and isinstance(member, griffe.Function):
            yield f"{name}{signature(member)}"
        elif not name.startswith("_") and isinstance(member, griffe.Attribute):
            yield f"{name}: {member.annotation}"


def signature(function: griffe.Function) -> str:
    """Parameters and result, as Python writes them."""
    stars = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}
    parts: list[str] = []
    for parameter in function.parameters:
        star = stars.get(parameter.kind or griffe.ParameterKind.positional_or_keyword, "")
        if parameter.kind is griffe.ParameterKind.keyword_only and not any(part[0] == "*" for part in parts):
            parts.append("*")
        if parameter.name not in ("self", "cls"):
            default = "" if star or parameter.default is None else f" = {parameter.default}"
            parts.append(f"{star}{parameter.name}: {parameter.annotation}{default}")
    return f"({', '.join(parts)}) -> {function.returns}"


def breakages(before: griffe.Module, now: griffe.Module) -> Iterator[griffe.Breakage]:
    """What users of what was exported can no longer do."""
    paths = tuple(thing.path for _, thing in exported(before))
    for package in PACKAGES:
        for breakage in griffe.find_breaking_changes(before[package], now[package]):
            if breakage.obj.path.startswith(paths):
                yield breakage


if __name__ == "__main__":
    main()
