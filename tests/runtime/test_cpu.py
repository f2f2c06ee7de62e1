"""What a process may use of its machine, read from made-up trees of /proc and /sys."""

import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tfm.runtime.sessions import cpu

V2 = "0::{path}\n"
V1 = "4:memory:/other\n3:cpuacct,cpu:{path}\n2:cpuset:/\n1:name=systemd:/\n0::/\n"
Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Write files below a root; keywords name /proc/self/cgroup and /proc/self/mountinfo."""

    def make(files: dict[str, str], cgroup: str, mountinfo: str) -> Path:
        for name, text in {**files, "proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def mount_v2(top: str = "/", point: str = "/sys/fs/cgroup") -> str:
    disk = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    return f"{disk}30 22 0:26 {top} {point} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def mount_v1(top: str = "/", point: str = "/sys/fs/cgroup/cpu,cpuacct", controllers: str = "rw,cpu,cpuacct") -> str:
    return f"33 25 0:29 {top} {point} rw shared:10 master:2 - cgroup cgroup {controllers}\n"


def test_v2_in_a_namespace_of_its_own(tree: Tree) -> None:
    """What docker run --cpus=1.5 looks like from inside."""
    root = tree({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, V2.format(path="/"), mount_v2())
    assert cpu.quota(root) == 1.5


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000\n", None),
        ("max\n", None),
        ("50000\n", 0.5),  # the period's default, as the kernel documents it
        ("400000 100000\n", 4.0),
        ("25000 50000\n", 0.5),
        ("", None),
        ("junk 100000\n", None),
        ("100000 0\n", None),
        ("-1 100000\n", None),
    ],
)
def test_v2_values(tree: Tree, text: str, cores: float | None) -> None:
    assert cpu.quota(tree({"sys/fs/cgroup/cpu.max": text}, V2.format(path="/"), mount_v2())) == cores


@pytest.mark.parametrize(
    ("outer", "middle", "inner", "cores"),
    [("max 100000", "300000 100000", "max 100000", 3.0), ("max 1", "300000 100000", "200000 100000", 2.0),
     ("100000 100000", "max 1", "700000 100000", 1.0), ("max 1", "max 1", "max 1", None)],
)  # fmt: skip
def test_the_least_of_nested_groups_counts(
    tree: Tree, outer: str, middle: str, inner: str, cores: float | None
) -> None:
    files = {
        "sys/fs/cgroup/pod/cpu.max": outer,
        "sys/fs/cgroup/pod/box/cpu.max": middle,
        "sys/fs/cgroup/pod/box/app.scope/cpu.max": inner,
        "sys/fs/cgroup/beside/cpu.max": "10000 100000",
    }
    assert cpu.quota(tree(files, V2.format(path="/pod/box/app.scope"), mount_v2())) == cores


def test_only_a_part_of_the_hierarchy_is_mounted(tree: Tree) -> None:
    """A container without a namespace: paths are the host's, and its own group is what is mounted."""
    files = {"sys/fs/cgroup/cpu.max": "300000 100000", "sys/fs/cgroup/app/cpu.max": "200000 100000"}
    assert cpu.quota(tree(files, V2.format(path="/docker/abc/app"), mount_v2(top="/docker/abc"))) == 2.0


@pytest.mark.parametrize(
    ("path", "top"),
    [("/elsewhere", "/docker/abc"), ("/../../beside", "/docker/abc"), ("/docker/abcd", "/docker/abc"), ("/../b", "/")],
)
def test_a_group_outside_of_what_is_mounted(tree: Tree, path: str, top: str) -> None:
    files = {"sys/fs/cgroup/cpu.max": "300000 100000"}
    assert cpu.quota(tree(files, V2.format(path=path), mount_v2(top=top))) == 3.0


def test_v1(tree: Tree) -> None:
    folder = "sys/fs/cgroup/cpu,cpuacct/docker/abc"
    files = {f"{folder}/cpu.cfs_quota_us": "250000\n", f"{folder}/cpu.cfs_period_us": "100000\n"}
    assert cpu.quota(tree(files, V1.format(path="/docker/abc"), mount_v1())) == 2.5


def test_v1_in_a_container(tree: Tree) -> None:
    folder = "sys/fs/cgroup/cpu,cpuacct"
    files = {f"{folder}/cpu.cfs_quota_us": "50000\n", f"{folder}/cpu.cfs_period_us": "25000\n"}
    assert cpu.quota(tree(files, V1.format(path="/docker/abc"), mount_v1(top="/docker/abc"))) == 2.0


def test_v1_without_a_limit(tree: Tree) -> None:
    folder = "sys/fs/cgroup/cpu,cpuacct"
    files = {f"{folder}/cpu.cfs_quota_us": "-1\n", f"{folder}/cpu.cfs_period_us": "100000\n"}
    assert cpu.quota(tree(files, V1.format(path="/"), mount_v1())) is None


