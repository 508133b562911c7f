"""Is there such a model? Asked once, before transformers retries for a minute and then says no in ten lines."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from prefkit.errors import TrainError, one_line

TIMEOUT = 10.0  # seconds


def local_files_only(name: str | Path) -> bool:
    """Whether to load `name` from this machine alone: a folder, or cached while the Hugging Face Hub cannot be reached.

    Raises TrainError if it is neither a folder, nor cached, nor on the Hub. No login is needed for what is local.
    """
    if Path(name).is_dir():
        return True
    try:
        cached = isinstance(try_to_load_from_cache(str(name), "config.json"), str)
        HfApi().model_info(str(name), timeout=TIMEOUT)
        return False
    except HFValidationError as error:
        raise TrainError(f'model "{name}" cannot be loaded: no such folder.') from error
    except RepositoryNotFoundError as error:
        raise TrainError(
            f'model "{name}" cannot be loaded: no such folder, and no such model on the Hub, or none that you may read '
            "(hf auth login)."
        ) from error
    except Exception as error:  # what a failing connection raises depends on the HTTP client that huggingface_hub uses
        if cached:
            return True
        raise TrainError(
            f'model "{name}" cannot be loaded: no such folder, not in the local cache, and the Hub cannot be reached '
            f"({one_line(error)})."
        ) from error
