"""What is remembered of package sets is bounded."""

import pytest

from grange.images import packages as packages_module
from grange.images.packages import PackageBook
from grange.oci.names import parse_name
from grange.ports import PackageSet
from tests.images_fakes import MemoryCatalog


async def test_only_so_many_names_are_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages_module, "NAMES_MAX", 5)
    catalog = MemoryCatalog()
    one, two = [PackageSet("main", "5" * 64, commit * 40) for commit in "12"]
    for each in (one, two):
        await catalog.save_names(each, "x86_64-linux", {(): ("hello", "git", "nano")})
    book, name = PackageBook(catalog), parse_name("hello", ())
    for packages, asked in ((one, 1), (one, 1), (two, 2), (two, 2), (one, 3)):
        await book.look(packages, name)
        assert catalog.asked["names"] == asked
