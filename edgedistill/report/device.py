"""The device's sections: what to take, how long each phase lasts, the peers, the machine's health. From bench results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill.report import commands
from edgedistill.report.page import Section, bars, command, e, key, note, number, p, percent, plural, share_words, table
from edgedistill.report.plots import Axis, Bubble, bubbles

_PHASES = {"tokenise": "tokenize_ms", "read": "read_ms", "decode": "decode_ms"}


@dataclass(frozen=True)
class Point:
    """An engine with a model at the thread count at which it is fastest; `accuracy` in 0..1, `ms` the p50."""

    name: str
    subject: str
    threads: int
    ms: float
    accuracy: float
    ci95: list[float]
    bytes: int


@dataclass(frozen=True)
class Choice:
    """What to take of `points` (fastest first), the most accurate, and the places of those that none beats in both."""

    points: list[Point]
    take: int
    best: int
    front: list[int]

    def why(self) -> str:
        """The choice in a sentence."""
        chosen, best = self.points[self.take], self.points[self.best]
        lead = (f"{chosen.name} on {plural(chosen.threads, 'thread')}: {number(chosen.ms)} ms, "
                f"{share_words(chosen.accuracy, chosen.ci95)} right, {chosen.bytes / 1e6:.0f} MB. ")
        if self.take == self.best:
            return lead + ("It is the most accurate, and no faster one's interval reaches its own." if self.take else
                           "It is the most accurate and the fastest.")
        return lead + (f"It is the fastest whose interval is not below that of the most accurate, {best.name}: "
                       f"{share_words(best.accuracy, best.ci95)} in {number(best.ms)} ms.")


def choose(points: list[Point]) -> Choice:
    """The fastest point whose 95 % interval is not wholly below the most accurate one's. `points` is not empty."""
    points = sorted(points, key=lambda point: (point.ms, -point.accuracy, point.bytes))
    best = max(range(len(points)), key=lambda i: (points[i].accuracy, -i))
    take = next(i for i, point in enumerate(points) if point.ci95[1] >= points[best].ci95[0])
    front, highest = [], -1.0
    for i, point in enumerate(points):
        if point.accuracy > highest:
            front.append(i)
            highest = point.accuracy
    return Choice(points, take, best, front)


def name_of(entry: dict[str, Any]) -> str:
    """An entry's name; results of before there were names have engine and precision."""
    return entry.get("name") or f"{entry['engine']} {entry['precision']}"


def valid(result: dict[str, Any]) -> bool:
    """Whether the machine was fit to be measured; results of before this was looked at count."""
    return (result.get("health") or {}).get("valid") is not False


def rows_of(entry: dict[str, Any], data: dict[str, Any] | None) -> str:
    """The rows that an entry was counted on, in words; `data` is its result's."""
    return f"{plural(entry.get('counted') or data['n'], 'row')} of {data['name']}, {data['split']}" if data else "its own rows"


def asked_of(entry: dict[str, Any], result: dict[str, Any]) -> str:
    """What an entry was measured on, in words: the rows, else the lengths of its requests. Unlike words are no comparison."""
    if result.get("data") or entry.get("accuracy") is not None:
        return rows_of(entry, result.get("data"))
    lengths = [entry.get("input_tokens") or 0, entry.get("output_tokens") or 0]
    if any(length != round(length) for length in lengths):  # means over texts
        return "texts of its own"
    return f"{lengths[0]:g} tokens in, {lengths[1]:g} out"


def model_of(machine: dict[str, Any]) -> str:
    """A machine in words: what is the same of its like."""
    return f"{machine['cpu']}, {plural(machine['cores'], 'core')}"


def whole(machine: dict[str, Any]) -> str:
    """All that a result says of its machine."""
    return f"{model_of(machine)}, {machine.get('memory_gb') or '?'} GB, {machine['os']}"


def points_of(results: list[dict[str, Any]], evals: list[dict[str, Any]]) -> dict[str, list[Point]]:
    """What was measured on a fit machine and counted, by the rows it was counted on; each at its fastest thread count.

    A later result takes the place of an earlier one of the same name, subject and threads.
    """
    found: dict[str, dict[tuple[str, str, int], Point]] = {}
    for result in filter(valid, results):
        for entry in result["results"]:
            accuracy, ci95, rows = _counted(result, entry, evals)
            if accuracy is not None and ci95:
                name, subject, threads = place = name_of(entry), result["subject"], entry["threads"]
                point = Point(name, subject, threads, entry["p50_ms"], accuracy, ci95, entry["bytes"])
                found.setdefault(rows, {})[place] = point
    fastest: dict[str, list[Point]] = {}
    for rows, points in found.items():
        slowest_first = sorted(points.values(), key=lambda point: -point.ms)
        fastest[rows] = list({(point.name, point.subject): point for point in slowest_first}.values())
    return fastest


