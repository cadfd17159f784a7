"""Why a job ended as it did: what happened first, where, and what followed from it.

    evidence = runtimes.load(record.runtime).evidence(record)    asked of the nodes, or of the scheduler
    story = torchfab.why.diagnosis.tell(evidence)                  pure
    torchfab.why.report.text(story), page.as_json(story)         for people, for machines

`evidence` holds frozen values, the same for every runtime; nothing here asks which one it was.

What decides (a supervisor that restarts jobs, a script that reads `--json`):

    story.cause.kind     `causes.Kind`: SCRIPT (it would fail again anywhere), NODE (it may go well without that node),
                         MEMORY, KILLED, NETWORK, STOPPED (on request), RUNNING, SUCCEEDED, UNKNOWN
    story.cause.name     which one of the kind: `exception`, `exit-code`, `import-error`, `disk-full`, ...
    story.first          when, on which host, which rank, with which exit code; None when nothing failed
    story.bad_nodes      the hosts without which it may go well: those of a NODE cause; empty for all other kinds
    story.behind         where the others waited in vain (NETWORK): the hosts that they waited for, or may have
    story.fingerprint    equal for two failures that are the same: the exception and the last frames of its traceback,
                         without numbers and addresses; of a failure without a traceback, its name and exit code; empty
                         when nothing failed
    story.silent         the hosts that could not be asked, and why: what they know is missing from the story
"""
