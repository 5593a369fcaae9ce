"""What evaluators answer, read into facts. Nothing they say is taken whose shape is not right."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from grange.client.image_models import EvaluatedView, EvaluationJob, EvaluationResult
from grange.errors import PeerError
from grange.oci.names import (
    EVERY_IMAGE,
    NAMES_MAX,
    PACKAGES_MAX,
    PARTS_MAX,
    Attribute,
    ImageName,
    Spellings,
    folded,
    spelled,
)
from grange.oci.refusal import MESSAGE_CHARS_MAX
from grange.ports import Evaluated, Lack, NoPackage, Package
from grange.store.derivation import DRV_SUFFIX
from grange.store.outputs import output_name
from grange.store.path import StoreDir

NAME_CHARS_MAX: Final = 255
OUTPUTS_MAX: Final = 64

_COMMIT: Final = re.compile(r"[0-9a-f]{40}\Z")
_OUTPUT: Final = re.compile(r"[0-9A-Za-z+._?=-]{1,100}\Z")
_PROGRAM: Final = re.compile(r"[0-9A-Za-z_][0-9A-Za-z+._-]{0,254}\Z")
_NO_TEXT: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Answer:
    commit: str
    names: Mapping[Attribute, tuple[str, ...]]
    packages: tuple[Evaluated, ...]


def read(job: EvaluationJob, result: EvaluationResult, store_dir: StoreDir) -> Answer:
    """What `result`, which is no failure, says of what was asked for.

    Raises PeerError where it cannot be an answer to `job`.
    """
    if _COMMIT.match(result.commit) is None or (job.commit and result.commit != job.commit):
        raise PeerError(f"it was to be about {job.commit or 'a commit'}, not {result.commit[:80]}")
    if job.is_lookup:
        return Answer(result.commit, {}, ())
    names = _names(result)
    parts = {part for package in job.packages for part in package.split(".")}
    spellings = {way: folded(_resembling(each, parts)) for way, each in names.items()}
    packages = {tuple(view.attribute): view for view in result.packages}
    wanted = asked_for(job, spellings)
    if packages.keys() != wanted or len(packages) != len(result.packages):
        odd = sorted(".".join(each) for each in packages.keys() ^ wanted)
        raise PeerError(f"it is to be about what was asked for, and is not of {', '.join(odd[:5])}")
    found = tuple([_evaluated(packages[each], each, store_dir) for each in sorted(wanted)])
    return Answer(result.commit, names, found)


def checking(store_dir: StoreDir) -> Callable[[EvaluationJob, EvaluationResult], None]:
    """What `Evaluations` asks of answers: that they are failures, or can be read."""

    def check(job: EvaluationJob, result: EvaluationResult) -> None:
        if not result.failure:
            read(job, result, store_dir)

    return check


def asked_for(job: EvaluationJob, spellings: Spellings) -> set[Attribute]:
    """The attributes that `job` is about, as they are spelled."""
    name = ImageName(None, job.has_shell, False, tuple(job.packages))
    wanted = set(name.attributes(spellings))
    if not job.is_image:
        said = {spelled(package, spellings) for package in job.packages}
        wanted -= {(each,) for each in EVERY_IMAGE} - said
    return wanted


def _names(result: EvaluationResult) -> dict[Attribute, tuple[str, ...]]:
    if len(result.names) > PACKAGES_MAX * PARTS_MAX + 1:
        raise PeerError(f"it has the names of {len(result.names)} sets, which nobody asked for")
    if sum(len(each.names) for each in result.names) > NAMES_MAX:
        raise PeerError(f"it has more than {NAMES_MAX} names of attributes")
    # Odd names are left out: nobody can ask for them.
    names = {tuple(each.way): _good(each.names) for each in result.names}
    for way in names:
        if not all(map(_is_name, way)):
            raise PeerError(f"{'.'.join(way)[:80]!r} is no way to a set of attributes")
    if () not in names:
        raise PeerError("it lacks the names of the package set")
    return names


def _good(names: list[str]) -> tuple[str, ...]:
    """Nearly always all of them, and then all at once: a large package set has 25,000."""
    is_odd = not all(names) or _NO_TEXT.search("".join(names)) is not None
    if is_odd or max(map(len, names), default=0) > NAME_CHARS_MAX:
        return tuple(filter(_is_name, names))
    return tuple(names)


def _resembling(names: Iterable[str], parts: Collection[str]) -> list[str]:
    """Those that one of `parts` may be spelled as: to fold all of them takes ten times as long."""
    return [name for name in names if name in parts or name.lower().removeprefix("_") in parts]


def _is_name(name: str) -> bool:
    return 0 < len(name) <= NAME_CHARS_MAX and _NO_TEXT.search(name) is None


def _evaluated(view: EvaluatedView, attribute: Attribute, store_dir: StoreDir) -> Evaluated:
    if not view.drv_path:
        if view.lack not in set(Lack):
            raise PeerError(f"{view.lack[:80]!r} is no reason why there is no package")
        message = _NO_TEXT.sub(" ", view.message)[:MESSAGE_CHARS_MAX]
        return NoPackage(attribute, Lack(view.lack), message)
    drv_path = store_dir.parse(view.drv_path)
    if not drv_path.endswith(DRV_SUFFIX):
        raise PeerError(f"{view.drv_path!r} is no derivation")
    if not 0 < len(view.outputs) <= OUTPUTS_MAX:
        raise PeerError(f"{view.drv_path} has {len(view.outputs)} outputs")
    drv_name = drv_path.name.removesuffix(DRV_SUFFIX)
    outputs = []
    for name, text in sorted(view.outputs.items()):
        if _OUTPUT.match(name) is None:
            raise PeerError(f"{name[:80]!r} is no output of a derivation")
        path = store_dir.parse(text)
        if path.name != output_name(drv_name, name):
            raise PeerError(f"{text} cannot be the output {name!r} of {view.drv_path}")
        outputs.append((name, path))
    program = view.program if _PROGRAM.match(view.program) else ""
    return Package(attribute, drv_path, tuple(outputs), program)
