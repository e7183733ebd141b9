"""Resumable ranged transfers into the vault's ``partial/`` directory, hashed while they run.

Standard library only, and no idea of HTTP: what is wanted brings a function that opens a range of its bytes.
"""

from modelvault.transfer.transfers import Transfers, beside
from modelvault.transfer.values import Abortable, Fetched, RangeOpener, TransferOptions, Wanted

__all__ = ["Abortable", "Fetched", "RangeOpener", "TransferOptions", "Transfers", "Wanted", "beside"]
