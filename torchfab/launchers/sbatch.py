"""An sbatch file as text: `#SBATCH` lines, then bash. The one place where a Slurm job's words become shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torchfab.core.errors import UsageError

quote = shlex.quote

_FILE = """\
#!/bin/bash
{directives}
#
{comments}

{env}

script=(
{script}
)

# The rendezvous is on the first node of the allocation, on a port that no other job of these days has.
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
master_addr=$(scontrol show node "$first_node" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
master_port={port}

# srun runs this once on each node.
run_node() {{
    local folder={folder} master_addr=$1 master_port=$2
    local node=$folder/node-$SLURM_NODEID/agent
    shift 2
    cd {workdir} || exit
    trap '' USR1 # Slurm sends it to every process; ranks that want to hear it do, torchrun would die of it
    export TORCHFAB_NODE_RANK=$SLURM_NODEID TORCHELASTIC_ERROR_FILE=$node/errors/error.json
    export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{threads}}}"
    (umask 077 && mkdir -p "$node/logs" "$node/errors")
    set -- {torchrun} \\
        "$@"
    # Where torchfab submitted this, its supervisor writes down the ranks and how they end.
    if [ -f "$folder/node.py" ]; then
        set -- {python} -I -S "$folder/node.py" slurm "$@"
    fi
    exec "$@"
}}

srun --kill-on-bad-exit=1 --export=ALL{srun} bash -c "$(declare -f run_node); run_node \\"\\$@\\"" run_node \\
    "${{master_addr:-$first_node}}" "$master_port" "${{script[@]}}"
code=$?

# srun's code is the largest of its tasks'; the job's is that of the rank that failed first.
if [ "$code" -ne 0 ] && [ -f {folder}/node.py ]; then
    {python} -I -S {folder}/node.py slurm-code "$code"
    code=$?
fi
(exit "$code")
"""


@dataclass(frozen=True)
class Script:
    """What an sbatch file says.

    Parameters
    ----------
    directives : Mapping of str to str or None
        Options of sbatch by their long names; None for one without a value.
    comments : sequence of str
        What a reader must know.
    env : Mapping of str to str
        What every process gets.
    secrets : sequence of str
        Names of variables that sbatch's own environment must hold: their values are not in the file.
    folder, workdir : str
        The job's folder and the directory to run in, absolute, on every node.
    port : int, optional
        Port of the rendezvous; None: made of Slurm's job id.
    python : str
        An interpreter on every node, as one shell word: for the supervisor.
    torchrun : sequence of sequences of str
        The command of each node as shell words, a line for each sequence.
    script : sequence of str
        What torchrun runs: any text.
    threads : str
        OMP_NUM_THREADS as shell.
    srun : sequence of str
        More options of srun.
    """

    directives: Mapping[str, str | None]
    comments: Sequence[str]
    env: Mapping[str, str]
    secrets: Sequence[str]
    folder: str
    workdir: str
    port: int | None
    python: str
    torchrun: Sequence[Sequence[str]]
    script: Sequence[str]
    threads: str
    srun: Sequence[str] = ()

    def render(self) -> str:
        """Return the text of the file.

        Raises
        ------
        UsageError
            A directive's value has control characters.
        """
        return _FILE.format(
            directives="\n".join(directive(name, value) for name, value in self.directives.items()),
            comments="\n".join(f"# {line}" for text in self.comments for line in text.splitlines()),
            env="\n".join(_environment(self.env, self.secrets)),
            script="\n".join(_in_lines(self.script)),
            port=self.port or "$((10000 + SLURM_JOB_ID % 20000))",
            folder=quote(self.folder),
            workdir=quote(self.workdir),
            threads=self.threads,
            python=self.python,
            torchrun=" \\\n        ".join(" ".join(words) for words in self.torchrun),
            srun="".join(f" {word}" for word in self.srun),
        )


def directive(name: str, value: str | None) -> str:
    """Return an `#SBATCH` line; sbatch reads double quotes and backslashes much as a shell does, and nothing else."""
    if value is None:
        return f"#SBATCH --{name}"
    if not value or any(ord(sign) < 32 or ord(sign) == 127 for sign in value):
        raise UsageError(f"--{name} cannot be {value!r} in an sbatch file", "it takes one line of printable text")
    plain = all(sign.isalnum() or sign in "%+,-./:=@_^~" for sign in value)
    text = value if plain else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"#SBATCH --{name}={text}"


def _environment(env: Mapping[str, str], secrets: Sequence[str]) -> Iterator[str]:
    for name, value in env.items():
        yield f"export {name}={quote(value)}"
    for name in secrets:
        yield f': "${{{name}?is taken from the environment of sbatch}}"'


def _in_lines(words: Sequence[str]) -> list[str]:
    """Return words as shell, an option and what follows it on a line of its own."""
    lines: list[str] = []
    for word in words:
        if lines and not word.startswith("-"):
            lines[-1] += f" {quote(word)}"
        else:
            lines.append(f"    {quote(word)}")
    return lines
