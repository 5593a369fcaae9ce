"""A bounded memory of facts that hardly ever change."""

from collections import OrderedDict
from collections.abc import Iterable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Lru(Generic[K, V]):
    """The `entries_max` entries used last. Threads may share it."""

    def __init__(self, entries_max: int) -> None:
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._entries_max = entries_max
        self._age = 0
        self._lock = Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            value = self._entries.get(key)
            if value is not None:
                self._entries.move_to_end(key)
            return value

    @property
    def age(self) -> int:
        """How often something was forgotten: ask it before reading what is then `put`."""
        return self._age

    def put(self, key: K, value: V, age: int) -> None:
        """Remember what was read since `age` was asked; dropped if anything was forgotten since."""
        with self._lock:
            if age != self._age:
                return
            self._entries[key] = value
            self._entries.move_to_end(key)
            if len(self._entries) > self._entries_max:
                self._entries.popitem(last=False)

    def forget(self, keys: Iterable[K]) -> None:
        """Drop what is known of `keys`, and what anyone is reading just now."""
        with self._lock:
            self._age += 1
            for key in keys:
                self._entries.pop(key, None)
