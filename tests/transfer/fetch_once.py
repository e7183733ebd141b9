"""A process that fetches one repository into a partial directory; the tests kill it.

Usage: fetch_once.py ENDPOINT REPOSITORY PARTIAL. Exits with the code of the error, or 130 after Ctrl-C.
"""

import sys
from functools import partial
from pathlib import Path

from modelvault.errors import ModelvaultError
from modelvault.progress import NoProgress
from modelvault.sources.hub import HubSource
from modelvault.transfer import TransferOptions, Transfers, Wanted


def main(endpoint: str, repository: str, home: str) -> int:
    """Fetch everything once."""
    source = HubSource(endpoint, token="hf_test")
    try:
        snapshot = source.snapshot(repository, None)
        wanted = [
            Wanted(file.path, file.size, file.digest, partial(source.open_range, snapshot, file))
            for file in snapshot.files
        ]
        with Transfers(Path(home), wanted, TransferOptions(), NoProgress()) as transfers:
            transfers.run()
    except ModelvaultError as error:
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    finally:
        source.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
