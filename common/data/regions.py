"""The regions of a picture by its id: from one json file per picture, or from one packed file."""

from __future__ import annotations

import logging
from pathlib import PurePath

from common.data.packed_regions import PackedRegions
from common.data.region_json import Regions, json_regions
from common.data.store import Store, split_archive

__all__ = ["RegionStore", "Regions", "place_name"]

logger = logging.getLogger(__name__)


class RegionStore:
    """Reads the regions of a picture by its id. Can be pickled, and used after a fork.

    Args:
        place: folder or place in an archive (`x.zip@/inner`) of the json files `{image_id}.json`.
        packed: packed file that is read in its stead; empty for none.
        feature_dim: width F of a feature.

    Raises:
        DataError: the place or the packed file is missing or damaged.
    """

    def __init__(self, place: str, packed: str = "", *, feature_dim: int = 2048) -> None:
        self._place = place
        self._feature_dim = feature_dim
        self._store = Store([] if packed else [place])
        self._packed = PackedRegions(packed) if packed else None
        if self._packed and place_name(place) not in self._packed.header.sources:
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


def place_name(place: str) -> str:
    """Returns the name of a folder, or of the innermost folder of a place in an archive."""
    archive, member = split_archive(place) or (place, "")
    return PurePath(member or archive).name.removesuffix(".zip")
