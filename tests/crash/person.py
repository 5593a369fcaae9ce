"""Who wants the builds: submits them in portions and follows them to their ends, come what may."""

from collections.abc import Callable, Sequence
from threading import Event, Thread
from typing import Final, TypeVar
from uuid import UUID

from grange.client.api import GrangeClient
from grange.client.models import BuildView, SubmitRequest
from grange.client.submit import submit
from grange.daemon.local import LocalStore
from grange.errors import OutsideError
from tests.crash.farm import CrashFarm

AGAIN_S: Final = 0.1  # before a coordinator that did not answer is tried again

T = TypeVar("T")


class GaveUpError(Exception):
    """The run was over before the farm answered."""


class Person:
    """A thread of its own, since calls to a frozen coordinator take as long as it is frozen."""

    def __init__(self, farm: CrashFarm, drvs: Sequence[str], between_s: float, portion: int):
        """`drvs` are submitted `portion` at a time, `between_s` apart."""
        self.ids = {drv: str(UUID(int=number, version=4)) for number, drv in enumerate(drvs, 1)}
        self.over = Event()  # all ended, or `problem` says why not
        self.problem = ""
        self.retries = 0
        self._farm = farm
        self._drvs = drvs
        self._between_s = between_s
        self._portion = portion
        self._turn = 0
        self._given_up = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def give_up(self) -> None:
        self._given_up.set()

    def _run(self) -> None:
        try:
            for first in range(0, len(self._drvs), self._portion):
                if first and self._given_up.wait(self._between_s):
                    return
                self._submit(self._drvs[first : first + self._portion])
            self.ask(self._follow)
        except GaveUpError:
            self.problem = "it was not over in time"
        except Exception as error:  # whatever it is, the run has failed and must say so
            self.problem = f"{type(error).__name__}: {error}"
        finally:
            self.over.set()

    def _submit(self, drvs: Sequence[str]) -> None:
        request = SubmitRequest(drv_paths=list(drvs), ids=[self.ids[drv] for drv in drvs])
        place, root = self._farm.place, str(self._farm.here.root)
        self.ask(
            lambda client: submit(client, request, place, lambda: LocalStore(root), lambda _: None)
        )

    def _follow(self, client: GrangeClient) -> None:
        for _ in client.watch(list(self.ids.values())):
            if self._given_up.is_set():
                raise GaveUpError

    def ask(self, question: Callable[[GrangeClient], T]) -> T:
        """The first answer that any coordinator gives, each asked in its turn again and again."""
        urls = self._farm.urls
        while not self._given_up.is_set():
            try:
                with self._farm.client(urls[self._turn % len(urls)]) as client:
                    return question(client)
            except OutsideError:
                self.retries += 1
                self._turn += 1
                self._given_up.wait(AGAIN_S)
        raise GaveUpError

    def builds(self) -> dict[str, BuildView]:
        """By derivation, as they stand now."""
        return {
            drv: self.ask(lambda client, id_=id_: client.build(id_))  # type: ignore[misc]
            for drv, id_ in self.ids.items()
        }
