"""Where the next copy of an object goes. Pure: elements and loads in, an order out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from catalog.wire import StorageElement


def candidates(
    usable: Sequence[StorageElement],
    *,
    holding: Collection[str],
    home: str,
    load: Mapping[str, float],
    sites: Collection[str],
) -> tuple[StorageElement, ...]:
    """Return the elements that may take a copy, best first.

    The first copy goes to the `home` site (a retrieve then stays local), every further one to a site that has none yet
    (`sites`: those of the copies so far), as far as there are such. Within that the least loaded goes first, by `load`
    (bytes sent so far and on the way, by name), so that copies spread.
    """
    free = [element for element in usable if element.name not in holding]

    def rank(element: StorageElement) -> tuple[bool, float, str]:
        misplaced = element.site in sites if sites else element.site != home
        return misplaced, load.get(element.name, 0.0), element.name

    return tuple(sorted(free, key=rank))