def test_v1_beside_an_empty_v2(tree: Tree) -> None:
    folder = "sys/fs/cgroup/cpu,cpuacct"
    files = {f"{folder}/cpu.cfs_quota_us": "100000\n", f"{folder}/cpu.cfs_period_us": "100000\n"}
    mounts = mount_v2(point="/sys/fs/cgroup/unified") + mount_v1()
    assert cpu.quota(tree(files, V1.format(path="/"), mounts)) == 1.0


def test_another_controllers_folder_is_not_read(tree: Tree) -> None:
    folder = "sys/fs/cgroup/cpuset"
    files = {f"{folder}/cpu.cfs_quota_us": "100000\n", f"{folder}/cpu.cfs_period_us": "100000\n"}
    mounts = mount_v1(point="/sys/fs/cgroup/cpuset", controllers="rw,cpuset")
    assert cpu.quota(tree(files, V1.format(path="/"), mounts)) is None


def test_escaped_mount_points(tree: Tree) -> None:
    files = {"sys/fs/c group/cpu.max": "100000 100000"}
    assert cpu.quota(tree(files, V2.format(path="/"), mount_v2(point="/sys/fs/c\\040group"))) == 1.0


@pytest.mark.parametrize(
    ("cgroup", "mounts"), [("", ""), ("junk", "junk"), ("0::/", "30 22 - cgroup2\n"), ("::::\n:", " - - - \n")]
)
def test_malformed_trees_limit_nothing(tree: Tree, cgroup: str, mounts: str) -> None:
    assert cpu.quota(tree({}, cgroup, mounts)) is None


def test_no_proc(tmp_path: Path) -> None:
    assert cpu.quota(tmp_path) is None
    assert cpu.features(tmp_path) in ({}, cpu.features())  # other systems read no /proc
    assert cpu.model_name(tmp_path)


@pytest.mark.parametrize(
    ("text", "cores", "threads"),
    [("max 100000", 8, 8), ("150000 100000", 8, 2), ("10000 100000", 8, 1), ("400000 100000", 2, 2),
     ("200000 100000", 8, 2), ("200001 100000", 8, 3)],
)  # fmt: skip
def test_threads(tree: Tree, monkeypatch: pytest.MonkeyPatch, text: str, cores: int, threads: int) -> None:
    monkeypatch.setattr(cpu, "usable_cores", lambda: cores)
    assert cpu.default_threads(tree({"sys/fs/cgroup/cpu.max": text}, V2.format(path="/"), mount_v2())) == threads


def test_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "process_cpu_count", lambda: 5, raising=False)
    assert cpu.usable_cores() == 5
    monkeypatch.setattr(os, "process_cpu_count", lambda: None)
    assert cpu.usable_cores() == 1
    monkeypatch.delattr(os, "process_cpu_count")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert cpu.usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert cpu.usable_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu.usable_cores() == 1


# ------------------------------------------------ features


def pretend(monkeypatch: pytest.MonkeyPatch, system: str, machine: str) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)


def write_cpuinfo(root: Path, text: str) -> Path:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text(text)
    return root


def test_features_of_x86(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "Linux", "x86_64")
    flags = "flags\t\t: fpu avx avx2 avx512f avx512_vnni amx_tile amx_int8\n"
    root = write_cpuinfo(tmp_path, "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n" + flags)
    there = {name for name, has in cpu.features(root).items() if has}
    assert there == {"avx2", "avx512f", "avx512_vnni", "amx_int8"}
    assert cpu.features(root).keys() - there == {"avx_vnni", "amx_bf16"}
    assert cpu.model_name(root) == "Some CPU @ 2 GHz"


def test_features_of_arm_are_those_of_all_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "Linux", "aarch64")
    root = write_cpuinfo(tmp_path, "Features\t: fp asimd asimddp i8mm sve\n\nFeatures\t: fp asimd asimddp\n")
    assert cpu.features(root) == {"dotprod": True, "i8mm": False, "bf16": False, "sve": False}


@pytest.mark.parametrize(("text", "machine"), [("", "x86_64"), ("flags : avx2", "riscv64")])
def test_features_that_nobody_tells_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, machine: str
) -> None:
    pretend(monkeypatch, "Linux", machine)
    assert cpu.features(write_cpuinfo(tmp_path, text)) == {}


def test_features_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "Darwin", "arm64")
    monkeypatch.setattr(cpu, "_sysctl", lambda name: name == "hw.optional.arm.FEAT_DotProd")
    assert cpu.features() == {"dotprod": True, "i8mm": False, "bf16": False}


def test_sysctl_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", run)
    assert cpu._sysctl("hw.optional.avx2_0") is False
