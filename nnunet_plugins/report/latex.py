"""Tables in LaTeX: all of them with their caveats, as a fragment to include, and the one that goes into a paper."""

import re
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from nnunet_plugins.files import write_text
from nnunet_plugins.metrics.table import DISTANCES, METRICS
from nnunet_plugins.report.analysis import Analysis, Comparison
from nnunet_plugins.report.caveats import caveats
from nnunet_plugins.report.findings import summarise
from nnunet_plugins.report.showing import DICE, TEXTS, Section, find_best, show_across, shown_qualities
from nnunet_plugins.report.statistics import RESAMPLES, SEED
from nnunet_plugins.report.tables import sections
from nnunet_plugins.report.verdicts import kinds
from nnunet_plugins.report.words import (
    DECIMALS,
    count,
    heading,
    name_some,
    show_number,
    show_penalised,
)

_LONG = 40  # rows that fit on a page in print
STARS = {0.001: "***", 0.01: "**", 0.05: "*"}
"""What stands behind a number for an adjusted p value below these."""


def write_latex(analysis: Analysis, path: Path) -> None:
    """Write all tables with their caveats as a LaTeX fragment to include."""
    parts = [r"% Needs \usepackage{booktabs,longtable}. Wide tables want a small font or a landscape page."]
    tables = 0
    for comparison in analysis.comparisons:
        lines = [summarise(comparison), *caveats(comparison)]
        items = "\n".join(rf"\item {latex(line)}" for line in lines)
        parts.append(rf"\paragraph{{{latex(comparison.title)}}}" + f"\n\\begin{{itemize}}\n{items}\n\\end{{itemize}}")
        for section in sections(comparison):
            tables += 1
            parts.append(_latex_table(section, comparison.title, tables))
    for title, result in analysis.across.items():
        tables += 1
        parts.append(_latex_table(show_across(result), f"All datasets, {title}", tables))
    write_text(path, "\n\n".join(parts) + "\n")


def write_paper(analysis: Analysis, path: Path) -> None:
    """Write one table per comparison as a paper has it: means with intervals, stars, the best in bold."""
    parts = [
        r"% Needs \usepackage{booktabs,graphicx}. Tables shrink to the width of the text: columns and words are for "
        r"you to cut; all numbers are in tables.tex."
    ]
    for number, comparison in enumerate((one for one in analysis.comparisons if one.ranked), start=1):
        parts.append(_paper_table(comparison, analysis.record.about.get("budget", ""), number))
    write_text(path, "\n\n".join(parts) + "\n")


