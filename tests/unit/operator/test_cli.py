"""cli.py: logs for collectors."""

from __future__ import annotations

import json
import logging
import sys

from daskfleet_operator.cli import JsonLines


def test_a_log_line_is_one_json_object() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("a.b", logging.WARNING, "f.py", 1, "pass of %s", ("ns/c",), sys.exc_info())
    text = JsonLines().format(record)
    line = json.loads(text)
    assert "\n" not in text
    assert (line["level"], line["logger"], line["message"]) == ("WARNING", "a.b", "pass of ns/c")
    assert "ValueError: two\nlines" in line["traceback"] and line["time"].endswith("+00:00")
