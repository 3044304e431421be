"""What CI runs and who may start it."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from labkit.authoring.run import CELL_SECONDS, NOTEBOOK_SECONDS

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = ["ci.yml", "gpu.yml", "pages.yml"]


def workflow(name: str) -> dict:
    loaded = yaml.safe_load((ROOT / ".github/workflows" / name).read_text(encoding="utf-8"))
    loaded["on"] = loaded.pop(True)  # YAML 1.1 reads the bare key `on` as a truth value
    return loaded


def validate(schema: str, path: Path) -> Any:
    """What check-jsonschema says: `exit_code`, `output`."""
    check = pytest.importorskip("check_jsonschema")
    from click.testing import CliRunner

    return CliRunner().invoke(check.main, ["--builtin-schema", schema, str(path)])


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_are_valid(name: str):
    done = validate("vendor.github-workflows", ROOT / ".github/workflows" / name)
    assert done.exit_code == 0, done.output


def test_the_workflow_schema_notices_a_mistake(tmp_path: Path):
    broken = tmp_path / "gpu.yml"
    source = (ROOT / ".github/workflows/gpu.yml").read_text(encoding="utf-8")
    broken.write_text(source.replace("runs-on:", "run-on:"), encoding="utf-8")
    assert validate("vendor.github-workflows", broken).exit_code == 1


def test_error_report_form_is_valid():
    folder = ROOT / ".github/ISSUE_TEMPLATE"
    for schema, name in (("issue-forms", "error-report.yml"), ("issue-config", "config.yml")):
        done = validate(f"vendor.github-{schema}", folder / name)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_only_read_the_repository_and_end_by_themselves(name: str):
    loaded = workflow(name)
    assert loaded["permissions"] == {"contents": "read"}
    for job in loaded["jobs"].values():
        assert job["timeout-minutes"] <= 180
        checkouts = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
        assert [step["with"]["persist-credentials"] for step in checkouts] == [False] * ("permissions" not in job)


def test_only_the_job_that_publishes_pages_may_write_and_it_runs_nothing_of_ours():
    writing = {(name, key) for name in WORKFLOWS for key, job in workflow(name)["jobs"].items() if "permissions" in job}
    assert writing == {("pages.yml", "publish")}
    job = workflow("pages.yml")["jobs"]["publish"]
    assert job["permissions"] == {"pages": "write", "id-token": "write"}
    assert not [step for step in job["steps"] if "run" in step]
    assert "pull_request" in job["if"] and "refs/heads/main" in job["if"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_by_hash_and_say_their_version(name: str):
    text = (ROOT / ".github/workflows" / name).read_text(encoding="utf-8")
    used = re.findall(r"uses: *(.+)", text)
    assert used
    for line in used:
        assert re.fullmatch(r"[\w/.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    assert not re.search(r"run:.*\$\{\{|^ {10,}[^#\n]*run.*\$\{\{", text, re.MULTILINE)  # values come in by env


def test_the_gpu_lane_has_its_own_pip_variable_stops_without_a_device_and_limits_that_fit():
    (job,) = workflow("gpu.yml")["jobs"].values()
    (make,) = [step for step in job["steps"] if step.get("name") == "make gpu"]
    assert make["env"]["LABKIT_PIP_ARGS"] == "${{ vars.LABKIT_GPU_PIP_ARGS }}"
    told = int(re.fullmatch(r"timeout --signal TERM (\d+)m make gpu", make["run"])[1])
    assert told + 10 <= job["timeout-minutes"]  # time for the report and the upload
    assert NOTEBOOK_SECONDS["gpu"] / 60 * 2 < told and CELL_SECONDS["gpu"] < NOTEBOOK_SECONDS["gpu"]
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ngpu:")[2].splitlines()[1:3]
    assert [line.split(")")[1].split(" --jobs")[0] for line in recipe] == [" env --tier gpu", " run --tier gpu"]


@pytest.mark.parametrize("name", ["ci.yml", "gpu.yml"])
def test_every_job_keeps_its_reports_when_it_fails(name: str):
    for job in workflow(name)["jobs"].values():
        (upload,) = [step for step in job["steps"] if step.get("uses", "").startswith("actions/upload-artifact@")]
        assert upload["if"] == "always()"
        assert upload["with"]["path"] == "build/"
        assert job["steps"][-1] is upload


def github_condition(
    expression: str, event_name: str, label: str | None = None, head_is_fork: bool = False, runner: str = "gpu-box"
) -> bool:
    """Evaluate the small part of GitHub's expression language that the label gate is written in."""
    values = {
        "github.event_name": event_name,
        "github.event.label.name": label,
        "github.event.pull_request.head.repo.fork": head_is_fork,
        "vars.LABKIT_GPU_RUNNER": runner,
    }
    for name in sorted(values, key=len, reverse=True):
        expression = expression.replace(name, repr(values[name]))
    assert "github." not in expression, f"teach this test the name in {expression}"
    return bool(eval(expression.replace("||", "or").replace("&&", "and"), {"__builtins__": {}}))


@pytest.mark.parametrize(
    ("event_name", "label", "runs"),
    [
        ("schedule", None, True),
        ("workflow_dispatch", None, True),
        ("pull_request", "gpu", True),
        ("pull_request", "documentation", False),
        ("pull_request", "gpu-later", False),
        ("pull_request", None, False),
        ("pull_request_target", "gpu", False),
        ("push", None, False),
    ],
)
def test_gpu_jobs_run_nightly_by_hand_or_on_the_label(event_name: str, label: str | None, runs: bool):
    jobs = workflow("gpu.yml")["jobs"]
    assert jobs
    for job in jobs.values():
        for fork in (False, True):
            assert github_condition(job["if"], event_name, label, fork) is runs
        assert github_condition(job["if"], event_name, label, runner="") is (runs and event_name != "schedule")


def test_a_pull_request_reaches_the_gpu_only_by_the_act_of_labelling():
    triggers = workflow("gpu.yml")["on"]
    assert set(triggers) == {"schedule", "workflow_dispatch", "pull_request"}
    assert triggers["pull_request"] == {"types": ["labeled"]}  # pushing to a labelled pull request starts nothing
    assert triggers["schedule"]


def test_ci_runs_the_same_script_everywhere():
    test_job = workflow("ci.yml")["jobs"]["test"]
    assert "bash .ci/run" in [step.get("run") for step in test_job["steps"]]
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").rstrip().endswith("make test")
    subprocess.run(["bash", "-n", script], check=True)
