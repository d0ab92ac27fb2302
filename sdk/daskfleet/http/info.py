"""Small pages made here on each request; tornado's templates escape every value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tornado.template import Template

from daskfleet.http.logs import ring
from daskfleet.http.server import Handler

PAGE = Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} · daskfleet</title>
{% if style %}<link rel="stylesheet" href="{{ style }}">{% end %}</head>
<body class="info"><header><h1>{{ title }}</h1>
<nav>{% for name, link in links %}<a href="{{ link }}">{{ name }}</a> {% end %}</nav></header>
<main>{% if rows is not None %}
{% if rows %}<div class="scroll"><table>
<thead><tr>{% for name in columns %}<th scope="col">{{ name }}</th>{% end %}</tr></thead>
<tbody>{% for row in rows %}<tr>{% for value in row %}<td>{{ value }}</td>{% end %}</tr>{% end %}</tbody></table></div>
{% else %}<p class="muted">{{ nothing }}</p>{% end %}
{% end %}{% if text is not None %}<pre>{{ text or nothing }}</pre>{% end %}
{% if note %}<p class="muted">{{ note }}</p>{% end %}</main></body></html>
""",
    compress_whitespace=False,
)


class InfoPage(Handler):
    """A page with a table or a text. Settings: ``info_style`` and ``info_links``, both relative to ``/info/main/``."""

    def show(
        self,
        title: str,
        *,
        columns: Sequence[str] = (),
        rows: Sequence[Sequence[Any]] | None = None,
        text: str | None = None,
        nothing: str = "Nothing yet.",
        note: str = "",
    ) -> None:
        self.set_header("Content-Security-Policy", "default-src 'none'; style-src 'self'")
        settings = self.application.settings
        page = PAGE.generate(
            title=title,
            style=settings.get("info_style"),
            links=settings.get("info_links", ()),
            columns=columns,
            rows=rows,
            text=text,
            nothing=nothing,
            note=note,
        )
        self.write(page)


class LogsPage(InfoPage):
    def get(self) -> None:
        self.show(
            "Logs",
            text=ring().text(self.security.token),
            nothing="Nothing was logged yet at the level that is set.",
        )
