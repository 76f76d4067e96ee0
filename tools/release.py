"""Make what is uploaded, and run it as a user would who has nothing else: ``python tools/release.py``.

Builds the sdist and the wheel into ``dist/``, has twine check them, installs the wheel into an environment of its own
and runs the main job from there. Nothing is uploaded: it ends with the command that does.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final

import click

ROOT: Final = Path(__file__).resolve().parents[1]


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "dist", help="Where the files go.")
def main(output: Path) -> None:
    """Build, check and try a release."""
    for old in output.glob("trady-*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--outdir", str(output), str(ROOT))
    files = [str(path) for path in sorted(output.glob("trady-*"))]
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "venv"
        venv.create(environment, with_pip=True)
        python = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        (wheel,) = output.glob("trady-*.whl")
        run(str(python), "-m", "pip", "install", "--quiet", str(wheel))
        for command in ("trady-plan", "trady-simulate", "trady-train", "trady-study", "trady-profile", "trady-verify"):
            run(str(python.parent / command), "--help", quiet=True)
        run(str(python), str(ROOT / "tools" / "main_job.py"), folder=Path(folder))
    click.echo(f"Ready. Upload with: twine upload {' '.join(files)}")


def run(*command: str, folder: Path = ROOT, quiet: bool = False) -> None:
    """Run a command; a failure ends the release.

    Raises:
        ClickException: The command failed.
    """
    click.echo("$ " + " ".join(command))
    if subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL if quiet else None, check=False).returncode:
        raise click.ClickException(f"{Path(command[0]).name} failed.")


if __name__ == "__main__":
    main()
