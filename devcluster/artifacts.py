"""All that is built once and kept in the cache."""

from collections.abc import Sequence

from devcluster import basemodel, clients, gobuild, rootfs
from devcluster.addons import Addon
from devcluster.cache import Recipe
from devcluster.console import say
from devcluster.paths import cache_root


def build_all(*, control_plane_only: bool = False, addons: Sequence[Addon] = ()) -> None:
    """Builds what is missing. The cheap ones go first: what cannot work fails before the long wait."""
    recipes: list[Recipe] = [clients.clients()]
    if not control_plane_only:
        recipes += [rootfs.rootfs(), basemodel.base_model()]
    recipes.append(gobuild.kubernetes())
    if not control_plane_only:
        recipes.append(gobuild.coredns())
    recipes += [addon.release.recipe() for addon in addons]
    missing = [recipe for recipe in recipes if not recipe.folder.is_dir()]
    if not missing:
        return
    say(f"to build into {cache_root()}: {', '.join(recipe.name for recipe in missing)}")
    say("the first time takes about 11 minutes on 2 idle cores; later it is all there already")
    for recipe in missing:
        recipe.build()
