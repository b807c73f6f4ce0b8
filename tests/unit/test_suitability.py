"""The checks of a machine before anything is downloaded, and their inputs."""

import socket
import sys
from pathlib import Path

import pytest

from environment import resources, suitability
from environment.hardware import Build
from environment.suitability import Requested

GIB = 1024**3


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


class TestAsked:
    def test_without_flags_it_is_what_up_does(self) -> None:
        assert suitability.requested([], {}) == Requested("127.0.0.1", 8000, 1, has_upstream=False)

    def test_flags_and_variables(self) -> None:
        variables = {"PROXY_PORT": "1", "PROXY_HOST": "::1"}
        assert suitability.requested([], variables) == Requested("::1", 1, 1, has_upstream=False)
        flags = ["--port", "2", "--host=0.0.0.0", "--workers", "3", "--port=4"]
        assert suitability.requested(flags, variables) == Requested(
            "0.0.0.0", 4, 3, has_upstream=False
        )

    def test_what_is_after_the_dashes_is_vllms(self) -> None:
        assert suitability.requested(
            ["--", "--port", "2", "--upstream", "x"], {}
        ) == suitability.requested([], {})

    @pytest.mark.parametrize("flags", [["--upstream", "http://x"], ["--upstream=http://x"]])
    def test_another_server_needs_no_vllm(self, flags: list[str]) -> None:
        assert not suitability.requested(flags, {}).needs_vllm
        assert not suitability.requested([], {"WORKER_UPSTREAM": "http://x"}).needs_vllm
        assert suitability.requested([], {"WORKER_UPSTREAM": ""}).needs_vllm

    @pytest.mark.parametrize(
        "flags", [["--port", "many"], ["--port"], ["--port", "-1"], ["--port", "123456"]]
    )
    def test_a_wrong_port_is_left_to_the_command_to_refuse(self, flags: list[str]) -> None:
        assert suitability.requested(flags, {}).port in {0, 8000}


class TestPort:
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    def test_a_port_in_use_is_named_with_a_remedy(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, 0), family=family) as taken:
            port = taken.getsockname()[1]
            text = suitability.port_in_use(host, port)
        assert text.startswith(f"port {port} on {host} is in use by another program. ")
        assert f"--port {port + 1}" in text
        assert suitability.port_in_use(host, port) == ""

    def test_other_troubles_are_the_proxys_to_tell(self) -> None:
        assert suitability.port_in_use("192.0.2.1", 8000) == ""
        assert suitability.port_in_use("no such host", 8000) == ""


class TestMemory:
    def test_the_demo_needs_what_was_measured(self) -> None:
        needed = suitability.PROXY_MEMORY_BYTES + suitability.WORKER_MEMORY_BYTES
        assert suitability.memory_short(needed, 1) == ""
        text = suitability.memory_short(needed - 1, 1)
        assert text.startswith(
            "2.6 GiB of memory are free, and vLLM with the smallest model needs 2.6 GiB. "
        )
        assert "--upstream URL" in text

    def test_every_worker_needs_as_much(self) -> None:
        assert suitability.memory_short(5 * GIB, 1) == ""
        assert "2 workers with the smallest model need 5.1 GiB" in suitability.memory_short(
            5 * GIB, 2
        )

    def test_what_linux_calls_available_counts_and_swap_too(self, tmp_path: Path) -> None:
        written(
            tmp_path / "meminfo",
            "MemTotal:       9000 kB\nMemAvailable:    300 kB\nSwapFree:         20 kB\n",
        )
        assert resources.free_memory(tmp_path, tmp_path) == 320 * 1024

    def test_where_nothing_is_known_nothing_is_refused(self, tmp_path: Path) -> None:
        assert resources.free_memory(tmp_path, tmp_path) == resources.NO_LIMIT

    @pytest.mark.parametrize("group", ["/", "/job/step"])
    def test_a_limit_of_control_groups_counts(self, tmp_path: Path, group: str) -> None:
        written(tmp_path / "meminfo", "MemAvailable: 9000000 kB\n")
        written(tmp_path / "self/cgroup", f"0::{group}\n")
        folder = tmp_path / "cgroup" / group.lstrip("/")
        written(folder / "memory.max", "5000\n")
        written(folder / "memory.current", "3000\n")
        written(folder / "memory.stat", "anon 1\ninactive_file 500\n")
        assert resources.free_memory(tmp_path, tmp_path / "cgroup") == 2500
        written(folder / "memory.max", "max\n")
        assert resources.free_memory(tmp_path, tmp_path / "cgroup") == 9_000_000 * 1024

    def test_a_limit_further_up_counts_and_so_does_the_first_version(self, tmp_path: Path) -> None:
        written(tmp_path / "meminfo", "MemAvailable: 9000000 kB\n")
        written(tmp_path / "self/cgroup", "8:pids:/\n4:memory:/job/step\n0::/\n")
        for path, limit in (("job/step", "9223372036854771712"), ("job", "7000")):
            written(tmp_path / "cgroup/memory" / path / "memory.limit_in_bytes", f"{limit}\n")
            written(tmp_path / "cgroup/memory" / path / "memory.usage_in_bytes", "3000\n")
            written(
                tmp_path / "cgroup/memory" / path / "memory.stat",
                "inactive_file 1\ntotal_inactive_file 10\n",
            )
        assert resources.free_memory(tmp_path, tmp_path / "cgroup") == 4010


class TestDisk:
    @pytest.mark.parametrize("build", Build)
    def test_each_build_needs_its_room(self, build: Build, tmp_path: Path) -> None:
        needed = suitability.DISK_BYTES[build]
        assert suitability.disk_short(needed, build, tmp_path) == ""
        text = suitability.disk_short(needed - 1, build, tmp_path)
        assert (
            f"are free on the disk of {tmp_path}, "
            f"and the installation needs {needed / GIB:.1f} GiB. "
        ) in text
        assert "VLLM_SERVERLESS_ENVIRONMENTS" in text

    def test_a_proxy_alone_needs_a_tenth(self) -> None:
        assert suitability.DISK_BYTES[Build.NONE] * 10 == suitability.DISK_BYTES[Build.CPU]

    def test_the_same_disk_is_looked_at_once_and_a_folder_need_not_be_there(
        self, tmp_path: Path
    ) -> None:
        [(free, place)] = resources.free_disk([tmp_path / "a/b", tmp_path / "c"])
        assert place == tmp_path
        assert free > 0
        assert len(resources.free_disk([tmp_path, Path("/proc")])) == 2


class TestRefusing:
    def test_the_first_sentence_ends_the_set_up_with_78(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            suitability.refuse(["", "no room.", "and no port."], {})
        assert ended.value.code == 78
        assert capsys.readouterr().err.startswith("set-up: no room.\n")

    def test_a_person_may_try_nevertheless(self) -> None:
        suitability.refuse(["no room."], {"VLLM_SERVERLESS_UNCHECKED": "1"})
        suitability.refuse([""], {})


def test_this_python_is_one_of_those_that_are_supported() -> None:
    assert (3, 11) <= sys.version_info[:2] < (3, 15)
