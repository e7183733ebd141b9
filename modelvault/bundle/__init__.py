"""The bundle stage: what is written for the trip across the gap, and read on the other side.

``format`` and ``layout`` are pure (values in, values out), ``plan`` makes an index, ``writer`` and ``reader`` do the I/O.
The format is specified in ``docs/formats/bundle-v1.md``.
"""
