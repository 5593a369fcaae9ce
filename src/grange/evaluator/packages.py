"""From packages, as names of images have them, to derivations, by an evaluation of their set.

One process answers for all of them where nothing goes wrong that Nix cannot catch. Otherwise what
was asked for is halved until whatever spoils it stands alone, and is told of in Nix's own words.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ValidationError

from grange.client.image_models import EvaluatedView, EvaluationJob, NamesView
from grange.errors import PeerError
from grange.evaluator.failure import JobError
from grange.evaluator.nix import (
    STDERR_BYTES_MAX,
    STDOUT_BYTES_MAX,
    Cut,
    Ended,
    Limits,
    Nix,
    error_of,
    evaluation_environment,
    evaluation_settings,
)
from grange.oci.names import (
    EVERY_IMAGE,
    NAMES_MAX,
    Attribute,
    ImageName,
    Spellings,
    folded,
    spelled,
)
from grange.oci.refusal import MESSAGE_CHARS_MAX
from grange.ports.images import Lack
from grange.store.derivation import DRV_SUFFIX
from grange.store.outputs import output_name
from grange.store.path import StoreDir

EXPRESSION: Final = (Path(__file__).parent / "packages.nix").read_text()
SHOWN_MAX: Final = 5  # packages in a message
BLAMED_MAX: Final = 20  # of one job, for each is a process; an image with one is refused anyway

_WORDS: Final = {
    Lack.UNFREE: "its license is not free",
    Lack.BROKEN: "it is marked as broken",
    Lack.INSECURE: "it is known to be insecure",
    Lack.UNSUPPORTED: "it is not for {}",
    Lack.MISSING: "the package set has no such attribute",
}

Item = str | Attribute  # a package as a name has it, or an attribute as its set spells it


class _Answer(BaseModel):
    """What packages.nix says."""

    names: list[NamesView] = []
    packages: list[EvaluatedView] = []


@dataclass(slots=True)
class _Found:
    """What is known so far."""

    names: dict[Attribute, list[str]] = field(default_factory=dict)
    packages: dict[Attribute, EvaluatedView] = field(default_factory=dict)
    spoilt: dict[str, str] = field(default_factory=dict)  # packages that end Nix, and its words

    def add(self, answer: _Answer) -> None:
        """Raises JobError where it is more than any farm takes."""
        if sum(len(each.names) for each in answer.names) > NAMES_MAX:
            raise JobError(
                "too much",
                f"the sets that the packages are in have more than {NAMES_MAX} names together; "
                "nixpkgs has 25,000, so see what fills these",
            )
        self.names |= {tuple(each.way): each.names for each in answer.names}
        self.packages |= {tuple(each.attribute): each for each in answer.packages}

    def spellings(self) -> Spellings:
        return {way: folded(names) for way, names in self.names.items()}


class _SpoiltError(Exception):
    """An evaluation ended without an answer, and not because its time was over."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(ended.stderr)
        self.ended = ended


