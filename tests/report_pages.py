"""Pages of made-up reports, and what they hold."""

import html.parser

from nnunet_plugins.report.build import build_report

VOID = {"meta", "br", "wbr", "img", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
    """What a page holds; fails on tags that do not fit each other."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.texts_in = {}
        self.nodes = 0
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self._add(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self._add(tag, attributes)

    def _add(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.nodes += "template" not in self.open  # what is in one is no part of the page yet

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.texts.append(data)
            for tag in set(self.open):
                self.texts_in.setdefault(tag, []).append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    def within(self, tag):
        """All texts inside of elements of a kind."""
        return " ".join("".join(self.texts_in.get(tag, ())).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def ids(self):
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]


def build(folder, record):
    record.write(folder / "record")
    file = build_report(folder)
    assert file == folder / "report" / "index.html"
    return Page(file.read_text(encoding="utf-8"))
