"""Configurations and manifests in YAML and JSON: which command line they become, and what is not carried over."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.importers.factories import command, notes, read
from tests.support import fuzzed, refusal
from torchfab import importers
from torchfab.core.errors import UsageError
from torchfab.importers.draft import render

ACCELERATE = """
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: FSDP
downcast_bf16: 'no'
fsdp_config:
  fsdp_offload_params: false
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
  reshard_after_forward: true
machine_rank: 0
main_process_ip: 10.0.0.1
mixed_precision: bf16
num_machines: 2
num_processes: 16
use_cpu: false
"""
RAY = """
cluster_name: mine
provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2, 10.0.0.3]}
auth: {ssh_user: ubuntu, ssh_private_key: ~/.ssh/id_rsa}
setup_commands:
  - pip install torch
docker:
  image: rayproject/ray
"""
PYTORCH_JOB = """
apiVersion: kubeflow.org/v1
kind: PyTorchJob
metadata: {name: mnist, namespace: ml, labels: {kueue.x-k8s.io/queue-name: q, team: a}}
spec:
  pytorchReplicaSpecs:
    Master:
      replicas: 1
      restartPolicy: OnFailure
      template:
        spec:
          containers:
            - name: pytorch
              image: me/train:1
              command: ["torchrun", "--nproc_per_node=2", "/opt/train.py"]
              args: ["--lr=1", "--run=$(RUN)"]
              env:
                - {name: NCCL_DEBUG, value: INFO}
                - {name: MASTER_PORT, value: "23456"}
                - {name: HF_TOKEN, value: "0123456789"}
                - name: POD_IP
                  valueFrom: {fieldRef: {fieldPath: status.podIP}}
              resources:
                limits: {nvidia.com/gpu: 4, memory: 64Gi}
                requests: {cpu: "8"}
              volumeMounts:
                - {name: data, mountPath: /data}
                - {name: shm, mountPath: /dev/shm}
                - {name: etc, mountPath: /etc/x}
          volumes:
            - {name: data, persistentVolumeClaim: {claimName: claim}}
            - {name: shm, emptyDir: {medium: Memory, sizeLimit: 16Gi}}
            - {name: etc, configMap: {name: x}}
          nodeSelector: {gpu: h100}
          tolerations:
            - {key: gpu, operator: Exists, effect: NoSchedule}
          schedulerName: volcano
    Worker:
      replicas: 3
      template: {spec: {containers: [{name: pytorch, image: me/train:1}]}}
"""
TRAIN_JOB = """
apiVersion: trainer.kubeflow.org/v1alpha1
kind: TrainJob
metadata: {name: t}
spec:
  runtimeRef: {name: torch-distributed}
  trainer:
    numNodes: 4
    numProcPerNode: 8
    image: pytorch/pytorch:2.5.1
    command: ["bash", "-c"]
    args: ["cd /src && torchrun train.py --a $(X)"]
    resourcesPerNode: {requests: {nvidia.com/gpu: 8}}
    env:
      - {name: PET_NNODES, value: "4"}
"""
JOB_SET = """
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata: {name: pytorch}
spec:
  replicatedJobs:
    - name: workers
      template:
        spec:
          parallelism: 4
          completions: 4
          template:
            spec:
              containers:
                - name: pytorch
                  image: gcr.io/x:latest
                  env:
                    - {name: MASTER_ADDR, value: pytorch-workers-0-0.pytorch}
                    - name: RANK
                      valueFrom: {fieldRef: {fieldPath: metadata.annotations}}
                    - {name: PYTHONUNBUFFERED, value: "0"}
                  command:
                    - bash
                    - -xc
                    - |
                      echo hello
                      torchrun --nproc_per_node=1 --master_addr=$MASTER_ADDR mnist.py --epochs=1
