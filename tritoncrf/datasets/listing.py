"""Which mask belongs to which image? That of the same stem, or the one that a list says.

A stem is a file's name without its ending, and without a suffix that all images (or all masks) have: of
``x_leftImg8bit.png`` it is ``x`` with the suffix ``_leftImg8bit`` (or ``_leftImg8bit.png``). In nested folders it holds the
path below the folder too. Names that begin with a dot are passed over: macOS leaves ``._a.jpg`` beside ``a.jpg``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

IMAGE_ENDINGS: Final = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MASK_ENDINGS: Final = (".png", ".bmp", ".tif", ".tiff", ".gif")
VOLUME_ENDINGS: Final = (".nii.gz", ".nii", ".npz")
_LOSSY: Final = (".jpg", ".jpeg", ".webp")

Entry: TypeAlias = str | tuple[str, str]
Files: TypeAlias = str | os.PathLike[str] | Sequence[Entry]


@dataclass(frozen=True)
class Pair:
    """An image, its mask (None without masks), and the stem that names both."""

    stem: str
    image: Path
    mask: Path | None


@dataclass(frozen=True)
class Folder:
    """The files below a folder. name: as sentences call it; endings: those that count; suffix: what follows a stem."""

    name: str
    root: Path
    endings: tuple[str, ...]
    suffix: str = ""
    recursive: bool = False

    def stem(self, path: str) -> str | None:
        """The stem of a file, given by its path below the folder; None for one that does not count."""
        folder, _, name = path.rpartition("/")
        ending = next((part for part in self.endings if name.lower().endswith(part)), None)
        if ending is None or name.startswith("."):
            return None
        whole = any(self.suffix.lower().endswith(part) for part in self.endings)
        bare = name if whole else name[: -len(ending)]
        if not bare.endswith(self.suffix) or bare == self.suffix:
            return None
        bare = bare.removesuffix(self.suffix)
        return f"{folder}/{bare}" if folder else bare

    def files(self) -> dict[str, list[Path]]:
        """Every stem's files. Raises FileNotFoundError if there is no such folder."""
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.name}: expected a folder, got {self.root}, which is none")
        found: dict[str, list[Path]] = {}
        for path in sorted(self._walk()):
            stem = self.stem(path)
            if stem is not None:
                found.setdefault(stem, []).append(self.root / path)
        return found

    def _walk(self) -> Iterator[str]:
        seen = set()
        for folder, inner, names in os.walk(self.root, followlinks=True):
            place = os.path.realpath(folder)
            inner[:] = [name for name in inner if self.recursive and not name.startswith(".")]
            if place in seen:
                # A link that leads back to where it lies.
                inner.clear()
                continue
            seen.add(place)
            below = Path(folder).relative_to(self.root)
            yield from ((below / name).as_posix() for name in names)

    def inside(self, path: str) -> Path | None:
        """A file by its path below the folder (lists of VOC begin it with a slash); None if there is none."""
        return next((file for file in (self.root / path, self.root / path.lstrip("/")) if file.is_file()), None)


def pairs(images: Folder, masks: Folder | None, files: Files | None = None, limit: int | None = None) -> list[Pair]:
    """The images with their masks, in the order of the list, or sorted by stem.

    files: what to use: a text file of lines, or a sequence; each a stem, an image's name, or a pair of paths below the two
    folders (in a text ``image mask``, in a sequence a tuple). None for all images; then every mask needs an image too.
    limit: only the first so many.

    Raises FileNotFoundError or ValueError that names the file or stem, for what is missing, met twice, or a JPEG as a mask.
    """
    found = images.files()
    masked = None if masks is None else masks.files()
    if files is None:
        if masked is not None and masks is not None:
            _complete(sorted(masked), found, images)
        chosen: list[Pair | str] = [*sorted(found)]
    else:
        chosen = [_entry(entry, images, masks, found) for entry in entries(files)]
    names = [entry if isinstance(entry, str) else entry.stem for entry in chosen]
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"files: expected every stem once, got {twice!r} twice")
    if not chosen:
        raise ValueError(f"images: expected at least one image in {images.root}, got none{_hint(images)}")
    chosen = chosen[:limit]
    stems = [entry for entry in chosen if isinstance(entry, str)]
    _complete(stems, found, images)
    if masked is not None and masks is not None:
        _complete(stems, masked, masks)
    return [_pair(entry, found, masked) if isinstance(entry, str) else entry for entry in chosen]


