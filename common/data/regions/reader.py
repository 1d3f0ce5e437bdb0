"""Reads the regions of an image of a dataset, from one json file per image or from packed files."""

from __future__ import annotations

import logging
import re
from pathlib import PurePath

import torch
from torch import Tensor

from common.data.images import PreparedImage
from common.data.regions.json_format import decode_regions
from common.data.regions.packed_format import PackedRegions
from common.data.regions.types import Regions
from common.data.storage.store import Store, split_archive
from common.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


class RegionStore:
    """Reads the regions of an image by its id. Can be pickled, and used after a fork.

    Args:
        root: folder, or location in an archive (`x.zip@/inner`), of the json files `{image_id}.json`.
        packed: packed file that replaces them; empty for none.
        feature_dim: width F of a feature.
        cache: folder for the index of a large archive whose own folder is not writable; empty for none.

    Raises:
        DataError: the root or the packed file is missing or damaged.
    """

    def __init__(self, root: str, packed: str = "", *, feature_dim: int = 2048, cache: str = "") -> None:
        self._root = root
        self._feature_dim = feature_dim
        self._store = Store([] if packed else [root], cache)
        self._packed = PackedRegions(packed) if packed else None
        if self._packed and source_name(root) not in self._packed.header.sources:
            sources = ", ".join(self._packed.header.sources)
            logger.warning("%s: was packed from %s and replaces %s", packed, sources, root)

    def read(self, image_id: int | str, *, features: bool, class_scores: bool = False) -> Regions:
        """Reads the regions of an image. Each tensor owns its memory.

        Args:
            image_id: name of the json file without `.json`.
            features: whether to read features.
            class_scores: whether to read class scores.

        Raises:
            DataError: the image is missing, or its regions are invalid.
        """
        if self._packed:
            return self._packed.read(
                image_id, self._feature_dim, features=features, class_scores=class_scores
            )
        path = f"{self._root}/{image_id}.json"
        record = self._store.json(path)
        return decode_regions(record, path, self._feature_dim, features=features, class_scores=class_scores)


class RegionFiles:
    """Reads the regions of an image by the path of its json file. Can be pickled, and used after a fork.

    Args:
        packed: packed files that replace the json files, joined with +. A path is looked up in the packed files whose
            source has the name of its folder or archive, or of another part of the same set. Empty for none.
        feature_dim: width F of a feature.
        cache: see `RegionStore`.

    Raises:
        ConfigError: the name of a packed file is empty.
        DataError: a packed file is missing or damaged.
    """

    def __init__(self, packed: str = "", *, feature_dim: int = 2048, cache: str = "") -> None:
        self._feature_dim = feature_dim
        self._store = Store(cache=cache)
        paths = packed.split("+") if packed else []
        if not all(paths):
            raise ConfigError(
                f'DATASET.PACKED_REGIONS: "{packed}": must name a file, or several joined with +'
            )
        self._packed = [PackedRegions(path) for path in paths]

    def check(self, path: str, *, class_scores: bool = False) -> None:
        """Checks the location of a file before it is read.

        Args:
            path: path of the file.
            class_scores: whether its class scores will be read.

        Raises:
            DataError: the folder or archive does not exist, no packed file was made from it, or class scores are
                missing.
        """
        if not self._packed:
            self._store.check(parent_location(path))
            return
        for packed in self._packed_from(parent_location(path)):
            if class_scores:
                packed.require_class_scores()

    def read(self, path: str, *, features: bool, class_scores: bool = False) -> Regions:
        """Reads the regions of an image, see `RegionStore.read`."""
        options = {"features": features, "class_scores": class_scores}
        if not self._packed:
            return decode_regions(self._store.json(path), path, self._feature_dim, **options)
        _, name = split_archive(path) or ("", path)
        image_id, candidates = PurePath(name).stem, self._packed_from(parent_location(path))
        for packed in candidates:
            if image_id in packed:
                return packed.read(image_id, self._feature_dim, **options)
        raise DataError(f"{path}: not in {', '.join(packed.path for packed in candidates)}")

    def _packed_from(self, root: str) -> list[PackedRegions]:
        if matching := [one for one in self._packed if source_name(root) in one.header.sources]:
            return matching
        sources = "; ".join(f"{one.path} from {', '.join(one.header.sources)}" for one in self._packed)
        raise DataError(f"{root}: not packed; {sources}")


def prepend_image_box(regions: Regions, image: PreparedImage, *, add: bool) -> tuple[Tensor, Tensor | None]:
    """Inserts the whole image before the regions, as box 0.

    Args:
        regions: regions of the image. Without an `image_feature`, the mean of their features is used.
        image: the image.
        add: `DATASET.ADD_IMAGE_AS_A_BOX`; False returns the regions unchanged.

    Returns:
        Boxes (n, 4) in original pixels, and their features (n, F) if any.

    Raises:
        DataError: there are no regions and the image is not added.
    """
    boxes, features = regions.boxes, regions.features
    if not add:
        if not len(boxes):
            raise DataError("the image has no regions, and DATASET.ADD_IMAGE_AS_A_BOX is off")
        return boxes, features
    if features is not None:
        image_feature = regions.image_feature
        if image_feature is None:
            image_feature = features.mean(dim=0) if len(features) else features.new_zeros(features.shape[1])
        features = torch.cat([image_feature[None], features])
    return torch.cat([boxes.new_tensor([image.whole_box]), boxes]), features


def parent_location(path: str) -> str:
    """Returns the folder of a file, or its location in an archive (`x.zip@/inner`)."""
    parts = split_archive(path)
    if parts is None:
        return str(PurePath(path).parent)
    archive, member = parts
    return f"{archive}@/{member.rpartition('/')[0]}"


def source_name(root: str) -> str:
    """Returns the name of a folder, or of the innermost folder of a location in an archive.

    Archives that are parts of one set, `NAME.0.zip` to `NAME.3.zip`, all have the name `NAME`.
    """
    archive, member = split_archive(root) or (root, "")
    return re.sub(r"(\.[0-3])?\.zip$", "", PurePath(member or archive).name)


def unpacked_path(path: str) -> str:
    """Converts a path in an archive (`x.zip@/y`) to that of the unpacked file (`x/y`)."""
    return path.replace(".zip@", "")


def unpacked_region_path(path: str) -> str:
    """Like `unpacked_path`, for a region file whose archive may be one of four parts: `x.0.zip@/y` becomes `x/y`."""
    return unpacked_path(re.sub(r"\.[0-3](?=\.zip@)", "", path))
