"""torch-fidelity as an oracle, without the torchvision that its package imports for other purposes."""

import sys
from unittest import mock

STAND_INS = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")

_missing = [name for name in STAND_INS if name not in sys.modules]
sys.modules.update({name: mock.MagicMock() for name in _missing})
try:
    from torch_fidelity import feature_extractor_inceptionv3
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric
finally:
    for _name in _missing:  # others ask whether torchvision is there
        del sys.modules[_name]

__all__ = [
    "feature_extractor_inceptionv3",
    "interpolate_bilinear_2d_like_tensorflow1x",
    "isc_features_to_metric",
    "kid_features_to_metric",
    "prc_features_to_metric",
]