def entries(files: Files) -> list[Entry]:
    """A list's lines without empty ones, or the sequence itself. Raises ValueError for one that is empty or no UTF-8."""
    if not isinstance(files, (str, os.PathLike)):
        found = list(files)
    else:
        path = Path(files)
        if not path.is_file():
            raise FileNotFoundError(f"files: expected a text file with one stem a line, got {path}, which is none")
        try:
            # Windows writes a byte order mark before the first line.
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            place = path.read_bytes()[: error.start].count(b"\n") + 1
            raise ValueError(
                f"files: expected UTF-8 text, got {path}, whose line {place} has the byte {error.object[error.start]:#04x}, "
                "as Latin-1 or UTF-16 would: save it as UTF-8"
            ) from None
        found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise ValueError("files: expected at least one stem, got none")
    return found


def _entry(entry: Entry, images: Folder, masks: Folder | None, found: Mapping[str, list[Path]]) -> Pair | str:
    """A pair where the entry is one, else a stem, which may have no file."""
    if isinstance(entry, str):
        if entry in found:
            return entry
        stem = images.stem(entry.lstrip("/"))
        if stem in found and stem is not None:
            return stem
        parts = entry.split("\t") if "\t" in entry else entry.replace(",", " ").split()
        if len(parts) != 2:
            return entry
        entry = parts[0].strip(), parts[1].strip()
    image, mask = images.inside(entry[0]), None if masks is None else masks.inside(entry[1])
    for folder, path, given in ((images, image, entry[0]), (masks, mask, entry[1])):
        if folder is not None and path is None:
            raise FileNotFoundError(f"files: expected {folder.name} below {folder.root}, got {given!r}, which is not there")
    if image is None:
        raise RuntimeError("files: expected an image")
    if mask is not None and mask.suffix.lower() in _LOSSY:
        raise _lossy(mask)
    stem = images.stem(entry[0].lstrip("/"))
    return Pair(entry[0].lstrip("/").rpartition(".")[0] if stem is None else stem, image, mask)


def _pair(stem: str, images: Mapping[str, list[Path]], masks: Mapping[str, list[Path]] | None) -> Pair:
    return Pair(stem, images[stem][0], None if masks is None else masks[stem][0])


def _complete(stems: Sequence[str], found: Mapping[str, list[Path]], folder: Folder) -> None:
    """Raises unless every stem has just one file."""
    missing = [stem for stem in stems if stem not in found]
    if missing:
        if folder.name == "masks":
            lossy = Folder("masks", folder.root, _LOSSY, folder.suffix, folder.recursive).files()
            if missing[0] in lossy:
                raise _lossy(lossy[missing[0]][0])
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(
            f"{folder.name}: expected a file for the stem {missing[0]!r}{more} in {folder.root}, got none{_hint(folder)}"
        )
    for stem in stems:
        if len(found[stem]) > 1:
            first, second = found[stem][:2]
            raise ValueError(f"{folder.name}: expected one file per stem, got {first} and {second.name}")


def _hint(folder: Folder) -> str:
    """What to say where files lie one folder deeper."""
    if folder.recursive or not folder.root.is_dir():
        return ""
    deeper = Folder(folder.name, folder.root, folder.endings, folder.suffix, recursive=True).files()
    deep = next((paths[0] for stem, paths in sorted(deeper.items()) if "/" in stem), None)
    return "" if deep is None else f" (but {deep} in a folder of its own: --recursive reads those)"


def _lossy(path: Path) -> ValueError:
    return ValueError(
        f"masks: expected {', '.join(MASK_ENDINGS)}, got {path}: JPEG and WebP change the numbers of labels, save masks as PNG"
    )