class PackageEvaluator:
    """Evaluates the packages of one job, whose set lies at `tree`; `folder` is the job's own."""

    def __init__(
        self,
        nix: Nix,
        job: EvaluationJob,
        tree: Path,
        folder: Path,
        *,
        limits: Limits,
        store_dir: StoreDir,
    ) -> None:
        self._nix = nix
        self._job = job
        self._packages = tuple(dict.fromkeys(job.packages))
        self._blamed = 0
        self._limits = limits
        self._store_dir = store_dir
        self._file = folder / "job.json"
        overlays = []
        for number, text in enumerate(job.source.overlays):
            overlays.append(folder / f"overlay-{number}.nix")
            overlays[-1].write_text(text)
        self._called = {
            "set": str(tree),
            "system": job.system,
            "config": job.source.config,
            "overlays": list(map(str, overlays)),
        }
        # Trees that others may change are read by an evaluation which sees nothing else.
        is_restricted = job.source.kind != "path"
        self._settings = evaluation_settings(may_import=job.may_import, is_restricted=is_restricted)
        self._environment = evaluation_environment(is_restricted=is_restricted)
        self._paths = ["-I", f"grange-job={folder}", "-I", f"grange-set={tree}"]

    async def evaluate(self) -> tuple[list[NamesView], list[EvaluatedView]]:
        """The names of all sets on the way to the job's packages, and what each of these is.

        Raises JobError where that cannot be told.
        """
        found = _Found()
        items: tuple[Item, ...] = (*self._packages, *self._always())
        try:
            found.add(await self._ask(items))
        except _SpoiltError as error:
            found.add(await self._set_alone())
            await self._part(items, error.ended, found)
        spellings = found.spellings()
        for package, why in found.spoilt.items():
            way = spelled(package, spellings)
            found.packages.setdefault(way, _failed(way, why))
        answers = []
        for way in sorted(
            {*self._always(), *(spelled(each, spellings) for each in self._packages)}
        ):
            if way not in found.packages:  # Nix spells it otherwise than we do
                await self._halve((way,), found)
            answers.append(await self._in_words(found.packages[way]))
        return [NamesView(way=[*way], names=names) for way, names in found.names.items()], answers

    def _always(self) -> tuple[Attribute, ...]:
        """What is wanted beside the packages."""
        name = ImageName(source=None, has_shell=self._job.has_shell, is_arm64=False, packages=())
        left_out = () if self._job.is_image else EVERY_IMAGE
        return tuple([way for way in name.attributes({}) if way[0] not in left_out])

    # --- What spoils an evaluation ------------------------------------------------------------

    async def _set_alone(self) -> _Answer:
        """Its names; raises JobError where no package is to blame, but the whole set."""
        try:
            return await self._ask((), evaluate=False)
        except _SpoiltError as error:
            why = self._words_of("the set", error.ended)
        raise JobError("source", f"the set ends with an error: {why}")

    async def _halve(self, items: tuple[Item, ...], found: _Found) -> None:
        try:
            found.add(await self._ask(items))
        except _SpoiltError as error:
            await self._part(items, error.ended, found)

    async def _part(self, items: tuple[Item, ...], ended: Ended, found: _Found) -> None:
        """`items` together end the evaluation so: find out which of them do."""
        if len(items) > 1:
            middle = len(items) // 2
            await self._halve(items[:middle], found)
            await self._halve(items[middle:], found)
            return
        [item] = items
        why = self._words_of(f"the package {_shown(items)}", ended)
        if not isinstance(item, str):
            found.packages[item] = _failed(item, why)
            return
        found.spoilt[item] = why
        if "." in item:  # its spelling may be found for all that
            try:
                found.add(await self._ask(items, evaluate=False))
            except _SpoiltError:
                pass

    def _words_of(self, what: str, ended: Ended) -> str:
        """Nix's words of its end; raises JobError where `what` may do better another time, since
        what is said of a package is kept for as long as its commit."""
        if ended.cut is Cut.OUTPUT:
            raise JobError(
                "too much",
                f"to evaluate {what} was stopped: it says more than {STDERR_BYTES_MAX >> 20} MiB, "
                f"or its answer has more than {STDOUT_BYTES_MAX >> 20}; see what it traces",
            )
        if ended.is_out_of_memory:
            raise JobError(
                "too much",
                f"to evaluate {what} takes more than {self._limits.memory_bytes >> 20} MiB of "
                "memory; memory_bytes in [images.evaluation] of the farm file allows more",
            )
        why = error_of(ended.stderr)
        if ended.is_networks_fault:
            raise JobError("source", f"{what} fetches what cannot be had just now: {why}")
        if ended.is_machines_fault:
            raise JobError("evaluator", f"Nix does not work where packages are evaluated: {why}")
        return why

    # --- Asking -------------------------------------------------------------------------------

    async def _ask(
        self, items: Sequence[Item], *, evaluate: bool = True, blame: bool = False
    ) -> _Answer:
        """What packages.nix says of `items`; raises _SpoiltError, or JobError for the time."""
        question = {
            **self._called,
            "packages": [each for each in items if isinstance(each, str)],
            "attributes": [each for each in items if not isinstance(each, str)],
            "evaluate": evaluate,
            "blame": blame,
        }
        self._file.write_text(json.dumps(question))
        command = ["nix-instantiate", "--eval", "--strict", "--json", "--read-write-mode"]
        command += [*self._paths, "--argstr", "job", str(self._file), "--expr", EXPRESSION]
        ended = await self._nix.run(
            command, self._limits, settings=self._settings, environment=self._environment
        )
        if ended.cut is Cut.TIME:
            raise JobError(
                "timeout",
                f"to evaluate {_shown(items) or 'the set'} takes longer than "
                f"{self._job.timeout_s:.0f} s; timeout_s in [images.evaluation] of the farm file "
                "allows more",
            )
        if ended.is_missing:
            raise JobError(
                "evaluator",
                "there is no nix-instantiate where packages are evaluated; install Nix there, or "
                "correct its PATH",
            )
        if not ended.is_good:
            raise _SpoiltError(ended)
        try:
            return _Answer.model_validate_json(ended.stdout)
        except ValidationError as error:
            said = ended.stdout[:200].decode(errors="replace")
            raise JobError("evaluator", f"Nix answers with what is no answer: {said}") from error

    async def _in_words(self, answer: EvaluatedView) -> EvaluatedView:
        """With a message for people, and only what can be true of a package."""
        way = tuple(answer.attribute)
        if not answer.lack:
            return _checked(answer, self._store_dir)
        said = answer.message
        if answer.lack == Lack.FAILED and not said:
            said = await self._own_words(way)
        elif answer.lack in _WORDS:
            said = _WORDS[Lack(answer.lack)].format(self._job.system) + (said and f": {said}")
        return answer.model_copy(update={"message": said[:MESSAGE_CHARS_MAX]})

    async def _own_words(self, way: Attribute) -> str:
        """What Nix says of an attribute whose error it caught."""
        self._blamed += 1
        if self._blamed > BLAMED_MAX:
            return "its evaluation ends with an error, as those of others do"
        try:
            await self._ask((way,), blame=True)
        except _SpoiltError as error:
            return self._words_of(f"the package {_shown([way])}", error.ended)
        return "its evaluation ends with an error, and did not when that was looked at again"


def _shown(items: Sequence[Item]) -> str:
    names = [repr(each if isinstance(each, str) else ".".join(each)) for each in items]
    more = len(names) - SHOWN_MAX
    return ", ".join(names[:SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def _failed(way: Attribute, why: str) -> EvaluatedView:
    why = why[:MESSAGE_CHARS_MAX]
    return EvaluatedView(attribute=[*way], lack=Lack.FAILED, message=why)


def _checked(answer: EvaluatedView, store_dir: StoreDir) -> EvaluatedView:
    """`answer`, or that it is no package, where its paths are none of a derivation's."""
    way = tuple(answer.attribute)
    try:
        drv_path = store_dir.parse(answer.drv_path)
        outputs = {name: store_dir.parse(path) for name, path in answer.outputs.items()}
    except PeerError as error:
        return _failed(way, f"it is no package: {error}")
    if not drv_path.endswith(DRV_SUFFIX):
        return _failed(way, f"its drvPath {answer.drv_path!r} is no derivation")
    name = drv_path.name.removesuffix(DRV_SUFFIX)
    for output, path in outputs.items():
        if path.name != output_name(name, output):
            return _failed(way, f"{path} is said to be its output {output!r}, and cannot be")
    return answer
