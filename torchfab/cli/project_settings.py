"""Load the settings of a project into Fabric's configuration, for command lines and for Python programs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fabric
from invoke.config import copy_dict, merge_dicts

from torchfab.cli import excepthook
from torchfab.config import defaults, project, settings_file, validate
from torchfab.core.errors import TorchfabError, UsageError


def load(
    start: Path, ssh_config: str = "", identities: Sequence[str] = (), connect_timeout_s: float | None = None
) -> tuple[Any, Path]:
    """Load the settings of a folder's project, as a command line in that folder does.

    Parameters
    ----------
    start : Path
        The folder.
    ssh_config : str
        An ssh config file, as given with `-S`. Default: the user's and the system's.
    identities : sequence of str
        Private keys to log in with, as given with `-i`.
    connect_timeout_s : float, optional
        Seconds for each step of a connection, as given with `-t`. Default: the setting.

    Returns
    -------
    fabric.Config, Path
        The settings, and the folder of the project: `start` if it belongs to none.

    Raises
    ------
    UsageError
        A file of settings is not valid.
    """
    try:
        return _load(start, ssh_config, identities, connect_timeout_s)
    except TorchfabError:
        raise
    except Exception as error:
        explained = excepthook.explain(error, error.__traceback__)
        if explained is None:
            raise
        raise explained from None


def _load(start: Path, ssh_config: str, identities: Sequence[str], connect_timeout_s: float | None) -> tuple[Any, Path]:
    config, folder = fabric.Config(lazy=True), project.find(start) or start
    config.load_base_conf_files()
    config.set_project_location(str(folder))
    config.load_project(merge=False)
    check_file(config, "project")
    add_project_file(config, folder)
    for kind in ("system", "user"):
        check_file(config, kind)
    add_defaults(config)
    connect = {"key_filename": list(identities), "timeout": connect_timeout_s}
    config.load_overrides({"connect_kwargs": {name: value for name, value in connect.items() if value}}, merge=False)
    if ssh_config and not os.path.isfile(os.path.expanduser(ssh_config)):
        raise UsageError(f"there is no ssh config file {ssh_config}", "name an existing file, or omit it")
    config.set_runtime_ssh_path(os.path.expanduser(ssh_config) or None)
    config.merge()
    config.load_shell_env()
    return config, folder


def check_file(config: Any, kind: str) -> None:
    """Check the top-level structure of a settings file.

    Parameters
    ----------
    config : fabric.Config
        The configuration that has read the file. Sections with only comments are removed.
    kind : str
        Which file: `system`, `user`, `project` or `runtime`.

    Raises
    ------
    UsageError
        The file is not a mapping, or a section is misspelt.
    """
    path = getattr(config, f"_{kind}_path")
    if path and getattr(config, f"_{kind}_found"):
        sections = [*config.global_defaults(), *defaults.sections()]
        data = getattr(config, f"_{kind}")
        validate.check_sections(data, sections, path)
        for name in [name for name, value in (data or {}).items() if value is None]:
            del data[name]  # a section with only comments


def add_project_file(config: Any, folder: Path) -> None:
    """Add a project's torchfab.yaml to a configuration; do nothing if it has none.

    Parameters
    ----------
    config : fabric.Config
        The configuration, which has read the project's fabric.yaml.
    folder : Path
        The folder of the project.

    Raises
    ------
    UsageError
        The file is not valid.
    """
    path = folder / project.SETTINGS_FILE
    if path.is_file():
        found = settings_file.read(path, config.global_defaults())
        config._project = merge_dicts(config._project or {}, copy_dict(dict(found.sections)))
        has_file = config._project_path and os.path.isfile(
            config._project_path
        )  # Invoke records the path even if the file is missing
        config._set(_project_path=config._project_path if has_file else str(path), _project_found=True)


def add_defaults(config: Any) -> None:
    """Add torchfab's own defaults to those of Fabric.

    Parameters
    ----------
    config : fabric.Config
        The configuration; the caller merges it.
    """
    config.load_defaults(merge_dicts(copy_dict(config._defaults), defaults.sections()), merge=False)
