# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run every check as a stage, show progress, and close with one table and one line of counts.

Usage: stages.py [STAGE...]      (default: all, in two lanes; named ones run one after another)
A stage is a make target. Its output goes to build/test/<stage>.log; what it prints last is
shown while it runs, and the log's end when it fails. Tests are counted from the JUnit files
build/test/junit/<stage>*.xml; a stage without any counts as one test, its exit code.
Of Ansible's tasks, an assertion that held counts as passed, and any task that failed as failed.
What failed most often and why is said last of all, where nobody has to look for it.
Exit code: 0 when nothing failed.
"""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build" / "test"
JUNIT = OUTPUT / "junit"
FIRST = "build"
BY_ANSIBLE = ("integration", "molecule", "molecule-vm")
ASSERTED = "All assertions passed"
# Two lanes run side by side, for Ansible leaves a core idle most of the time. All names on the
# machine carry the stage or the process; the one thing shared is the collection's lock. The second
# lane has what needs the guests' image, which its first stage builds.
LANES = (
    (
        "traffic",
        "lint-ruff",
        "lint-format",
        "lint-mypy",
        "lint-yaml",
        "lint-bpf",
        "lint-files",
        "unit",
        "lint-ansible",
        "sanity",
        "units",
        "package-test",
        "readme-test",
        "integration",
        "faults",
        "lab-test",
        "bench-test",
    ),
    (
        "ring",
        "lint-kmod",
        "molecule",
        "molecule-vm",
    ),
)
HEARTBEAT = 20.0  # seconds between signs of life
TAIL = 60  # lines of a failed stage's log
CAUSES = 3  # of a failed stage, said at the end
CAUSE_WIDTH = 400


@dataclass(frozen=True)
class Counts:
    """How many tests passed, failed (or erred) and were skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.passed + other.passed,
            self.failed + other.failed,
            self.skipped + other.skipped,
        )


@dataclass(frozen=True)
class Result:
    """One finished stage."""

    stage: str
    counts: Counts
    seconds: float


def count_cases(cases: Iterable[ET.Element], tasks: bool) -> Counts:
    """Sort JUnit test cases by outcome; tasks: they are Ansible's, of which assertions count."""
    passed = failed = skipped = 0
    for case in cases:
        tags = {child.tag for child in case}
        if tags & {"failure", "error"}:
            failed += 1
        elif tasks and ASSERTED not in (case.findtext("system-out") or ""):
            continue
        elif "skipped" in tags:
            skipped += 1
        else:
            passed += 1
    return Counts(passed, failed, skipped)


def junit_files(stage: str, junit: Path) -> list[Path]:
    """A stage's files: STAGE.xml, STAGE-NUMBER.xml, or those in the folder STAGE."""
    patterns = (f"{stage}.xml", f"{stage}-[0-9]*.xml", f"{stage}/*.xml")
    return [path for pattern in patterns for path in junit.glob(pattern)]


def count_stage(stage: str, code: int, junit: Path = JUNIT) -> Counts:
    """Counts of a stage's JUnit files, at least one failure when the exit code says so."""
    files = junit_files(stage, junit)
    total = Counts()
    for path in files:
        total += count_cases(ET.parse(path).iter("testcase"), stage in BY_ANSIBLE)
    if code and not total.failed:
        return total + Counts(failed=1)
    if not files:
        return Counts(passed=1)
    return total


def cause(trouble: ET.Element) -> str:
    """Why a test failed, on one line: what pytest marks with E, or else the first words."""
    marked = [line[1:].strip() for line in (trouble.text or "").split("\n") if line[:2] == "E "]
    text = (
        "; ".join(line for line in marked if line) or trouble.get("message") or trouble.text or ""
    )
    return " ".join(text.split())[:CAUSE_WIDTH]


def causes(stage: str, junit: Path = JUNIT) -> list[str]:
    """The most frequent causes of a stage's failures, each with an example."""
    found: Counter[str] = Counter()
    example: dict[str, str] = {}
    for path in junit_files(stage, junit):
        for case in ET.parse(path).iter("testcase"):
            for trouble in case:
                if trouble.tag in {"failure", "error"}:
                    why = cause(trouble)
                    found[why] += 1
                    example.setdefault(why, case.get("name", ""))
    lines = [f"{count} x {example[why]}: {why}" for why, count in found.most_common(CAUSES)]
    return lines or [f"see {OUTPUT.name}/{stage}.log: {last_line(OUTPUT / f'{stage}.log')}"]


def last_line(log: Path) -> str:
    """The last line that says something, shortened for one line of a terminal."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 4096))
        lines = stream.read().decode(errors="replace").split("\n")
    return next((line.strip()[:90] for line in reversed(lines) if line.strip()), "")


def run_stage(stage: str) -> Result:
    """Run `make STAGE`, with a sign of life every HEARTBEAT seconds."""
    for old in junit_files(stage, JUNIT):
        old.unlink()
    log = OUTPUT / f"{stage}.log"
    begin = time.monotonic()
    with log.open("wb") as out:
        command = ["make", "--no-print-directory", stage]
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
        while True:
            try:
                code = process.wait(HEARTBEAT)
                break
            except subprocess.TimeoutExpired:
                print(
                    f"    {stage} {time.monotonic() - begin:4.0f} s: {last_line(log)}", flush=True
                )
    result = Result(stage, count_stage(stage, code), time.monotonic() - begin)
    if code:
        lines = log.read_text(errors="replace").splitlines()[-TAIL:]
        print("\n".join(f"    | {line}" for line in lines), flush=True)
    return result


def describe(result: Result) -> str:
    """One line of the table."""
    counts = result.counts
    verdict = "FAILED" if counts.failed else "ok"
    return (
        f"{result.stage:<14} {verdict:<7} {counts.passed:5} {counts.failed:5} "
        f"{counts.skipped:5} {result.seconds:7.1f}"
    )


def run_lane(stages: Sequence[str]) -> list[Result]:
    """Run stages one after another, announcing each."""
    results = []
    for stage in stages:
        print(f"==> {stage} ...", flush=True)
        result = run_stage(stage)
        results.append(result)
        counts = result.counts
        print(
            f"==> {stage}: {counts.passed} passed, {counts.failed} failed, "
            f"{counts.skipped} skipped in {result.seconds:.1f} s",
            flush=True,
        )
    return results


def run_all(stages: Sequence[str]) -> list[Result]:
    """The named stages, or FIRST and then the lanes side by side."""
    if stages:
        return run_lane(stages)
    results = run_lane([FIRST])
    if results[0].counts.failed:
        return results
    with ThreadPoolExecutor(len(LANES)) as pool:
        for lane in pool.map(run_lane, LANES):
            results += lane
    return results


def main() -> int:
    JUNIT.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    results = run_all(sys.argv[1:])
    total = sum((result.counts for result in results), Counts())
    print(f"\n{'stage':<14} {'':<7} {'pass':>5} {'fail':>5} {'skip':>5} {'seconds':>7}")
    print("\n".join(describe(result) for result in results))
    print(describe(Result("all", total, time.monotonic() - begin)))
    print(f"\n{total.passed} passed, {total.failed} failed, {total.skipped} skipped", flush=True)
    for result in results:
        if result.counts.failed:
            print("\n".join(f"{result.stage}: {line}" for line in causes(result.stage)), flush=True)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
