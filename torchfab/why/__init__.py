"""Diagnose why a job ended: what failed first, on which host and rank, and what followed from it.

    evidence = runtimes.load(record.runtime).evidence(record)    collected from the nodes or from the scheduler
    diagnosis = torchfab.why.diagnosis.diagnose(evidence)        pure
    torchfab.why.report.render(diagnosis)                        human-readable
    torchfab.why.report.as_json(diagnosis)                       JSON

`evidence` holds frozen values that are the same for every runtime. Nothing in this package depends on the runtime.

Fields for programs that act on a diagnosis (a supervisor that restarts jobs, a script that reads `--json`):

    diagnosis.cause.kind     `causes.Kind`: SCRIPT (it fails again on any node), NODE (it may succeed without that
                             node), MEMORY, KILLED, NETWORK, STOPPED (on request), RUNNING, SUCCEEDED, UNKNOWN
    diagnosis.cause.name     the cause within its kind: `exception`, `exit-code`, `import-error`, `disk-full`, ...
    diagnosis.first          the first failure: time, host, rank and exit code; None when nothing failed
    diagnosis.bad_nodes      the hosts of a NODE cause: without them the job may succeed; empty for all other kinds
    diagnosis.stragglers     the ranks or hosts that the others waited for (NETWORK), or may have waited for
    diagnosis.fingerprint    equal for equal failures: a hash of the exception and the last frames of its
                             traceback, without numbers and addresses; without a traceback, a hash of the cause's name
                             and the exit code; empty when nothing failed
    diagnosis.unreachable    the hosts that could not be queried, with the reason: their evidence is missing
"""
