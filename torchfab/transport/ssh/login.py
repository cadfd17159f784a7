"""Log in to hosts and to their jump hosts, or connect just far enough to read a host key."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from torchfab.core.errors import HostError
from torchfab.core.log_context import current_host, log_host
from torchfab.transport.ssh import login_log, penalties, step_timeout
from torchfab.transport.ssh.errors import explain
from torchfab.transport.ssh.step_timeout import StepTimeout

if TYPE_CHECKING:
    from torchfab.transport.ssh.host_keys import Rules

_log = logging.getLogger(__name__)


def log_in(connection: Any) -> StepTimeout:
    """Connect and log in.

    Parameters
    ----------
    connection : Connection
        Not open yet.

    Returns
    -------
    StepTimeout
        The time limits for the later steps of the same connection.
    """
    from torchfab.transport.ssh import connect

    client = connection.client
    timeout = StepTimeout(lambda: connect.close_connection(connection), lambda: step_timeout.handshake_step(client))
    connection.step_timeout = timeout
    started = time.monotonic()

    def attempt() -> None:
        # TCP, handshake and login have timeouts of their own, but the login's applies to each key that is tried.
        timeout.failed_step = ""
        with timeout.at_most(3 * connection.timeout_s):
            try:
                connection.open()
            except Exception as error:
                timeout.failed_step = step_timeout.handshake_step(client)
                login_log.log_failure(connection, error, time.monotonic() - started)
                raise

    penalties.wait_out(attempt, connect.hop_label(connection))
    _log.debug("authentication: logged in, %.3f s after the start", time.monotonic() - started)
    return timeout


def open_jump_hosts(connection: Any) -> None:
    """Log in to the jump hosts of a connection, starting with the one nearest to this machine.

    Parameters
    ----------
    connection : Connection
        The connection to the host behind the jump hosts.

    Raises
    ------
    HostError
        The login to a jump host failed.
    """
    from torchfab.transport.ssh import connect

    for hop in connect.hops(connection)[:-1]:
        started, name = time.monotonic(), connect.hop_label(hop)
        try:
            with log_host(f"{current_host()} via {name}"):
                connect.configure_security(hop)
                log_in(hop)
        except Exception as error:
            problem = error if isinstance(error, HostError) else explain(error, hop, time.monotonic() - started)
            raise HostError(f"its jump host {name}: {problem.message}", problem.fix, hop.host) from error


def prepare(connection: Any) -> None:
    """Log in to the jump hosts of a connection, and set its host key policy.

    Parameters
    ----------
    connection : Connection
        Not open yet.

    Raises
    ------
    HostError
        The login to a jump host failed, or ssh's configuration of the host is not valid.
    """
    from torchfab.transport.ssh import connect

    open_jump_hosts(connection)
    connect.configure_security(connection)


def fetch_host_key(connection: Any) -> tuple[Rules, Any]:
    """Fetch the host key of a host without logging in to it; its jump hosts are logged in to.

    Parameters
    ----------
    connection : Connection
        Not open; its `error` is raised as it is.

    Returns
    -------
    tuple of Rules and paramiko.PKey
        The host key rules for the host, and the key that it presented.

    Raises
    ------
    HostError
        The host presented no key, or the login to a jump host failed.
    """
    from torchfab.transport.ssh import connect

    if connection.error is not None:
        raise connection.error
    started = time.monotonic()
    try:
        with log_host(connect.hop_label(connection)):
            open_jump_hosts(connection)
            return penalties.wait_out(lambda: connect.fetch_host_key(connection), connect.hop_label(connection))
    except HostError:
        raise
    except Exception as error:
        raise explain(error, connection, time.monotonic() - started) from error
    finally:
        connect.close_connection(connection)