def _counted(result: dict[str, Any], entry: dict[str, Any],
             evals: list[dict[str, Any]]) -> tuple[float | None, list[float] | None, str]:
    """(accuracy, interval, rows): the entry's own; of before `bench` counted, the run's eval of that bundle."""
    if "accuracy" in entry:
        return entry["accuracy"], entry.get("ci95"), rows_of(entry, result.get("data"))
    for ev in reversed(evals):
        if entry["engine"] == "edge" and (ev["subject"], ev["precision"]) == (result["subject"], entry["precision"]):
            return ev["accuracy"], ev["ci95"], rows_of({"counted": ev["n"]}, {**ev, "name": ev["data"]})
    return None, None, ""


def by_machine(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Results grouped by what the machine is."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(model_of(result["machine"]), []).append(result)
    return groups


def picks(results: list[dict[str, Any]], evals: list[dict[str, Any]]) -> list[Section]:
    """What to take, for each machine and set of rows where there are at least two things to choose from."""
    return [Section(f"What to take on {machine}", note("Recommended:", choice.why()) + _pareto(rows, choice))
            for machine, its in by_machine(results).items() for rows, points in points_of(its, evals).items()
            if len(points) > 1 for choice in [choose(points)]]


def sections(run: Path, results: list[dict[str, Any]]) -> list[Section]:
    """One section a machine, in it a part for each result file."""
    made = []
    for machine, its in by_machine(results).items():
        parts = [Section(f"{result['subject']}, {_when(result)}", _result(run, result)) for result in its]
        alone = len(its) == 1
        made.append(Section(f"Measured on {machine}", parts[0].body if alone else "", () if alone else tuple(parts)))
    return made


def banner(results: list[dict[str, Any]]) -> str:
    """A warning for each result of a machine that was not fit to be measured."""
    why = {f"{r['subject']}, {_when(r)}": r["health"].get("why") or ["no reason given"] for r in results if not valid(r)}
    return "".join(note("Invalid measurement.", f"{what}: {'; '.join(reasons)}. Its times recommend nothing.", bad=True)
                   for what, reasons in why.items())


def _pareto(rows: str, choice: Choice) -> str:
    points = choice.points
    wide = len({point.subject for point in points}) > 1
    names = [f"{point.name}, {point.subject}" if wide else point.name for point in points]
    lowest, highest = min(point.ci95[0] for point in points), max(point.ci95[1] for point in points)
    x = Axis("ms a question, p50, logarithmic", points[0].ms / 1.35, points[-1].ms * 1.35, log=True)
    y = Axis("right, %", max(0, 10 * int(10 * lowest - 0.3)), min(100, 10 * int(10 * highest + 1.3)))
    drawn = bubbles(
        f"Median latency against accuracy on {rows}; a larger bubble has more bytes. "
        + "; ".join(f"{i + 1} {name}: {number(point.ms)} ms, {percent(point.accuracy)}, {point.bytes / 1e6:.0f} MB"
                    for i, (name, point) in enumerate(zip(names, points, strict=True))) + ".", x, y,
        [Bubble(point.ms, 100 * point.accuracy, 100 * point.ci95[0], 100 * point.ci95[1], point.bytes,
                2 if i == choice.take else 0 if point.name.startswith("edge") else 1, i == choice.take)
         for i, point in enumerate(points)], choice.front)
    legend = key(["recommended", "edgedistill's engine", "others"], [2, 0, 1])
    return (f"<figure><figcaption>Latency against accuracy on {e(rows)}; area: bytes; whiskers: 95 % intervals; dashed: what "
            f"no other beats in both</figcaption>{legend}{drawn}</figure>" + table("Latency against accuracy", {
                "#": list(range(1, len(points) + 1)), "engine": names, "threads": [point.threads for point in points],
                "p50 ms": [number(point.ms) for point in points],
                "right": [share_words(point.accuracy, point.ci95) for point in points],
                "MB": [number(point.bytes / 1e6) for point in points],
                "unbeaten": ["yes" if i in choice.front else "no" for i in range(len(points))]}, choice.take))


def _result(run: Path, result: dict[str, Any]) -> str:
    return (banner([result]) + _phases(result) + _peers(result) + _comparisons(result) + _health(result)
            + command(commands.measurement(run, result)))


def _phases(result: dict[str, Any]) -> str:
    rows = []
    for entry in sorted(result["results"], key=lambda entry: entry["p50_ms"]):
        phases = entry.get("phases") or {}
        times = {name: phases[phase] for name, phase in _PHASES.items() if phases.get(phase) is not None}
        parts = [(list(_PHASES).index(name), ms) for name, ms in times.items()]
        # What is left comes before decoding: of a peer only its first token is known.
        parts.insert(len(parts) - ("decode" in times), (4, max(0.0, entry["p50_ms"] - sum(times.values()))))
        words = ", ".join(f"{name} {number(ms)}" for name, ms in times.items())
        rows.append((f"{name_of(entry)}, {plural(entry['threads'], 'thread')}",
                     f"{number(entry['p50_ms'])} ms" + (f": {words}" if words else ""), parts))
    shapes = _shapes(result)
    shape = f" of {shapes[0][0]:g} tokens in, {shapes[0][1]:g} out" if len(shapes) == 1 else ""
    split = any(len(parts) > 1 for *_, parts in rows)
    legend = key(["tokenise", "read", "not taken apart", "decode"], [0, 1, 4, 2]) if split else ""
    # One slow peer must not flatten the phases of the others.
    apart = max((sum(ms for _, ms in parts) for *_, parts in rows if len(parts) > 2), default=0)
    cut = 2.5 * apart if any(sum(ms for _, ms in parts) > 2.5 * apart for *_, parts in rows) else 0
    return bars(f"Where the time of a median request{shape} goes" + ("; a bar with a broken end goes on" if cut else ""),
                rows, legend, cut)


def _shapes(result: dict[str, Any]) -> list[tuple[float, float]]:
    """(input tokens, output tokens) of the requests."""
    return sorted({(entry.get("input_tokens") or 0, entry.get("output_tokens") or 0) for entry in result["results"]})


def _peers(result: dict[str, Any]) -> str:
    entries = result["results"]

    def each(key: str, scale: float = 1.0) -> list[str | None]:
        return [None if entry.get(key) is None else number(entry[key] / scale) for entry in entries]

    settings = {f"{name_of(entry)}, {plural(entry['threads'], 'thread')}": entry["settings"]
                for entry in entries if entry.get("settings")}
    shown = "" if not settings else "<details><summary>Settings of each engine</summary>" + table("Settings", {
        "engine": list(settings), "settings": [", ".join(f"{k} {v}" for k, v in its.items()) for its in settings.values()],
    }) + "</details>"
    lead = p("In milliseconds, if no unit is given. A token's floor: reading its weights at the probe's rate.", "soft")
    who = {"engine": [name_of(entry) for entry in entries], "threads": [entry["threads"] for entry in entries]}
    return lead + table("Latency", who | {
        "p50 ms": each("p50_ms"), "p90": each("p90_ms"), "p95": each("p95_ms"), "p99": each("p99_ms"),
        "first token": each("first_token_ms"),
        "a token": [number((entry.get("phases") or {}).get("token_ms")) for entry in entries],
        "its floor": each("floor_ms"), "tokens/s": each("tokens_per_s"), "over the probe": each("probe_ratio"),
        **({"in": each("input_tokens"), "out": each("output_tokens")} if len(_shapes(result)) > 1 else {}),
        "requests": [entry["n"] for entry in entries],
    }) + table("Accuracy, size and start", who | {
        "right": [None if entry.get("accuracy") is None else share_words(entry["accuracy"], entry["ci95"])
                  if entry.get("ci95") else percent(entry["accuracy"]) for entry in entries],
        "MB": each("bytes", 1e6), "peak memory MB": each("peak_rss_mb"), "PSS": each("pss_mb"), "load ms": each("load_ms"),
        "load from disk": each("load_cold_ms"), "first request": each("first_request_ms"), "joules": each("joules"),
    }) + shown


def _comparisons(result: dict[str, Any]) -> str:
    found = result.get("comparisons") or []
    if not found:
        return ""
    words = [("no difference found" if not c["different"] else "faster" if c["ratio"] > 1 else "slower") for c in found]
    return p("Side by side, in turns; above 1 the first is the faster one, with the 95 % interval:") + table("Comparisons", {
        "engine": [c["name"] for c in found], "against": [c["other"] for c in found], "threads": [c["threads"] for c in found],
        "times as fast": [f"{c['ratio']:.2f} ({c['ci95'][0]:.2f} to {c['ci95'][1]:.2f})" for c in found], "verdict": words})


def _health(result: dict[str, Any]) -> str:
    health = result.get("health") or {}
    facts = {"machine": whole(result["machine"]),
             "board": health.get("board"), "governor": health.get("governor"), "clock": _journey(health.get("mhz"), "MHz"),
             "temperature": _journey(health.get("celsius"), "°C")}
    if "throttled" in health:
        flags = health["throttled"]
        facts["throttled"] = "not readable" if flags is None else ", ".join(flags) or "no"
    if health.get("loadavg"):
        facts["load average"] = ", ".join(f"{x:g}" for x in health["loadavg"])
    if health.get("steal_percent") is not None:
        facts["stolen time"] = f"{health['steal_percent']:g} %"
    facts["energy"] = health.get("energy")
    for probe in result.get("probes") or []:
        parts = [f"{number(probe[key])} {unit}" for key, unit in (("read_gb_s", "GB/s read"), ("gemm_gflops", "GFLOP/s"),
                                                                  ("ms", "ms")) if probe.get(key) is not None]
        facts[f"probe, {plural(probe['threads'], 'thread')}"] = ", ".join(parts)
    facts["notes"] = "; ".join(health.get("notes") or [])
    return "<dl>" + "".join(f"<dt>{e(name)}</dt><dd>{e(value)}</dd>" for name, value in facts.items() if value) + "</dl>"


def _when(result: dict[str, Any]) -> str:
    return result["created"][:16].replace("T", " ")


def _journey(values: dict[str, Any] | None, unit: str) -> str | None:
    """{before, min, median, max, after} in words."""
    known = {name: value for name, value in (values or {}).items() if value is not None}
    return ", ".join(f"{name} {value:.0f}" for name, value in known.items()) + f" {unit}" if known else None
