"""What a check says: all is well, or a note, a warning or a problem with a remedy. Loads nothing heavy."""

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from nnunet_plugins.errors import InputError
from nnunet_plugins.images.facts import ALL, KINDS, Fact

LEVELS = ("ok", "note", "warning", "problem")
_MARKS = {"ok": "ok", "note": "- ", "warning": "! ", "problem": "!!"}
_SHOWN = 3  # cases that a text names


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        level: one of `LEVELS`; a problem stops nnU-Net or spoils its results, a warning may, a note does not.
        text: what was found.
        remedy: what to do about it; None where all is well.
        cases: all the cases that it is about, where it is about cases.
    """

    level: str
    text: str
    remedy: str | None = None
    cases: tuple[str, ...] = ()


Check = Callable[[], Iterator[Finding]]


def ok(text: str) -> Finding:
    """Say that something is well."""
    return Finding("ok", text)


def warning(text: str, remedy: str) -> Finding:
    """Say what may spoil results."""
    return Finding("warning", text, remedy)


def problem(text: str, remedy: str) -> Finding:
    """Say what stops nnU-Net, or spoils its results."""
    return Finding("problem", text, remedy)


def of_cases(level: str, what: str, found: Mapping[str, str], remedy: str, noun: str = "case") -> Iterator[Finding]:
    """Yield one finding for all the cases of one kind, if there are any.

    Args:
        level: one of `LEVELS`.
        what: said of the cases; "{}" is their number with the noun, "3 cases".
        found: by case, the detail; it may be empty.
        remedy: what to do.
        noun: what is counted.
    """
    if not found:
        return
    number = f"{len(found)} {noun}{'s' * (len(found) > 1)}"
    shown = [f"{case} ({detail})" if detail else case for case, detail in list(found.items())[:_SHOWN]]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    yield Finding(level, f"{what.replace('{}', number)}: {', '.join(shown)}{more}", remedy, tuple(found))


def of_facts(facts: Iterable[Fact]) -> Iterator[Finding]:
    """Yield one finding for all facts of one kind, in the order of the table."""
    by_kind: dict[str, dict[str, str]] = {}
    for fact in facts:
        of_case = KINDS[fact.kind].noun == "case" and fact.case
        detail = ": ".join(part for part in (Path(fact.file).name if of_case else "", fact.detail) if part)
        by_kind.setdefault(fact.kind, {}).setdefault(fact.case if of_case else fact.file, detail)
    for name, kind in KINDS.items():
        if name in by_kind and kind.doctor:
            level = "problem" if kind.doctor == ALL else kind.doctor
            yield from of_cases(level, kind.many, by_kind[name], kind.remedy, kind.noun)


def examine(sections: Mapping[str, Check], *, as_json: bool) -> int:
    """Run checks and print what they find; returns 1 if there is a problem, else 0.

    Args:
        sections: by title, the checks of one subject. What cannot be read ends a section with a problem.
        as_json: print JSON when all is done, else text as it comes.
    """
    counts = Counter(dict.fromkeys(LEVELS, 0))
    rows = []
    for title, check in sections.items():
        if not as_json:
            print(title, flush=True)
        for finding in _guarded(check):
            counts[finding.level] += 1
            rows.append({"section": title, **asdict(finding)})
            if not as_json:
                print(f"  {_MARKS[finding.level]} {finding.text}")
                if finding.remedy:
                    print(f"       remedy: {finding.remedy}")
    if as_json:
        print(json.dumps({"findings": rows, "summary": counts}, indent=2))
    elif counts["problem"] + counts["warning"]:
        print(
            ", ".join(f"{counts[level]} {level}{'s' * (counts[level] != 1)}" for level in ("problem", "warning")) + "."
        )
    else:
        print("All is well.")
    return 1 if counts["problem"] else 0


def _guarded(check: Check) -> Iterator[Finding]:
    found = check()
    while True:
        try:
            # nnU-Net prints; that is not part of what is found.
            with contextlib.redirect_stdout(sys.stderr):
                finding = next(found, None)
        except InputError as error:
            finding = problem(str(error), "correct that, or make the file anew")
            found = iter(())
        if finding is None:
            return
        yield finding
