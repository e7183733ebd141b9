"""Sets of weight files, told by their names."""

from modelvault.formats.shards import shard_sets


def test_sets_are_told_apart() -> None:
    """If it fails, two quantizations in one folder are taken for one set."""
    sets = shard_sets(["a-00001-of-00001.gguf", "b-00002-of-00002.gguf", "b-00001-of-00002.gguf", "c.gguf"])
    assert [(shards.prefix, shards.numbers, shards.missing) for shards in sets] == [("a", (1,), ()), ("b", (1, 2), ())]
    assert sets[1].files == ("b-00001-of-00002.gguf", "b-00002-of-00002.gguf")
