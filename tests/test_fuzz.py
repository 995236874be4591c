from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import bundle_fuzz


@pytest.mark.parametrize(("family", "precision"), [("t5", "int8"), ("decoder", "int4")])
def test_forged_bundles_are_refused_or_answer(family: str, precision: str, tmp_path: Path) -> None:
    # 2,000 of them: benchmarks/bundle_fuzz.py.
    original = bundle_fuzz.make(family, precision, tmp_path / "original")
    outcomes = set()
    for case in range(40):
        folder = tmp_path / f"case-{case}"
        shutil.copytree(original, folder)
        done = bundle_fuzz.mutate(folder, random.Random(f"test-{family}-{case}"))
        if case % 2:
            bundle_fuzz.sign(folder)
        outcome, detail = bundle_fuzz.attempt(folder)
        assert outcome in ("refused", "answered"), (done, outcome, detail)
        outcomes.add(outcome)
    assert "refused" in outcomes
