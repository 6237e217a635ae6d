"""What a benchmark reports: a flat JSON file and a table."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "latest.json"


@dataclass(frozen=True)
class Figure:
    """One number and, where there is one, the target it is held against."""

    key: str
    value: float | None  # None: it could not be measured; `note` says why
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """``met``, ``missed by 12 %`` or nothing."""
        if self.value is None:
            return "not measured"
        bound = self.at_least if self.at_least is not None else self.at_most
        if bound is None:
            return ""
        met = self.value >= bound if self.at_least is not None else self.value <= bound
        return "met" if met else f"missed by {abs(self.value - bound) / bound:.0%}"

    @property
    def target(self) -> str:
        """``>= 2.5``."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return f"<= {self.at_most:g}" if self.at_most is not None else ""


@dataclass
class Report:
    """Figures of one run, written as they come: a later bench that fails costs none of them."""

    figures: list[Figure] = field(default_factory=list)
    quick: bool = False  # shorter runs, whose figures are not kept
    succeeded: list[str] = field(default_factory=list)  # names of benches that ran to their end
    # the parts that were asked for, by what they differ in; a name that is missing: all of it
    chosen: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def wants(self, of: str, value: str) -> bool:
        """Whether a part is to be run, such as `wants("size", "64g")`."""
        return of not in self.chosen or value in self.chosen[of]

    def add(self, *figures: Figure) -> None:
        """Keep and print."""
        for figure in figures:
            self.figures.append(figure)
            shown = "?" if figure.value is None else f"{figure.value:.4g} {figure.unit}"
            print(f"  {figure.key}: {shown}  {figure.note}", flush=True)

    def write(self) -> None:
        """Merge into the results file: figures of benches that were not run stay as they were."""
        if self.quick:
            return
        RESULTS.parent.mkdir(exist_ok=True)
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        for name in self.succeeded:
            kept.pop(f"{name}_failed", None)
        kept |= {
            figure.key: None if figure.value is None else round(figure.value, 4) for figure in self.figures
        }
        kept |= machine()
        RESULTS.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")

    def table(self) -> None:
        """Print all figures."""
        table = Table("figure", "value", "unit", "target", "verdict", "note", box=None, pad_edge=False)
        for figure in self.figures:
            shown = "-" if figure.value is None else f"{figure.value:.4g}"
            table.add_row(figure.key, shown, figure.unit, figure.target, figure.verdict, figure.note)
        Console(width=max(160, Console().width)).print(table)


def machine() -> dict[str, str | int | float]:
    """What the figures were measured on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "machine_cpu": model,
        "machine_cores": os.cpu_count() or 0,
        "machine_memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 20),
        "machine_kernel": platform.release(),
        "machine_python": platform.python_version(),
        "machine_load_1min": round(os.getloadavg()[0], 2),
    }


def median(values: Sequence[float]) -> float:
    """The median; raises when there is nothing."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """``1.2 to 1.5``: what the median hides."""
    return f"{min(values):.3g} to {max(values):.3g}"
