"""Forwarding what workers log: a handler there, a topic between, the logger of the same name here."""

from __future__ import annotations

import logging
from typing import Any

from daskfleet.plugins import WorkerPlugin


def topic_of(logger_name: str | None) -> str:
    """The topic of a logger's records, and the name of the plugin that sends them."""
    return f"forward-logging-{logger_name or 'root'}"


class _Forward(logging.Handler):
    def __init__(self, worker: Any, topic: str, level: int | str) -> None:
        super().__init__(level)
        self._worker, self._topic = worker, topic

    def emit(self, record: logging.LogRecord) -> None:
        fields = vars(record) | {"msg": record.getMessage(), "args": None, "worker": self._worker.address}
        if record.exc_info:
            fields |= {"exc_text": logging.Formatter().formatException(record.exc_info), "exc_info": None}
        self._worker.log_event(self._topic, fields)


class ForwardLogging(WorkerPlugin):
    """Sends a logger's records to the topic `topic_of` its name."""

    def __init__(self, logger_name: str | None, level: int | str) -> None:
        self.logger_name, self.level, self.name = logger_name, level, topic_of(logger_name)
        self._handler: _Forward | None = None
        self._before = 0

    def setup(self, worker: Any) -> None:
        logger = logging.getLogger(self.logger_name)
        self._handler = _Forward(worker, str(self.name), self.level)
        self._before = logger.level
        if logger.getEffectiveLevel() > self._handler.level:
            logger.setLevel(self._handler.level)
        logger.addHandler(self._handler)

    def teardown(self, worker: Any) -> None:
        if self._handler is not None:
            logger = logging.getLogger(self.logger_name)
            logger.removeHandler(self._handler)
            logger.setLevel(self._before)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_handler": None}


def handle_record(event: tuple[float, dict[str, Any]]) -> None:
    """Pass a record that has come from a worker to the logger of its name here."""
    record = logging.makeLogRecord(event[1])
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
