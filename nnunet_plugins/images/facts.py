"""What can be true of files of images, and what each of it means to each command. Loads nothing heavy."""

from collections.abc import Iterable
from dataclasses import dataclass

ALL, PROBLEM, WARNING, NOTE, NOTHING = "problem of all", "problem", "warning", "note", ""
_SHOWN = 3  # files that a line names
COMMANDS = ("doctor", "evaluate", "inference", "report")
"""The benchmark reads through `evaluate`, `predict` and the check of a submission through inference."""


@dataclass(frozen=True)
class Kind:
    """A kind of fact, and its levels by command.

    A problem costs the case (of the doctor, it makes the exit code 1), a problem of all the whole folder; warnings and
    notes change no exit code. Nothing: the command does not meet it.

    Attributes:
        one: said after the name of a file.
        many: said of several files, "{}" is their number.
        remedy: what to do.
        doctor: level.
        evaluate: level, also in a benchmark.
        inference: level, of `predict`, of a submission and of its check.
        report: level for a picture of the case.
        noun: what is counted, files or cases.
    """

    one: str
    many: str
    remedy: str
    doctor: str
    evaluate: str
    inference: str
    report: str = NOTHING
    noun: str = "file"


_ANEW = "get it anew, or make it anew"
_EXPORT = "export one label map, with one whole number per voxel"

