"""What of this machine's processor the process may use: cores, quota, and the instructions that kernels need."""

import ctypes
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

# Our name of an instruction → Linux's flag in /proc/cpuinfo.
_X86 = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
}
_ARM = {"dotprod": "asimddp", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve"}
_SYSCTLS = {
    "avx2": "hw.optional.avx2_0",
    "avx512f": "hw.optional.avx512f",
    "avx512_vnni": "hw.optional.avx512vnni",
    "dotprod": "hw.optional.arm.FEAT_DotProd",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
    "bf16": "hw.optional.arm.FEAT_BF16",
}
_WINDOWS = {"avx2": 40, "avx512f": 41, "dotprod": 43}  # winnt.h, PF_…_INSTRUCTIONS_AVAILABLE


def usable_cores() -> int:
    """Count the logical cores this process may run on: its affinity, or PYTHON_CPU_COUNT where Python has that."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads(root: Path = Path("/")) -> int:
    """Say how many threads use what this process may: its cores, or fewer where its containers have a quota."""
    cores, limit = usable_cores(), quota(root)
    return cores if limit is None else max(1, min(cores, math.ceil(limit)))


def quota(root: Path = Path("/")) -> float | None:
    """Read how many cores' time the control groups around this process allow it; None: as much as there is.

    The group itself and all around it that can be seen from here limit it, so the least counts (Linux,
    Documentation/admin-guide/cgroup-v2.rst, cpu.max; scheduler/sched-bwc.rst, cpu.cfs_quota_us).
    """
    try:
        mounts = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # no Linux, or no /proc
        return None
    paths = dict(_paths(groups))
    limits: list[float | None] = []
    # A line is "… ROOT MOUNT-POINT … - TYPE SOURCE OPTIONS" (proc_pid_mountinfo(5)): ROOT is the
    # part of the hierarchy that is mounted, as a container may see only its own.
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, _, options) = left.split(), (*right.split(), "", "", "")[:3]
        controller = {"cgroup2": "cgroup2", "cgroup": "cpu" if "cpu" in options.split(",") else ""}.get(kind)
        if len(fields) >= 5 and controller in paths:
            read = _read_v2 if controller == "cgroup2" else _read_v1
            top, point = map(_unescape, fields[3:5])
            limits += map(read, _folders(root, point, top, paths[controller]))
    return min((limit for limit in limits if limit is not None), default=None)


def _paths(groups: str) -> Iterator[tuple[str, str]]:
    """Controller, "cgroup2" for those of v2 → the path of the process's group."""
    # A line is "ID:CONTROLLERS:PATH"; that of cgroup v2 has the ID 0 and names no controllers.
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(",") if number != "0" else ["cgroup2"]:
            yield controller, path


def _unescape(path: str) -> str:
    """Undo mountinfo's octal escapes of spaces and the like."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _folders(root: Path, point: str, top: str, path: str) -> list[Path]:
    """List the folder of the group `path` and those around it, of a hierarchy mounted at `point` from `top` on."""
    mounted = root / point.lstrip("/")
    try:
        inside = PurePosixPath(path).relative_to(top)
    except ValueError:  # the group lies outside what is mounted here: what is mounted limits it all the same
        return [mounted]
    return [mounted / inside, *(mounted / parent for parent in inside.parents)]


def _read_v2(folder: Path) -> float | None:
    # "QUOTA PERIOD" in microseconds; the kernel's own period is 100000.
    words = _words(folder / "cpu.max")
    return _cores(words[0], words[1] if len(words) > 1 else "100000") if words else None


def _read_v1(folder: Path) -> float | None:
    limit, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
    return _cores(limit[0], period[0]) if limit and period else None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return []


def _cores(limit: str, period: str) -> float | None:
    """Divide; "max" (v2) and -1 (v1) are no limit."""
    if not (limit.isdecimal() and period.isdecimal() and int(period) > 0 and int(limit) > 0):
        return None
    return int(limit) / int(period)


def features(root: Path = Path("/")) -> dict[str, bool]:
    """Tell which instructions for products of matrices this processor has, of those that its system tells of."""
    machine = platform.machine().lower()
    names = _X86 if machine in ("x86_64", "amd64", "i386", "i686") else _ARM if machine in ("arm64", "aarch64") else {}
    system = platform.system()
    if system == "Linux":
        return _cpuinfo(root, names)
    if system == "Darwin":
        return {name: _sysctl(_SYSCTLS[name]) for name in names if name in _SYSCTLS}
    if system == "Windows":
        present = getattr(ctypes, "windll").kernel32.IsProcessorFeaturePresent  # noqa: B009 (mypy knows no windll here)
        return {name: bool(present(_WINDOWS[name])) for name in names if name in _WINDOWS}
    return {}


def _cpuinfo(root: Path, names: Mapping[str, str]) -> dict[str, bool]:
    # "flags" on x86, "Features" on Arm; the cores of one processor need not be alike, and all may run a kernel
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    cores = [set(line.split()) for line in re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)]
    return {name: all(flag in flags for flags in cores) for name, flag in names.items()} if cores else {}


def _sysctl(name: str) -> bool:
    """Ask macOS, which knows only the names that its processor might have."""
    import subprocess  # importing it takes milliseconds that only macOS has use for

    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.stdout.strip() == "1"


def model_name(root: Path = Path("/")) -> str:
    """Name the processor as its system does; where that says nothing, the kind of machine."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()
