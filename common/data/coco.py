"""The object classes of COCO, as VCR's detector names them (data spec 3.4)."""

from __future__ import annotations

CLASS_NAMES = tuple(
    """
    __background__ person bicycle car motorcycle airplane bus train truck boat trafficlight firehydrant
    stopsign parkingmeter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella
    handbag tie suitcase frisbee skis snowboard sportsball kite baseballbat baseballglove skateboard surfboard
    tennisracket bottle wineglass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot
    hotdog pizza donut cake chair couch pottedplant bed diningtable toilet tv laptop mouse remote keyboard
    cellphone microwave oven toaster sink refrigerator book clock vase scissors teddybear hairdrier toothbrush
    """.split()  # noqa: SIM905  # readable as a text
)
"""Name of class 0 (background) to 80."""

CLASS_INDEX = {name: index for index, name in enumerate(CLASS_NAMES)}
"""Class of each name."""