KINDS: dict[str, Kind] = {
    # Finding.
    "nothing fits": Kind(
        "holds no file that fits",
        "{} without any file that fits",
        "correct 'file_ending' in dataset.json, or the names of the files",
        *(ALL, ALL, ALL),
        noun="folder",
    ),
    "leftover": Kind(
        "is a leftover of macOS, Windows or an editor, no image, and not used",
        "{} left by macOS, Windows or an editor, which are no images and not used",
        "nothing has to be done; they may be removed",
        *(NOTE, NOTE, NOTE),
    ),
    "leftover like an image": Kind(
        "is a leftover of macOS, no image, and not used; it has an image's name",
        "{} left by macOS, which are no images, but have the names of images: nnU-Net takes them for cases",
        "remove them: find FOLDER -name '._*' -delete",
        *(WARNING, NOTE, NOTE),
    ),
    "unused": Kind(
        "is no image, and not used", "{} not used, as no image", "nothing has to be done", *(NOTE, NOTE, NOTE)
    ),
    "unlisted": Kind(
        "is an image that dataset.json does not list, and not used",
        "{} with images that dataset.json does not list, which are not used",
        "add them to 'dataset' in dataset.json, or move them away",
        *(NOTE, NOTHING, NOTHING),
    ),
    "dead link": Kind(
        "is a link to what is not there",
        "{} whose link leads nowhere",
        "correct the link, or remove it",
        *(PROBLEM, PROBLEM, PROBLEM),
    ),
    "letter case": Kind(
        "is not used, because its ending has other capital letters than 'file_ending'",
        "{} not used, because the ending has other capital letters than 'file_ending'",
        "rename the files",
        *(WARNING, PROBLEM, NOTHING),
    ),
    "other format": Kind(
        "is an image, and not used, because it has another ending",
        "{} with images, not used because of another ending",
        "convert the files to the format of the others, or move them away",
        *(WARNING, PROBLEM, NOTHING),
    ),
    "second file": Kind(
        "is a second file of a case, and not used",
        "{} not used, each a second one of a case",
        "keep one file of each case",
        *(WARNING, WARNING, PROBLEM),
    ),
    "same letters": Kind(
        "has a name that another file has as well, with accents written in another way",
        "{} with one name, but for accents that are written in another way",
        "rename one of them; which one is meant cannot be known",
        *(PROBLEM, PROBLEM, PROBLEM),
    ),
    "other letters": Kind(
        "has the same name with accents written in another way (composed or decomposed), and is taken for the same",
        "{} with accents written in several ways (composed, decomposed), which nnU-Net takes for other names",
        "rename the files, all in one way: convmv -f utf8 -t utf8 --nfc --notest",
        *(PROBLEM, NOTE, NOTE),
        noun="case",
    ),
    "names in other case": Kind(
        "differs from another name only in capital letters",
        "{} whose name differs from another one only in capital letters",
        "rename one of them; on macOS and Windows they are one file",
        *(WARNING, WARNING, WARNING),
        noun="case",
    ),
    "no channel": Kind(
        "is not used, because its name has no number of a channel, such as _0000",
        "{} whose names have no number of a channel",
        "rename it, CASE_0000",
        *(PROBLEM, NOTHING, PROBLEM),
    ),
    "loose": Kind(
        "is not used, because it belongs to no case",
        "{} not used, as of no case",
        "lay it out as the others, or move it away",
        *(WARNING, NOTHING, PROBLEM),
    ),
    # Reading.
    "empty": Kind("is empty", "{} empty", _ANEW, *(PROBLEM,) * 4),
    "cut off": Kind(
        "is cut off: it holds less than its header says",
        "{} cut off: less content than the header says",
        _ANEW,
        *(PROBLEM,) * 4,
    ),
    "damaged": Kind("is damaged", "{} damaged", _ANEW, *(PROBLEM,) * 4),
    "unreadable": Kind(
        "cannot be read", "{} that nnU-Net's reader cannot read", "convert it, or get it anew", *(PROBLEM,) * 4
    ),
    "not compressed": Kind(
        "is not compressed, though its name ends in .gz; it is read all the same",
        "{} not compressed, though the names end in .gz; they are read all the same",
        "compress them with gzip, or name them .nii",
        *(NOTE,) * 4,
    ),
    "bytes after the end": Kind(
        "has more bytes than its header says; they are not read",
        "{} with more bytes than the header says, which are not read",
        "look whether the file was written as it should be",
        *(NOTE,) * 4,
    ),
    "more images": Kind(
        "holds several images, of which the first alone is read",
        "{} with several images, of which the first alone is read",
        "write one image per file; the slices of a volume as one stack",
        *(WARNING,) * 3,
        NOTE,
    ),
    "dimensions": Kind(
        "has more than three dimensions",
        "{} with more than three dimensions, which nnU-Net cannot write and its check refuses",
        "write one file per channel, CASE_0000, CASE_0001, ...; of a segmentation one 3D label map",
        *(PROBLEM,) * 4,
    ),
    "vector": Kind(
        "has several values per voxel (colours, or layers)",
        "{} with several values per voxel (colours, or layers)",
        f"of a segmentation {_EXPORT}; of an image write one file per channel",
        *(PROBLEM,) * 4,
    ),
    "complex": Kind(
        "has complex numbers",
        "{} with complex numbers",
        "store the magnitude, or what else is meant",
        *(PROBLEM,) * 4,
    ),
    "colours": Kind(
        "has colours where labels are to be", "{} with colours where labels are to be", _EXPORT, *(PROBLEM,) * 4
    ),
    "spacing unknown": Kind(
        "does not say its spacing",
        "{} that do not say their spacing: nnU-Net takes 1 mm",
        'write the spacing into the file; for .tif into CASE.json beside it, {"spacing": [z, y, x]}',
        *(WARNING, PROBLEM, WARNING, NOTE),
    ),
    "spacing from elsewhere": Kind(
        "does not say its spacing; that of the case is taken",
        "{} that do not say their spacing; that of the case is taken",
        "nothing has to be done",
        *(NOTE, NOTE, NOTE, NOTE),
    ),
    "spacing in pixels": Kind(
        "has pixels without a size: what is given in mm is in pixels",
        "{} with pixels without a size: what is given in mm is in pixels",
        "nothing has to be done",
        *(NOTHING, NOTE, NOTHING, NOTHING),
    ),
    "spacing impossible": Kind(
        "has an impossible spacing", "{} with an impossible spacing", "correct it", *(PROBLEM,) * 4
    ),
    "not finite": Kind(
        "holds NaN or infinite intensities",
        "{} with NaN or infinite intensities",
        "replace these voxels by a value that makes sense, such as that of the background",
        *(PROBLEM, NOTHING, PROBLEM, NOTE),
        noun="case",
    ),
    "read as zero": Kind(
        "holds NaN or infinite intensities, which are read as 0",
        "{} with NaN or infinite intensities that SimpleITK, and so nnU-Net, reads as 0",
        "replace these voxels by a value that makes sense, such as that of the background",
        *(WARNING, NOTHING, PROBLEM, NOTE),
        noun="case",
    ),
    # Grids.
    "other size": Kind(
        "differs in size",
        "{} whose files differ in size",
        "resample segmentation and channels to one grid",
        *(PROBLEM,) * 4,
        noun="case",
    ),
    "other spacing": Kind(
        "differs in spacing",
        "{} whose files differ in spacing",
        "resample segmentation and channels to one grid",
        *(PROBLEM, PROBLEM, PROBLEM, NOTE),
        noun="case",
    ),
    "spacing slightly off": Kind(
        "differs in spacing by very little",
        "{} whose files differ in spacing by very little, which nnU-Net refuses",
        "write one spacing into all files of a case",
        *(PROBLEM, NOTE, PROBLEM, NOTHING),
        noun="case",
    ),
    "other place": Kind(
        "lies elsewhere, or along other axes",
        "{} whose files differ in origin or direction, which nnU-Net overlooks",
        "resample segmentation and channels to one grid; nnU-Net's nnUNetv2_plot_overlay_pngs shows how they lie",
        *(WARNING, WARNING, WARNING, NOTE),
        noun="case",
    ),
    "other orientation": Kind(
        "is stored along other axes than the other cases",
        "{} stored along other axes than the others",
        "reorient the images, or set 'overwrite_image_reader_writer' to 'NibabelIOWithReorient' in dataset.json",
        *(WARNING, NOTHING, NOTHING),
        noun="case",
    ),
    # Values.
    "label not finite": Kind(
        "holds NaN or infinite values where labels are to be",
        "{} whose segmentation holds NaN or infinite values",
        "correct the segmentations",
        *(PROBLEM, PROBLEM, NOTHING, NOTE),
        noun="case",
    ),
    "fraction": Kind(
        "holds values that are no whole numbers",
        "{} whose segmentation holds values that are no whole numbers",
        "store labels as whole numbers; resample segmentations with nearest neighbours",
        *(PROBLEM, PROBLEM, NOTHING, NOTE),
        noun="case",
    ),
    "undeclared": Kind(
        "holds labels that dataset.json does not declare",
        "{} whose segmentation holds labels that dataset.json does not declare",
        "declare them in 'labels', or correct the segmentations",
        *(PROBLEM, PROBLEM, NOTHING, NOTE),
        noun="case",
    ),
}
"""All kinds of facts. The docs show this table."""


