"""Putting stores together."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pimlip_zoo.datasets.frame import Frame
from pimlip_zoo.datasets.lmdb.reader import FrameStore, shard_paths
from pimlip_zoo.datasets.lmdb.writer import StoreWriter, partial_path
from pimlip_zoo.errors import InputError

__all__ = ["append_frames", "merge_stores"]


def merge_stores(
    paths: Sequence[str | Path], out: str | Path, *, progress: Callable[[int], None] | None = None
) -> Path:
    """Copy the frames of several stores into one file, as they are.

    Raises:
        InputError: for a source that is no intact store, sources of different precision or cutoff of the
            index, or a place that cannot be written.
    """
    stores = [FrameStore(path) for path in paths]
    metas = [meta for store in stores for meta in store.meta]
    for key in ("precision", "index_cutoff"):
        values = {meta.get(key) for meta in metas}
        if len(values) > 1:
            raise InputError(
                f"the stores differ in {key}: {sorted(map(str, values))}", file=paths[0], key=key
            )
    meta = {"precision": metas[0].get("precision"), "merged": [str(Path(path).name) for path in paths]}
    levels = {str(entry["level_of_theory"]) for entry in metas if entry.get("level_of_theory")}
    if levels:
        meta["level_of_theory"] = " | ".join(sorted(levels))
    with StoreWriter(out, meta={"merged": meta["merged"]}, float32=meta["precision"] == "float32") as writer:
        for store in stores:
            index, compositions = store.index, store.compositions
            for i in range(len(store)):
                writer.append_raw(store.raw(i), index[i], compositions[index[i]["composition"]])
                if writer.full:
                    writer.commit()
                if progress:
                    progress(1)
    return Path(out)


def append_frames(path: str | Path, frames: Iterable[Frame]) -> Path:
    """Add frames to a store: a new shard in a folder, a new version of a file.

    Readers that have the store open keep what they have; the new frames are seen when it is opened again.

    Raises:
        InputError: for something that is no intact store, or a place that cannot be written.
    """
    path = Path(path)
    store = FrameStore(path)
    float32 = store.meta[0].get("precision") == "float32"
    if path.is_dir():
        shards = shard_paths(path)
        number = 1 + max(
            int(s.stem.rpartition("-")[2]) for s in shards if s.stem.rpartition("-")[2].isdigit()
        )
        target, resume = path / f"shard-{number:05d}.lmdb", False
    else:
        target, resume = path, True
        shutil.copyfile(path, partial_path(path))
    writer = StoreWriter(target, float32=float32, resume=resume)
    try:
        for frame in frames:
            writer.append(frame)
            if writer.full:
                writer.commit()
        writer.finish()
    except BaseException:
        writer.abandon()
        raise
    return target
