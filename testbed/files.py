"""Write the folder of a cluster: keys, configs, homes."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from testbed import namespaces, templates
from testbed.layout import Account, Layout, NodeLayout, RehearsalError
from testbed.namespaces import PROJECT

ETC = Path("/etc")
PRODUCTS = ("jobs", "runs")
START_UP_FILES = (".bashrc", ".profile", ".hushlogin")  # empty: bash reads .bashrc for every ssh command


def write_all(layout: Layout) -> None:
    """Write every file of the cluster, owned by the account if the nodes run as another user."""
    openssh = openssh_version()
    public_keys = [_write_node(node, openssh) for node in layout.nodes]
    _write_home(layout.launch)
    _write_key(layout.key)
    _write(layout.known_hosts, templates.known_hosts(layout.nodes, public_keys))
    if layout.account.private:
        _write_etc(layout)
        _make_covers(layout)
    _write_launch_files(layout)
    _hand_over(layout)


def _write_node(node: NodeLayout, openssh: tuple[int, int]) -> str:
    _write_home(node)
    _write(node.directory / "sshd_config", templates.sshd_config(node, openssh))
    return _write_key(node.directory / "host_key")


def _write_home(node: NodeLayout) -> None:
    for folder in (node.directory, node.home, node.tmux_dir):
        folder.mkdir(mode=0o700)
    for name in START_UP_FILES:
        _write(node.home / name, "")
    account = node.cluster.account
    if account.private:
        _write(node.directory / "passwd", templates.passwd(Path("/etc/passwd").read_text(), account, str(node.home)))


def _write_etc(layout: Layout) -> None:
    shutil.copytree(ETC, layout.etc, symlinks=True, ignore=_not_for_everybody)
    _write(layout.etc / "group", templates.group((ETC / "group").read_text(), layout.account))
    _write(layout.etc / "shadow", templates.shadow(layout.account), mode=0o640)
    _write(layout.hosts, templates.etc_hosts(layout))


def _not_for_everybody(folder: str, names: list[str]) -> set[str]:
    """Return the names that are not copied: files that are not world-readable (private keys), and special files."""
    return {name for name in names if not _is_for_everybody(Path(folder, name))}


def _is_for_everybody(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:  # a program that replaces a file in /etc makes a temporary one
        return False
    needed = stat.S_IROTH | stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
    return stat.S_ISLNK(mode) or ((stat.S_ISDIR(mode) or stat.S_ISREG(mode)) and not needed & ~mode)


def _make_covers(layout: Layout) -> None:
    for _, target in namespaces.exposures(layout) if layout.account.switched else []:
        if target.is_relative_to(layout.run_dir):
            target.mkdir(mode=0o755, parents=True)


def _write_launch_files(layout: Layout) -> None:
    layout.directory.mkdir(parents=True, exist_ok=True)
    _write(layout.directory / "ssh_config", templates.ssh_config(layout))
    _write(layout.directory / "hosts", templates.hostfile(layout))
    _write(layout.directory / "gpus", templates.gpufile(layout))


def _write_key(path: Path) -> str:
    """Create an ed25519 key pair and return the public key. In this process: most of ssh-keygen's time is its start."""
    key = Ed25519PrivateKey.generate()
    _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode(), mode=0o600)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    _write(path.with_name(f"{path.name}.pub"), f"{public} torchfab-rehearsal\n")
    return public


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
    path.chmod(mode)


def _hand_over(layout: Layout) -> None:
    """Change the owner of the user's files. /tmp/tfab-K and etc/ stay root's: only root may replace the mounts."""
    if layout.account.switched:
        _give(layout.account, layout.key, *(node.directory for node in layout.machines), layout.directory)


def _give(account: Account, *roots: Path) -> None:
    for root in roots:
        for path in [root, *(root.rglob("*") if root.is_dir() else [])]:
            os.chown(path, account.uid, account.gid, follow_symlinks=False)


def copy_project(layout: Layout) -> Path:
    """Copy this project's sources into the cluster's folder, owned by the nodes' user; return the copy.

    The project itself belongs to its owner, and a launch writes its records and logs there.
    """
    copy = layout.run_dir / "checkout"
    shutil.copytree(PROJECT, copy, ignore=_not_sources)
    _give(layout.account, copy)
    return copy


def _not_sources(folder: str, names: list[str]) -> set[str]:
    top = Path(folder) == PROJECT
    return {name for name in names if name == "__pycache__" or (top and (name.startswith(".") or name in PRODUCTS))}


def openssh_version() -> tuple[int, int]:
    """Return the version of the installed OpenSSH, as (9, 2); (0, 0) if it is unknown."""
    output = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr
    found = re.search(r"OpenSSH_(\d+)\.(\d+)", output)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def remove_all(layout: Layout) -> None:
    """Remove the cluster's folder, and the files that `write_all` put beside it.

    Raises
    ------
    RehearsalError
        Something is mounted below it: removing it would delete files that are not ours.
    """
    if f" {layout.run_dir}/" in Path("/proc/self/mountinfo").read_text():
        raise RehearsalError(f"something is mounted under {layout.run_dir}", fix="unmount it, then try again")
    for name in ("ssh_config", "hosts", "gpus", "run"):
        (layout.directory / name).unlink(missing_ok=True)
    if layout.directory.is_dir() and not any(layout.directory.iterdir()):
        layout.directory.rmdir()
    shutil.rmtree(layout.run_dir, ignore_errors=False)
