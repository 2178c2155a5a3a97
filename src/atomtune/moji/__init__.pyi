from .pipeline import MojiPipeline as MojiPipeline
from .pipeline import load as load
from .pipeline import random_pipeline as random_pipeline
