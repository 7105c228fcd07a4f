"""What comes from others is data: files are not executed, and names of cases, labels and networks are only shown."""

import ast
import csv
import dataclasses
import html.parser
import os
import pickle
import re

import numpy as np
import pytest
from conftest import ROOT
from report_records import make_record

from nnunet_plugins.benchmark.cluster import read_cluster
from nnunet_plugins.benchmark.protocol import BenchmarkError
from nnunet_plugins.errors import InputError
from nnunet_plugins.images.spacing import spacing_elsewhere
from nnunet_plugins.report.analysis import analyse
from nnunet_plugins.report.latex import write_latex, write_paper
from nnunet_plugins.report.record import Record, read_record
from nnunet_plugins.report.writing import write_challenger, write_csv, write_markdown

PACKAGE = ROOT / "nnunet_plugins"

# Calls that run what they read, or a shell. Checkpoints are read in one place, which asks for weights alone.
RUN_CODE = {
    *("eval", "exec", "compile", "__import__", "pydoc.locate", "runpy.run_path", "runpy.run_module"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn"),
    *("asyncio.create_subprocess_shell", "commands.getoutput"),
    *(f"{module}.{call}" for module in ("pickle", "marshal", "dill", "cloudpickle") for call in ("load", "loads")),
    *("pickle.Unpickler", "shelve.open", "joblib.load", "pandas.read_pickle", "numpy.load", "torch.load"),
    *("torch.jit.load", "torch.package.PackageImporter", "yaml.load", "yaml.load_all", "yaml.unsafe_load"),
    *("yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader"),
    "batchgenerators.utilities.file_and_folder_operations.load_pickle",
}
# Archives can hold paths that lead out of the folder they are unpacked into.
UNPACK = {"shutil.unpack_archive", "zipfile.ZipFile", "tarfile.open", "tarfile.TarFile"}
ALLOWED = {
    ("trainers/checkpoints.py", "torch.load"),  # weights_only, unless the user trusts the file
    ("trainers/checkpoints.py", "zipfile.ZipFile"),  # compares checksums, unpacks nothing
    ("trainers/checkpoints.py", "pydoc.locate"),  # below PyTorch and nnU-Net's architectures alone
    ("benchmark/run_task.py", "zipfile.ZipFile"),  # looks for the end of a checkpoint, unpacks nothing
    ("files.py", "pickle.Unpickler"),  # takes numbers and arrays, and calls nothing else
    ("benchmark/conditions.py", "numpy.load"),  # arrays, without pickles
    ("testing/test_backbone.py", "torch.load"),  # weights that it has just saved, in memory
    ("submission/wheels.py", "zipfile.ZipFile"),  # writes this package's own wheel, reads none
    ("benchmark/interchange.py", "runpy.run_path"),  # Parsl's own program, as installed
}


def risks(code: str) -> list[str]:
    """Names of the calls in Python code that run what they read, start a shell or unpack an archive."""
    tree = ast.parse(code)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name.split(".")[0]: alias.asname and alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}

    def dotted(node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return known.get(node.id) or node.id
        return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""

    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and dotted(node) in RUN_CODE | UNPACK:
            found.append(dotted(node))
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("extract", "extractall"):
            found.append(node.func.attr)
        for keyword in node.keywords:
            allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg in ("shell", "allow_pickle") and not allowed:
                found.append(keyword.arg)
        texts = (ast.JoinedStr, ast.BinOp)
        if dotted(node.func).startswith("subprocess.") and node.args:
            command = node.args[0]
            if isinstance(command, texts) or (isinstance(command, ast.Constant) and isinstance(command.value, str)):
                found.append("a command in one text")
    return found


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os; os.system('ls')", ["os.system"]),
        ("from os import popen as p; p('ls')", ["os.popen"]),
        ("import subprocess as s; s.run(['ls'], shell=True)", ["shell"]),
        ("import subprocess; subprocess.Popen(f'ls {x}')", ["a command in one text"]),
        ("import subprocess; subprocess.run('ls ' + x)", ["a command in one text"]),
        ("import subprocess; subprocess.run(['ls', x], shell=False)", []),
        ("import torch; f = torch.load", ["torch.load"]),
        ("import numpy as np; np.load(x, allow_pickle=True)", ["allow_pickle", "numpy.load"]),
        ("from pickle import loads; loads(x)", ["pickle.loads"]),
        ("import yaml; yaml.load(x, yaml.Loader); yaml.safe_load(x)", ["yaml.Loader", "yaml.load"]),
        ("import zipfile; zipfile.ZipFile(x).extractall()", ["extractall", "zipfile.ZipFile"]),
        ("import zipfile; zipfile.is_zipfile(x)", []),
        ("import re; re.compile(x); eval(y); network.eval()", ["eval"]),
        ("import pandas; pandas.read_csv(x); pandas.read_pickle(x)", ["pandas.read_pickle"]),
    ],
)
def test_risks_are_found(code, expected):
    assert sorted(risks(code)) == expected


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_package_runs_nothing_that_it_reads(file):
    """Neither code in files nor a shell; and it unpacks no archive."""
    place = file.relative_to(PACKAGE).as_posix()
    assert [call for call in risks(file.read_text()) if (place, call) not in ALLOWED] == []


