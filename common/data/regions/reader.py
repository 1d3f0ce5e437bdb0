"""The regions of a picture by its id or by its path: from one json file per picture, or from packed files."""

from __future__ import annotations

import logging
import re
from pathlib import PurePath

import torch
from torch import Tensor

from common.data.images import PreparedImage
from common.data.regions.json_format import json_regions
from common.data.regions.packed_format import PackedRegions
from common.data.regions.types import Regions
from common.data.storage.store import Store, split_archive
from common.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


class RegionStore:
    """Reads the regions of a picture by its id. Can be pickled, and used after a fork.

    Args:
        place: folder or place in an archive (`x.zip@/inner`) of the json files `{image_id}.json`.
        packed: packed file that is read in its stead; empty for none.
        feature_dim: width F of a feature.
        cache: folder for the index of a large archive that cannot lie beside it; empty for none.

    Raises:
        DataError: the place or the packed file is missing or damaged.
    """

    def __init__(self, place: str, packed: str = "", *, feature_dim: int = 2048, cache: str = "") -> None:
        self._place = place
        self._feature_dim = feature_dim
        self._store = Store([] if packed else [place], cache)
        self._packed = PackedRegions(packed) if packed else None
        if self._packed and source_name(place) not in self._packed.header.sources:
            logger.warning(
                "%s: was packed from %s, and is read in place of %s",
                packed,
                ", ".join(self._packed.header.sources),
                place,
            )

    def read(self, image_id: int | str, *, features: bool, classes: bool = False) -> Regions:
        """Returns the regions of a picture; each tensor is a copy of its own.

        Args:
            image_id: name of the json file without its ending.
            features: whether to read features.
            classes: whether to read class scores.

        Raises:
            DataError: there is no such picture, or what is stored of it cannot be right.
        """
        if self._packed:
            return self._packed.read(image_id, self._feature_dim, features=features, classes=classes)
        path = f"{self._place}/{image_id}.json"
        return json_regions(
            self._store.json(path), path, self._feature_dim, features=features, classes=classes
        )


class RegionFiles:
    """Reads the regions of a picture by the path of its json file. Can be pickled, and used after a fork.

    Args:
        packed: packed files that are read in their stead, joined with +: of several, those that were packed from
            the folder or archive in the path, or from another part of its set. Empty for none.
        feature_dim: width F of a feature.
        cache: folder for indexes of archives, see `Store`.

    Raises:
        ConfigError: the name of a packed file is empty.
        DataError: a packed file is missing or damaged.
    """

    def __init__(self, packed: str = "", *, feature_dim: int = 2048, cache: str = "") -> None:
        self._feature_dim = feature_dim
        self._store = Store(cache=cache)
        names = packed.split("+") if packed else []
        if not all(names):
            raise ConfigError(
                f'DATASET.PACKED_REGIONS: "{packed}": must name a file, or several joined with +'
            )
        self._packed = [PackedRegions(name) for name in names]

    def check(self, path: str, *, classes: bool = False) -> None:
        """Checks that there is the place of a file.

        Args:
            path: of the file.
            classes: whether its class scores will be read.

        Raises:
            DataError: no such folder or archive, or none of the packed files was made from it, or it lacks them.
        """
        if self._packed:
            for packed in self._packed_from(parent_location(path)):
                if classes:
                    packed.require_classes()
        else:
            self._store.check(parent_location(path))

    def read(self, path: str, *, features: bool, classes: bool = False) -> Regions:
        """Returns the regions of a picture, see `RegionStore.read`."""
        if self._packed:
            _, name = split_archive(path) or ("", path)
            image_id, parts = PurePath(name).stem, self._packed_from(parent_location(path))
            for packed in parts:
                if image_id in packed:
                    return packed.read(image_id, self._feature_dim, features=features, classes=classes)
            raise DataError(f"{path}: not in {', '.join(part.path for part in parts)}")
        return json_regions(
            self._store.json(path), path, self._feature_dim, features=features, classes=classes
        )

    def _packed_from(self, place: str) -> list[PackedRegions]:
        found = [packed for packed in self._packed if source_name(place) in packed.header.sources]
        if found:
            return found
        made = (f"{packed.path} from {', '.join(packed.header.sources)}" for packed in self._packed)
        raise DataError(f"{place}: not packed; {'; '.join(made)}")


def prepend_image_box(found: Regions, picture: PreparedImage, *, add: bool) -> tuple[Tensor, Tensor | None]:
    """Puts the whole image before the regions of a picture.

    Args:
        found: the regions; without a feature of the whole image, the mean of theirs stands in.
        picture: the picture.
        add: `DATASET.ADD_IMAGE_AS_A_BOX`; False leaves the regions as they are.

    Returns:
        Boxes (n, 4) in original pixels, and their features (n, F) if any.

    Raises:
        DataError: there are no regions, and the whole image is not added.
    """
    boxes, features = found.boxes, found.features
    if not add:
        if not len(boxes):
            raise DataError("it has no regions, and DATASET.ADD_IMAGE_AS_A_BOX is off")
        return boxes, features
    if features is not None:
        whole = found.image_feature
        if whole is None:
            whole = features.mean(dim=0) if len(features) else features.new_zeros(features.shape[1])
        features = torch.cat([whole[None], features])
    return torch.cat([boxes.new_tensor([picture.whole]), boxes]), features


def parent_location(path: str) -> str:
    """Returns the folder of a file, or its place in an archive (`x.zip@/inner`)."""
    parts = split_archive(path)
    if parts is None:
        return str(PurePath(path).parent)
    archive, member = parts
    return f"{archive}@/{member.rpartition('/')[0]}"


def source_name(place: str) -> str:
    """Returns the name of a folder, or of the innermost folder of a place in an archive.

    Archives that are parts of one set, `NAME.0.zip` to `NAME.3.zip`, all have the name `NAME`.
    """
    archive, member = split_archive(place) or (place, "")
    return re.sub(r"(\.[0-3])?\.zip$", "", PurePath(member or archive).name)


def plain_path(path: str) -> str:
    """Turns a path in an archive (`x.zip@/y`) into that of the unpacked file (`x/y`)."""
    return path.replace(".zip@", "")


def plain_region_path(path: str) -> str:
    """`plain_path` of a region file, whose archive may be one of four parts: `x.0.zip@/y` was unpacked to `x/y`."""
    return plain_path(re.sub(r"\.[0-3](?=\.zip@)", "", path))
