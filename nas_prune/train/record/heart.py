"""A sign of life every so often, while a step takes long and has nothing else to say."""

from collections.abc import Callable
from threading import Event, Thread

EVERY = 60.0  # seconds


class Heart:
    """Calls ``beat`` every minute between ``start`` and ``stop``, in a thread of its own that ends with the process."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self.beat = beat
        self._stopped = Event()

    def start(self) -> None:
        """Begin."""
        Thread(target=self._beat, daemon=True).start()

    def stop(self) -> None:
        """End; no call comes after this but one that is under way."""
        self._stopped.set()

    def _beat(self) -> None:
        while not self._stopped.wait(EVERY):
            self.beat()
