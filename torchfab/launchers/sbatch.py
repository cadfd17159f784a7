"""The text of an sbatch file: `#SBATCH` lines, then bash. Only this module turns a Slurm job into shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from torchfab.core.errors import UsageError
from torchfab.core.lazy_dataclass import dataclass
from torchfab.remote.host import login_setup

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

# The rendezvous is on the first node of the allocation, on a port that no other recent job uses.
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
master_addr=$(scontrol show node "$first_node" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
master_port={port}

{set_up}# srun runs this once on each node.
run_node() {{
    local folder={folder} master_addr=$1 master_port=$2
    local node=$folder/node-$SLURM_NODEID/agent
    shift 2
    cd {workdir} || exit{prepare}
    trap '' USR1 # Slurm sends it to every process: ranks may handle it, torchrun would be killed by it
    export TORCHFAB_NODE_RANK=$SLURM_NODEID TORCHELASTIC_ERROR_FILE=$node/errors/error.json
    export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{threads}}}"
    (umask 077 && mkdir -p "$node/logs" "$node/errors")
    set -- {python} {torchrun} \\
        "$@"
    # If torchfab submitted this file, its supervisor records the ranks and their exit codes.
    if [ -f "$folder/node.py" ]; then
        set -- {python} -I -S "$folder/node.py" slurm "$@"
    fi
    exec "$@"
}}

srun --kill-on-bad-exit=1 --export=ALL{srun} bash -c "$(declare -f {functions}); run_node \\"\\$@\\"" run_node \\
    "${{master_addr:-$first_node}}" "$master_port" "${{script[@]}}"
code=$?

# The exit code of srun is the largest of its tasks; that of the job is the code of the rank that failed first.
if [ "$code" -ne 0 ] && [ -f {folder}/node.py ]; then
    {end_python} -I -S {folder}/node.py slurm-code "$code"
    code=$?
fi
(exit "$code")
"""


# Any login shell works: it runs the commands and then writes its environment to a file, which is read back.
_SET_UP = """\
# The commands of --setup in the login shell of a node: what they change in the environment is that of its ranks.
set_up() {{
    local files login line name pair pythons run
    login=$(getent passwd "$(id -u)" | cut -d: -f7)
    login=${{login:-/bin/sh}}
    files=$(mktemp -d) || return
    printf '%s\\n' "$1" >"$files/setup"
    printf 'exec env -0 >"%s/environment"\\n' "$files" >"$files/write"
    line="source '$files/setup' && exec sh '$files/write'"
    pythons=$(type -P python):$(type -P python3)
    case ${{login##*/}} in
        *csh) run=(-i) ;; # with -c it would have no prompt, which csh takes for interactive
        bash | zsh | fish) run=(-ic "$line") ;;
        *) run=(-ic ". ${{line#source }}") ;;
    esac
    (TORCHFAB_SETUP=1 TERM=dumb exec -a "-${{login##*/}}" "$login" "${{run[@]}}") <<<"$line" >"$files/output" 2>&1
    if [ ! -s "$files/environment" ]; then
        echo "--setup failed in $login on ${{SLURMD_NODENAME-}}:" >&2
        tail -n 12 "$files/output" >&2
        rm -rf "$files"
        return 1
    fi
    for name in $(compgen -e); do
        case $name in {kept}) continue ;; esac
        grep -qz "^$name=" "$files/environment" || unset "$name"
    done
    while IFS= read -r -d '' pair; do
        name=${{pair%%=*}}
        case $name in {kept} | [0-9]* | *[!A-Za-z0-9_]*) continue ;; esac
        export "$name=${{pair#*=}}"
    done <"$files/environment"
    rm -rf "$files"
    hash -r
{interpreter}}}

"""
# An interpreter that the commands put first on PATH replaces the default one.
_INTERPRETER = """\
    if [ "$(type -P python)" != "${{pythons%:*}}" ]; then
        python=$(type -P python || echo "$python")
    elif [ "$(type -P python3)" != "${{pythons#*:}}" ]; then
        python=$(type -P python3 || echo "$python")
    fi
    [ "$SLURM_NODEID" != 0 ] || echo "$python" >"$folder/python"
"""


