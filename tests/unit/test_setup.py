"""The set-up's decisions: pip's settings for uv, the build of vLLM, pip's wheel from an index."""

import hashlib
import io
import os
from dataclasses import replace
from pathlib import Path

import pytest

from environment import hardware, pip_settings, simple_index, system
from environment.console import Stages
from environment.hardware import Build, Machine
from environment.pip_settings import PipSettings

SERVER = Machine("Linux", "x86_64", (2, 36), frozenset({"avx2"}), has_nvidia_gpu=False)


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


class TestPipSettings:
    def test_without_configuration_no_index_is_named(self) -> None:
        found = pip_settings.read({}, [])
        assert found == PipSettings(index_url=None)
        assert "UV_DEFAULT_INDEX" not in pip_settings.for_uv(found, {}, system_certificates=False)

    def test_a_later_file_wins_and_the_environment_wins_over_files(self, tmp_path: Path) -> None:
        weak = written(
            tmp_path / "a",
            "[global]\nindex-url = https://weak/simple\ncert = /weak.pem\ntimeout = 5\n",
        )
        strong = written(
            tmp_path / "b", "[global]\nindex_url = https://strong/simple\ncert = /strong.pem\n"
        )
        found = pip_settings.read(
            {"PIP_CERT": "/mine.pem", "PIPELINE": "no"}, [weak, strong, tmp_path / "absent"]
        )
        assert (found.index_url, found.cert, found.timeout) == (
            "https://strong/simple",
            "/mine.pem",
            "5",
        )

    def test_the_install_section_wins_and_others_do_not_count(self, tmp_path: Path) -> None:
        text = (
            "[global]\nfind-links = /a\n[install]\nfind-links =\n    /b\n    /c\n"
            "[freeze]\ntimeout = 9\n"
        )
        found = pip_settings.read({}, [written(tmp_path / "a", text)])
        assert found.find_links == ("/b", "/c")
        assert found.timeout is None

    def test_switches_and_lists_from_the_environment(self) -> None:
        environ = {"PIP_NO_INDEX": "1", "PIP_TRUSTED_HOST": "a b:1", "PIP_DEFAULT_TIMEOUT": "180"}
        found = pip_settings.read(environ, [])
        assert (found.no_index, found.trusted_hosts, found.timeout) == (True, ("a", "b:1"), "180")

    def test_files_stand_in_pips_order(self, tmp_path: Path) -> None:
        environ = {"XDG_CONFIG_DIRS": "/strong:/weak", "PIP_CONFIG_FILE": "/named.conf"}
        files = [
            str(path) for path in pip_settings.config_files(environ, tmp_path, Path("/prefix"))
        ]
        files = [name for name in files if "Library" not in name]
        user = str(tmp_path / ".config/pip/pip.conf")
        legacy = str(tmp_path / ".pip/pip.conf")
        system = ["/weak/pip/pip.conf", "/strong/pip/pip.conf", "/etc/pip.conf"]
        assert files == [*system, legacy, user, "/prefix/pip.conf", "/named.conf"]

    def test_the_null_device_switches_files_off(self, tmp_path: Path) -> None:
        assert pip_settings.config_files({"PIP_CONFIG_FILE": os.devnull}, tmp_path, tmp_path) == []

    def test_uv_gets_all_settings(self) -> None:
        settings = PipSettings(
            index_url="https://main/simple",
            extra_index_urls=("file:///one", "file:///two"),
            find_links=("/wheels", "https://links"),
            cert="/ca.pem",
            trusted_hosts=("a",),
            proxy="http://proxy:3128",
            timeout="60",
        )
        assert pip_settings.for_uv(
            settings, {"SSL_CERT_FILE": "/other.pem"}, system_certificates=True
        ) == {
            "UV_DEFAULT_INDEX": "https://main/simple",
            "UV_EXTRA_INDEX_URL": "file:///one file:///two",
            "UV_FIND_LINKS": "/wheels,https://links",
            "UV_INDEX_STRATEGY": "unsafe-best-match",
            "UV_INSECURE_HOST": "a",
            "UV_HTTP_TIMEOUT": "60",
            "HTTP_PROXY": "http://proxy:3128",
            "HTTPS_PROXY": "http://proxy:3128",
            "SSL_CERT_FILE": "/ca.pem",
        }

    def test_what_the_user_set_for_uv_stays(self) -> None:
        environ = {"UV_INDEX_STRATEGY": "first-index", "UV_INDEX_URL": "https://mine"}
        found = pip_settings.for_uv(
            PipSettings(extra_index_urls=("https://b",)), environ, system_certificates=False
        )
        assert found == {"UV_EXTRA_INDEX_URL": "https://b"}

    def test_without_a_certificate_file_uv_trusts_the_system(self) -> None:
        assert (
            pip_settings.for_uv(PipSettings(), {}, system_certificates=True)["UV_SYSTEM_CERTS"]
            == "1"
        )
        assert "UV_SYSTEM_CERTS" not in pip_settings.for_uv(
            PipSettings(), {}, system_certificates=False
        )


