"""What of a model costs memory while it runs: the bytes of its weights, layer by layer, and what each layer keeps of every token."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Attention:
    """What one layer keeps of each token: for each of ``heads``, a key of ``key`` and a value of ``value`` elements.

    ``latent``: one compressed row of ``key`` elements serves for keys and values of all heads (multi-head latent attention); it is not
    divided between GPUs. ``window``: how many tokens the layer looks back; ``None`` if at all.
    """

    heads: int
    key: int
    value: int
    window: int | None = None
    latent: bool = False

    @property
    def elements(self) -> int:
        """How many numbers are kept of each token."""
        return self.heads * (self.key + (0 if self.latent else self.value))


@dataclass(frozen=True, slots=True)
class Layer:
    """One repeating layer: the bytes of its weights, its attention if it has one, and the ``state`` of a recurrent one.

    ``state`` is in elements of float32 for each sequence, however long that is.
    """

    weights: int
    attention: Attention | None = None
    state: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """A model, as far as memory goes. Bytes are those of the files; widths are in elements, ``context`` in tokens.

    ``input_weights`` are the token embeddings, which llama.cpp keeps in main memory; ``output_weights`` all that is neither that nor of a
    repeating layer. ``feed_forward``: of all experts that work on a token together. ``tied``: the embeddings serve as output too, so that a GPU holds a copy. ``projector`` is a second file's.
    ``unknown`` says what could not be found out; what is known stays exact.
    """

    architecture: str
    layers: tuple[Layer, ...]
    input_weights: int
    output_weights: int
    tied: bool
    embedding: int
    feed_forward: int
    heads: int
    vocabulary: int
    context: int | None = None
    projector: int = 0
    quantization: str | None = None
    unknown: tuple[str, ...] = field(default=())

    @property
    def weights(self) -> int:
        """The bytes of all weights as they lie in the files, without the projector."""
        return self.input_weights + self.output_weights + sum(layer.weights for layer in self.layers)

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """The layers that keep something of every token."""
        return tuple(layer.attention for layer in self.layers if layer.attention is not None)

    @property
    def key_value_heads(self) -> int:
        """The largest number of key-value heads in any layer that GPUs can share out; 0 if there is none."""
        return max((attention.heads for attention in self.attentions if not attention.latent), default=0)
