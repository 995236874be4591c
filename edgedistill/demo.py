"""`demo`: the whole chain on the embedded teacher and task, offline."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from edgedistill import defaults, machine, runs
from edgedistill.progress import clock, say

ROWS = 200             # taught, of the built-in task
STUDENT = "smollm2-135m"  # carved with all its layers: from so few rows, one with 16 of them learns too little
EPOCHS = 3
MAX_DROP = 3.0         # points: after 3 epochs a student has many near ties, and of 100 dev rows each is a point
TEST_ROWS = 100        # on which teacher and student are both counted
EXPECTED = "8 minutes on 2 cores that compute in bf16, 16 on others"


def demo(*, run: str = "runs/demo") -> dict[str, Any]:
    """teach, train, export, eval (student and teacher), bench, report; returns the summary as the result object.

    Every stage is the ordinary verb, with the settings above; called again, finished stages are not repeated.
    """
    from edgedistill.bench import bench
    from edgedistill.evaluate import evaluate
    from edgedistill.export import export
    from edgedistill.report import report
    from edgedistill.teach import teach
    from edgedistill.train import train

    say(f"demo: {defaults.TEACHER} teaches {defaults.TASK} to a carved student; {EXPECTED}; everything in {run}")
    taught = teach(run=run, limit=ROWS)
    trained = train(STUDENT, run=run, epochs=EPOCHS)
    exported = export(run=run, max_drop=MAX_DROP)
    start = time.monotonic()
    student = evaluate(run=run, split="test", limit=TEST_ROWS)
    teacher = evaluate(defaults.TEACHER, run=run, split="test", limit=TEST_ROWS)
    measured = bench(run=run, n=30)
    page = report([run])
    # The stages' own wall time, also of those that an earlier call finished, and what came after them.
    seconds = round(sum(stage["seconds"] for stage in (taught, trained, exported)) + time.monotonic() - start, 1)
    result = {
        **machine.origin("demo"), "seconds": seconds, "teacher_accuracy": teacher["accuracy"],
        "teacher_ci95": teacher["ci95"], "teacher_verified": taught["verified"], "rows": taught["rows"],
        "student_accuracy": student["accuracy"], "student_ci95": student["ci95"], "test_rows": student["n"],
        "parameters": trained["parameters"], "bytes": exported["bytes"],
        "token_agreement": exported["token_agreement"], "latency": measured["results"],
        "stages": {"teach": taught["seconds"], "train": trained["seconds"], "export": exported["seconds"]}}
    runs.write_json(Path(run) / "demo.json", result)
    best = min(measured["results"], key=lambda r: r["p50_ms"])
    say()
    say(f"  teacher   {100 * teacher['accuracy']:.1f} % of {teacher['n']} test problems right "
        f"({taught['verified']} of {taught['rows']} training problems verified)")
    say(f"  student   {100 * student['accuracy']:.1f} % (95 % interval {100 * student['ci95'][0]:.1f} to "
        f"{100 * student['ci95'][1]:.1f}) on templates it never saw; {trained['parameters'] / 1e6:.0f} M parameters, "
        f"{exported['bytes'] / 1e6:.0f} MB int8")
    say(f"  latency   {best['p50_ms']:.0f} ms a question (p50, {best['threads']} threads), "
        f"{best['peak_rss_mb']:.0f} MB of memory")
    say(f"  time      {clock(seconds)}; report: {page}")
    say(f"  try       edgedistill run {Path(run) / 'export' / 'bundle'} \"Mia has 14 shells and finds 5 more. "
        "How many shells has she now?\"")
    return result
