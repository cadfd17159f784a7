"""What runs on a node: standard library only, Python 3.9 or newer, nothing installed.

These modules are sent over the connection's standard input as one source text (see `torchfab.bundle`), and the same
text is written into the job's folder on the node, where the supervisors run it. They import each other and the standard
library only, and import `typing` never at run time: a node pays for every module in milliseconds and megabytes.

    files        atomic JSON files, the job's folder: the only names of files that are written on a node
    procfs       /proc: who descends from whom, who carries the job's id
    tmux         the private tmux server
    supervisor   the parent of one process of the job: starts it, watches it, leaves nothing behind
    ranks        finds the ranks below a process, with their true exit codes
    logfiles     which log files there are, whose they are, and when their lines were written
    prepare      phase one: check everything, make the job's folder, hold the port
    start        phase two: hand the processes to tmux
    life         status and stop
    logs         read and follow the logs
    stacks       the stacks of the ranks; spy: by py-spy; faults: by the signal that faulthandler answers
    slurm        a job on a Slurm cluster, where its commands are: status, stop
    slurmsubmit  its submission
    slurmtask    what srun starts on each node of it
    slurmstacks  the stacks of its ranks
    slurmlogs    its logs, of all nodes
    wire         the conversation with the launch machine
"""