@dataclass(frozen=True)
class Fact:
    """Something that is true of a file.

    Attributes:
        kind: a key of `KINDS`.
        file: the file, as it was given, or its name.
        detail: more of it, in words.
        case: whose file it is, where that is known.
    """

    kind: str
    file: str
    detail: str = ""
    case: str = ""

    def level(self, command: str) -> str:
        """Return what it means to one of `COMMANDS`."""
        return str(getattr(KINDS[self.kind], command))

    def is_problem(self, command: str) -> bool:
        """Tell whether it costs the case, or all."""
        return self.level(command) in (PROBLEM, ALL)

    def __str__(self) -> str:
        return f"{self.file} {KINDS[self.kind].one}" + (f" ({self.detail})" if self.detail else "")

    def with_remedy(self) -> str:
        """Return the file, what is wrong, and what to do about it."""
        return f"{self}; {KINDS[self.kind].remedy}"


def problems(facts: Iterable[Fact], command: str) -> list[Fact]:
    """Return the facts that cost a case."""
    return [fact for fact in facts if fact.is_problem(command)]


def remarks(facts: Iterable[Fact], command: str) -> list[Fact]:
    """Return the facts that are told, and cost nothing."""
    return [fact for fact in facts if fact.level(command) in (WARNING, NOTE)]


def summarise(facts: Iterable[Fact]) -> list[str]:
    """Return a line for each kind of fact: how many files, which ones first of all, and the remedy."""
    by_kind: dict[str, list[Fact]] = {}
    for fact in facts:
        by_kind.setdefault(fact.kind, []).append(fact)
    lines = []
    for name, found in by_kind.items():
        if len(found) == 1:
            lines.append(found[0].with_remedy())
            continue
        kind = KINDS[name]
        what = kind.many.replace("{}", f"{len(found)} {kind.noun}s")
        shown = ", ".join(fact.file + (f" ({fact.detail})" if fact.detail else "") for fact in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        lines.append(f"{what}: {shown}{more}; {kind.remedy}")
    return lines


def table() -> list[tuple[str, ...]]:
    """Return the table for people: a row per kind, with its levels by command."""
    return [
        (kind.many.removeprefix("{} ").replace("{}", "files"), *(getattr(kind, name) or "-" for name in COMMANDS))
        for kind in KINDS.values()
    ]
