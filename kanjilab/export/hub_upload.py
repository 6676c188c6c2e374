"""An exported run on the Hugging Face Hub."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from kanjilab.models.hub import PICKLES


class HubApi(Protocol):
    """What is used of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Makes a repository, or finds it.

        Args:
            repo_id, private, exist_ok: as there.
        """

    def upload_folder(self, *, repo_id: str, folder_path: str, allow_patterns: list[str], commit_message: str) -> Any:
        """Puts files of a folder into it.

        Args:
            repo_id, folder_path, allow_patterns, commit_message: as there.
        """


def require_repository(name: str) -> None:
    """Refuses what is no name of a repository on the Hub.

    Raises:
        ValueError: no `owner/name`.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"expected owner/name, got {name!r:.80}")


def push_to_hub(
    folder: Path, repository: str, files: Sequence[Path], *, private: bool = True, api: HubApi | None = None
) -> str:
    """Puts exported files onto the Hugging Face Hub, as the account that is logged in (`hf auth login`).

    Args:
        folder: that they are in.
        repository: `owner/name`; made if it is not there.
        files: what is published, README.md and safetensors among it; what else is in the folder is not.
        private: whether a new repository is.
        api: by default huggingface_hub's.
    Returns:
        The repository's address.
    Raises:
        ValueError: no `owner/name`, or files without a card, without weights or with a pickle.
    """
    require_repository(repository)
    names = [path.relative_to(folder).as_posix() for path in files]
    if pickles := [name for name in names if name.endswith((*PICKLES, ".pkl"))]:
        raise ValueError(f"{folder}: no pickle is published, got {pickles[0]}")
    if "README.md" not in names or not any(name.endswith(".safetensors") for name in names):
        raise ValueError(f"{folder}: expected README.md and .safetensors, got {names[:5]}")
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    about = "Weights trained with kanjilab"
    patterns = [glob.escape(name) for name in names]
    api.upload_folder(repo_id=repository, folder_path=str(folder), allow_patterns=patterns, commit_message=about)
    return f"https://huggingface.co/{repository}"
