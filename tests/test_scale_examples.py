"""The examples for clusters in docs/: what their schedulers would take."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml

from wbc_keras.config import load_config
from wbc_keras.train import main
from wbc_keras.training.hosts import find_place


@pytest.fixture
def manifests(root):
    text = (root / "docs" / "train_job.yaml").read_text(encoding="utf-8")
    return list(yaml.safe_load_all(text))


def test_kubernetes_takes_the_job_and_its_service(manifests):
    validate = pytest.importorskip("kubernetes_validate")
    for manifest in manifests:
        validate.validate(manifest, validate.latest_version(), strict=True)
    wrong = manifests[1] | {"spec": manifests[1]["spec"] | {"completionMod": "Indexed"}}
    with pytest.raises(validate.ValidationError):
        validate.validate(wrong, validate.latest_version(), strict=True)


def test_pods_find_the_first_one(manifests):
    service, job = manifests
    spec = job["spec"]
    template = spec["template"]["spec"]
    variables = {one["name"]: one["value"] for one in template["containers"][0]["env"]}
    assert spec["completionMode"] == "Indexed"  # gives JOB_COMPLETION_INDEX and stable names
    place = find_place(variables | {"JOB_COMPLETION_INDEX": "3"})
    assert place is not None
    assert (place.count, place.index) == (spec["completions"], 3)
    assert spec["parallelism"] == spec["completions"]
    # NAME-0.SUBDOMAIN, and the subdomain is that of a Service that selects the Job's pods.
    (port,) = service["spec"]["ports"]
    assert place.address == f"{job['metadata']['name']}-0.{template['subdomain']}:{port['port']}"
    assert service["metadata"]["name"] == template["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert service["spec"]["clusterIP"] == "None" or service["spec"]["clusterIP"] is None


def test_slurm_script_is_a_script_and_its_settings_are_those_of_sbatch(root):
    path = root / "docs" / "train.sbatch"
    if bash := shutil.which("bash"):
        subprocess.run([bash, "-n", str(path)], check=True)
    text = path.read_text(encoding="utf-8")
    options = re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE)
    known = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time"}
    assert set(options) <= known | {"requeue", "output"}  # of sbatch's manual
    assert "--ntasks-per-node=1" in text


@pytest.mark.parametrize("name", ["train.sbatch", "train_job.yaml"])
def test_what_they_run_is_a_command_of_ours(root, name, monkeypatch, capsys):
    text = (root / "docs" / name).read_text(encoding="utf-8")
    (config,) = re.findall(r"--config[ =](\S+)", text)
    monkeypatch.chdir(root)
    assert load_config(config)
    assert "wbc_keras.train" in text
    with pytest.raises(SystemExit):
        main(["--help"])
    help_text = capsys.readouterr().out
    for option in set(re.findall(r"(?<=[ \"])--(config|data|output|resume)\b", text)):
        assert f"--{option}" in help_text
