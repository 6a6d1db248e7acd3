"""`upload`: sends a folder to the Hub in one commit, with errors that say what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

# The Hub stores files that are binary or larger than this as LFS objects, all others as plain git files. For git a file
# is binary if it has a zero byte among its first LOOKED_AT_BY_GIT bytes.
LARGEST_PLAIN_FILE = 10 * 1024**2
LOOKED_AT_BY_GIT = 8000


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    repo_type: str = "model",
    space_sdk: str | None = None,
    commit_message: str,
    outdated: Collection[str] = (),
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Put all files of a folder into a repository; the repository and its branch are created if they are missing.

    One commit takes all files or none. Uploading again sends only what is not there yet, and a folder that has not
    changed makes no commit. Other files of the repository are not changed, except `outdated` ones.

    Args:
        folder: The files; subfolders stay subfolders.
        repo_id: "user/name", or "name" for the user whose token it is.
        private: Only people with access see the repository.
        repo_type: "model", "dataset" or "space".
        space_sdk: The SDK of a Space, e.g. "gradio".
        commit_message: First line of the commit.
        outdated: Files of earlier uploads that the same commit deletes, where this folder does not have them; a name
            that ends in "/" means all files of a folder.
        revision: Branch to commit to, by default the main one.
        token: Write token, by default that of HF_TOKEN or of `hf auth login`.

    Returns:
        URL of the commit, or of the last one if nothing has changed.

    Raises:
        ValueError: If the folder holds no files, the name is not valid, or the Hub refuses token, rights or content.
        ConnectionError: If the connection breaks or the Hub is out of order; uploading again then continues.
    """
    files = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    repo_id = prepare_repository(
        repo_id, private=private, repo_type=repo_type, space_sdk=space_sdk, revision=revision, token=token
    )
    api = HfApi(token=_checked(token))
    with _explained(repo_id):
        there = set(api.list_repo_files(repo_id, repo_type=repo_type, revision=revision)) if outdated else set()
        folders = tuple(name for name in outdated if name.endswith("/"))
        gone = {name for name in there - files.keys() if name in outdated or name.startswith(folders)}
        operations = [CommitOperationDelete(name) for name in sorted(gone)]
        operations += [CommitOperationAdd(name, path) for name, path in files.items()]
        # Not upload_folder, which may take several commits.
        commit = api.create_commit(
            repo_id, operations, commit_message=commit_message, repo_type=repo_type, revision=revision
        )
    return commit.commit_url


def prepare_repository(
    repo_id: str,
    *,
    private: bool = False,
    repo_type: str = "model",
    space_sdk: str | None = None,
    license: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Create a repository and its branch if they are missing; what the Hub would refuse later fails now.

    Other arguments and errors are those of `upload`; `license` is what the card will name, and the Hub refuses a card
    with one that it does not know.

    Returns:
        The full name, "user/name".

    Raises:
        ValueError: Also if the repository is public and a private one is asked for.
    """
    api = HfApi(token=_checked(token))
    with _explained(repo_id):
        if license is not None:
            # Clients before 2.0 ask huggingface.co even for a Hub of one's own, which then refuses the card itself.
            with contextlib.suppress(HTTPError):
                ModelCard(f"---\n{ModelCardData(license=license).to_yaml()}\n---\n").validate(repo_type)
        # private=None leaves it to the organisation, whose repositories may be private by default.
        url = api.create_repo(repo_id, private=private or None, repo_type=repo_type, space_sdk=space_sdk, exist_ok=True)
        repo_id = url.repo_id
        public = private and not api.repo_info(repo_id, repo_type=repo_type).private
        # That a repository exists already does not show whether the token may write to it.
        api.auth_check(repo_id, repo_type=repo_type, write=True)
        if not public and revision is not None and not api.revision_exists(repo_id, revision, repo_type=repo_type):
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
    if public:
        raise ValueError(
            f"{url} is a public repository, and a private one was asked for, so nothing was uploaded. Make it private "
            "in its settings on the Hub, choose another name, or publish without asking for a private repository."
        )
    return repo_id


def planned_upload(folder: Path, repo_id: str, *, repo_type: str = "model") -> str:
    """A table of what `upload` would send and where to, made without asking the Hub.

    Raises:
        ValueError: If the folder holds no files or the name is not valid.
    """
    validate_repo_id(repo_id)
    rows = [("file", "bytes", "stored as")]
    for path in _files(folder):
        size = path.stat().st_size
        with path.open("rb") as file:
            binary = b"\0" in file.read(LOOKED_AT_BY_GIT)
        stored_as = "LFS object" if binary or size > LARGEST_PLAIN_FILE else "plain file"
        rows.append((path.relative_to(folder).as_posix(), f"{size:,}", stored_as))
    place = {"model": "", "dataset": "datasets/", "space": "spaces/"}[repo_type]
    width, digits = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"{name:{width}}  {size:>{digits}}  {stored_as}" for name, size, stored_as in rows]
    return "\n".join([f"To {HfApi().endpoint}/{place}{repo_id}, in one commit:", *lines])


def _files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise ValueError(f"{folder} holds no files, so there is nothing to upload.")
    return files


def _checked(token: str | None) -> str:
    token = get_token() if token is None else token
    if not token:
        raise ValueError("Not logged in to the Hub: run `hf auth login`, or set HF_TOKEN to a token that may write.")
    # The HTTP client would refuse such a header in a message that shows it.
    if not (token.isascii() and token.isprintable()):
        raise ValueError("The token for the Hub holds characters that no token has; copy it again from your settings.")
    return token


@contextlib.contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ConnectionError(
            f"{repo_id} can't be reached: HF_HUB_OFFLINE is set, which forbids all connections. Unset it to publish."
        ) from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError):  # name, licence or card are wrong
            raise ValueError(f"Nothing can be uploaded to {repo_id}: {error}") from error
        # An error of an LFS object is the cause of a RuntimeError; hf_xet raises OSErrors and RuntimeErrors.
        answer = error if isinstance(error, HfHubHTTPError) else error.__cause__
        status = answer.response.status_code if isinstance(answer, HfHubHTTPError) else None
        if status is None or status == 429 or status >= 500:
            raise ConnectionError(
                f"The upload to {repo_id} was interrupted ({answer or error}). All files appear in one commit, so no "
                "half of it can be seen. Publish again: what was uploaded is kept and not sent twice."
            ) from error
        reason = _REFUSALS.get(status, "The Hub refused what was sent for {repo_id}.").format(repo_id=repo_id)
        raise ValueError(f"{reason}\nThe Hub's answer: {answer}") from error


_REFUSALS = {
    401: "The Hub does not know the token that was sent for {repo_id}: run `hf auth login`, or set HF_TOKEN to a valid "
    "token that may write.",
    403: "The token may not write to {repo_id}: it needs the role write, and you the right to publish under this name. "
    "Check the name, or make another token at https://huggingface.co/settings/tokens.",
    404: "{repo_id} or its branch is not there, or the token may not see it. Check name, branch and token.",
}
