"""Parse a launch command: torchrun, accelerate, deepspeed, mpirun or python, also behind srun or another wrapper."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field

from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.shell_words import SHELLS
from torchfab.importers import accelerate_settings, variables
from torchfab.importers.draft import Draft, is_dynamic, source_of
from torchfab.importers.options import ACCELERATE, BLAUNCH, DEEPSPEED, MPIRUN, PYTHON, SRUN, TORCHRUN, Option

_PYTHON = re.compile(r"python([23](\.\d+)?)?")
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_POSITIONAL = re.compile(r"\$[@*]|\$\{[@*]\}|\$\{@:.*\}")
_TORCHRUN_MODULES = ("torch.distributed.run", "torch.distributed.launch")
_ACCELERATE_MODULES = ("accelerate.commands.launch", "accelerate.commands.accelerate_cli")
# Programs that run the command in their arguments, after their own options.
_WRAPPERS = ("env", "exec", "nohup", "time", "timeout", "nice", "numactl", "command", "stdbuf", "ionice", "setsid")
# Programs that run a command in an environment or a container, with options of their own before it.
_NOT_RUN = "the program in front of the command is not run"
_CONTAINER = "ranks run on the nodes themselves, not in a container"
_ENVIRONMENT = "give the environment's interpreter with --python; fab env push creates a project's environment"
_RUNNERS: Mapping[str, str] = {
    **dict.fromkeys(("docker", "podman", "apptainer", "singularity", "shifter", "enroot", "udocker"), _CONTAINER),
    **dict.fromkeys(("conda", "mamba", "micromamba", "uv", "poetry", "pipenv", "pixi", "rye", "hatch"), _ENVIRONMENT),
    **dict.fromkeys(("pdsh", "clush", "parallel-ssh", "pssh"), "fab connects to the nodes itself"),
    **dict.fromkeys(("taskset", "chrt", "sudo", "nsys", "strace", "perf"), _NOT_RUN),
}
_SETS_ITSELF = "fab sets it: node 0, a free port, the ranks of the nodes"
_LOGS = "fab keeps the logs of all ranks: fab logs"
_TORCHRUN_REASONS: Mapping[str, str] = {
    **dict.fromkeys(
        ("rdzv-id", "rdzv-endpoint", "node-rank", "master-addr", "master-port", "local-addr", "standalone"),
        _SETS_ITSELF,
    ),
    **dict.fromkeys(("role", "tee", "t", "redirects", "r", "log-dir", "local-ranks-filter"), _LOGS),
    "use-env": "torchrun does so by itself",
}


@dataclass
class Launch:
    """A launch command, as far as it could be converted.

    Attributes
    ----------
    kind : str
        `torchrun`, `accelerate`, `deepspeed`, `mpirun`, `srun`, `blaunch` or `python`.
    script : tuple of str
        The script or module, and its arguments.
    settings : dict of str to str
        Flags of fab that the command implies.
    env : dict of str to str
        Variables that it sets.
    skipped : list of pairs of str
        The parts that are not carried over, each with the reason.
    unknown : dict of str to str
        Flags of fab with unknown values, and the options that set them.
    """

    kind: str
    script: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)

    def skip(self, option: object, reason: str) -> None:
        """Note an option that is not carried over.

        Parameters
        ----------
        option : object
            The option; its text is shown.
        reason : str
            Why it is not carried over, or what to do instead.
        """
        self.skipped.append((str(option), reason))

    def keep(self, name: str, option: Option) -> None:
        """Set a flag of fab to the value of an option, if the value is known.

        Parameters
        ----------
        name : str
            Name of the flag, without dashes.
        option : Option
            The option.
        """
        if option.value is not None and is_dynamic(option.value):
            self.unknown[name] = str(option)
        elif option.value is not None:
            self.settings[name] = option.value

    def apply(self, draft: Draft, number: int) -> None:
        """Add the command to a draft.

        Parameters
        ----------
        draft : Draft
            The draft; completed in place.
        number : int
            Line of the command, from 1; 0 if unknown.
        """
        draft.script = tuple(word for word in self.script if not _POSITIONAL.fullmatch(source_of(word)))
        if draft.script != self.script:
            draft.skip(number, '"$@"', "the arguments of the imported script: write yours after the command")
        for name, value in self.env.items():
            variables.carry(draft, number, name, value)
        for text, reason in self.skipped:
            draft.skip(number, text, reason)


def parse(words: Sequence[str]) -> Launch | None:
    """Parse a command that launches training.

    Parameters
    ----------
    words : sequence of str
        The expanded words of a simple command.

    Returns
    -------
    Launch or None
        None if the command launches nothing.
    """
    return _parse(tuple(words), Launch("python"), 0)


def _parse(words: tuple[str, ...], launch: Launch, depth: int) -> Launch | None:
    if not words or depth > 10:
        return None
    program = posixpath.basename(words[0])
    if _SETTING.match(words[0]):
        name, _, value = words[0].partition("=")
        launch.env[name] = value
        return _parse(words[1:], launch, depth)
    if program in _STARTERS:
        return _STARTERS[program](words[1:], launch, depth + 1)
    if program in _LAUNCHERS:
        return _LAUNCHERS[program](words[1:], launch)
    if _PYTHON.fullmatch(program):
        return _python(words, launch)
    return _wrapped(words, launch, depth) if program in _WRAPPERS or program in _RUNNERS else None


def _wrapped(words: tuple[str, ...], launch: Launch, depth: int) -> Launch | None:
    """Parse the command in the arguments of a program such as `timeout -s INT 3600` or `uv run`."""
    program = posixpath.basename(words[0])
    position = _command_behind(words)
    if not position:
        return None
    dropped = [word for word in words[1:position] if not _SETTING.match(word)]
    if program in ("env", "docker", "podman"):
        settings = (word.partition("=") for word in words[1:position] if _SETTING.match(word))
        launch.env.update({name: value for name, _, value in settings})
    if program not in ("exec", "env", "command", "time") or dropped:
        launch.skip(" ".join([words[0], *dropped]), _RUNNERS.get(program, _NOT_RUN))
    rest = words[position:]
    return _parse(("python", *rest) if rest[0].endswith(".py") else rest, launch, depth + 1)


def _command_behind(words: tuple[str, ...]) -> int:
    """Return where the command begins that a program runs; 0 for none.

    A word behind an option may be its value (`conda run -n deepspeed python x.py`), so that others go before it.
    """
    names = [posixpath.basename(word) for word in words]
    known = [index for index in range(1, len(words)) if _is_command(names[index])]
    scripts = [index for index in range(1, len(words)) if names[0] in _RUNNERS and names[index].endswith(".py")]
    free = [index for index in known if not words[index - 1].startswith("-")]
    after_long = [index for index in known if words[index - 1].startswith("--")]
    return next(iter(free or after_long or known or scripts), 0)


def _is_command(program: str) -> bool:
    known = program in _STARTERS or program in _LAUNCHERS or (program in _WRAPPERS and program != "exec")
    return known or bool(_PYTHON.fullmatch(program))


# ---- srun, mpirun


def _srun(words: tuple[str, ...], launch: Launch, depth: int) -> Launch | None:
    options, rest = SRUN.parse(words)
    known = {"n": "ntasks", "N": "nodes", "D": "chdir", "c": "cpus-per-task"}
    launch.kind = "srun"
    for option in options:
        name = known.get(option.name, option.name)
        if name == "chdir":
            launch.keep("workdir", option)
        elif name == "export" and option.value:
            _exports(option.value, launch)
        elif name in ("ntasks-per-node", "ntasks"):
            launch.keep(f"srun-{name}", option)
        elif name == "nodes":
            launch.keep("nodes", option)
        elif name.startswith("container"):
            launch.skip(f"srun {option}", "ranks run on the nodes themselves, not in a container")
        else:
            launch.skip(f"srun {option}", "fab starts the ranks without srun's options")
    return _parse(rest, launch, depth)


def _exports(text: str, launch: Launch) -> None:
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if equals:
            launch.env[name] = value


def _blaunch(words: tuple[str, ...], launch: Launch, depth: int) -> Launch | None:
    options, rest = BLAUNCH.parse(words)
    launch.kind = "blaunch"
    for option in options:
        launch.skip(f"blaunch {option}", "fab connects to the nodes itself")
    return _parse(rest, launch, depth)


def _mpirun(words: tuple[str, ...], launch: Launch, depth: int) -> Launch | None:
    words = _without_mca(words, launch)
    options, rest = MPIRUN.parse(words)
    launch.kind = "mpirun"
    names = {"hostfile": "hostfile", "machinefile": "hostfile", "f": "hostfile", "wdir": "workdir", "wd": "workdir"}
    names |= {"ppn": "nproc-per-node", "npernode": "nproc-per-node", "N": "nproc-per-node", "n": "np", "np": "np"}
    names |= {"H": "hosts", "host": "hosts", "hosts": "hosts"}
    for option in options:
        if option.name in names:
            launch.keep(names[option.name], option)
        elif option.name in ("x", "genv", "env") and option.value and "=" in option.value:
            name, _, value = option.value.partition("=")
            launch.env[name] = value
        elif option.name == "x":
            launch.skip(option, "a variable of this terminal: fab forwards NCCL_* and the like; else --env NAME=VALUE")
        elif option.name != "allow-run-as-root":
            launch.skip(option, "an option of mpirun; fab launch-mpi passes its own")
    found = _parse(rest, launch, depth)
    if found is None and rest and "/" in rest[0] and not _runs_another(rest[0]):
        launch.script = rest  # a program that is given by its path: mpirun ./train
        return launch
    return found


def _runs_another(path: str) -> bool:
    """Whether a program is a shell, or another one that runs the command in its arguments."""
    program = posixpath.basename(path)
    return program in SHELLS or program in _WRAPPERS or program in _RUNNERS or bool(_PYTHON.fullmatch(program))


def _without_mca(words: tuple[str, ...], launch: Launch) -> tuple[str, ...]:
    """Return the words without `--mca NAME VALUE`, whose options take two values."""
    rest: list[str] = []
    index = 0
    while index < len(words):
        if words[index].lstrip("-") in ("mca", "gmca", "prtemca") and words[index].startswith("-"):
            launch.skip(
                " ".join(words[index : index + 3]), "an option of mpirun; --interface names the network interface"
            )
            index += 3
        else:
            rest.append(words[index])
            index += 1
    return tuple(rest)


# ---- torchrun, accelerate, deepspeed, python


def _torchrun(words: tuple[str, ...], launch: Launch) -> Launch:
    options, rest = TORCHRUN.parse(words)
    launch.kind = "torchrun"
    is_module = False
    for option in options:
        if option.name in ("m", "module"):
            is_module = True
        elif option.name in ("nproc-per-node", "nnodes"):
            launch.keep(option.name, option)
        elif option.name == "max-restarts" and option.value != "0":
            launch.keep("max-restarts", option)
        elif option.name == "rdzv-backend" and option.value not in ("c10d", None):
            launch.skip(option, "fab uses the c10d rendezvous; launch-per-node also has --rdzv-backend static")
        elif option.name not in ("rdzv-backend", "max-restarts"):
            launch.skip(option, _TORCHRUN_REASONS.get(option.name, "an option of torchrun that fab does not pass on"))
    launch.script = ("-m", *rest) if is_module and rest else rest
    return launch


def _accelerate(words: tuple[str, ...], launch: Launch) -> Launch | None:
    if words[:1] != ("launch",):
        return None
    options, rest = ACCELERATE.parse(words[1:])
    launch.kind = "accelerate"
    accelerate_settings.apply_options(options, launch.settings, launch.env, launch.skip)
    is_module = any(option.name in ("m", "module") for option in options)
    launch.script = ("-m", *rest) if is_module and rest else rest
    return launch


def _deepspeed(words: tuple[str, ...], launch: Launch) -> Launch:
    options, rest = DEEPSPEED.parse(words)
    launch.kind = "deepspeed"
    names = {"hostfile": "hostfile", "H": "hostfile", "num-nodes": "nodes", "num-gpus": "nproc-per-node"}
    names |= {"num-accelerators": "nproc-per-node", "master-port": "port"}
    own = {option.name for option in options}
    for option in options:
        if option.name in names:
            launch.keep(names[option.name], option)
        elif option.name in ("include", "i", "exclude", "e"):
            launch.skip(option, "write it into the hosts file: node1 gpus=0,2")
        elif option.name in ("bind-cores-to-rank", "bind-core-list", "log-level"):
            launch.settings["deepspeed-args"] = f"{launch.settings.get('deepspeed-args', '')} {option}".strip()
        elif option.name not in ("module", "no-local-rank"):
            launch.skip(option, "an option of deepspeed that fab sets itself or does not use")
    if "no-local-rank" not in own:
        launch.settings["local-rank"] = ""
    launch.script = ("-m", *rest) if "module" in own and rest else rest
    return launch


def _python(words: tuple[str, ...], launch: Launch) -> Launch | None:
    options, rest = PYTHON.parse(words[1:])
    if "/" in words[0]:
        launch.settings["python"] = words[0]
    module = options[-1].value if options and options[-1].name == "m" else None
    if options and options[-1].name == "c":
        return None
    for option in options:
        if option.name not in ("u", "m"):
            launch.skip(f"python {option}", "options of python are not passed on")
    if module == "torch.distributed.launch" and not {"--use_env", "--use-env"} & set(rest):
        launch.skip(module, "it passes --local-rank to the script; torchrun sets LOCAL_RANK only")
    if module in _TORCHRUN_MODULES:
        return _torchrun(rest, launch)
    if module in _ACCELERATE_MODULES:
        return _accelerate(("launch", *rest) if module == _ACCELERATE_MODULES[0] else rest, launch)
    if module == "deepspeed.launcher.runner":
        return _deepspeed(rest, launch)
    launch.script = ("-m", module, *rest) if module else rest
    runs = bool(module) or (bool(rest) and (rest[0].endswith(".py") or is_dynamic(rest[0])))
    return launch if runs else None


_Starter = Callable[[tuple[str, ...], Launch, int], Launch | None]
_STARTERS: Mapping[str, _Starter] = {"srun": _srun, "mpirun": _mpirun, "mpiexec": _mpirun, "blaunch": _blaunch}
_LAUNCHERS: Mapping[str, Callable[[tuple[str, ...], Launch], Launch | None]] = {
    "torchrun": _torchrun,
    "accelerate": _accelerate,
    "accelerate-launch": lambda words, launch: _accelerate(("launch", *words), launch),
    "deepspeed": _deepspeed,
}
