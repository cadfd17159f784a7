"""Allocate a number, a port and an account on this machine for a new cluster."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from testbed import network
from testbed.layout import NUMBERS, Account, Kind, Layout, RehearsalError, run_dir

ADMIN_FOLDERS = ":/usr/local/sbin:/usr/sbin:/sbin"  # not on an ordinary user's PATH
PORTS = range(20022, 32768)  # below Linux's ephemeral ports
UIDS = range(61200, 65000)  # between ordinary users and the user nobody
INSTALL = "./run inv cluster installs it (or names the command that does)"


def claim(nodes: int, kind: Kind, directory: Path | None, user: str | None) -> Layout:
    """Reserve a number by creating its folder, and return the layout of the cluster.

    Raises
    ------
    RehearsalError
        A program or a permission is missing, or all numbers are taken.
    """
    require(kind, user)
    account = choose_account(kind, user)
    number = _claim_number(_taken(kind))
    launch_dir = directory.absolute() if directory else run_dir(number) / "launch"
    port = 22 if kind == "netns" else free_port([f"127.77.{number}.{index + 1}" for index in range(nodes)])
    return Layout(number, kind, nodes, port, f"{number}-{secrets.token_hex(8)}", launch_dir, account)


def find_program(name: str) -> str | None:
    """Find a program on PATH or in the administrator's folders."""
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ADMIN_FOLDERS)


def require(kind: Kind, user: str | None) -> None:
    """Check the programs and permissions that this kind of cluster needs, before anything is created."""
    root = os.geteuid() == 0
    if kind == "netns" and not root:
        raise RehearsalError("network namespaces need root", fix="use --kind loopback")
    if kind == "netns" and user:
        raise RehearsalError(f"netns nodes run as root, not as {user}", fix="use kind loopback")
    programs = ["sshd", "ssh"]
    programs += ["ip", "nsenter", "unshare", "mount"] if kind == "netns" else []
    programs += ["setpriv", "unshare", "mount"] if user else []
    if missing := [name for name in programs if not find_program(name)]:
        raise RehearsalError(f"not installed: {', '.join(missing)}", fix=INSTALL)


def choose_account(kind: Kind, user: str | None) -> Account:
    """Return the account that logs in to the nodes: the caller's, or for root `user`, which need not exist here."""
    me = pwd.getpwuid(os.geteuid())
    if user is None or user == me.pw_name:
        return Account(me.pw_name, me.pw_uid, me.pw_gid, me.pw_shell, private=kind == "netns", switched=False)
    if me.pw_uid != 0:
        raise RehearsalError(f"only root can run nodes as {user}, and you are {me.pw_name}", fix="leave the user out")
    uid, gid = _ids(user)
    return Account(user, uid, gid, _shell(), private=True, switched=True)


def _ids(user: str) -> tuple[int, int]:
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        taken = {entry.pw_uid for entry in pwd.getpwall()}
        uid = next(uid for uid in UIDS if uid not in taken)
        return uid, uid
    return entry.pw_uid, entry.pw_gid


def _shell() -> str:
    return find_program("bash") or "/bin/sh"


def _taken(kind: Kind) -> Callable[[int], bool]:
    if kind == "loopback":
        return lambda _: False
    routes, links = network.routes(), network.links()
    return lambda number: f"10.77.{number}." in routes or f"tfab{number}" in links


def _claim_number(taken: Callable[[int], bool]) -> int:
    for number in NUMBERS:
        try:
            if not taken(number):
                run_dir(number).mkdir(mode=0o755)
                return number
        except FileExistsError:
            continue
    fix = "take some down with inv cluster --down, or inspect /tmp/tfab-*"
    raise RehearsalError(f"all {len(NUMBERS)} cluster numbers are taken", fix)


def free_port(addresses: list[str]) -> int:
    """Return one port that is free on all addresses."""
    for port in PORTS:
        if all(_free(address, port) for address in addresses):
            return port
    raise RehearsalError(f"no port from {PORTS.start} to {PORTS.stop - 1} is free on {addresses[0]}")


def _free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex((address, port)) != 0 and _binds(probe, address, port)


def _binds(probe: socket.socket, address: str, port: int) -> bool:
    try:
        probe.bind((address, port))
    except OSError:
        return False
    return True
