"""Upload an exported folder to the Hugging Face Hub: to a named repository, private by default, after confirmation."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from preftune.errors import ConfigError, IncompleteError, StorageError
from preftune.model.locate import ADAPTER_CONFIG, read_config
from preftune.report.card import is_hub_id

TOKEN = "HF_TOKEN"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def require_repository(repository: str | None, confirmed: bool) -> str:
    """Return the id of the repository. Raises ConfigError without an id, a token or a confirmation.

    `confirmed`: --yes, or the user's answer on the terminal. Nothing is written or sent before this check.
    """
    if not repository:
        fix = "name it: --repo USER/NAME"
        raise ConfigError("the repository to upload to is not set", where="--repo", fix=fix)
    if not REPOSITORY.fullmatch(repository):
        raise ConfigError(f"{repository!r} is not the id of a repository", where="--repo", fix="write USER/NAME")
    if not os.environ.get(TOKEN):
        what, fix = f"the environment variable {TOKEN} is not set", f"run export {TOKEN}=..., with write permission"
        raise ConfigError(what, where="--to hub", fix=fix)
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        what, fix = "HF_HUB_OFFLINE is set, so nothing can be uploaded", "run unset HF_HUB_OFFLINE"
        raise ConfigError(what, where="--to hub", fix=fix)
    if not confirmed:
        what, fix = "the upload was not confirmed, so nothing was sent", "add --yes"
        raise ConfigError(what, where="--to hub", fix=fix)
    return repository


def require_public_base(folder: Path) -> None:
    """Raise ConfigError for an adapter whose base model is a folder of this machine: nobody else could load it."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    base = str(read_config(folder)["base_model_name_or_path"])
    if not is_hub_id(base):
        raise ConfigError(
            f"the base model of the adapter is a local folder: {base}",
            where="--to hub",
            why="nobody else could load the adapter",
            fix="name the base model's id on the Hub (--base USER/NAME), or upload the merged model: add --merge",
        )


def upload(folder: Path, repository: str, public: bool) -> str:
    """Upload all files of `folder` in one commit, and return the URL of the repository.

    A new repository is private, unless `public`. Raises ConfigError if an existing repository is public and `public`
    is not set, and IncompleteError if the Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    api: Any = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ[TOKEN], library_name="preftune")
    try:
        try:
            existing = api.repo_info(repository)
        except RepositoryNotFoundError:
            existing = None
        if existing is not None and not existing.private and not public:
            raise ConfigError(
                "the repository exists and is public",
                where=f"--repo {repository}",
                fix="add --public to publish the model, or choose a different repository",
            )
        url = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Upload with preftune",
        )
    except (HfHubHTTPError, OSError) as error:
        if isinstance(error, StorageError):
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise IncompleteError(
            f"the upload failed: {lines[0] if lines else type(error).__name__}",
            where=repository,
            fix=f"check {TOKEN} and the connection, and run `hf upload {repository} {folder}`; the folder is complete",
        ) from error
    return str(url)
