"""Supervision: relaunch a job under its name after failures, hangs, and lost or sick nodes.

model           Policy, AttemptOutcome, PreviousAttempt, Decision
policy          previous attempts, outcome, policy -> decision; pure
history         the record's events -> previous attempts, and -> text; pure
quarantine      the list of lemon nodes, with reasons
job_locks       one supervisor per job; `fab stop` takes precedence over a relaunch
supervisor_status  the supervisor in `fab status` and `fab logs`
monitor         watch one attempt until it ends, fails, hangs or loses a node
outcome         why an attempt ended: the diagnosis of `fab why`, and doctor's findings on its nodes
notifier        send events to a command or a URL
event_journal   write events to the record, the terminal and the notifier
gpu_memory      wait until the GPUs have freed the memory of earlier attempts
orphans         stop earlier attempts on nodes that were out of reach
relauncher      launch the next attempt: which nodes, after what wait
job_supervisor  the loop over all of these
detach          run the supervisor in tmux

`torchfab.commands.supervise` holds `fab supervise` and launches with `--supervise`.
"""
