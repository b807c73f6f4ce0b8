"""The socket that clients and workers reach."""

import socket
from pathlib import Path

from proxy.serving import listen
from proxy.settings import Settings


def test_asyncio_can_tell_that_it_is_tcp_and_holds_no_write_back(tmp_path: Path) -> None:
    with listen(Settings(port=0, data_dir=tmp_path)) as listener:
        assert listener.proto == socket.IPPROTO_TCP
