"""A bundle on an emulated Raspberry Pi: the same tokens as here, no product that falls back to unpacked computing.

    python export/pi/emulate.py BUNDLE [--cpu cortex-a72 --cpu cortex-a76] [--texts FILE] [--json FILE]
    python export/pi/emulate.py PACK.pyz [--rows 50] [--json FILE]
    python export/pi/emulate.py --prepare

A pack (`edgedistill bench --pack`) is run as on a board: its rows are counted, its first answers compared with those from
where it was packed.

Debian's qemu in user mode runs an Arm Python with the Arm wheels of onnxruntime, numpy and tokenizers; nothing is installed on
this machine and nothing needs root. The first time fetches about 120 MB into --cache (Debian 12 packages by apt, wheels by
pip); after that no network is used. Exit code 0: passed; 3: other tokens or a fallback; 2: cannot run here. Times under
emulation mean nothing and are not read. What it catches: instructions that a CPU does not have (onnxruntime 1.21 dies with
SIGILL on a Cortex-A72), kernels that differ, operators without a kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent.parent
CPUS = {"cortex-a72": "rpi4", "cortex-a76": "rpi5"}
PYTHON = "3.11"  # of Debian 12
PACKAGES = ("libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libffi8 libbz2-1.0 liblzma5 libssl3 libuuid1 libcrypt1 "
            "python3.11-minimal libpython3.11-minimal libpython3.11-stdlib").split()
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
WHEELS = ("onnxruntime", "numpy", "tokenizers")
# onnxruntime's library that reads the CPU's features crashes on the host's x86 lines: an Arm file lies over them.
_COMMON = "processor\t: {}\nBogoMIPS\t: 108.00\nFeatures\t: {}\nCPU implementer\t: 0x41\nCPU architecture: 8\n" \
          "CPU variant\t: 0x0\nCPU part\t: {}\nCPU revision\t: 3\n\n"
CPUINFO = {"cortex-a72": ("fp asimd evtstrm crc32 cpuid", "0xd08"),
           "cortex-a76": ("fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
                          "0xd0b")}
FALLBACK = "unpacked compute"  # onnxruntime's line when a MatMulNBits has no kernel on a CPU, at severity INFO
TEXTS = ("Ann has 12 apples and buys 30 more. How many apples does she have?",
         "A box holds 6 pens. How many pens are in 14 boxes?", "What is left of 81 metres of rope after 27 are cut off?")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="a bundle's folder, or a pack")
    parser.add_argument("--rows", type=int, default=50, help="of a pack, asked at most")
    parser.add_argument("--prepare", action="store_true", help="only fetch what is needed")
    parser.add_argument("--cpu", action="append", choices=CPUS, help="default: both")
    parser.add_argument("--texts", type=Path, help="one question a line (default: three)")
    parser.add_argument("--json", type=Path, help="a result file")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "edgedistill" / "arm64")
    args = parser.parse_args()
    try:
        texts = args.texts.read_text(encoding="utf-8").splitlines() if args.texts else list(TEXTS)
    except (OSError, UnicodeDecodeError) as error:
        print(f"emulate: --texts {args.texts}: {error}; give a text file with one question a line", file=sys.stderr)
        return 2
    try:
        prepare(args.cache)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"emulate: cannot prepare {args.cache}: {' '.join(str(error).split())[:200]}", file=sys.stderr)
        return 2
    if args.prepare:
        return 0
    packed = bool(args.bundle) and args.bundle.suffix == ".pyz" and args.bundle.is_file()
    if not args.bundle or not packed and not (args.bundle / "bundle.json").is_file():
        print(f"emulate: {args.bundle} is no bundle; edgedistill export makes one", file=sys.stderr)
        return 2
    if packed:
        return emulate_pack(args)
    from edgedistill.errors import Error

    try:
        here = check(args.bundle, texts)
    except Error as error:
        print(f"emulate: {error}", file=sys.stderr)
        return 2
    results, passed = {}, True
    for cpu in args.cpu or CPUS:
        found = emulated(args.cache, cpu, args.bundle, texts)
        same = found.get("tokens") == here["tokens"]
        results[cpu] = {**found, "same": same}
        passed &= same and not found["fallbacks"]
        print(f"emulate: {args.bundle} under {cpu}: {found.get('error') or ('the same tokens' if same else 'OTHER TOKENS')} on "
              f"{len(texts)} texts, {found['fallbacks']} products fall back, {found.get('peak_mb', 0):.0f} MB")
    if args.json:
        args.json.write_text(json.dumps({"here": here, **results}, indent=1) + "\n")
    return 0 if passed else 3


def check(bundle: Path, texts: list[str]) -> dict[str, Any]:
    """The bundle's greedy tokens for each text and the peak memory in MB; runs here and inside the emulator."""
    import resource

    import onnxruntime as ort

    from edgedistill.edge import Student, graphs

    graphs.QUIET = 1  # INFO: a product that falls back says so when it runs, and only there
    student = Student.load(bundle, 2)
    return {"tokens": [student.generate(text).ids for text in texts], "onnxruntime": ort.__version__,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def emulate_pack(args: argparse.Namespace) -> int:
    """Runs a pack under each CPU; passes where it measures and its first answers are those from where it was packed."""
    results, passed = {}, True
    for cpu in args.cpu or CPUS:
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "result.json"
            done = run_arm(args.cache, cpu, "", str(args.bundle.resolve()), "--inline", "--threads", "2", "--n", str(args.rows),
                           "--out", str(out))
            found = json.loads(out.read_text()) if out.is_file() else {}
        if not found:
            words = (done.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"emulate: {args.bundle.name} under {cpu}: it ended with {done.returncode}: {words[:200]}")
            results[cpu], passed = {"error": words[:200]}, False
            continue
        golden, entry = found["golden"], found["results"][0]
        keys = ("accuracy", "correct", "counted", "peak_rss_mb", "bytes")
        results[cpu] = {"golden": golden, **{key: entry[key] for key in keys}}
        passed &= golden["same"] == golden["asked"]
        print(f"emulate: {args.bundle.name} under {cpu}: {golden['same']} of {golden['asked']} answers as packed, "
              f"{entry['correct']} of {entry['counted']} right, {entry['peak_rss_mb']:.0f} MB")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if passed else 3


def run_arm(cache: Path, cpu: str, path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The Arm Python on `arguments` under qemu; `path` is searched for modules after the Arm wheels."""
    root = cache / "root"
    features, part = CPUINFO[cpu]
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text("".join(_COMMON.format(i, features, part) for i in range(4)))
    return subprocess.run(
        [str(cache / "qemu" / "usr" / "bin" / "qemu-aarch64-static"), "-cpu", cpu, "-L", str(root),
         "-E", f"PYTHONHOME={root / 'usr'}", "-E", f"PYTHONPATH={cache / 'wheels'}:{path}", "-E", "PYTHONDONTWRITEBYTECODE=1",
         str(root / "usr" / "bin" / f"python{PYTHON}"), *arguments], capture_output=True, text=True, errors="replace")


def emulated(cache: Path, cpu: str, bundle: Path, texts: list[str]) -> dict[str, Any]:
    """`check` under qemu, and how many lines of the engine's log say that a product fell back."""
    code = ("import sys, json, pathlib; sys.path.insert(0, sys.argv[1]); import emulate; "
            "print('RESULT', json.dumps(emulate.check(pathlib.Path(sys.argv[2]), json.loads(sys.argv[3]))))")
    done = run_arm(cache, cpu, str(SOURCE), "-c", code, str(HERE), str(bundle.resolve()), json.dumps(texts))
    fallbacks = sum(FALLBACK in line.lower() for line in done.stderr.splitlines())
    answer = [line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not answer:
        last = [line for line in done.stderr.splitlines() if "[I:" not in line][-1:]
        return {"error": f"it ended with {done.returncode}: {''.join(last)[:200]}", "fallbacks": fallbacks}
    return {**json.loads(answer[0]), "fallbacks": fallbacks}


def prepare(cache: Path) -> None:
    """qemu, a small Arm root and the Arm wheels in `cache`, once."""
    done = cache / "ready"
    wanted = f"{PYTHON} {' '.join(WHEELS)}"
    if done.is_file() and done.read_text() == wanted:
        return
    shutil.rmtree(cache, ignore_errors=True)
    print(f"emulate: fetching qemu, an Arm Python and the Arm wheels into {cache}", file=sys.stderr)
    for arch, packages, root in (("amd64", ["qemu-user-static"], cache / "qemu"), ("arm64", PACKAGES, cache / "root")):
        apt = cache / f"apt-{arch}"
        for folder in ("lists/partial", "archives/partial"):
            (apt / folder).mkdir(parents=True)
        (apt / "status").touch()
        (apt / "apt.conf").write_text(
            f'Dir::State "{apt}"; Dir::State::Lists "{apt}/lists"; Dir::State::status "{apt}/status"; Dir::Cache "{apt}";\n'
            f'Dir::Cache::archives "{apt}/archives"; APT::Architecture "{arch}"; APT::Architectures {{ "{arch}"; }};\n'
            'APT::Sandbox::User "root"; Acquire::Languages "none"; Acquire::http::Timeout "20";\n')
        _run(["apt-get", "-qq", "update"], apt)
        _run(["apt-get", "-qq", "download", *packages], apt)
        for package in apt.glob("*.deb"):
            _run(["dpkg", "-x", str(package), str(root)], apt)
        shutil.rmtree(apt)
    for binary in (cache / "qemu" / "usr" / "bin").iterdir():  # one of 40 CPUs that the package emulates, 350 MB of others
        if binary.name != "qemu-aarch64-static":
            binary.unlink()
    for link in ("lib", "bin"):  # Debian's merged /usr, which its packages expect
        if not (cache / "root" / link).exists():
            (cache / "root" / link).symlink_to(f"usr/{link}")
    _run([sys.executable, "-m", "pip", "download", "-q", "--only-binary", ":all:", "--python-version", PYTHON, "--dest",
          str(cache / "whl"), *(word for platform in PLATFORMS for word in ("--platform", platform)), *WHEELS], cache)
    for wheel in (cache / "whl").glob("*.whl"):
        shutil.unpack_archive(wheel, cache / "wheels", "zip")
    shutil.rmtree(cache / "whl")
    done.write_text(wanted)


def _run(command: list[str], place: Path) -> None:
    conf = place / "apt.conf"
    subprocess.run(command, cwd=place, check=True, stdout=subprocess.DEVNULL,
                   env={**os.environ, **({"APT_CONFIG": str(conf)} if conf.exists() else {})})


if __name__ == "__main__":
    sys.exit(main())
