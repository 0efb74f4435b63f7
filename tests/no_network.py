"""Cuts this process off from the network, this machine excepted; as if the learner sat in a train.

Used in two ways: ``conftest.py`` runs it for the tests, and ``run_all.py`` puts it among the start-up files of the
kernels that run the notebooks.
"""

import ipaddress
import socket


def _is_local(host) -> bool:
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_others(host) -> None:
    if not _is_local(host):
        raise OSError(f"tried to reach {host!r}: tests and notebooks run with the network cut off")


def _checked(connect):
    def call(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse_others(address[0])
        return connect(self, address)

    return call


def _checked_lookup(lookup):
    def call(host, *args, **kwargs):
        _refuse_others(host)
        return lookup(host, *args, **kwargs)

    return call


socket.socket.connect = _checked(socket.socket.connect)
socket.socket.connect_ex = _checked(socket.socket.connect_ex)
socket.getaddrinfo = _checked_lookup(socket.getaddrinfo)