class Malicious:
    def __reduce__(self):
        return os.system, ("touch owned",)


PICKLED = pickle.dumps({"a": Malicious()})


def test_properties_of_preprocessed_cases_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "Dataset001_X"
    for name, content in (("bad", {"spacing": Malicious()}), ("good", {"spacing": [np.float64(3), 1.0, 2]})):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "data" / f"{name}.pkl").write_bytes(pickle.dumps(content))
    found = [spacing_elsewhere(folder / "gt_segmentations" / f"{name}.tif") for name in ("bad", "good")]
    assert found == [None, (3.0, 1.0, 2.0)]
    assert not (tmp_path / "owned").exists()


YAML = b'provider: !!python/object/apply:os.system ["touch owned"]\n'


def test_yaml_is_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (YAML, PICKLED):
        (tmp_path / "cluster.yaml").write_bytes(content)
        with pytest.raises(BenchmarkError, match=r"cluster\.yaml cannot be read"):
            read_cluster(tmp_path / "cluster.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["cluster.yaml"]


def test_a_record_is_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = make_record(algorithms=1, cases=1, folds=1, epochs=1)
    for file in ("results.csv", "runs.csv", "about.json", "equality.json"):
        for content in (YAML, PICKLED):
            record.write(tmp_path / "record")
            (tmp_path / "record" / file).write_bytes(content)
            with pytest.raises(InputError, match=file):
                read_record(tmp_path / "record")
    assert [path.name for path in tmp_path.iterdir()] == ["record"]


HOSTILE = [
    "<script>alert(1)</script>",
    'a"b',
    r"$\input{/etc/passwd}$",
    "=cmd()",
    "'=cmd()",
    "-1+1",
    "@SUM(A1)",
    r"a|b\|c",
    "`id`",
    "![x](http://x/y.png)",
    "*a* _b_ ~~c~~ &lt; &#60;",
    "# a\n\n## b",
    "a\r=cmd()\x0b\u2028b",
]


def hostile(name: str) -> Record:
    """A record whose last algorithm, cases, a label, dataset and much else have such a name."""
    record = make_record(algorithms=2, labels=2, cases=3, folds=1, epochs=1, unequal=True, accepted=True)
    for table in (record.results, record.runs, record.curves):
        table["algorithm"] = table["algorithm"].replace("nnUNetTrainerFIRENet", name)
        table["dataset"] = name
    record.results["case"] = name + record.results["case"]
    record.results["name"] = record.results["name"].replace("Anterior", name)
    record.equality[0]["dataset"] = name
    for run in record.equality[0]["runs"]:
        run["algorithm"] = run["algorithm"].replace("nnUNetTrainerFIRENet", name)
    for part in ("plans", "recipes"):
        record.equality[0][part][name] = record.equality[0][part].pop("nnUNetTrainerFIRENet")
    failure = {"task": name, "command": name, "exit_code": 1, "log": name, "tail": name}
    about = {"title": name, "budget": name, "ensembles": [name], "hardware": [name], "versions": {name: name}}
    return dataclasses.replace(record, failures=[failure], about={**record.about, **about})


class Shown(html.parser.HTMLParser):
    """The tags of HTML, and the text after each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = [""]
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.texts.append("")

    def handle_data(self, data):
        self.texts[-1] += data


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_names_as_they_are(name, tmp_path):
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    write_markdown(analyse(hostile(name)), tmp_path / "report.md")
    # Raw HTML, tables and strikethrough: what the most liberal readers do.
    reader = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    # The best numbers are in bold, and nothing but numbers.
    text = re.sub(r"\| \*\*(\d[^*|]*)\*\* (?=\|)", r"| \1 ", (tmp_path / "report.md").read_text(encoding="utf-8"))
    shown = Shown(reader.render(text))
    blocks = {"h1", "h2", "h3", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "pre", "code"}
    assert shown.tags <= blocks
    name = " ".join(name.split())
    texts = [text.strip() for text in shown.texts]
    assert texts.count(name) > 6, "the title, an ensemble, the hardware, and in every table"
    assert f"{name} {name}" in texts, "a version"
    assert f"{name}: exit code 1, log {name}" in texts


@pytest.mark.parametrize("write", [write_latex, write_paper])
@pytest.mark.parametrize("name", HOSTILE)
def test_latex_prints_names_as_they_are(name, write, tmp_path):
    write(analyse(hostile(name)), tmp_path / "tables.tex")
    text = (tmp_path / "tables.tex").read_text(encoding="utf-8").partition("\n")[2]
    text = text.replace(r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%", "{")  # whatever the names
    own = {"begin", "end", "item", "paragraph", "caption", "label", "toprule", "midrule", "bottomrule", "linewidth"}
    own |= {"centering", "textbf", "uparrow", "downarrow", "pm"}
    own |= {
        "textbackslash",
        "textasciitilde",
        "textasciicircum",
        "textless",
        "textgreater",
        "textbar",
        "textasciigrave",
    }
    assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= own, "no name is a command"
    assert not re.search(r"(?<!\\)[%#~^<>|]|[\r\x0b\u2028]", text)
    assert set(re.findall(r"(?<!\\)\$[^$\n]*(?<!\\)\$", text)) <= {"$-$", r"$\uparrow$", r"$\downarrow$", r"$\pm$"}
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


@pytest.mark.parametrize("name", HOSTILE)
def test_no_cell_of_a_csv_file_is_a_formula(name, tmp_path):
    record = hostile(name)
    write_csv(record, tmp_path / "results.csv")
    write_challenger(analyse(record), tmp_path / "challenger.csv")
    record.write(tmp_path / "record")
    for file in tmp_path.rglob("*.csv"):
        with file.open(newline="", encoding="utf-8") as lines:
            texts = [cell for row in csv.reader(lines) for cell in row if not is_number(cell)]
        assert not [text for text in texts if text.startswith(tuple("=+-@\t\r"))], file
        assert any(name.replace("\r", " ") in text for text in texts)
    if name.isprintable():
        again = read_record(tmp_path / "record")
        for column in ("algorithm", "dataset", "case", "name"):
            assert again.results[column].tolist() == record.results[column].tolist()


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_what_cannot_be_printed_is_replaced_when_a_record_is_read(tmp_path):
    record = make_record(algorithms=1, cases=1, folds=1, epochs=1)
    record.results["name"] = "a\x1b[31m\u202eb"
    about = {**record.about, "title": "\x00\ud800", "versions": {"a\x08": "1"}}
    dataclasses.replace(record, about=about).write(tmp_path)
    again = read_record(tmp_path)
    assert again.results["name"].unique().tolist() == ["a\ufffd[31m\ufffdb"]
    assert (again.about["title"], again.about["versions"]) == ("\ufffd\ufffd", {"a\ufffd": "1"})