"""
FILES: dict[str, tuple[str, list[str]]] = {
    "accelerate": (
        ACCELERATE,
        [
            *("launch-per-node", "--nodes=2", "--nproc-per-node=8", "--env=ACCELERATE_USE_FSDP=true"),
            *("--env=FSDP_OFFLOAD_PARAMS=false", "--env=FSDP_TRANSFORMER_CLS_TO_WRAP=LlamaDecoderLayer"),
            *("--env=FSDP_RESHARD_AFTER_FORWARD=true", "--env=ACCELERATE_MIXED_PRECISION=bf16", "--", "SCRIPT.py"),
        ],
    ),
    "ray": (
        RAY,
        [
            "-i",
            "~/.ssh/id_rsa",
            "-H",
            "ubuntu@10.0.0.1,ubuntu@10.0.0.2,ubuntu@10.0.0.3",
            "launch-per-node",
            "--",
            "SCRIPT.py",
        ],
    ),
    "PyTorchJob": (
        PYTORCH_JOB,
        [
            *("launch-kubernetes", "--name=mnist", "--nodes=4", "--gpus-per-node=4", "--nproc-per-node=2"),
            *("--namespace=ml", "--queue=q", "--image=me/train:1", "--cpus=8", "--memory=64Gi", "--pvc=claim:/data"),
            "--shm=16Gi",
            *("--node-selector=gpu=h100", "--toleration=gpu:NoSchedule", "--env=NCCL_DEBUG=INFO"),
            *("--", "/opt/train.py", "--lr=1", "--run=\ue000$RUN\ue001"),
        ],
    ),
    "TrainJob": (
        TRAIN_JOB,
        [
            *("launch-kubernetes", "--name=t", "--nodes=4", "--gpus-per-node=8", "--nproc-per-node=8"),
            *("--image=pytorch/pytorch:2.5.1", "--workdir=/src", "--", "train.py", "--a", "\ue000${X}\ue001"),
        ],
    ),
    "JobSet": (
        JOB_SET,
        [
            *("launch-kubernetes", "--name=pytorch", "--nodes=4", "--nproc-per-node=1", "--jobset"),
            *("--image=gcr.io/x:latest", "--env=PYTHONUNBUFFERED=0", "--", "mnist.py", "--epochs=1"),
        ],
    ),
    "deepspeed": (
        '{"train_batch_size": 8}',
        ["launch-deepspeed", "--", "SCRIPT.py", "--deepspeed", "--deepspeed_config", "file"],
    ),
}


@pytest.mark.parametrize(("text", "expected"), FILES.values(), ids=FILES)
def test_each_kind_of_document_becomes_a_command_line(text: str, expected: list[str]) -> None:
    assert command(read(text)) == expected


POD = "spec.pytorchReplicaSpecs.Master.template.spec"
NOTES: dict[str, tuple[str, dict[str, str]]] = {
    "accelerate": (ACCELERATE, {"11: main_process_ip: 10.0.0.1": "fab sets it: node 0"}),
    "ray": (
        RAY,
        {
            "6: setup_commands: pip install torch": "fab runs no commands of this file",
            "8: docker.image: rayproject/ray": "ranks run on the nodes themselves",
        },
    ),
    "PyTorchJob": (
        PYTORCH_JOB,
        {
            "4: metadata.labels.team: a": "fab has no flag for it",
            "9: spec.pytorchReplicaSpecs.Master.restartPolicy: OnFailure": "a failed pod fails the job",
            "19: MASTER_PORT=…": "fab sets it",
            "20: HF_TOKEN=…": "a secret: export it in this terminal",
            "21: env POD_IP": "its value comes from the cluster",
            f"29: {POD}.containers.volumeMounts: /etc/x": "only PersistentVolumeClaims",
            f"37: {POD}.schedulerName: volcano": "fab has no flag for it",
        },
    ),
    "TrainJob": (
        TRAIN_JOB,
        {"6: runtimeRef.name: torch-distributed": "its image", "15: PET_NNODES=…": "torchrun would"},
    ),
    "JobSet": (JOB_SET, {"19: RANK=…": "the launcher sets it", "26: echo hello": "it only prints"}),
}


@pytest.mark.parametrize(("text", "expected"), NOTES.values(), ids=NOTES)
def test_what_is_not_carried_over_is_listed_with_its_line(text: str, expected: dict[str, str]) -> None:
    found = notes(read(text))
    for key, reason in expected.items():
        assert found[key].startswith(reason), (key, found)


def test_the_value_of_a_secret_in_a_manifest_is_shown_nowhere() -> None:
    assert "0123456789" not in render(read(PYTORCH_JOB), "x")


def _refused(text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        importers.read(text, "x")
    return caught.value


@pytest.mark.parametrize("kind", ["Service", "Deployment", "MPIJob", "RayCluster", "ConfigMap"])
def test_another_kind_of_kubernetes_is_refused_by_its_name(kind: str) -> None:
    error = _refused(f"apiVersion: v1\nkind: {kind}\nspec: {{replicas: 2}}\n")
    assert error.message == f"x: the kind {kind} of Kubernetes cannot be imported"
    assert "PyTorchJob, TrainJob, JobSet or Job" in error.fix


def test_a_job_counts_before_its_runtime_in_the_same_file() -> None:
    runtime = "apiVersion: trainer.kubeflow.org/v1alpha1\nkind: TrainingRuntime\nmetadata: {name: r}\nspec: {a: b}\n"
    draft = read(f"# both\n{runtime}---\n{TRAIN_JOB.lstrip()}")
    assert draft.title == "a TrainJob"
    assert "0: the kind TrainingRuntime of Kubernetes" in notes(draft)


RAY = """
# The cluster's file, with mappings over several lines
cluster_name: default
provider:
    type: local
    head_ip: head
    worker_ips: [a, b]
