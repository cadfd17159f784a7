"""launch-kubernetes: manifests as values, valid for real versions, with unchanged arguments."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from string import Template
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import make_job
from tests.hostile import HOSTILE, UTF8, environments, texts
from tests.kube.kubelet import argv_of, environment_of
from torchfab.core.errors import JobNameError, UsageError
from torchfab.core.flag_values import parse
from torchfab.core.specs import Job, Node, Submission
from torchfab.launchers import kubernetes

VERSIONS = [version for version in kubernetes_validate.utils.all_versions() if int(version.split(".")[1]) >= 29]
IMAGE = "registry.example/train:1"
EVERYTHING: dict[str, Any] = {
    "nodes": "2", "gpus_per_node": "8", "cpus": "16", "memory": "64Gi", "shm": "16Gi", "namespace": "ml",
    "pvc": ("data:/data", "runs:/runs/here"), "image_pull_secret": ("registry",), "service_account": "trainer",
    "priority_class": "high", "node_selector": ("gpu=h200", "example.com/pool=a"), "queue": "research",
    "toleration": ("nvidia.com/gpu=present:NoSchedule", "spot"), "max_restarts": "2",
}  # fmt: skip


def job_with(values: Mapping[str, Any] | None = None, **flags: Any) -> Job:
    own = parse(kubernetes.Flags, {"image": IMAGE, "nodes": "2", **flags})
    base = {"launcher": "kubernetes", "python": "python", "workdir": "/workspace", "options": kubernetes.options(own)}
    return make_job(**{**base, **(values or {})})


def submission(values: Mapping[str, Any] | None = None, **flags: Any) -> Submission:
    return kubernetes.plan(job_with(values, **flags))


def objects(made: Submission) -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in yaml.safe_load_all(made.text)}


def pod_of(made: Submission) -> dict[str, Any]:
    """Return the pods' spec of a Job or a JobSet."""
    found = objects(made)
    spec = found["Job"]["spec"] if "Job" in found else found["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod: dict[str, Any] = spec["template"]["spec"]
    return pod


def test_the_manifest_with_all_options_matches_the_golden_file(golden: Callable[[str, str], None]) -> None:
    values = {"env": {"NCCL_DEBUG": "WARN"}, "secrets": {"HF_TOKEN": "s3cret"}, "grace_s": 30.0}
    golden("job-kubernetes.yaml", submission(values, **EVERYTHING).text)


def test_the_manifest_of_a_jobset_matches_the_golden_file(golden: Callable[[str, str], None]) -> None:
    golden("jobset-kubernetes.yaml", submission(nodes="2", jobset=True, max_restarts="3").text)


def test_the_details_of_a_submission() -> None:
    made = submission({"secrets": {"HF_TOKEN": "x"}}, gpus_per_node="4", namespace="ml", pvc=("data:/data",))
    assert (made.nodes, made.world_size) == (2, 8)
    assert made.hosts == (Node(0, "gpt2-0"), Node(1, "gpt2-1"))
    assert made.details == {
        "id": "0a1b2c3d", "name": "gpt2", "kind": "Job", "context": "", "namespace": "ml", "secret": "gpt2-env",
        "claims": ["data"], "ranks_per_node": 4, "max_restarts": 0, "queue": "",
    }  # fmt: skip


# ---- valid for real clusters


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "flags",
    [{}, EVERYTHING, {"jobset": True, **EVERYTHING}, {"user": "image", "nodes": "1"}, {"queue": "q"}],
    ids=["bare", "everything", "jobset", "image's user", "queue"],
)
def test_manifests_are_valid(version: str, flags: dict[str, Any]) -> None:
    made = submission({"secrets": {"HF_TOKEN": "x"}, "env": {"A": "b"}}, **flags)
    for item in objects(made).values():
        # The schema of a JobSet is not among Kubernetes's own: the Job in it is.
        each = jobs_of(item) if item["kind"] == "JobSet" else item
        kubernetes_validate.validate(each, version, strict=True)
        check_rules(each)


def jobs_of(jobset: Mapping[str, Any]) -> dict[str, Any]:
    """Check a JobSet and return the Job that it creates."""
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    spec = jobset["spec"]
    assert set(spec) <= {"suspend", "network", "failurePolicy", "replicatedJobs"}
    assert set(spec["network"]) == {"enableDNSHostnames", "publishNotReadyAddresses", "subdomain"}
    (replicated,) = spec["replicatedJobs"]
    assert (replicated["name"], replicated["replicas"]) == ("node", 1)
    assert replicated["template"]["spec"]["template"]["spec"]["subdomain"] == spec["network"]["subdomain"]
    name = f"{jobset['metadata']['name']}-node-0"
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": replicated["template"]["spec"]}


