"""The JSON file of a measurement: checked when it is read, written whole, and gone on with only on the same terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from regrow.experiments.bench.common.machine import Machine
from regrow.experiments.bench.common.progress import Progress
from regrow.experiments.errors import UserError
from regrow.experiments.files import write_atomically

__all__ = ["Measurement", "ReportFile"]


class Measurement(Protocol):
    """What every report has."""

    machine: Machine
    settings: Any
    rows: list[Any]


Kind = TypeVar("Kind", bound=Measurement)


class ReportFile(Generic[Kind]):
    """Files that hold one kind of report.

    Args:
        kind: the dataclass of the report.
        what: what it is a measurement of, for messages.
    """

    def __init__(self, kind: type[Kind], what: str) -> None:
        self._adapter = TypeAdapter(kind)
        self._what = what

    def load(self, path: Path) -> Kind:
        """Read the JSON file of a measurement.

        Raises:
            UserError: if it is none.
        """
        try:
            return self._adapter.validate_json(path.read_bytes())
        except (ValidationError, OSError) as error:
            raise UserError(f"{path} is no measurement of {self._what}: {str(error).splitlines()[0]}") from error

    def holds(self, path: Path) -> bool:
        """Return whether a file is the JSON of such a measurement."""
        try:
            self.load(path)
        except UserError:
            return False
        return True

    def save(self, report: Kind, path: Path) -> None:
        """Write the JSON file, whole or not at all."""
        write_atomically(path, lambda file: file.write(self._adapter.dump_json(report, indent=1)))

    def resumed(self, report: Kind, path: Path) -> Kind:
        """Return the measurement that a file holds, to go on with it; the new one where there is no file.

        Raises:
            UserError: if it was made elsewhere or otherwise.
        """
        if not path.exists():
            return report
        before = self.load(path)
        if (before.machine, before.settings) != (report.machine, report.settings):
            raise UserError(
                f"{path} was measured on another machine, or with other versions or settings: give another --out"
            )
        return before

    def fill(
        self,
        report: Kind,
        cases: Mapping[str, Callable[[], Any] | None],
        *,
        out: Path | None,
        progress: Progress[Any],
    ) -> None:
        """Measure what a report lacks, row by row; its file is written after each.

        Args:
            report: gets the rows.
            cases: for each name what measures and returns the row; None where the report has it.
            out: the JSON file; None writes none.
            progress: told of each row.
        """
        for done, (name, measure) in enumerate(cases.items()):
            if measure is None:
                continue
            progress.begin(name, done, len(cases))
            row = measure()
            report.rows.append(row)
            if out is not None:
                self.save(report, out)
            progress.end(row)