@dataclass(frozen=True)
class Script:
    """The content of an sbatch file.

    Parameters
    ----------
    directives : Mapping of str to str or None
        Options of sbatch by their long names; None for one without a value.
    comments : sequence of str
        Comments for the reader.
    env : Mapping of str to str
        Environment of every process.
    secrets : sequence of str
        Names of variables that the environment of sbatch must hold: their values are not in the file.
    folder, workdir : str
        The job's folder and the directory to run in, absolute, on every node.
    port : int, optional
        Port of the rendezvous; None: derived from Slurm's job id.
    python : str
        An interpreter on every node for the supervisor, as one shell word.
    torchrun : sequence of sequences of str
        The arguments of the interpreter on each node, as shell words, one line for each sequence.
    script : sequence of str
        The script that torchrun runs, with its arguments: any text.
    threads : str
        Value of OMP_NUM_THREADS, as shell.
    srun : sequence of str
        More options of srun. Default: none.
    setup : str
        Commands for the login shell of each node. Default: none.
    python_is_default : bool
        Whether an interpreter that `setup` puts first on PATH replaces `python`. Default False.
    before : str
        Commands for a shell of each node, before its ranks. Default: none.
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
    setup: str = ""
    python_is_default: bool = False
    before: str = ""

    def render(self) -> str:
        """Return the text of the file.

        Returns
        -------
        str

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
            python=self._python(),
            end_python=f'"$(cat {quote(self.folder)}/python 2>/dev/null || echo {self.python})"'
            if self._python() != self.python
            else self.python,
            set_up=self._set_up(),
            functions="set_up run_node" if self.setup else "run_node",
            prepare="".join(f"\n    {line}" for line in self._prepare()),
            torchrun=" \\\n        ".join(" ".join(words) for words in self.torchrun),
            srun="".join(f" {word}" for word in self.srun),
        )

    def _python(self) -> str:
        """Return the interpreter as the node's function names it."""
        return '"$python"' if self.setup and self.python_is_default else self.python

    def _set_up(self) -> str:
        if not self.setup:
            return ""
        kept = " | ".join(sorted({*login_setup.SHELLS_OWN, *self.env, *self.secrets}))
        return _SET_UP.format(kept=kept, interpreter=_INTERPRETER.format() if self.python_is_default else "")

    def _prepare(self) -> Iterator[str]:
        """Yield the commands that a node runs before torchrun."""
        if self.setup and self.python_is_default:
            yield f"local python={self.python}"
        if self.setup:
            yield f"set_up {quote(self.setup)} || exit"
        if self.setup and self.python_is_default:
            yield 'set -- "$1" "$python" "${@:3}" # --no-python and the interpreter of the ranks'
        if self.before:
            yield f"sh -c {quote(self.before)} </dev/null || exit"


def directive(name: str, value: str | None) -> str:
    """Return an `#SBATCH` line; of shell syntax, sbatch supports only double quotes and backslashes.

    Parameters
    ----------
    name : str
        An option of sbatch by its long name.
    value : str, optional
        Its value; None: the option takes no value.

    Returns
    -------
    str

    Raises
    ------
    UsageError
        The value is empty or has control characters.
    """
    if value is None:
        return f"#SBATCH --{name}"
    if not value or any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise UsageError(f"--{name} cannot be {value!r} in an sbatch file", "it takes one line of printable text")
    plain = all(char.isalnum() or char in "%+,-./:=@_^~" for char in value)
    text = value if plain else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"#SBATCH --{name}={text}"


def _environment(env: Mapping[str, str], secrets: Sequence[str]) -> Iterator[str]:
    for name, value in env.items():
        yield f"export {name}={quote(value)}"
    for name in secrets:
        yield f': "${{{name}?is taken from the environment of sbatch}}"'


def _in_lines(args: Sequence[str]) -> list[str]:
    """Return arguments as shell, with each option and its values on one line."""
    lines: list[str] = []
    for arg in args:
        if lines and not arg.startswith("-"):
            lines[-1] += f" {quote(arg)}"
        else:
            lines.append(f"    {quote(arg)}")
    return lines