file_mounts: {
#    "/remote": "/local",
}
"""


def test_a_document_after_comments_with_a_mapping_over_several_lines_is_read() -> None:
    assert command(read(RAY))[:2] == ["-H", "head,a,b"]


def test_counts_that_are_no_numbers_are_noted() -> None:
    found = notes(read("compute_environment: LOCAL_MACHINE\nnum_machines: $NNODES\nnum_processes: 8x\n"))
    assert found["2: num_machines: $NNODES"] == "not a number: --nodes and --nproc-per-node set it"
    assert "3: num_processes: 8x" in found


BROKEN = {
    "deep YAML": ("kind: " + "[" * 3000 + "]" * 3000, "x: its lists are nested too deeply"),
    "deep JSON": ('{"a":' * 3000 + "1" + "}" * 3000, "x: its lists are nested too deeply"),
    "YAML": ("apiVersion: v1\nkind: Job\n  bad: [\n", "x:3: not valid YAML: mapping values are not allowed here"),
    "a list": ("- a\n- b\n", "x: an unknown kind of JSON or YAML document"),
    "a tag": ("kind: Job\nspec: !!python/object/apply:os.system [x]\n", "x: an unknown kind of JSON or YAML document"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_document_is_refused_without_advice_about_hosts(text: str, message: str) -> None:
    error = _refused(text)
    assert error.message == message
    assert "host" not in error.fix


def test_of_several_documents_the_one_that_launches_counts() -> None:
    service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n"
    draft = read(f"{service}---\n{TRAIN_JOB.lstrip()}")
    assert draft.script[0] == "train.py"
    assert "9: runtimeRef.name: torch-distributed" in notes(draft)
    assert "0: the kind Service of Kubernetes" in notes(draft)


def test_a_cluster_that_a_cloud_makes_has_no_hosts() -> None:
    draft = read("cluster_name: x\nprovider:\n  type: aws\n  region: us-west-2\n")
    assert "-H" not in command(draft)
    assert notes(draft)["0: provider.type: aws"].startswith("a cloud creates the machines")


def test_a_document_of_no_known_kind_is_an_error() -> None:
    with pytest.raises(UsageError, match="x: an unknown kind of JSON or YAML document"):
        importers.read('{"a": 1}', "x")


KEYS = st.sampled_from(
    [
        *("apiVersion", "kind", "metadata", "name", "labels", "spec", "template", "containers", "command", "args"),
        *("env", "value", "image", "resources", "limits", "requests", "cpu", "volumes", "volumeMounts", "emptyDir"),
        *("replicas", "pytorchReplicaSpecs", "Master", "Worker", "replicatedJobs", "trainer", "runtimeRef", "key"),
        *("compute_environment", "num_machines", "fsdp_config", "cluster_name", "provider", "auth", "tolerations"),
    ]
)
TEXTS = st.sampled_from(["torchrun", "a.py", "bash", "-c", "PyTorchJob"])
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), TEXTS),
    lambda each: st.one_of(st.lists(each, max_size=3), st.dictionaries(KEYS, each, max_size=4)),
)
KINDS = st.sampled_from(["PyTorchJob", "TrainJob", "JobSet", "Job", "Pod"])


@fuzzed(st.dictionaries(KEYS, VALUES, max_size=5), KINDS)
def test_any_document_is_turned_into_a_command_or_rejected(document: dict[str, Any], kind: str) -> None:
    for values in (document, {"apiVersion": "v1", "kind": kind, "spec": document}):
        text = json.dumps(values)
        error = refusal(UsageError, partial(_read, text))
        assert error is None or error.message.startswith("x")


def _read(text: str) -> None:
    assert render(importers.read(text, "x"), "x")


# ---- what accelerate itself makes of it

FSDP = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
mixed_precision: bf16
num_machines: 2
num_processes: 16
main_process_ip: 10.0.0.1
main_process_port: 29500
machine_rank: 1
dynamo_config:
  dynamo_backend: INDUCTOR
  dynamo_mode: default
fsdp_config:
  fsdp_version: 1
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_backward_prefetch: BACKWARD_PRE
  fsdp_cpu_ram_efficient_loading: true
  fsdp_offload_params: false
  fsdp_sharding_strategy: FULL_SHARD
  fsdp_state_dict_type: SHARDED_STATE_DICT
  fsdp_sync_module_states: true
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
  fsdp_use_orig_params: true
"""
DEEPSPEED = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
mixed_precision: fp16
num_machines: 1
num_processes: 8
deepspeed_config:
  gradient_accumulation_steps: 4
  gradient_clipping: 1.0
  offload_optimizer_device: none
  offload_param_device: none
  zero3_init_flag: true
  zero3_save_16bit_model: false
  zero_stage: 3
"""


@pytest.mark.parametrize(
    ("text", "prepare"), [(FSDP, "prepare_multi_gpu_env"), (DEEPSPEED, "prepare_deepspeed_cmd_env")]
)
def test_the_variables_are_those_that_accelerate_sets(text: str, prepare: str, tmp_path: object) -> None:
    launch = pytest.importorskip("accelerate.commands.launch")
    path = f"{tmp_path}/config.yaml"
    with open(path, "w") as file:
        file.write(text)
    args = launch.launch_command_parser().parse_args(["--config_file", path, "a.py"])
    args, *_ = launch._validate_launch_command(args)
    args.deepspeed_fields_from_accelerate_config = []
    env = getattr(launch, prepare)(args)
    theirs = env[-1] if isinstance(env, tuple) else env
    ours = read(text).env
    assert {name: theirs.get(name) for name in ours} == ours
    names = [name for name in theirs if name.startswith(("FSDP_", "ACCELERATE_USE", "ACCELERATE_DEEPSPEED_ZERO"))]
    missing = {name: theirs[name] for name in names if name not in ours}
    assert all(value in ("false", "None", "true") or name == "FSDP_MIN_NUM_PARAMS" for name, value in missing.items())
