"""The elements of a page, read by Python's own parser."""

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}


class Page(HTMLParser):
    """Elements and text of a page; fails on a tag that closes another than the open one."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "svg"} & set(self.open):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """Attributes of every element with this tag."""
        return [attributes for name, attributes in self.elements if name == tag]


def squeezed(text: str) -> str:
    """Words with single spaces between them."""
    return " ".join(text.split())
