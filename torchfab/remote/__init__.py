"""The program that runs on a node: standard library only, Python 3.9 or newer, nothing installed.

The launch machine sends these modules over the connection's standard input as one source text (see
`torchfab.transport.bundle`). The same text is written into the job's folder on the node, where the supervisors run it.
The modules import each other and the standard library only. They never import `typing` at run time, because every
module costs a node milliseconds and megabytes.

    server    answers the launch machine's requests over stdin and stdout
    files     atomic JSON files and the job's folder: names of all files that are written on a node
    procfs    /proc: process trees, processes that carry a job's id, memory kills of a control group
    tmux      the private tmux server
    job/      a job on this node: prepare, start, supervise, status, logs, stop
    host/     the host itself: GPUs, disks, kernel log, network, interpreter
    stacks/   stack dumps of the ranks
    slurm/    a job on a Slurm cluster, run on a host that has Slurm's commands
    shims/    small standalone programs that launchers put into a process's folder
"""
