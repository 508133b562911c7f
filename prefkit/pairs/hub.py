"""`prefkit export --push-to-hub`: a data set, or an export of one, to a data set repository of the Hugging Face Hub.

One commit adds all files and deletes those that an earlier push left and this one does not have: a reader of the
repository sees the old data set or the new one, never a mixture (old shards beside new ones would be read as more
data). Only files that prefkit itself lists are sent. Files that did not change are not uploaded again. The token is
huggingface_hub's own business: HF_TOKEN, or `hf auth login`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from prefkit import manifest
from prefkit.errors import PrefkitError, UsageError, one_line
from prefkit.extras import install
from prefkit.pairs import export

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Names that prefkit gives to files, by which those of an earlier push are known.
OURS = re.compile(
    r"(data|rejects)/(train|test|rejects)-\d{5}-of-\d{5}\.parquet"
    r"|(train|test)\.jsonl|dataset_info\.json|manifest\.json|export\.json|report\.html"
)


def connect(repo: str, *, quiet: bool = False) -> HfApi:
    """The Hub's client. UsageError if it is not installed, no one is logged in, or `repo` cannot be a name."""
    try:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import disable_progress_bars, validate_repo_id
    except ImportError:
        raise UsageError(f"--push-to-hub needs huggingface_hub: {install('hub')}.") from None
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"--push-to-hub: {one_line(error)}") from error
    if "/" not in repo:
        raise UsageError(f'--push-to-hub "{repo}": write it as NAME/REPO, NAME being a user or an organization.')
    if not get_token():
        raise UsageError("--push-to-hub: there is no Hugging Face token. Log in with hf auth login, or set HF_TOKEN.")
    if quiet:
        disable_progress_bars()
    return HfApi()


def push(api: HfApi, folder: Path, repo: str, *, private: bool = False, revision: str | None = None) -> str:
    """Send a finished data set, or an export, to branch `revision` of data set `repo`; returns the commit's URL.

    The repository and the branch are made if they do not exist. UsageError where the token may not write there, or
    where `private` is asked for and a public repository stands there; DataError for a damaged folder.
    """
    files, message = content(folder)
    try:
        return _commit(api, folder, files, message, repo, private, revision)
    except PrefkitError:
        raise
    except Exception as error:  # what a failing connection raises depends on the HTTP client that huggingface_hub uses
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 401:
            raise UsageError(
                "--push-to-hub: the Hub does not accept your token. Log in again: hf auth login."
            ) from error
        if status == 403:
            raise UsageError(f"--push-to-hub {repo}: your token may not write there ({one_line(error)}).") from error
        raise PrefkitError(f"--push-to-hub {repo} failed: {one_line(error)}.") from error


def content(folder: Path) -> tuple[list[str], str]:
    """The files of a data set or an export, checked against their hashes, and a commit message that tells the hash."""
    if (folder / export.FILE_NAME).exists():
        made = export.read(folder)
        hashes = {name: facts["sha256"] for name, facts in made["files"].items()}
        rest, title = [export.FILE_NAME], f"prefkit {made['prefkit']}: {made['format']} export of {made['data_hash']}"
    else:
        record = manifest.read(folder)
        hashes = {shard.path: shard.sha256 for shard in record.shards}
        rest = [name for name in ("README.md", "report.html") if (folder / name).exists()] + [manifest.FILE_NAME]
        title = f"prefkit {record.versions['prefkit']}: data set {record.data_hash}"
    for name, sha256 in hashes.items():
        export.check_file(folder / name, sha256)
    return [*hashes, *rest], title


def _commit(
    api: HfApi, folder: Path, files: list[str], message: str, repo: str, private: bool, revision: str | None
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api.create_repo(repo, repo_type="dataset", private=private or None, exist_ok=True)
    if revision:
        api.create_branch(repo, repo_type="dataset", branch=revision, exist_ok=True)
    there = api.dataset_info(repo, revision=revision)
    if private and not there.private:  # the Hub ignores `private` for a repository that exists
        raise UsageError(
            f"--push-to-hub {repo}: it exists and is public. Leave out --private, or make it private first."
        )
    present = {file.rfilename for file in there.siblings or []}
    stale = sorted(name for name in present - set(files) if OURS.fullmatch(name))
    commit = api.create_commit(
        repo,
        [
            *(CommitOperationDelete(name) for name in stale),
            *(CommitOperationAdd(name, folder / name) for name in files),
        ],
        commit_message=message,
        repo_type="dataset",
        revision=revision,
        parent_commit=there.sha,  # nobody may have changed what `stale` was read from
    )
    return str(commit.commit_url)
