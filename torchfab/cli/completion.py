"""Completion in bash, zsh and fish: the script of each shell, and the candidates for a word. Pure.

A script calls `torchfab --complete -- WORD…` with the words up to the cursor, the last of which may be empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torchfab.core.errors import UsageError
from torchfab.core.lazy_dataclass import dataclass

# Without candidates, the shells complete file names.
_BASH = """\
# Completion of {name} for bash: source it, or write it to ~/.local/share/bash-completion/completions/{name}
_{function}_complete() {{
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("$line")
    done < <({name} --complete -- "${{COMP_WORDS[@]:0:COMP_CWORD+1}}" 2>/dev/null)
}}
complete -o default -F _{function}_complete {name}
"""
_ZSH = """\
#compdef {name}
# Completion of {name} for zsh: source it after compinit, or write it to a folder of $fpath as _{name}
_{function}() {{
    local -a found
    found=("${{(@f)$({name} --complete -- "${{(@Q)words[1,CURRENT]}}" 2>/dev/null)}}")
    found=(${{found:#}})
    if (( $#found )); then
        compadd -- $found
    else
        _files
    fi
}}
if [[ "${{funcstack[1]-}}" = _{function} ]]; then
    _{function} "$@"
else
    (( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit }}
    compdef _{function} {name}
fi
"""
_FISH = """\
# Completion of {name} for fish: source it, or write it to ~/.config/fish/completions/{name}.fish
function __{function}_complete
    set -l current (commandline --current-token --cut-at-cursor)
    set -l words (commandline --tokenize --cut-at-cursor --current-process)
    set -l found ({name} --complete -- $words "$current" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path "$current"
    end
end
complete --command {name} --no-files --arguments '(__{function}_complete)'
"""
SCRIPTS: Mapping[str, str] = MappingProxyType({"bash": _BASH, "zsh": _ZSH, "fish": _FISH})
_HOST_FLAGS = ("H", "hosts", "node", "host", "forgive")
_EMPTY: Callable[[], Sequence[str]] = tuple


def script(shell: str, name: str) -> str:
    """Return the completion script of a shell.

    Parameters
    ----------
    shell : str
        `bash`, `zsh` or `fish`.
    name : str
        The name of our command.

    Returns
    -------
    str

    Raises
    ------
    UsageError
        There is no script for this shell.
    """
    if shell not in SCRIPTS:
        raise UsageError(f"there is completion for {', '.join(SCRIPTS)}, got {shell!r}")
    return SCRIPTS[shell].format(name=name, function=name.replace("-", "_"))


@dataclass(frozen=True)
class Known:
    """The sources of completion candidates.

    Parameters
    ----------
    core : ParserContext
        The flags of the program itself.
    tasks : Mapping of str to ParserContext
        The flags of each task, by its name.
    taking_command : sequence of str
        The tasks that take a command after `--`.
    jobs, hosts : callable
        Return the names of all jobs, and of all hosts; called only when needed.
    """

    core: Any
    tasks: Mapping[str, Any]
    taking_command: Sequence[str] = ()
    jobs: Callable[[], Sequence[str]] = _EMPTY
    hosts: Callable[[], Sequence[str]] = _EMPTY


def candidates(words: Sequence[str], known: Known) -> list[str]:
    """Return the completion candidates of the last word.

    Parameters
    ----------
    words : sequence of str
        The command line up to the cursor, without the program's name; the last word may be incomplete.
    known : Known
        The sources of candidates.

    Returns
    -------
    list of str
        Empty if a file is expected, or nothing matches.
    """
    *before, current = words or [""]
    if "--" in before:
        return []
    flag, task, given = _read(before, known)
    if flag is not None:
        found = _values(flag.name, current, known)
    elif current.startswith("-"):
        found = _flags(task, known)
    elif not task:
        found = sorted(known.tasks)
    else:
        found = _words(task, given, known)
    return [each for each in found if each.startswith(current)]


def _read(words: Sequence[str], known: Known) -> tuple[Any, str, int]:
    """Return the flag whose value comes next, the task, and the number of words after the task."""
    flag, task, given = None, "", 0
    for word in words:
        if flag is not None:
            flag = None
        elif word.startswith("-"):
            flag = _waiting(word, task, known)
        elif word in known.tasks and not (task and _takes_word(task, given, known)):
            task, given = word, 0
        else:
            given += 1
    return flag, task, given


def _waiting(word: str, task: str, known: Known) -> Any:
    """Return the flag of a word if its value is the next word."""
    contexts = [known.tasks[task]] if task else []
    for context in [*contexts, known.core]:
        if word in context.flags:
            return context.flags[word] if context.flags[word].takes_value else None
    return None


def _takes_word(task: str, given: int, known: Known) -> bool:
    names = [each.name for each in known.tasks[task].positional_args]
    return "words" in names or (bool(names) and given == 0)


def _values(flag: str, current: str, known: Known) -> list[str]:
    if flag == "job":
        return list(known.jobs())
    if flag not in _HOST_FLAGS:
        return []
    head = current.rpartition(",")[0] + "," if flag in ("H", "hosts") and "," in current else ""
    return [head + host for host in known.hosts()]


def _flags(task: str, known: Known) -> list[str]:
    return sorted(
        {
            name
            for name in (known.tasks[task] if task else known.core).flag_names()
            if name.startswith("--") and name != "--words"
        }
    )


def _words(task: str, given: int, known: Known) -> list[str]:
    names = [each.name for each in known.tasks[task].positional_args]
    if "job" in names:
        return list(known.jobs()) if given == 0 else []
    if task == "completion":
        return sorted(SCRIPTS) if given == 0 else []
    if "words" in names:  # of pull and forward
        extra = ["tensorboard"] if task == "forward" else []
        return [*(known.jobs() if given == 0 else ()), *extra]
    return ["--"] if task in known.taking_command else []
