"""Shapes of well-known models, from their published dimensions and the size of the file in question."""

from modelvault.fit.shape import Attention, Layer, Shape


def dense(layers: int, embedding: int, heads: tuple[int, int], feed_forward: int, vocabulary: int, size: int) -> Shape:
    """A model whose layers are all alike, of ``size`` bytes in all; ``heads`` are those of queries, and of keys and values."""
    queries, shared = heads
    head = embedding // queries
    block = 2 * embedding * queries * head + 2 * embedding * shared * head + 3 * embedding * feed_forward
    embeddings = vocabulary * embedding
    rate = size / (layers * block + 2 * embeddings)
    layer = Layer(int(block * rate), Attention(shared, head, head))
    outside = int(embeddings * rate)
    return Shape(
        "llama", (layer,) * layers, outside, outside, tied=False, embedding=embedding, feed_forward=feed_forward,
        heads=queries, vocabulary=vocabulary, context=131072,
    )  # fmt: skip


GB = 10**9


def llama_70b(gigabytes: float) -> Shape:
    """Llama 3.1 70B."""
    return dense(80, 8192, (64, 8), 28672, 128256, int(gigabytes * GB))


QWEN_3B = dense(36, 2048, (16, 2), 11008, 151936, int(2.1 * GB))
QWEN_7B = dense(28, 3584, (28, 4), 18944, 152064, int(4.7 * GB))
