"""Supervision: a job is seen through failures, sick nodes and hangs, by launching it again under its name.

values      Policy, Ending, Past, Decision: what is known and what is done about it
deciding    history, ending, policy -> decision; pure
story       what happened, as words; and back from the record's events to the history; pure
lemons      the nodes that are left out, and why
lock        one supervisor per job; `fab stop` wins over a restart
eyes        watch one attempt until it ends, fails, hangs or loses a node
inquest     why an attempt ended: the story of `fab why`, and what doctor finds on its nodes
notify      tell a command or a URL
scribe      the story while it is written
remains     what may still run of earlier attempts
relaunch    the next attempt: on which nodes, after what wait
supervisor  all of it, in a loop
command     `fab supervise`, and launches with `--supervise`
"""
