"""What the files of a model say about themselves, and whether they are sound.

Every check has a rule, a slug that ``InvalidModelFile`` carries: users can look it up, and tests can tell failures apart.
"""

from modelvault.inspect.advice import Advice, find_pickles
from modelvault.inspect.code import find_code
from modelvault.inspect.listing import check_listing, is_pickle_name, separate_folders
from modelvault.inspect.model import ModelReport, inspect_file, inspect_model
from modelvault.inspect.source import pickle_refused

__all__ = [
    "Advice",
    "ModelReport",
    "check_listing",
    "find_code",
    "find_pickles",
    "inspect_file",
    "inspect_model",
    "is_pickle_name",
    "pickle_refused",
    "separate_folders",
]
