"""How much memory a model needs, on what it fits, and what to pass to the engine.

Pure: values in, values out. ``shape`` says what of a model costs memory, read from headers by ``gguf_shape`` and ``transformers_shape``;
``llamacpp`` and ``vllm`` say how much that is in either engine; ``cards`` knows what there is to fill.
"""
