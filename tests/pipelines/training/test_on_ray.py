"""What workers of a training on a cluster agree on before it begins."""

import os
import socket

import psutil
import pytest
import ray.util

from pipelines.training.on_ray import listen_at_the_node


def interfaces() -> dict[str, str]:
    """Of this machine, by an IPv4 address of each."""
    found = psutil.net_if_addrs().items()
    return {each.address: name for name, its in found for each in its if each.family == socket.AF_INET}


def test_workers_listen_where_ray_reaches_their_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where the machine's name leads: on Debian that is 127.0.1.1, and no other machine reaches it."""
    for address, name in interfaces().items():
        monkeypatch.setattr(ray.util, "get_node_ip_address", lambda address=address: address)
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that what it sets is undone
        monkeypatch.delenv("GLOO_SOCKET_IFNAME")
        listen_at_the_node()
        assert os.environ["GLOO_SOCKET_IFNAME"] == name


def test_the_interface_that_an_operator_names_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    listen_at_the_node()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
