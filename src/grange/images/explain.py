"""What an image is made of, and why: told without making anything of it."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from grange.client.image_models import ExplainAnswer, LayerView
from grange.errors import PeerError
from grange.images.assemble import key_of, wished
from grange.images.layers import CODECS
from grange.images.packages import Contents, contents
from grange.images.settings import PackageSource
from grange.images.sources import Sources, Wanted
from grange.oci.descriptor import Member, layer_key, root_key
from grange.oci.manifest import Variant
from grange.oci.names import Tag
from grange.oci.plan import Group, plan
from grange.oci.refusal import Code, RefusedError
from grange.oci.root import ACCOUNTS
from grange.oci.segments import Codec
from grange.ports import (
    Catalog,
    Closure,
    ImageBuilds,
    ImageRequest,
    Package,
    StoredLayer,
    StoredSegment,
)
from grange.store.path import StoreDir, StorePath

NEEDED_SHOWN_MAX: Final = 3


class Explainer:
    def __init__(
        self, sources: Sources, *, catalog: Catalog, builds: ImageBuilds, store_dir: StoreDir
    ) -> None:
        self._sources = sources
        self._catalog = catalog
        self._builds = builds
        self._store_dir = store_dir

    async def explain(self, request: ImageRequest) -> ExplainAnswer:
        """As far as it is known. Raises RefusedError for what is known not to be had."""
        settings = self._sources.settings
        source = settings.source_of(request.name)
        name = settings.usual_name(request.name)
        answer = ExplainAnswer(
            name=name.show(), tag=request.tag, source=source.spec.name, system=name.system
        )
        commit = await self._commit(source, request.tag)
        if commit is None:
            answer.unknown = [".".join(each) for each in name.attributes({})]
            return answer
        answer.commit = commit
        wish = wished(request.name, request.wish)
        record = await self._catalog.image(key_of(name, source.at(commit), request.variant, wish))
        if record is not None:
            answer.is_made, answer.digest = True, record.manifest.digest
        known = await self._sources.look(Wanted(name, request.tag, source), commit)
        answer.unknown = [".".join(each) for each in known.unknown]
        found = {each: what for each, what in known.found.items() if isinstance(what, Package)}
        answer.packages = {
            ".".join(each): [path for _, path in package.outputs] for each, package in found.items()
        }
        if not known.unknown:
            inside = await contents(name, source.at(commit), known.spellings, known.found)
            keys = await self._add_layers(answer, inside, request.variant)
            answer.is_as_made = record is None or not keys or keys == record.layers
        return answer

    async def _commit(self, source: PackageSource, tag: Tag) -> str | None:
        """What the tag stood for when it was last looked up."""
        if tag.is_commit:
            return str(tag)
        known = await self._catalog.resolution(source.spec.name, tag)
        return None if known is None else known.commit

    async def _add_layers(
        self, answer: ExplainAnswer, inside: Contents, variant: Variant
    ) -> tuple[str, ...]:
        """Or what is missing for them. Returns the layers' keys."""
        roots = {path for package in inside.installed for _, path in package.outputs}
        closure = await self._builds.closure(roots)
        answer.missing = list(closure.missing)
        if closure.missing:
            return ()
        answer.layers, keys = await self._layers(CODECS[variant.compression], closure, roots)
        return keys

    async def _layers(
        self, codec: Codec, closure: Closure, roots: set[StorePath]
    ) -> tuple[list[LayerView], tuple[str, ...]]:
        """And their keys, lowest first."""
        budget = self._sources.settings.layer_budget
        infos = {narinfo.info.path: narinfo.info for narinfo in closure.narinfos}
        try:
            groups = await asyncio.to_thread(plan, infos.values(), budget)
        except PeerError as error:
            raise RefusedError(Code.MANIFEST_UNKNOWN, str(error)) from error
        members = [Member(path, info.nar_hash) for path, info in infos.items()]
        segments = await self._catalog.segments(codec.version, members)
        keys = [layer_key(codec.version, group.members, self._store_dir) for group in groups]
        linked = sorted(Member(path, infos[path].nar_hash) for path in roots)
        root = root_key(codec.version, linked, ACCOUNTS, self._store_dir)
        known = await self._catalog.layers([*keys, root])
        views = [
            _view(group, known.get(key), segments, is_roomy=len(infos) < budget)
            for key, group in zip(keys, groups, strict=True)
        ]
        links = LayerView(
            paths=[member.path for member in linked],
            nar_bytes=0,
            is_root=True,
            is_known=root in known,
            known_paths=0,
            why="the root directory: links into the packages that were asked for",
        )
        return [*views, _with_digests(links, known.get(root))], (*keys, root)


def _view(
    group: Group,
    layer: StoredLayer | None,
    segments: Mapping[Member, StoredSegment],
    *,
    is_roomy: bool,
) -> LayerView:
    view = LayerView(
        paths=[member.path for member in group.members],
        nar_bytes=group.nar_bytes,
        is_known=layer is not None,
        known_paths=sum(member in segments for member in group.members),
        why=_why(group, is_roomy=is_roomy),
    )
    return _with_digests(view, layer)


def _with_digests(view: LayerView, layer: StoredLayer | None) -> LayerView:
    if layer is not None:
        view.digest = layer.descriptor.digest
        view.diff_id = layer.descriptor.diff_id
        view.blob_bytes = layer.descriptor.blob_bytes
    return view


def _why(group: Group, *, is_roomy: bool) -> str:
    if is_roomy:
        what = "a layer of its own, as there are enough for all"
    elif len(group.members) == 1:
        what = "large enough for a layer of its own"
    else:
        what = f"{len(group.members)} smaller paths"
    if not group.needed_by:
        return f"{what}, which no larger path needs"
    return f"{what}, needed by {_names(group.needed_by)}"


def _names(paths: Sequence[StorePath]) -> str:
    names = [path.name for path in paths]
    more = len(names) - NEEDED_SHOWN_MAX
    shown = ", ".join(names[:NEEDED_SHOWN_MAX])
    return f"{shown} and {more} more" if more > 0 else shown
