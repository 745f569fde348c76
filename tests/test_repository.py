"""What is said twice in the repository is the same: what to run, in the Makefile, in workflows and before a commit."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml
from support.harness import TESTS, clean_env

pytestmark = pytest.mark.programs

ROOT = TESTS.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def recipe(target: str, *options: str) -> list[str]:
    """Return the commands that make would run."""
    command = ["make", "--dry-run", "--no-print-directory", *options, target]
    env = clean_env({"MAKEFLAGS": ""})
    return subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True).stdout.splitlines()


def test_a_commit_is_checked_by_what_make_lint_runs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    checks = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    assert checks == recipe("lint", "--assume-old=.venv/ready")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_ci_runs(workflow: Path) -> None:
    """And what a step has as a command is nothing but a target of the Makefile, or a check of what one has made."""
    targets = set(re.findall(r'^phase "make ([\w-]+)', (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    for name, job in yaml.safe_load(workflow.read_text())["jobs"].items():
        rows = job.get("strategy", {}).get("matrix", {}).get("include", [])
        for step in job.get("steps", ()):
            command = step.get("run", "test")
            if command == 'make "$TARGET"':
                assert {row["target"] for row in rows} <= targets, name
            elif command.startswith("make "):
                assert command.split()[1] in targets, name
            else:
                assert command.split()[0] == "test", name


def test_extras_are_for_users() -> None:
    """What developers install is in dependency groups, of which the package's metadata says nothing."""
    assert set(metadata("gunicorn-sticky").get_all("Provides-Extra") or ()) == {"prometheus", "status", "uvicorn"}


def test_the_matrix_has_the_oldest_versions_that_users_may_have() -> None:
    versions = dict(re.findall(r"([a-z-]+)==([\d.]+)", "\n".join(recipe("matrix"))))
    wanted = (ROOT / "pyproject.toml").read_text()
    for package, version in versions.items():
        oldest = re.search(rf'"{package}(?:\[\w+\])?>=([\d.]+)"', wanted)
        assert oldest, package
        assert version in (oldest[1], f"{oldest[1]}.0")
    assert set(versions) == {"gunicorn", "uvicorn", "uvicorn-worker"}
