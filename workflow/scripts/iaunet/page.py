"""Assemble one HTML page from text, tables and embedded figures; everything is escaped."""

import functools
from pathlib import Path

import jinja2

TEMPLATES = Path(__file__).resolve().parent / "templates"


def render(template: str, **content: object) -> str:
    """Return a page; every value is escaped and a missing one is an error."""
    return _environment().get_template(template).render(**content)


@functools.cache
def _environment() -> jinja2.Environment:
    """Return what compiles templates, and keeps them."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
