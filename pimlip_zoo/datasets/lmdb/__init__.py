"""LMDB stores: millions of frames in files that many processes read at once.

No pickle, nothing that runs code: fixed binary records with checksums, an index that samplers and statistics
read instead of frames, metadata as JSON. ``docs/guide/data.md`` specifies every byte.
"""

from pimlip_zoo.datasets.lmdb.reader import FrameStore, shard_paths
from pimlip_zoo.datasets.lmdb.writer import StoreWriter, partial_path, write_store

__all__ = [
    "FrameStore",
    "StoreWriter",
    "partial_path",
    "shard_paths",
    "write_store",
]
