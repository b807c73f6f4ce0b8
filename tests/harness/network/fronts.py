"""Common reverse proxies: nginx and HAProxy, as processes with a configuration of their own."""

import asyncio
import shutil
import socket
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import pytest

from harness.tools.ports import free_port
from harness.tools.waiting import until

STOP_SECONDS = 10.0

NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log crit;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_header_timeout 1s;
    client_body_timeout 1s;
    upstream proxy {{ server {target}; keepalive 8; }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 32m;
        large_client_header_buffers 4 64k;
        ignore_invalid_headers off;
        location / {{
            proxy_pass http://proxy;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Connection "";
            proxy_request_buffering off;
            proxy_buffering off;
        }}
    }}
}}
"""
"""Requests are repaired and buffered as little as possible; connections to the proxy are reused."""

HAPROXY = """
global
    maxconn 256
    tune.bufsize 131072
defaults
    mode http
    timeout connect 5s
    timeout client 1s
    timeout http-request 1s
    timeout server 5s
    http-reuse always
    option accept-invalid-http-request
    option http-no-delay
frontend clients
    bind 127.0.0.1:{port}
    default_backend proxy
backend proxy
    server proxy {target} pool-max-conn 8
"""


@dataclass(frozen=True)
class Kind:
    """A kind of reverse proxy: the program, its package, its start command, its configuration."""

    program: str
    package: str
    flags: tuple[str, ...]
    configuration: str


FRONTS = {
    "nginx": Kind("nginx", "nginx-light", ("-c",), NGINX),
    "haproxy": Kind("haproxy", "haproxy", ("-db", "-f"), HAPROXY),
}


@asynccontextmanager
async def front(name: str, target: str) -> AsyncIterator[str]:
    """Run a reverse proxy in front of `target`; yield its URL."""
    kind = FRONTS[name]
    program = shutil.which(
        kind.program, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
    ) or shutil.which(name)
    if program is None:
        pytest.skip(f"needs {name}: apt-get install {kind.package}")
    with TemporaryDirectory() as folder:
        port = free_port()
        path = Path(folder) / "front.conf"
        path.write_text(
            kind.configuration.format(folder=folder, port=port, target=urlsplit(target).netloc)
        )
        process = await asyncio.create_subprocess_exec(
            *(program, *kind.flags, str(path)), stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
        )
        try:
            await until(
                lambda: process.returncode is not None or _listens(port), 10.0, f"{name} listens"
            )
            assert process.returncode is None, f"{name} has ended"
            yield f"http://127.0.0.1:{port}"
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), STOP_SECONDS)


def _listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0
