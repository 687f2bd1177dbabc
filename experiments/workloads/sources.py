"""Where data files come from: a folder that is named, or a download that is checked, once."""

import os
from pathlib import Path

from experiments.errors import DataError

VARIABLE = "JAXNORM_DATA"
"""Environment variable that names the data folder."""


def named_folder(data_dir: Path | None) -> Path | None:
    """The folder given, or that of the variable; None for a download."""
    named = os.environ.get(VARIABLE)
    return data_dir or (Path(named) if named else None)


def way_out(content: str) -> str:
    """What to do about missing data, `content` being what a folder would have to hold."""
    return (
        f"either point --data-dir or {VARIABLE} to a folder with {content}, or give neither, and "
        "it is downloaded"
    )


def checked_folder(folder: Path, content: str) -> Path:
    """The folder, if there is one.

    Raises:
        DataError: if not.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {way_out(content)}")
    return folder


def fetch(
    name: str, source: str, digests: dict[str, str], content: str, cache: Path | None = None
) -> dict[str, Path]:
    """Download files, once, and return where each is.

    Args:
        name: of the folder in the cache.
        source: address of the folder that holds them.
        digests: file name -> "sha256:..." or another algorithm.
        content: see `way_out`.
        cache: where they are kept. None: the user's cache folder for "jaxnorm".

    Raises:
        DataError: for a failed download or a file with another digest; then nothing is kept of it.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    folder = Path(cache or pooch.os_cache("jaxnorm")) / name
    fetcher = pooch.create(folder, source, registry=digests, retry_if_failed=1)
    paths = {}
    for file in digests:
        try:
            # pooch writes to a temporary file, checks the digest and only then renames.
            paths[file] = Path(fetcher.fetch(file))
        except ValueError as error:
            raise DataError(f"{source}{file}: not the official file ({error})") from error
        except (requests.RequestException, OSError) as error:
            text = f"{source}{file}: download failed ({error}); {way_out(content)}"
            raise DataError(text) from error
    return paths
