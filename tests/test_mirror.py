"""`tests` mirrors `torchfab`: a module with functions has the test file of its name, or a place in the list."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"

# Test files of several modules, which are one thing to a user or need the same set-up: the modules of each. A new
# module gets a file of its own.
SEVERAL = {
    "api/test_handle.py": "api/actions api/results",
    "cli/test_program.py": "fabfile cli/excepthook",
    "cli/test_completion.py": "commands/completion",
    "cli/test_setting_levels.py": "commands/config",
    "collectives/test_align.py": "collectives/model collectives/report",
    "config/test_validate.py": "config/defaults",
    "core/hostfiles/test_ansible.py": "core/hostfiles/ansible_data core/hostfiles/ansible_ini",
    "core/hostfiles/test_clustershell.py": "core/hostlines/node_groups",
    "core/hostfiles/test_hostfiles.py": """
        core/hostfiles/dialect core/hostfiles/documents core/hostfiles/etc_hosts core/hostfiles/lists
        core/hostfiles/mpich core/hostfiles/nodefile core/hostfiles/openmpi core/hostfiles/refusals
        core/hostfiles/structured
    """,
    "core/test_inventory.py": "core/hostlines/hints core/hostlines/keys core/hostlines/targets",
    "documents/test_schema.py": "documents/base",
    "doctor/test_node.py": "doctor/model",
    "importers/test_document_values.py": """
        importers/accelerate_config importers/accelerate_settings importers/manifests importers/ray_cluster
    """,
    "importers/test_scripts.py": """
        importers/directives importers/draft importers/launch_lines importers/options commands/import_file
    """,
    "integration/test_bad_hosts.py": "transport/ssh/connect transport/ssh/login",
    "integration/test_doctor.py": "commands/doctor remote/host/probe remote/host/filesystems remote/host/python_env",
    "integration/test_env_push.py": "commands/env",
    "integration/test_forward.py": "transport/ssh/forward",
    "integration/test_host_keys.py": "transport/ssh/host_certificates transport/ssh/host_keys",
    "integration/test_hooks.py": "remote/job/after_hook",
    "integration/test_jobs.py": "commands/jobs commands/launch commands/logs commands/status",
    "integration/test_login_errors.py": "transport/ssh/agent",
    "integration/test_mcp.py": "commands/mcp",
    "integration/test_network.py": "commands/network",
    "integration/test_profile.py": "commands/profile runtimes/tmux_profile",
    "integration/test_signal.py": "commands/checkpoint",
    "integration/test_stacks.py": "commands/stacks monitoring/stack_dump runtimes/tmux_stacks",
    "integration/test_supervise.py": """
        commands/lemons supervise/detach supervise/job_supervisor supervise/orphans supervise/relauncher
        supervise/stopping supervise/supervisor_status
    """,
    "integration/test_sync.py": "commands/sync remote/host/code_digest",
    "integration/test_top.py": "commands/metrics commands/top monitoring/live_load remote/job/load_stream",
    "integration/test_why.py": "commands/why monitoring/first_failure monitoring/job_diagnosis",
    "launchers/test_colossalai.py": "remote/shims/colossalai_run",
    "launchers/test_kubernetes.py": """
        launchers/manifest/objects launchers/manifest/pod_entrypoint launchers/manifest/quantities
    """,
    "launchers/test_slurm.py": "launchers/sbatch",
    "launchers/test_mpi.py": "launchers/shims",
    "launching/test_launch.py": "config/connection_settings launching/launcher_table launching/submit runtimes/tmux",
    "monitoring/test_job_watcher.py": "monitoring/log_request",
    "remote/host/test_gpu_health.py": "remote/host/kernel_log",
    "remote/job/test_evidence.py": "remote/job/process_search",
    "remote/job/test_stop.py": "remote/job/containment",
    "remote/job/test_supervisor.py": "remote/job/clean_up remote/job/exit_record",
    "remote/shims/test_call.py": "remote/job/call_results",
    "remote/test_server.py": "remote/job/start_barrier transport/node_streams",
    "remote/slurm/test_job.py": "remote/slurm/evidence remote/slurm/stacks remote/slurm/step",
    "doctor/test_launch_warnings.py": "remote/host/quick_probe",
    "api/test_function_calls.py": "runtimes/tmux_call_results",
    "runtimes/test_tmux_attach.py": "commands/attach",
    "runtimes/kubernetes/test_status.py": "runtimes/kubernetes/query runtimes/kubernetes/reasons",
    "test_texts.py": "core/errors",
    "transport/ssh/test_config.py": "transport/ssh/route",
    "transport/test_messages.py": "transport/messages/doctor",
    "why/test_diagnosis.py": "why/attribution why/evidence why/failures why/report why/stragglers",
    "why/test_line_prefixes.py": "why/traceback_layouts",
    "why/test_docs.py": "why/signature",
}
COVERED = {module: path for path, modules in SEVERAL.items() for module in modules.split()}


def modules() -> list[str]:
    """Return the modules that define a function, as paths below torchfab without `.py`."""
    package = ROOT / "torchfab"
    paths = [path for path in sorted(package.rglob("*.py")) if not path.stem.startswith("__")]
    return [path.relative_to(package).with_suffix("").as_posix() for path in paths if defines_a_function(path)]


def defines_a_function(path: Path) -> bool:
    """Return whether a file defines a function or a method."""
    return any(isinstance(node, ast.FunctionDef) for node in ast.walk(ast.parse(path.read_text())))


def own_file(module: str) -> Path:
    """Return the test file of a module's name."""
    return TESTS / Path(module).with_name(f"test_{Path(module).name}.py")


def test_each_module_with_functions_has_a_test_file_of_its_name() -> None:
    missing = [module for module in modules() if not own_file(module).exists() and module not in COVERED]
    assert missing == [], "write tests/PACKAGE/test_MODULE.py for each"


def test_the_list_of_test_files_of_several_modules_is_up_to_date() -> None:
    assert [path for path in SEVERAL if not (TESTS / path).exists()] == []
    assert [module for module in COVERED if not (ROOT / "torchfab" / f"{module}.py").exists()] == []
    assert [module for module in COVERED if own_file(module).exists()] == []
