"""Progress bars on a terminal; in log files whole lines, half a minute apart."""

import io
import sys
import time

from tqdm import tqdm

#: Seconds between two lines in a log.
INTERVAL = 30.0


class _Lines(tqdm):
    """Writes lines in place of a bar that overwrites itself."""

    def __init__(self, *arguments: object, **settings: object):
        self._said = 0.0
        self._text = ""
        # What tqdm itself writes is dropped: :meth:`display` writes in its place.
        super().__init__(*arguments, file=io.StringIO(), mininterval=1.0, **settings)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """A line, unless there has been one in the last :data:`INTERVAL` seconds."""
        if time.monotonic() - self._said >= INTERVAL:
            self._say()
        return True

    def close(self) -> None:
        """Writes the last line."""
        if not self.disable:
            self._say()
        super().close()

    def _say(self) -> None:
        of = "" if self.total is None else f"/{self.total}"
        rate = self.format_dict
        seconds = rate["elapsed"]
        left = ""
        if self.total and self.n - self.initial > 0 and self.n < self.total:
            remaining = seconds * (self.total - self.n) / (self.n - self.initial)
            left = f", about {self.format_interval(remaining)} left"
        after = f", {self.postfix}" if self.postfix else ""
        description = (self.desc or "").rstrip(": ")
        text = f"{description}: {self.n}{of} {self.unit}s after {self.format_interval(seconds)}{left}{after}"
        if text != self._text:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
            self._said, self._text = time.monotonic(), text


def bar(*arguments: object, **settings: object) -> tqdm:
    """``tqdm(...)`` on a terminal; elsewhere one line every :data:`INTERVAL` seconds and one at the end."""
    kind = tqdm if sys.stderr is not None and sys.stderr.isatty() else _Lines
    settings.setdefault("unit", "step")
    return kind(*arguments, **settings)
