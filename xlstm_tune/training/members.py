"""Stand-in."""
from xlstm_tune.training.config import TrialConfig
SHAPE_PRESERVING=()
def check_one_shape(configs): pass
