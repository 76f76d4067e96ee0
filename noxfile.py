"""The versions that Trady is to work with: ``nox`` runs all that this machine has interpreters for.

nox -s base                # what pip brings without extras is enough to plan, replay and train
nox -s tests-3.12          # the whole suite on one Python
nox -s oldest newest       # the ends of what pyproject.toml allows of torch and ortools
nox -s release             # build, check, and run from the wheel alone
"""

import tomllib
from pathlib import Path

import nox

nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests", "oldest", "newest", "base", "release"]

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]
MARKERS = "not slow and not assets and not gpu and not browser"


def lowest(*names: str) -> list[str]:
    """The oldest version of some dependencies that pyproject.toml allows."""
    wanted = (entry.replace(">=", "==") for entry in PROJECT["dependencies"] if entry.split(">=")[0] in names)
    return list(wanted)


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """The suite, on every Python there is."""
    session.install(".[dev]")
    session.run("python", "-m", "pytest", "-m", MARKERS, *session.posargs)


@nox.session
def oldest(session: nox.Session) -> None:
    """The suite with the oldest torch and ortools."""
    session.install(".[dev]", *lowest("torch", "ortools"))
    session.run("python", "-m", "pytest", "-m", MARKERS, *session.posargs)


@nox.session
def newest(session: nox.Session) -> None:
    """The suite with the newest torch and ortools, releases to come included."""
    session.install("--upgrade", "--pre", ".[dev]", "torch", "ortools")
    session.run("python", "-m", "pytest", "-m", MARKERS, *session.posargs)


@nox.session
def base(session: nox.Session) -> None:
    """No extra: the main job on a model of the user's own."""
    session.install(".")
    job = str(Path("tools/main_job.py").resolve())
    session.chdir(session.create_tmp())
    session.run("python", job)


@nox.session
def release(session: nox.Session) -> None:
    """What is to be uploaded."""
    session.install("build", "twine", "click")
    session.run("python", "tools/release.py")
