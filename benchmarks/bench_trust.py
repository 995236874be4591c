"""Whether the bench can be trusted: five of them agree, a slow-down of a fifth is found, equals are rarely called different.

    python benchmarks/bench_trust.py BUNDLE [--threads 2]

1. Five benches of one bundle: the ratio of its p50 to that of the probe in the same rounds, largest over smallest. Beside it
   the same for the p50 itself: what the machine's own changes would have made of it.
2. Ten short pairs, in one process, of the bundle and itself with a fifth of each request's time added by waiting: how many are
   called different, by how much.
3. A hundred such pairs without the waiting: how many are called different (3 are expected by the sign test).

Requests have 64 tokens of input and 48 of output, those of pairs 4. A short pair opens the bundle twice, in random order, in
each of six sittings, and asks both in turns.

Result: benchmarks/results/bench-trust.json.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from edgedistill import machine, runs
from edgedistill.bench import bench
from edgedistill.bench.compare import SITTINGS, compare, in_turns
from edgedistill.bench.measure import Workload
from edgedistill.bench.process import Inline
from edgedistill.edge import bundle as bundles
from edgedistill.edge.format import Format
from edgedistill.progress import say

INPUT, OUTPUT, SHORT = 64, 48, 4  # tokens
RESULT = Path(__file__).parent / "results" / "bench-trust.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--benches", type=int, default=5)
    parser.add_argument("--n", type=int, default=100, help="rounds of a bench")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3, help="of a sitting of a pair")
    parser.add_argument("--slower", type=float, default=0.2)
    parser.add_argument("--out", default=RESULT, type=Path)
    args = parser.parse_args()
    benches = []
    with tempfile.TemporaryDirectory() as place:
        for i in range(args.benches):
            result = bench(args.bundle, run=f"{place}/{i}", threads=[args.threads], input_tokens=INPUT, output_tokens=OUTPUT,
                           n=args.n)
            entry, probe = result["results"][0], result["probes"][0]
            benches.append({"p50_ms": entry["p50_ms"], "probe_ms": probe["ms"], "ratio": entry["probe_ratio"],
                            "steal_percent": result["health"]["steal_percent"]})
    folder = Path(args.bundle)
    manifest = bundles.read(folder)
    request = Workload.text(folder, Format.from_dict(manifest["format"]), INPUT, SHORT).requests[0]
    job = {"engine": "edge", "place": str(folder), "threads": args.threads, "first": request}

    def asking(one: Inline, slower: float) -> Any:
        def ask(_: int) -> float:
            begin = time.perf_counter()
            one.ask(request)
            end = time.perf_counter() + slower * (time.perf_counter() - begin)
            while time.perf_counter() < end:
                pass
            return time.perf_counter() - begin
        return ask

    def pair(seed: int, slower: float = 0.0) -> dict[str, Any]:
        rng, sittings = random.Random(seed), []
        for _ in range(SITTINGS):
            order = rng.sample("ab", 2)
            with Inline(order[0], job) as one, Inline(order[1], job) as other:
                asks = {each.name: asking(each, slower if each.name == "b" else 0.0) for each in (one, other)}
                found = in_turns(asks, range(args.rounds), rng.randrange(10**6))
            sittings.append((found["a"], found["b"]))
        return compare(sittings)

    slowed = [pair(1000 + i, args.slower) for i in range(10)]
    equal = [pair(i) for i in range(args.pairs)]
    ratios = [each["ratio"] for each in benches]
    p50s = [each["p50_ms"] for each in benches]
    different = sum(each["different"] for each in equal)
    result = {**machine.origin("bench-trust"), "bundle": runs.subject_name(folder), "precision": manifest["precision"],
              "threads": args.threads, "rounds": args.n, "benches": benches,
              "ratio_spread": round(max(ratios) / min(ratios) - 1, 4), "p50_spread": round(max(p50s) / min(p50s) - 1, 4),
              "slowed": {"by": args.slower, "pairs": len(slowed), "found": sum(each["different"] for each in slowed),
                         "ratio": round(statistics.median(each["ratio"] for each in slowed), 4)},
              "equal": {"pairs": len(equal), "rounds": args.rounds, "different": different,
                        "ratio": round(statistics.median(each["ratio"] for each in equal), 4)}}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(args.out, result)
    say(f"bench-trust: {len(benches)} benches agree within {100 * result['ratio_spread']:.1f} % of the probe's ratio "
        f"({100 * result['p50_spread']:.1f} % of p50); {100 * args.slower:g} % more was found in {result['slowed']['found']} "
        f"of {len(slowed)} pairs ({result['slowed']['ratio']:.2f}x); {different} of {len(equal)} equal pairs were called "
        "different")


if __name__ == "__main__":
    main()
