"""Make a submission's files of the templates in `templates/`."""

from collections.abc import Mapping
from typing import Any

import jinja2


def render(name: str, values: Mapping[str, Any]) -> str:
    """Return the text of a file, from the template of its name.

    Raises:
        jinja2.UndefinedError: if the template needs a value that is not given.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nnunet_plugins.submission"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # these are scripts and Markdown, no HTML
    )
    return environment.get_template(f"{name.lstrip('.')}.j2").render(values)
