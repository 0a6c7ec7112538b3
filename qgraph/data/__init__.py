"""Calibration and evaluation data: any source in, samples that fit the model's inputs out."""

from qgraph.data.dataset import DataSet
from qgraph.data.image_options import ImageOptions
from qgraph.data.inputs import Feeds, InputSpec
from qgraph.data.opening import open_data

__all__ = ["DataSet", "Feeds", "ImageOptions", "InputSpec", "open_data"]
