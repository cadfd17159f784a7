"""Parse the options of other launchers' command lines with a table of the options that take a value."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torchfab.core.lazy_dataclass import dataclass


@dataclass(frozen=True)
class Option:
    """An option: its name with dashes for underscores and without leading ones, and its value, if it has one."""

    name: str
    value: str | None = None

    def __str__(self) -> str:
        dashes = "-" if len(self.name) == 1 else "--"
        return f"{dashes}{self.name}" + ("" if self.value is None else f" {self.value}")


@dataclass(frozen=True)
class Grammar:
    """The options of a program.

    Parameters
    ----------
    valued : collection of str
        Options whose value is the next word or follows `=`; after a single letter it may follow directly.
    switches : collection of str
        Options without a value. Any other option has a value if a word without dashes follows.
    all_long : bool
        Whether options of several letters have a single dash, as those of mpirun.
    last : collection of str
        Options that end the option list, such as `-m` of python.
    """

    valued: Collection[str]
    switches: Collection[str] = ()
    all_long: bool = False
    last: Collection[str] = ()

    def parse(self, words: Sequence[str]) -> tuple[list[Option], tuple[str, ...]]:
        """Return the options at the beginning of some words, and the words after them.

        Parameters
        ----------
        words : sequence of str
            The words after the program's name.

        Returns
        -------
        list of Option
            In their order.
        tuple of str
            From the first word that is no option, or after `--`.
        """
        options: list[Option] = []
        index = 0
        while index < len(words) and words[index].startswith("-") and len(words[index]) > 1:
            if words[index] == "--":
                return options, tuple(words[index + 1 :])
            option, count = self._option(words, index)
            options.append(option)
            index += count
            if option.name in self.last:
                break
        return options, tuple(words[index:])

    def _option(self, words: Sequence[str], index: int) -> tuple[Option, int]:
        word = words[index]
        bare, equals, value = word.lstrip("-").partition("=")
        name = bare.replace("_", "-")
        if not word.startswith("--") and not self.all_long and len(name) > 1:
            if name in self.valued or name in self.switches:
                pass
            elif name[0] in self.valued:
                return Option(name[0], word[2:].removeprefix("=")), 1
        if equals:
            return Option(name, value), 1
        if name in self.switches:
            return Option(name), 1
        follows = index + 1 < len(words) and (name in self.valued or not words[index + 1].startswith("-"))
        return (Option(name, words[index + 1]), 2) if follows else (Option(name), 1)


SRUN = Grammar(
    valued=(
        *"ACDGJLMNPRSTWXbcdegijmnopqrtwx",
        *(
            "ntasks",
            "nodes",
            "jobid",
            "cpus-per-task",
            "gpus",
            "gres",
            "ntasks-per-node",
            "gpus-per-task",
            "gpus-per-node",
        ),
        *("nodelist", "output", "error", "time", "partition", "account", "mem", "wait", "container-image", "mpi"),
        *(
            "container-mounts",
            "container-workdir",
            "cpu-bind",
            "distribution",
            "job-name",
            "chdir",
            "export",
            "exclude",
        ),
    ),
    switches=(
        *(
            "l",
            "label",
            "u",
            "unbuffered",
            "K",
            "k",
            "no-kill",
            "overlap",
            "pty",
            "exclusive",
            "Q",
            "quiet",
            "v",
            "verbose",
        ),
        *("kill-on-bad-exit", "no-container-mount-home", "container-writable", "container-mount-home", "s", "H"),
    ),
)
SSH = Grammar(valued=tuple("BbcDEeFIiJLlmOoPpQRSWw"), switches=tuple("46AaCfGgKkMNnqsTtVvXxYy"))
BLAUNCH = Grammar(valued=("z", "u", "use-login-shell"), switches=("n", "no-wait", "no-shell"))
MPIRUN = Grammar(
    valued=(
        *("n", "np", "N", "H", "host", "hostfile", "machinefile", "f", "ppn", "npernode", "x", "wdir", "wd"),
        *("map-by", "bind-to", "rank-by", "envlist", "genvlist", "iface", "launcher", "hosts", "env-list"),
    ),
    switches=(
        "allow-run-as-root",
        "oversubscribe",
        "tag-output",
        "report-bindings",
        "v",
        "q",
        "nolocal",
        "display-map",
    ),
    all_long=True,
)
TORCHRUN = Grammar(
    valued=(
        *("nnodes", "nproc-per-node", "rdzv-backend", "rdzv-endpoint", "rdzv-id", "rdzv-conf", "max-restarts"),
        *("monitor-interval", "start-method", "event-log-handler", "role", "log-dir", "r", "redirects", "t", "tee"),
        *("local-ranks-filter", "node-rank", "master-addr", "master-port", "local-addr", "logs-specs", "numa-binding"),
        *("signals-to-handle", "shutdown-timeout", "duplicate-stdout-filters", "duplicate-stderr-filters"),
    ),
    switches=("standalone", "m", "module", "no-python", "run-path", "virtual-local-rank", "use-env"),
)
ACCELERATE = Grammar(
    valued=(),
    switches=(
        *("quiet", "q", "cpu", "multi-gpu", "tpu", "enable-cpu-affinity", "dynamo-use-fullgraph", "dynamo-use-dynamic"),
        *("dynamo-use-regional-compilation", "use-deepspeed", "use-fsdp", "use-parallelism-config", "use-megatron-lm"),
        *(
            "same-network",
            "m",
            "module",
            "no-python",
            "downcast-bf16",
            "debug",
            "tpu-cluster",
            "no-tpu-cluster",
            "use-cpu",
        ),
        *("fp8-use-autocast-during-eval", "tpu-use-sudo"),
    ),
)
DEEPSPEED = Grammar(
    valued=(
        *("H", "hostfile", "i", "include", "e", "exclude", "num-nodes", "num-gpus", "num-accelerators", "master-port"),
        *("master-addr", "node-rank", "launcher", "launcher-args", "enable-each-rank-log", "autotuning", "ssh-port"),
        *("bind-core-list", "venv-script", "log-level"),
    ),
    switches=(
        *("module", "no-python", "no-local-rank", "no-ssh", "no-ssh-check", "force-multi", "save-pid"),
        *("bind-cores-to-rank", "quiet"),
    ),
)
PYTHON = Grammar(valued=("X", "W", "c", "m"), switches=tuple("bBdEhiIOPqsSuvVx"), last=("m", "c"))
