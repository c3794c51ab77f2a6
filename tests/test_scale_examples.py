"""The examples for clusters in docs/: what their schedulers would take."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

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
    assert set(options) <= known | {"requeue", "output", "open-mode"}  # of sbatch's manual
    assert "--ntasks-per-node=1" in text


def sbatch_command(root):
    text = (root / "docs" / "train.sbatch").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("srun ")]
    return shlex.split(line)


def test_what_slurm_would_forget_is_said(root):
    command = sbatch_command(root)
    assert "--cpus-per-task=$SLURM_CPUS_PER_TASK" in command[: command.index("python")]
    # A job that is queued again would empty its log.
    text = (root / "docs" / "train.sbatch").read_text(encoding="utf-8")
    assert "#SBATCH --open-mode=append" in text.splitlines()


def test_a_mistake_is_not_tried_again_and_a_loss_is(manifests):
    spec = manifests[1]["spec"]
    pod = spec["template"]["spec"]
    fail, ignore = spec["podFailurePolicy"]["rules"]
    assert pod["restartPolicy"] == "Never"  # or Kubernetes refuses the policy
    assert fail["action"] == "FailJob"
    assert fail["onExitCodes"]["values"] == [2]  # and not 75, the loss of another process
    assert fail["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert ignore["action"] == "Ignore"


def test_pods_have_memory_for_nccl(manifests):
    pod = manifests[1]["spec"]["template"]["spec"]
    mounts = {one["mountPath"]: one["name"] for one in pod["containers"][0]["volumeMounts"]}
    volumes = {one.pop("name"): one for one in pod["volumes"]}
    assert mounts.keys() == {"/dev/shm", "/shared"}
    assert volumes.keys() == set(mounts.values())
    assert volumes[mounts["/dev/shm"]] == {"emptyDir": {"medium": "Memory"}}


@pytest.mark.parametrize("name", ["train.sbatch", "train_job.yaml"])
def test_what_they_run_is_a_command_of_ours(root, name, manifests, monkeypatch):
    container = manifests[1]["spec"]["template"]["spec"]["containers"][0]
    command = container["command"] if name == "train_job.yaml" else sbatch_command(root)
    start = command.index("python")
    assert command[start + 1 : start + 3] == ["-m", "wbc_keras.train"]
    asked = {}

    def train(config, **options):
        asked.update(options, name=config.name)
        return Path(options["output"])

    monkeypatch.chdir(root)
    monkeypatch.setattr("wbc_keras.train.train", train)
    assert main(command[start + 3 :]) == 0  # which knows every option and reads the config
    assert asked == {
        "name": "lmu_resnet50_cbam",
        "data": "/shared/packed",
        "output": "/shared/runs/lmu",
        "resume": True,
        "dry_run": False,
    }