class TestBuild:
    def test_a_server_without_a_gpu_gets_the_cpu_build(self) -> None:
        assert hardware.choose(SERVER).build is Build.CPU
        assert (
            hardware.choose(replace(SERVER, architecture="aarch64", cpu_flags=frozenset())).build
            is Build.CPU
        )

    def test_a_gpu_gets_the_gpu_build_whatever_the_cpu(self) -> None:
        assert (
            hardware.choose(replace(SERVER, has_nvidia_gpu=True, cpu_flags=frozenset())).build
            is Build.GPU
        )

    @pytest.mark.parametrize(
        ("machine", "word"),
        [
            (replace(SERVER, cpu_flags=frozenset({"sse4_2"})), "AVX2"),
            (replace(SERVER, architecture="riscv64"), "riscv64"),
            (replace(SERVER, system="Darwin"), "Darwin"),
            (replace(SERVER, glibc=(2, 27)), "2.27"),
            (replace(SERVER, glibc=()), "another C library"),
        ],
    )
    def test_where_nothing_fits_the_reason_says_what(self, machine: Machine, word: str) -> None:
        choice = hardware.choose(machine)
        assert choice.build is Build.NONE
        assert word in choice.reason

    def test_a_wish_overrules(self) -> None:
        assert hardware.choose(replace(SERVER, has_nvidia_gpu=True), "cpu").build is Build.CPU
        with pytest.raises(SystemExit, match="gpu, cpu, none"):
            hardware.choose(SERVER, "tpu")

    def test_cpu_flags_of_both_architectures(self, tmp_path: Path) -> None:
        assert "avx2" in hardware.cpu_flags(
            written(tmp_path / "x86", "processor\t: 0\nflags\t\t: fpu avx2\n\n")
        )
        assert "asimd" in hardware.cpu_flags(written(tmp_path / "arm", "Features\t: fp asimd\n"))
        assert hardware.cpu_flags(tmp_path / "absent") == frozenset()

    def test_a_card_is_seen_through_the_driver(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert not hardware.has_nvidia_gpu(tmp_path)
        (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
        assert hardware.has_nvidia_gpu(tmp_path)

    @pytest.mark.parametrize(
        ("script", "seen"), [("echo 'GPU 0: X'", True), ("echo none; exit 9", False)]
    )
    def test_a_card_is_seen_through_nvidia_smi(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, *, seen: bool
    ) -> None:
        written(tmp_path / "nvidia-smi", f"#!/bin/sh\n{script}\n").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert hardware.has_nvidia_gpu(tmp_path) is seen


class TestPipWheel:
    def test_links_of_a_page(self) -> None:
        text = (
            '<a href="../../f/pip-26.1-py3-none-any.whl#sha256=ab"'
            ' data-requires-python="&gt;=3.9">pip</a>'
            '<a href="pip-27.0b1-py3-none-any.whl">pre-release</a>'
            '<a href="pip-26.9.tar.gz">source</a>'
            '<a href="pip-26.8-py3-none-any.whl" data-yanked="broken">yanked</a>'
            '<a href="pip-26.5-py3-none-any.whl" data-requires-python="&gt;=3.12">pip</a>'
        )
        links = simple_index.page_links("https://host/simple/pip/", text)
        older = simple_index.newest(links, 11)
        newer = simple_index.newest(links, 12)
        assert older is not None
        assert newer is not None
        assert (older.url, older.sha256) == ("https://host/f/pip-26.1-py3-none-any.whl", "ab")
        assert newer.version == (26, 5)
        assert simple_index.newest([], 11) is None

    def test_from_a_file_index(self, tmp_path: Path) -> None:
        digest = hashlib.sha256(b"wheel").hexdigest()
        written(tmp_path / "files/pip-26.1-py3-none-any.whl", "wheel")
        page = f'<a href="../../files/pip-26.1-py3-none-any.whl#sha256={digest}">pip</a>'
        index = written(tmp_path / "simple/pip/index.html", page)
        settings = PipSettings(index_url=(tmp_path / "simple").as_uri())
        assert simple_index.fetch_pip(settings, 11, tmp_path).read_text() == "wheel"
        index.write_text(page.replace(digest, "0" * 64))
        with pytest.raises(simple_index.PipUnavailableError, match="SHA-256"):
            simple_index.fetch_pip(settings, 11, tmp_path)

    def test_from_a_folder_of_wheels_without_any_index(self, tmp_path: Path) -> None:
        written(tmp_path / "wheels/pip-26.1-py3-none-any.whl", "wheel")
        settings = PipSettings(find_links=(str(tmp_path / "wheels"),), no_index=True)
        assert simple_index.fetch_pip(settings, 11, tmp_path).name == "pip-26.1-py3-none-any.whl"
        with pytest.raises(
            simple_index.PipUnavailableError, match="none of the configured sources"
        ):
            simple_index.fetch_pip(PipSettings(no_index=True), 11, tmp_path)
        bundled = [str(tmp_path / "wheels")]
        assert simple_index.fetch_pip(PipSettings(no_index=True), 11, tmp_path, bundled).is_file()


class TestSystemTools:
    @pytest.fixture
    def environ(self, tmp_path: Path) -> dict[str, str]:
        """A machine with apt-get and one of the tools; the arguments of apt-get are recorded."""
        found = f'echo "$DEBIAN_FRONTEND $RUNLEVEL $*" >> {tmp_path}/found'
        written(tmp_path / "bin/apt-get", f"#!/bin/sh\n{found}\n").chmod(0o755)
        written(tmp_path / "bin/haproxy", "#!/bin/sh\n").chmod(0o755)
        written(tmp_path / "bin/timeout", '#!/bin/sh\nshift 2\nexec "$@"\n').chmod(0o755)
        return {"PATH": str(tmp_path / "bin")}

    def test_what_is_missing_is_wanted_from_root_and_apt(
        self, environ: dict[str, str], tmp_path: Path
    ) -> None:
        absent = tmp_path / "absent"
        wanted = system.wanted(environ, uid=0, booted=absent)
        assert [tool.command for tool in wanted] == ["nginx", "ip", "nft"]
        assert system.wanted(environ, uid=1000, booted=absent) == []
        assert system.wanted({"PATH": str(absent)}, uid=0, booted=absent) == []

    def test_on_a_machine_with_services_nothing_is_installed(
        self, environ: dict[str, str], tmp_path: Path
    ) -> None:
        assert system.wanted(environ, uid=0, booted=tmp_path) == []

    def test_they_come_in_one_stage_which_asks_nothing_and_starts_nothing(
        self, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", environ["PATH"])  # where the first command is looked for
        shown = io.StringIO()
        system.install(system.missing(environ), environ, Stages(1, shown))
        update, install = (tmp_path / "found").read_text().splitlines()
        assert update.startswith("noninteractive 1 ")
        assert update.endswith(" update")
        assert install.startswith("noninteractive 1 ")
        assert install.endswith(
            " install --yes --no-install-recommends iproute2 nftables nginx-light"
        )
        assert shown.getvalue().startswith("[1/1] for tests: system tools ...")

    def test_a_failure_is_reported_and_does_not_end_the_set_up(
        self, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", environ["PATH"])
        written(tmp_path / "bin/apt-get", "#!/bin/sh\necho E: no such place\nexit 100\n")
        shown = io.StringIO()
        system.install(system.missing(environ), environ, Stages(1, shown))
        assert "not available here:\n    E: no such place" in shown.getvalue()
