"""torch-fidelity as an oracle, without the torchvision that its package imports for other purposes."""

import sys
from unittest import mock

STAND_INS = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")

with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in STAND_INS}):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

__all__ = [
    "FeatureExtractorInceptionV3",
    "isc_features_to_metric",
    "kid_features_to_metric",
    "prc_features_to_metric",
]
