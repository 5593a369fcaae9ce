"""What is remembered is bounded, and what was used last stays."""

from grange.db.lru import Lru


def test_the_entries_used_last_stay() -> None:
    lru: Lru[str, int] = Lru(2)
    lru.put("a", 1, lru.age)
    lru.put("b", 2, lru.age)
    assert lru.get("a") == 1
    lru.put("c", 3, lru.age)
    assert [lru.get(key) for key in "abc"] == [1, None, 3]
    lru.put("c", 4, lru.age)
    assert [lru.get(key) for key in "ac"] == [1, 4]
