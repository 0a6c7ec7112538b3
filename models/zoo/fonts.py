"""Free fonts of different character, out of wheels on PyPI (licences: each wheel's own file)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.zoo.wheels import extract, fetch_wheel

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

    FontLoader = Callable[[int], FreeTypeFont]
    """Gives the font at a size in pixels."""


@dataclass(frozen=True)
class FontFile:
    """Where a font comes from.

    Attributes:
        requirement: The pinned wheel.
        sha256: The wheel's hash.
        member: The font's path inside the wheel.
    """

    requirement: str
    sha256: str
    member: str

    def fetch(self) -> Path:
        """Return the font's path, fetched on first use."""
        return extract(fetch_wheel(self.requirement, self.sha256), self.member)


_LATO = ("font-lato==0.1.0", "ff74f2d4647187bac4b853ab8215e6b2afe124fcd01c809629aadd8f4356e959")
_CALADEA = (
    "font-caladea==0.0.2",
    "eab5b77f1da830226524f419d16d4bc4cb5b68d2de0f47ef83760a8b202e94bc",
)
_MONO = (
    "fontpkg-space-mono==1.3",
    "e3b106370fee08de2a63d87d5b8c24fb1bb0c474a3f0b3c95832c239e14e5c7a",
)
_CAVEAT = (
    "fontpkg-caveat==2.0",
    "fcab480da07243af667fd70098d54f34129f8e5c42c1bf5da5c5842b7c187c19",
)
_FREDOKA = (
    "font-fredoka-one==0.0.4",
    "f177fdb46dcb7be565a68ece3a7b353a92cf038554a037f57b6303f6a5478ff8",
)

FONTS = (
    FontFile(*_LATO, "font_lato/files/Lato-Regular.ttf"),  # sans
    FontFile(*_LATO, "font_lato/files/Lato-BlackItalic.ttf"),
    FontFile(*_CALADEA, "font_caladea/files/Caladea-Regular.ttf"),  # serif
    FontFile(*_CALADEA, "font_caladea/files/Caladea-Italic.ttf"),
    FontFile(*_MONO, "fontpkg_space_mono/files/SpaceMono-Regular.ttf"),  # monospaced
    FontFile(*_CAVEAT, "fontpkg_caveat/files/Caveat[wght].ttf"),  # handwritten
    FontFile(*_FREDOKA, "font_fredoka_one/files/FredokaOne-Regular.ttf"),  # display
)


def load_fonts() -> "list[FontLoader]":
    """Return a loader for each of `FONTS`, fetched on first use (five wheels, 0.9 MB).

    Raises:
        DataError: A wheel can't be fetched or read, or its hash is not the pinned one.
    """
    return [_loader(font.fetch()) for font in FONTS]


def _loader(path: Path) -> "FontLoader":
    def load(size: int) -> "FreeTypeFont":
        from PIL import ImageFont

        # The basic layout is in every Pillow build; Raqm is not, and kerns differently.
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)

    return load