def _paper_table(comparison: Comparison, budget: str, number: int) -> str:
    board = comparison.board.loc[list(comparison.ranked)]
    columns: dict[str, list[str]] = {}
    for metric in (*METRICS, *shown_qualities(board)):
        texts = [show_number(mean, DECIMALS[metric]) for mean in board[metric]]
        if metric in DISTANCES:
            pairs = zip(board[metric], board["missed"], strict=True)
            texts = [show_penalised(mean, DECIMALS[metric], missed) for mean, missed in pairs]
        best = find_best(board[metric], metric, placed=metric == "Dice")
        columns[heading(metric)] = [_bold(latex(text), row in best) for row, text in enumerate(texts)]
    intervals = [
        "" if pd.isna(low) else " " + latex(f"[{show_number(low, 3)}, {show_number(high, 3)}]")
        for low, high in zip(board["ci_low"], board["ci_high"], strict=True)
    ]
    stars = [next((mark for level, mark in STARS.items() if p < level), "") for p in board["p_holm"].astype(float)]
    dice = columns.pop(heading("Dice"))
    marked = [
        f"{mean}{f'$^{{{mark}}}$' if mark else ''}{interval}"
        for mean, mark, interval in zip(dice, stars, intervals, strict=True)
    ]
    columns = {DICE: marked, **columns}
    head = " & ".join(map(latex, ["Algorithm", *columns])) + r" \\"
    rows = [" & ".join(cells) + r" \\" for cells in zip(map(latex, board.index), *columns.values(), strict=True)]
    begin = [r"\begin{table}", r"\centering", rf"\caption{{{latex(_paper_caption(comparison, budget, any(stars)))}}}"]
    begin += [rf"\label{{tab:paper-{number}}}", r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"]
    begin += [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule", head]
    return "\n".join([*begin, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}}", r"\end{table}"])


def _paper_caption(comparison: Comparison, budget: str, starred: bool) -> str:
    """Say what the numbers are, and what the stars mean: test, adjustment, resamples and seed."""
    repeated, once, of = comparison.repeated, comparison.once, name_some(comparison.repeated)
    grouped = comparison.scores.unit == "group"
    units = f"{comparison.scores.units} groups of cases" if grouped else "cases"
    by_units = f"95% bootstrap intervals ({RESAMPLES} resamples of the {units}, seed {SEED})"
    by_trainings = f"95% intervals over {units} and trainings"
    intervals = f"{by_units}; of {of} {by_trainings}" if repeated and once else by_trainings if repeated else by_units
    by_ranks, by_t = kinds([comparison.paired["Dice"]])
    means = f" of the means of the {comparison.scores.units} groups" * grouped
    tests = f"Wilcoxon's signed-rank test{means}" * by_ranks
    tests += f", or with {of} " * (by_ranks and by_t) + f"a t test over {units} and trainings" * by_t
    lines = [f"{comparison.title}: means over {count(comparison.scored, 'case')}{f' ({budget})' * bool(budget)}."]
    if comparison.dice["ci_low"].notna().any():
        lines.append(f"In brackets {intervals}.")
    if starred:
        levels = ", ".join(f"{mark} p < {level:g}" for level, mark in reversed(STARS.items()))
        lines.append(f"Stars: Dice against {comparison.baseline} by {tests}, Holm's adjustment; {levels}.")
    if once and comparison.is_tested:
        who = f"{name_some(once)} {'was' if len(once) == 1 else 'were'}" if repeated else "Each network was"
        lines.append(f"{who} trained once per fold: what further trainings would change is not in these numbers.")
    if comparison.board["missed"].any():
        lines.append("Penalised: the image's diagonal stands for the distance, as the label was not found.")
    return " ".join(lines)


def _bold(text: str, best: bool) -> str:
    return rf"\textbf{{{text}}}" if best else text


def _latex_table(section: Section, title: str, number: int) -> str:
    table = section.table
    bold: list[Collection[int]] = [section.best.get(str(name), ()) for name in table.columns]
    sides = [r"p{0.25\linewidth}" if name == "Flags" else "l" if name in TEXTS else "r" for name in table.columns]
    head = " & ".join(latex(str(name)) for name in table.columns) + r" \\"
    rows = [
        " & ".join(_bold(latex(str(value)), row in best) for value, best in zip(values, bold, strict=True)) + r" \\"
        for row, values in enumerate(table.itertuples(index=False))
    ]
    caption = [rf"\caption{{{latex(f'{title}: {section.caption}')}}}", rf"\label{{tab:benchmark-{number}}}"]
    titled = [r"\toprule", head, r"\midrule"]
    if len(table) > _LONG:
        begin = [rf"\begin{{longtable}}{{{''.join(sides)}}}", " ".join(caption) + r" \\"]
        begin += [*titled, r"\endfirsthead", *titled, r"\endhead", r"\bottomrule", r"\endfoot"]
        return "\n".join([*begin, *rows, r"\end{longtable}"])
    begin = [r"\begin{table}", *caption, rf"\begin{{tabular}}{{{''.join(sides)}}}", *titled]
    return "\n".join([*begin, *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": "$-$",  # noqa: RUF001 - a minus sign
    "–": "--",  # noqa: RUF001 - a dash
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "\N{REPLACEMENT CHARACTER}": "?",
    "\0": "{}",
}
_KNOWN = {chr(number) for number in range(0xA1, 0x17F)} - set("«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲų")
"""Letters beyond ASCII that pdfLaTeX has with its standard fonts; in place of others stands their number."""


def latex(text: str) -> str:
    """Return text, on one line, that LaTeX prints as it is."""
    # Two hyphens would become a dash; what begins so, an option of the line that ends before it.
    text = re.sub(r"-(?=-)|^(?=[\[*])", "\\g<0>\0", " ".join(text.split()))
    return "".join(
        _LATEX.get(letter) or (letter if letter.isascii() or letter in _KNOWN else f"U+{ord(letter):04X}")
        for letter in text
    )
