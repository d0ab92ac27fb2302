"""The last log lines of this process, kept for ``/info/main/logs.html``."""

from __future__ import annotations

import functools
import logging
from collections import deque

#: So many lines are kept.
LINES = 1000


class Ring(logging.Handler):
    """Keeps the last lines that this package logs, at whatever level the application has chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=LINES)
        self.setFormatter(logging.Formatter("%(asctime)s  %(levelname)-7s  %(name)s  %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
        # Logging prints warnings of an application that set nothing up, unless there is a handler: us.
        fallback = logging.lastResort
        alone = logging.getLogger("daskfleet").handlers == [self] and not logging.getLogger().handlers
        if alone and fallback is not None and record.levelno >= fallback.level:
            fallback.handle(record)

    def text(self, secret: str | None) -> str:
        """The lines, newest last, without `secret` should it have got into one."""
        text = "\n".join(self.lines)
        return text.replace(secret, "[token]") if secret else text


@functools.cache
def ring() -> Ring:
    """This process's ring, in place from the first call on."""
    handler = Ring()
    logging.getLogger("daskfleet").addHandler(handler)
    return handler
