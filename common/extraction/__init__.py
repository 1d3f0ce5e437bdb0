"""Computing region files: detectors, region features, and jobs over folders of images that can be resumed.

Formats of region files belong to `common.data.regions`.
"""
