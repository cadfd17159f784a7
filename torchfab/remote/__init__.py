"""What runs on a node: standard library only, Python 3.9 or newer, nothing installed.

These modules are sent over the connection's standard input as one source text (see `torchfab.transport.bundle`), and
the same text is written into the job's folder on the node, where the supervisors run it. They import each other and the
standard library only, and never import `typing` at run time: every module costs a node milliseconds and megabytes.

    server    answers the launch machine's requests, over stdin and stdout
    files     atomic JSON files and the job's folder: the only names of files that are written on a node
    procfs    /proc: process trees, and which processes carry a job's id
    tmux      the private tmux server
    job/      a job on this node: prepare, start, supervise, status, logs, stop
    host/     the host itself: GPUs, disks, kernel log, network, interpreter
    stacks/   stack dumps of the ranks
    slurm/    a job on a Slurm cluster, run where Slurm's commands are
    shims/    small programs of their own that launchers put into a process's folder
"""
