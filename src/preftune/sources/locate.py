"""Find the data that a name refers to: a file, a pattern, a folder, a saved dataset, a URL or a Hub dataset."""

from __future__ import annotations

import difflib
import glob
from pathlib import Path

from preftune.errors import DataError
from preftune.sources.files import is_data_file
from preftune.sources.folders import folder_source
from preftune.sources.hub import hub_source, hub_stream, is_hub_id
from preftune.sources.remote import is_url, remote_files
from preftune.sources.rows import Source
from preftune.sources.splits import join_names


def locate(name: str, stream: bool = False) -> Source:
    """Find the data that a name without a slice refers to. `stream`: a Hub dataset is opened, and not downloaded.

    Raises DataError if it is not a local path or URL and cannot be a Hub id.
    """
    if is_url(name):
        return Source(name, tuple((file, file.url) for file in remote_files(name)))
    path = local_path(name)
    if path.is_file():
        return Source(name, ((path, name),))
    for number_of_parts in range(3):
        target, *parts = name.rsplit(":", number_of_parts)
        if len(parts) < number_of_parts:
            break
        folder = local_path(target)
        if folder.is_dir():
            return folder_source(folder, target, parts)
        if number_of_parts and folder.is_file():
            raise DataError("a file has no configs or splits", where=name, fix=f"write {target}")
    if glob.has_magic(name):
        return _matching(name, path)
    if is_hub_id(name):
        return hub_stream(name) if stream else hub_source(name)
    raise DataError("no such file", where=name, fix=_similar_files(path))


def _matching(name: str, pattern: Path) -> Source:
    """Return the files that match a pattern, in sorted order, as one source."""
    matches = sorted(path for path in glob.glob(str(pattern), recursive=True) if Path(path).is_file())
    data = [path for path in matches if is_data_file(Path(path).name)]
    if not data:
        other = f", only {join_names(matches)}, whose type is unknown" if matches else ""
        fix = "check the pattern: * matches any characters of a name, and ** any folders; quote it for the shell"
        raise DataError(f"no data file matches the pattern{other}", where=name, fix=fix)
    rest = [path for path in matches if path not in data]
    notes = [f"not read because their file type is unknown: {join_names(rest)}"] if rest else []
    return Source(name, tuple((Path(path), path) for path in data), notes=tuple(notes))


def local_path(name: str) -> Path:
    """Return the local path of a name."""
    if not name.strip():
        raise DataError("the name of a file is empty", where="data", fix="set data.train=FILE")
    try:
        path = Path(name).expanduser()
        path.is_file()
    except (OSError, RuntimeError) as error:  # name too long, permission denied, or unknown user in ~user
        what = f"the file cannot be read: {getattr(error, 'strerror', None) or error}"
        raise DataError(what, where=name[:200], fix="check the path and its permissions") from None
    return path


def _similar_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either; paths are relative to the current folder"
    try:
        names = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith("."))
    except OSError:
        return f"the folder {path.parent} cannot be read"
    similar = difflib.get_close_matches(path.name, names, n=3) or names[:8]
    return f"check the path; the folder {path.parent} contains {', '.join(similar) or 'no files'}"
