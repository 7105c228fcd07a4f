"""The gates of a network over its training: `gates.csv` in the fold's folder, one row per epoch. Knows no nnU-Net."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import whole_file

EPOCH = "epoch"


class GateTable:
    """The rows of a file of gates, which is written anew with each: it is there as a whole or as it was before.

    Args:
        file: to write; rows of an earlier part of the training are kept.
        names: of the gates.
        begin: epoch from which on the training goes on; rows of it and of later ones are dropped.

    Raises:
        InputError: if there is a file with something else in it, or one that cannot be read.
    """

    def __init__(self, file: Path, names: list[str], begin: int) -> None:
        self.file = file
        self._rows: list[list[str]] = [[EPOCH, *names]]
        try:
            with file.open(newline="", encoding="utf-8") as opened:
                head, *rows = list(csv.reader(opened)) or [[]]
            if head != self._rows[0]:
                raise ValueError("its columns are not those of this network's gates")
            self._rows += [row for row in rows if int(row[0]) < begin]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, IndexError, csv.Error) as error:
            raise InputError(f"{file} is not written over: {error}") from error

    def add(self, epoch: int, gates: Mapping[str, float]) -> None:
        """Write the gates, 0 to 1, that the network has at the end of an epoch.

        Raises:
            OSError: if the file cannot be written; the row comes with the next one that can be.
        """
        self._rows.append([str(epoch), *(f"{gate:.7g}" for gate in gates.values())])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self._rows)
        with whole_file(self.file) as part:
            part.write_text(text.getvalue(), encoding="utf-8")