def check_rules(item: Mapping[str, Any]) -> None:
    """Assert what a schema does not express: enums, and rules across fields, from the API reference."""
    meta = item["metadata"]
    for value in (meta.get("labels") or {}).values():
        assert len(value) <= 63
    if item["kind"] == "Service":
        assert item["spec"]["clusterIP"] == "None"
        assert all(port["protocol"] == "TCP" for port in item["spec"]["ports"])
        return
    spec, pod = item["spec"], item["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    assert pod["restartPolicy"] == "Never"
    assert len(f"{meta['name']}-{spec['completions'] - 1}") <= 63
    if "podFailurePolicy" in spec:
        assert spec["podReplacementPolicy"] == "Failed"
        for rule in spec["podFailurePolicy"]["rules"]:
            assert rule["action"] in ("Ignore", "FailJob", "Count", "FailIndex")
            assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
            codes = rule.get("onExitCodes", {"operator": "In", "values": [1]})
            assert codes["operator"] in ("In", "NotIn")
            assert 0 not in codes["values"]
            assert codes["values"] == sorted(set(codes["values"]))
    check_pod(pod)


def check_pod(pod: Mapping[str, Any]) -> None:
    (container,) = pod["containers"]
    volumes = [volume["name"] for volume in pod["volumes"]]
    mounts = [mount["name"] for mount in container["volumeMounts"]]
    assert sorted(volumes) == sorted(mounts)
    assert len({mount["mountPath"] for mount in container["volumeMounts"]}) == len(mounts)
    assert pod["volumes"][0]["emptyDir"]["medium"] == "Memory"
    names = [entry["name"] for entry in container["env"]]
    assert len(names) == len(set(names))
    assert all(("value" in entry) != ("valueFrom" in entry) for entry in container["env"])
    assert container["terminationMessagePolicy"] in ("File", "FallbackToLogsOnError")
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for toleration in pod.get("tolerations", ()):
        assert toleration["operator"] in ("Exists", "Equal")
        assert ("value" in toleration) == (toleration["operator"] == "Equal")
        assert toleration.get("effect", "NoSchedule") in ("NoSchedule", "PreferNoSchedule", "NoExecute")
    resources = container.get("resources", {})
    for name, amount in resources.get("limits", {}).items():
        assert resources.get("requests", {}).get(name, amount) <= amount


def test_the_service_selects_the_pods() -> None:
    found = objects(submission())
    labels = found["Job"]["spec"]["template"]["metadata"]["labels"]
    selector = found["Service"]["spec"]["selector"]
    assert selector.items() <= labels.items()
    assert found["Service"]["metadata"]["name"] == pod_of(submission())["subdomain"]
    assert found["Service"]["spec"]["publishNotReadyAddresses"] is True


def test_the_first_pod_is_the_master_for_job_and_jobset() -> None:
    def master(made: Submission) -> str:
        args = pod_of(made)["containers"][0]["args"]
        return str(args[args.index("--master-addr") + 1])

    assert master(submission()) == "gpt2-0.gpt2"
    assert master(submission(jobset=True)) == "gpt2-node-0-0.gpt2"


def test_pods_are_not_root_unless_the_image_decides() -> None:
    security = pod_of(submission())["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == 1000
    assert pod_of(submission(user="0"))["securityContext"]["runAsNonRoot"] is False
    assert "runAsUser" not in pod_of(submission(user="image"))["securityContext"]


def test_a_service_account_token_is_mounted_only_on_request() -> None:
    assert pod_of(submission())["automountServiceAccountToken"] is False
    assert pod_of(submission(service_account="trainer"))["automountServiceAccountToken"] is True


def test_planning_does_not_change_the_job() -> None:
    job = job_with({"env": {"A": "b"}})
    before = repr(job)
    kubernetes.plan(job)
    assert (repr(job), kubernetes.plan(job)) == (before, kubernetes.plan(job))


# ---- secrets


def test_secrets_are_not_in_the_manifest_but_their_command_is() -> None:
    made = submission({"secrets": {"HF_TOKEN": "s3cret"}}, namespace="ml", context="prod")
    assert "s3cret" not in made.text
    assert "s3cret" not in repr(made.details)
    command_line = "kubectl --context prod --namespace ml create secret generic gpt2-env"
    assert f'#   {command_line} --from-file=HF_TOKEN=<(printf %s "${{HF_TOKEN?}}")' in made.text


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_the_shown_command_creates_the_secret_of_the_manifest() -> None:
    made = submission({"secrets": {"HF_TOKEN": "x"}})
    command = next(line[4:] for line in made.text.splitlines() if "create secret" in line)
    env = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HF_TOKEN": "it's $(a)\n$x", "HOME": "/nonexistent"}
    command_line = ("bash", "-c", f"{command} --dry-run=client -o yaml")
    done = subprocess.run(command_line, env=env, capture_output=True, text=True, check=True)
    secret = yaml.safe_load(done.stdout)
    assert secret["metadata"]["name"] == "gpt2-env"
    assert list(secret["data"]) == ["HF_TOKEN"]


# ---- arguments and environment


def survivors(made: Submission, secrets: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return the arguments of the script and the environment as a pod gets them."""
    container = pod_of(made)["containers"][0]
    env = environment_of(container, 1, secrets)
    argv = argv_of(container, env)
    # torchrun is the last to parse the arguments.
    return [Template(word).safe_substitute(local_rank="0") for word in argv[argv.index("--tee") + 2 :]], env


def is_text(text: str) -> bool:
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


@given(
    st.lists(texts().filter(is_text), min_size=1, max_size=5),
    environments().filter(lambda env: all(map(is_text, env.values()))),
    st.dictionaries(st.sampled_from(["A_TOKEN", "B_KEY"]), texts().filter(is_text)),
)
def test_any_argv_and_environment_survive_the_manifest(
    script: list[str], env: dict[str, str], secrets: dict[str, str]
) -> None:
    values = {"script": tuple(script), "env": env, "secrets": secrets}
    args, got = survivors(submission(values), secrets)
    assert args == script
    assert {name: got[name] for name in env} == env
    assert {name: got[name] for name in secrets} == secrets
    assert got["TORCHFAB_NODE_RANK"] == "1"


@pytest.mark.parametrize(
    "text",
    [
        "$(HOME)",
        "$$",
        "$",
        "$$(A)",
        "$$$",
        "a$(JOB_COMPLETION_INDEX)",
        "${x}",
        "$(",
        "$()",
        "${local_rank}",
        "$local_rank $$local_rank",
    ],
)
def test_text_that_looks_like_an_expansion_is_not_expanded(text: str) -> None:
    args, got = survivors(submission({"script": ("x.py", text), "env": {"V_X": text}}), {})
    assert args == ["x.py", text]
    assert got["V_X"] == text


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_kubectl_parses_the_same_arguments() -> None:
    ambiguous = ("1e3", "0o17", "y", "off", "~", "null", "0x1F", "1_000", "=", "<<", "2026-01-01", ".5", "12:30:00", "")
    script = ("x.py", *ambiguous, *(text for name, text in UTF8.items() if name != "100 KB"))
    made = submission({"script": script, "env": dict(zip("abcdefghijklmn", ambiguous, strict=True))})
    job = made.text[made.text.index("---\napiVersion: batch") :]
    command_line = ("kubectl", "label", "--local", "-f", "-", "a=b", "-o", "json")
    done = subprocess.run(command_line, input=job, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    container = json.loads(done.stdout)["spec"]["template"]["spec"]["containers"][0]
    env = environment_of(container, 0, {})
    argv = argv_of(container, env)
    assert tuple(Template(arg).safe_substitute() for arg in argv[argv.index("--tee") + 2 :]) == script
    assert [env[name] for name in "abcdefghijklmn"] == list(ambiguous)


def test_arguments_that_are_not_utf_8_are_an_error() -> None:
    for values in (
        {"script": ("x.py", HOSTILE["not utf-8"])},
        {"env": {"A": "\udcff"}},
        {"secrets": {"A_KEY": "\udcff"}},
    ):
        with pytest.raises(UsageError, match="is not UTF-8, which a Kubernetes manifest requires"):
            submission(values)


# ---- names


@pytest.mark.parametrize(
    ("name", "nodes", "expected"), [("Big_Run-7", "2", "big-run-7"), ("a" * 61, "10", "a" * 61), ("x", "1", "x")]
)
def test_names_become_dns_names(name: str, nodes: str, expected: str) -> None:
    assert submission({"name": name}, nodes=nodes).details["name"] == expected


def test_a_name_that_is_too_long_with_its_index_is_an_error() -> None:
    with pytest.raises(JobNameError) as caught:
        submission({"name": "a" * 61}, nodes="11")
    assert "has 64 characters, and DNS allows 63\n  fix: choose a --name of at most 60 characters" in str(caught.value)
    with pytest.raises(JobNameError, match="at most 54 characters"):
        submission({"name": "a" * 55}, nodes="2", jobset=True)


@pytest.mark.parametrize("name", ["7b", "run-", "run_", "1"])
def test_names_that_are_not_dns_names_are_an_error(name: str) -> None:
    with pytest.raises(JobNameError, match="a DNS name starts with a letter"):
        submission({"name": name})


# ---- bad flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"image": ""}, "no --image was given"),
        ({"image": "a b"}, "--image names a container image, got 'a b'"),
        ({"nodes": "0"}, "--nodes must be a number of at least 1, got '0'"),
        ({"nodes": "two"}, "--nodes must be a number of at least 1, got 'two'"),
        ({"gpus_per_node": "-1"}, "--gpus-per-node must be a number of at least 0"),
        ({"nproc_per_node": "0"}, "--nproc-per-node must be a number of at least 1"),
        ({"cpus": "many"}, "--cpus is an amount as Kubernetes writes it"),
        ({"memory": "64GB"}, "--memory is an amount"),
        ({"memory": "0"}, "--memory is an amount"),
        ({"shm": "-1Gi"}, "--shm is an amount"),
        ({"pvc": ("data",)}, "--pvc is NAME:/path, got 'data'\n  fix: --pvc data:/data"),
        ({"pvc": ("data:relative",)}, "--pvc is NAME:/path"),
        ({"pvc": ("Data:/x",)}, "--pvc names an object with lower-case letters"),
        ({"pvc": ("a:/x", "b:/x/")}, "/x cannot be mounted over"),
        ({"pvc": ("a:/",)}, "/ cannot be mounted over"),
        ({"pvc": ("a:/dev/shm",)}, "/dev/shm cannot be mounted over"),
        ({"pvc": ("a:/x/../y",)}, "--pvc is NAME:/path"),
        ({"node_selector": ("disk",)}, "--node-selector expects KEY=VALUE, got 'disk'\n  fix: --node-selector disk="),
        ({"node_selector": ("a b=c",)}, "--node-selector: 'a b' is not a name"),
        ({"node_selector": ("a=b c",)}, "--node-selector: 'b c' cannot be a label's value"),
        ({"node_selector": ("a=b", "a=c")}, "names a twice"),
        ({"toleration": ("a:Never",)}, "the effect is NoSchedule, PreferNoSchedule, NoExecute, got 'Never'"),
        ({"toleration": ("=x",)}, "--toleration is KEY[=VALUE][:EFFECT]"),
        ({"toleration": ("a/b/c",)}, "--toleration: 'a/b/c' is not a name"),
        ({"gpu_resource": "nvidia gpu"}, "--gpu-resource: 'nvidia gpu' is not a name"),
        ({"namespace": "My"}, "--namespace names an object"),
        ({"queue": "a_b"}, "--queue names an object"),
        ({"max_restarts": "x"}, "--max-restarts must be a number of at least 0"),
        ({"user": "root"}, "--user must be image, or a number of at least 0, got 'root'"),
    ],
)  # fmt: skip
def test_an_invalid_flag_is_an_error_in_one_line(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        job_with(None, **flags)
    assert message in str(caught.value)


# ---- setup, before, after


def test_setup_and_before_run_in_the_container_in_front_of_its_command() -> None:
    setup = 'export PATH="/loaded:$PATH" A="$(echo \'x y\')"; true'
    made = pod_of(submission({"setup": setup, "before": "test \"$A\" = 'x y' && echo before"}))["containers"][0]
    made["command"][-2:] = ["sh", "-c"]
    made["args"] = ["echo $A $PATH $@", "sh", "it's", "$(A)"]
    done = subprocess.run(argv_of(made, {}), capture_output=True, text=True, check=True)
    assert done.stdout.startswith("before\nx y /loaded:")
    assert done.stdout.endswith(" it's $(A)\n")


@pytest.mark.parametrize(("values", "code"), [({"setup": "echo a; false"}, 1), ({"before": "exit 7"}, 7)])
def test_a_setup_or_before_that_fails_is_the_end_of_the_container(values: Mapping[str, str], code: int) -> None:
    made = pod_of(submission(values))["containers"][0]
    assert subprocess.run(argv_of(made, {}), capture_output=True, check=False).returncode == code


def test_without_setup_the_command_is_the_interpreter() -> None:
    assert pod_of(submission())["containers"][0]["command"] == ["python", "-c"]


def test_the_commands_after_are_those_of_the_entry_point() -> None:
    env = environment_of(pod_of(submission({"after": "rm $X", "hook_timeout_s": 9.0}))["containers"][0], 0, {})
    assert (env["TORCHFAB_AFTER"], env["TORCHFAB_AFTER_S"]) == ("rm $X", "9")
