"""The socket that the proxy listens on."""

import socket
from pathlib import Path

from proxy.serving import listen
from proxy.settings import Settings


def test_the_socket_is_marked_as_tcp_so_that_asyncio_sets_nodelay(tmp_path: Path) -> None:
    with listen(Settings(port=0, data_dir=tmp_path)) as listener:
        assert listener.proto == socket.IPPROTO_TCP
